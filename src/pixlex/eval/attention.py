"""Seeing why an image and a text belong together, or which places foretell each hidden word."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pixlex.batch import Words
from pixlex.eval.gradcam import (
    ExplainedScore,
    Explanation,
    ReadText,
    ScoreOf,
    attention_heat,
    check_images,
    default_layer,
)
from pixlex.eval.passes import evaluating
from pixlex.models.cbvila import CBViLA

# What a pretrained model's explanation may be of.
PAIR_SCORES: tuple[ExplainedScore, ...] = ("matching", "masked_language")

# Texts with a hidden word that look at one image together.
_TEXTS_AT_ONCE = 64


def explain(
    model: CBViLA,
    images: Float[Tensor, "I 3 H W"],
    texts: Sequence[str],
    *,
    score: ExplainedScore = "matching",
    layer: int | None = None,
) -> list[Explanation]:
    """Say of images and texts which places of the image speak for which words.

    With `matching` the score is the logit of "belongs" (of the head that ALBEF's figures explain). With
    `masked_language` each word is hidden in turn, the score is the logarithm of the probability with which it is
    foretold from image and other words, and its map is that of the places it looked from: what in the image names
    this word. The score of the whole is then their sum (Salazar et al. 2020, pseudo-log-likelihood).

    Args:
        model: the network, where it is.
        images: RGB pixels in [0, 1]; one for each text, or one for all of them.
        texts: one or more, as the model's training texts were cleaned; each cut to the model's positions.
        score: what is explained.
        layer: of the fusion encoder, counted from 1; None for `default_layer`.

    Returns:
        One for each text, on the CPU.

    Raises:
        ValueError: images of another size, number or range; a text without words; no such score or layer.
    """
    if score not in PAIR_SCORES:
        raise ValueError(f"score must be one of {', '.join(PAIR_SCORES)}, got {score!r}")
    check_images(model, images)
    if not texts or len(images) not in (1, len(texts)):
        raise ValueError(
            f"expected one image for each of one or more texts, or one for all of them, got {len(images)} images "
            f"and {len(texts)} texts"
        )
    read = [ReadText(model, text, number) for number, text in enumerate(texts)]
    place = next(model.parameters()).device
    layer = default_layer(len(model.fusion.layers)) if layer is None else layer
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        seen = model.encode_image(images.to(place))
        if score == "masked_language":
            rows = [seen[number : number + 1] if len(seen) > 1 else seen for number in range(len(read))]
            pairs = zip(read, rows, strict=True)
            return [_of_hidden_words(model, text, row, layer) for text, row in pairs]
        return _of_matching(model, read, seen, layer)


def _of_matching(model: CBViLA, read: Sequence[ReadText], seen: Tensor, layer: int) -> list[Explanation]:
    words = _padded([text.word_ids for text in read], model.tokenizer.pad_id, seen.device)
    found = attention_heat(
        model.fusion, model.encode_text(words.word_ids, words.key_padding), model.image_context(seen),
        words.key_padding, lambda fused: model.matching_head(fused[:, 0])[:, 1], layer=layer,
    )  # fmt: skip
    rows = zip(read, found.maps[..., 1:], found.scores.tolist(), strict=True)
    return [text.of_tokens(heat, "matching", score, layer) for text, heat, score in rows]


def _of_hidden_words(model: CBViLA, text: ReadText, seen: Tensor, layer: int) -> Explanation:
    context = model.image_context(seen)
    maps, wholes, total = [], [], 0.0
    for first in range(0, len(text.words), _TEXTS_AT_ONCE):
        hidden = [places for _, places in text.words[first : first + _TEXTS_AT_ONCE]]
        rows = text.word_ids.repeat(len(hidden), 1)
        for row, places in zip(rows, hidden, strict=True):
            row[places] = model.tokenizer.mask_id
        words = _padded(list(rows), model.tokenizer.pad_id, seen.device)
        found = attention_heat(
            model.fusion, model.encode_text(words.word_ids, words.key_padding), context, words.key_padding,
            _foretold(model, text.word_ids.to(seen.device), hidden), layer=layer,
        )  # fmt: skip
        heat = found.maps[..., 1:]
        maps += [one[places].mean(0) for one, places in zip(heat, hidden, strict=True)]
        wholes.append(heat.mean(1))
        total += float(found.scores.sum())
    return text.explained(torch.stack(maps), torch.cat(wholes).mean(0), "masked_language", total, layer)


def _foretold(model: CBViLA, word_ids: Tensor, hidden: Sequence[list[int]]) -> ScoreOf:
    """Return the score of rows that hide these places: the sum of log p over them."""

    def score_of(fused: Tensor) -> Tensor:
        scores = []
        for vectors, places in zip(fused, hidden, strict=True):
            predicted = model.masked_word_head(vectors[places])
            logits = predicted @ model.text_encoder.words.weight.T + model.masked_word_head.bias
            chances = logits.float().log_softmax(-1)
            scores.append(chances.gather(1, word_ids[places].unsqueeze(1)).sum())
        return torch.stack(scores)

    return score_of


def _padded(rows: Sequence[Tensor], pad_id: int, place: torch.device) -> Words:
    lengths = torch.tensor([len(row) for row in rows])
    word_ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad_id)
    padding = torch.arange(word_ids.shape[1]) >= lengths.unsqueeze(1)
    return Words(word_ids.to(place), padding.to(place))
