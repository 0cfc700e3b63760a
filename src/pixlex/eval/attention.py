"""Seeing why: for each word of a text, the places of an image that speak for a score (Grad-CAM of attention)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pixlex.batch import Words
from pixlex.eval.passes import evaluating
from pixlex.models.cbvila import CBViLA
from pixlex.nn.bert import Context, FusionEncoder

ScoreOf = Callable[[Tensor], Tensor]  # fused vectors (B, T, D) -> one number for each row (B,)
ExplainedScore = Literal["matching", "masked_language"]
EXPLAINED_SCORES: tuple[ExplainedScore, ...] = ("matching", "masked_language")

# The layer that localizes best of six (ALBEF's grounding; LAVIS issue 336).
_BEST_LAYER = 3
# More than any text that one would read as one.
_ENDLESS = 1_000_000
# Texts with a hidden word that look at one image together.
_TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class Heat:
    """What speaks for a score at each place that a layer looks at.

    Attributes:
        maps: 0 or more, for each query and each place of the context, in units of the score.
        scores: what was explained, one for each row.
    """

    maps: Float[Tensor, "B T M"]
    scores: Float[Tensor, " B"]


@dataclass(frozen=True)
class Explanation:
    """Why a text and an image got their score.

    Attributes:
        words: of the text, as it was read; pieces of one word joined.
        maps: one for each word, rows of the grid first, 0 or more, in units of the score: the mean of the maps of
            its pieces.
        whole: of the whole text: the mean over all its tokens, start and end among them.
        explained: which score.
        score: the logit of "belongs", or the logarithm of what the hidden words were foretold with (nats).
        layer: of the fusion encoder, counted from 1.
        left_out: words at the end of the text for which there were no positions.
    """

    words: tuple[str, ...]
    maps: Float[Tensor, "words grid grid"]
    whole: Float[Tensor, "grid grid"]
    explained: ExplainedScore
    score: float
    layer: int
    left_out: tuple[str, ...]


def default_layer(depth: int) -> int:
    """Return the third layer, or the last but one of fewer than four.

    Not the last: behind it the score reads the first vector alone, so what other words look at there is nothing
    to it, and their maps are zero. With a single layer there is no choice.

    Args:
        depth: layers of the fusion encoder, 1 or more.
    """
    return min(_BEST_LAYER, max(1, depth - 1))


def attention_heat(
    fusion: FusionEncoder,
    text: Float[Tensor, "B T D"],
    context: Context,
    key_padding: Bool[Tensor, "B T"] | None,
    score_of: ScoreOf,
    *,
    layer: int,
) -> Heat:
    """Return Grad-CAM of one layer's cross-attention: mean over heads of A * relu(dy / dA).

    A are the probabilities with which words look at places, y the score (Li et al. 2021, ALBEF, section 6.6 and
    its released code for grounding; A is never negative, so relu(A * dy / dA) is the same). Of the variants known,
    Selvaraju et al.'s mean of the gradient over all places is not taken: what one place means for the score says
    nothing of another. No parameter needs a gradient and none gets one.

    Args:
        fusion: reads the text, looks at the context.
        text: vectors of words; one text for each context, or several groups (see `CrossAttention`).
        context: what is looked at.
        key_padding: True = padding of the text.
        score_of: maps fused vectors to one score for each row, which depends on no other row: the logit of a
            head, the log-likelihood of an answer.
        layer: counted from 1.

    Raises:
        ValueError: no such layer.
    """
    depth = len(fusion.layers)
    if not 1 <= layer <= depth:
        raise ValueError(f"layer must be one of the fusion encoder's, 1 to {depth}, got {layer}")
    with torch.inference_mode(False), torch.enable_grad():
        watched = fusion.watch(text, context, key_padding, layer=layer)
        scores = score_of(watched.fused)
        (gradient,) = torch.autograd.grad(scores.sum(), watched.shares)
    heat = (watched.shares.detach() * gradient.clamp(min=0)).mean(1)
    num_rows, length = text.shape[:2]
    apart = heat.view(len(heat), num_rows // len(heat), length, -1).transpose(0, 1)
    return Heat(apart.flatten(0, 1).float(), scores.detach().float())


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
    if score not in EXPLAINED_SCORES:
        raise ValueError(f"score must be one of {', '.join(EXPLAINED_SCORES)}, got {score!r}")
    _check_images(model, images, len(texts))
    read = [_Text(model, text, number) for number, text in enumerate(texts)]
    place = next(model.parameters()).device
    layer = default_layer(len(model.fusion.layers)) if layer is None else layer
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        seen = model.see(images.to(place))
        if score == "masked_language":
            rows = [seen[number : number + 1] if len(seen) > 1 else seen for number in range(len(read))]
            pairs = zip(read, rows, strict=True)
            return [_of_hidden_words(model, text, row, layer) for text, row in pairs]
        return _of_matching(model, read, seen, layer)


class _Text:
    """A text as the model reads it.

    Args:
        model: whose tokenizer and positions count.
        text: what is read.
        number: of the text, for the error.

    Raises:
        ValueError: a text without words.
    """

    def __init__(self, model: CBViLA, text: str, number: int) -> None:
        tokenizer = model.tokenizer
        bare = model.encode_texts([text], _ENDLESS).word_ids[0, 1:-1]
        if not len(bare):
            raise ValueError(f"text {number}: expected one word or more, got {text!r}")
        room = model.config.text.positions - 2
        self.words = _joined(tokenizer.words(bare[:room]))
        self.left_out = tuple(_text(pieces) for pieces, _ in _joined(tokenizer.words(bare[room:])))
        start, end = torch.tensor([tokenizer.start_id]), torch.tensor([tokenizer.end_id])
        self.word_ids = torch.cat([start, bare[:room], end])

    def explained(
        self, heat: Tensor, whole: Tensor, explained: ExplainedScore, score: float, layer: int
    ) -> Explanation:
        """Return what was found, `heat` being (words, places) and `whole` (places), both without the class."""
        grid = math.isqrt(len(whole))
        return Explanation(
            tuple(_text(pieces) for pieces, _ in self.words), heat.view(-1, grid, grid).cpu(),
            whole.view(grid, grid).cpu(), explained, score, layer, self.left_out,
        )  # fmt: skip


def _of_matching(model: CBViLA, read: Sequence[_Text], seen: Tensor, layer: int) -> list[Explanation]:
    words = _padded([text.word_ids for text in read], model.tokenizer.pad_id, seen.device)
    found = attention_heat(
        model.fusion, model.read(words.word_ids, words.key_padding), model.look_at_images(seen),
        words.key_padding, lambda fused: model.matching_head(fused[:, 0])[:, 1], layer=layer,
    )  # fmt: skip
    explanations = []
    for text, heat, score in zip(read, found.maps[..., 1:], found.scores.tolist(), strict=True):
        maps = torch.stack([heat[places].mean(0) for _, places in text.words])
        whole = heat[: len(text.word_ids)].mean(0)
        explanations.append(text.explained(maps, whole, "matching", score, layer))
    return explanations


def _of_hidden_words(model: CBViLA, text: _Text, seen: Tensor, layer: int) -> Explanation:
    context = model.look_at_images(seen)
    maps, wholes, total = [], [], 0.0
    for first in range(0, len(text.words), _TEXTS_AT_ONCE):
        hidden = [places for _, places in text.words[first : first + _TEXTS_AT_ONCE]]
        rows = text.word_ids.repeat(len(hidden), 1)
        for row, places in zip(rows, hidden, strict=True):
            row[places] = model.tokenizer.mask_id
        words = _padded(list(rows), model.tokenizer.pad_id, seen.device)
        found = attention_heat(
            model.fusion, model.read(words.word_ids, words.key_padding), context, words.key_padding,
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


def _joined(pieces: Sequence[str]) -> list[tuple[list[str], list[int]]]:
    """Return the pieces of each word and where they stand behind the start of the text."""
    words: list[tuple[list[str], list[int]]] = []
    for place, piece in enumerate(pieces, start=1):
        if not (piece.startswith("##") and words):
            words.append(([], []))
        words[-1][0].append(piece)
        words[-1][1].append(place)
    return words


def _text(pieces: Sequence[str]) -> str:
    return "".join(piece.removeprefix("##") for piece in pieces)


def _padded(rows: Sequence[Tensor], pad_id: int, place: torch.device) -> Words:
    lengths = torch.tensor([len(row) for row in rows])
    word_ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad_id)
    padding = torch.arange(word_ids.shape[1]) >= lengths.unsqueeze(1)
    return Words(word_ids.to(place), padding.to(place))


def _check_images(model: CBViLA, images: Tensor, num_texts: int) -> None:
    size = model.config.image_size
    if images.ndim != 4 or images.shape[1:] != (3, size, size):
        raise ValueError(f"expected images of shape (I, 3, {size}, {size}), got {tuple(images.shape)}")
    if num_texts == 0 or len(images) not in (1, num_texts):
        raise ValueError(
            f"expected one image for each of one or more texts, or one for all of them, got {len(images)} images "
            f"and {num_texts} texts"
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise ValueError(f"expected pixels in [0, 1], got {low:g} to {high:g}")
