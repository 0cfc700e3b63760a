"""Grad-CAM of cross-attention: for each word of a text, the patches that speak for a score or an answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pixlex.data.text import plain_text
from pixlex.eval.evaluate import evaluating
from pixlex.messages import quoted
from pixlex.models.cbvila import CBViLA
from pixlex.models.finetuned import Reasoner
from pixlex.nn.bert import Context, FusionEncoder, Words

ScoreOf = Callable[[Tensor], Tensor]  # fused vectors (B, T, D) -> one number for each row (B,)
ExplainedScore = Literal["matching", "masked_language", "answer"]

# The layer that localizes best of six (ALBEF's grounding; LAVIS issue 336).
_BEST_LAYER = 3
# More than any text that one would read as one.
_ENDLESS = 1_000_000
# Texts with a hidden word that look at one image together.
_TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class Heat:
    """What speaks for each row's score, for each query and each place of the context, 0 or more, in its units."""

    maps: Float[Tensor, "B T M"]
    scores: Float[Tensor, " B"]


@dataclass(frozen=True)
class Explanation:
    """Why a text and an image got their score.

    Attributes:
        words: Of the text, as the model tokenizes it; pieces of one word joined.
        maps: One for each word, rows of the grid first, 0 or more, in units of the score: the mean of the maps of
            its pieces.
        whole: The mean over all tokens of the text, start and end among them.
        score: The logit of "belongs", the log-probability of the hidden words, or the log-likelihood of an answer
            (nats).
        layer: Of the fusion encoder, counted from 1.
        left_out: Words at the end of the text for which there were no positions.
    """

    words: tuple[str, ...]
    maps: Float[Tensor, "words grid grid"]
    whole: Float[Tensor, "grid grid"]
    explained: ExplainedScore
    score: float
    layer: int
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class ExplainedAnswer:
    """Why a model gives an answer, for each image; its log-likelihood, for classes log-probability, is in nats."""

    answer: str
    log_likelihood: float
    images: tuple[Explanation, ...]


def default_layer(depth: int) -> int:
    """Return the third layer of so many, or the last but one of fewer than four, counted from 1.

    Not the last: behind it the score depends on the first vector alone, so the maps of other words are zero there.
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
    its released code for grounding; A is never negative, so relu(A * dy / dA) is the same). Of the variants
    known, Selvaraju et al.'s mean of the gradient over all places is not taken: what one place means for the
    score says nothing of another. No parameter needs a gradient and none gets one.

    Args:
        text: Vectors of words; one text for each context, or several groups (see `CrossAttention`).
        score_of: Maps fused vectors to one score for each row, whose sum is explained.
    """
    depth = len(fusion.layers)
    if not 1 <= layer <= depth:
        raise ValueError(f"layer must be one of the fusion encoder's, 1 to {depth}, got {layer}")
    with torch.inference_mode(False), torch.enable_grad():
        watched = fusion.watch(text, context, key_padding, layer=layer)
        scores = score_of(watched.fused)
        (gradient,) = torch.autograd.grad(scores.sum(), watched.probabilities)
    heat = (watched.probabilities.detach() * gradient.clamp(min=0)).mean(1)
    num_rows, length = text.shape[:2]
    apart = heat.view(len(heat), num_rows // len(heat), length, -1).transpose(0, 1)
    return Heat(apart.flatten(0, 1).float(), scores.detach().float())


def explain(
    model: CBViLA,
    image: Float[Tensor, "1 3 H W"],
    text: str,
    *,
    score: Literal["matching", "masked_language"] = "matching",
    layer: int | None = None,
) -> Explanation:
    """Say which places of an image speak for which words of a text.

    With `matching` the score is the logit of "belongs" (of the head that ALBEF's figures explain). With
    `masked_language` each word is hidden in turn, the score is its log-probability given image and other words,
    and its map is that of the places it looked from: what in the image names this word. The score of the whole is
    then their sum (Salazar et al. 2020, pseudo-log-likelihood).

    Args:
        image: RGB pixels in [0, 1].
        text: As the model's training texts were cleaned; cut to the model's positions.
        layer: Of the fusion encoder, counted from 1; None for `default_layer`.
    """
    _check_images(model, image, 1)
    tokenized = _Text(model, text)
    layer = default_layer(len(model.fusion.layers)) if layer is None else layer
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        context = model.image_context(model.encode_image(image.to(next(model.parameters()).device)))
        if score == "masked_language":
            return _explain_hidden_words(model, tokenized, context, layer)
        rows = tokenized.word_ids.unsqueeze(0)
        found = _heat(model, rows, context, lambda fused: model.matching_head(fused[:, 0])[:, 1], layer)
    return tokenized.of_tokens(found.maps[0], "matching", float(found.scores), layer)


def _heat(model: CBViLA, rows: Tensor, context: Context, score_of: ScoreOf, layer: int) -> Heat:
    """Return the heat of rows of word ids, without that of the class."""
    word_ids = rows.to(next(model.parameters()).device)
    padding = torch.zeros_like(word_ids, dtype=torch.bool)
    text = model.encode_text(word_ids, padding)
    found = attention_heat(model.fusion, text, context, padding, score_of, layer=layer)
    return Heat(found.maps[..., 1:], found.scores)


def _explain_hidden_words(model: CBViLA, text: _Text, context: Context, layer: int) -> Explanation:
    word_ids = text.word_ids.to(next(model.parameters()).device)
    maps, wholes, total = [], [], 0.0
    for first in range(0, len(text.words), _TEXTS_AT_ONCE):
        hidden = [places for _, places in text.words[first : first + _TEXTS_AT_ONCE]]
        rows = text.word_ids.repeat(len(hidden), 1)
        for row, places in zip(rows, hidden, strict=True):
            row[places] = model.tokenizer.mask_id

        def score_of(fused: Tensor, hidden: Sequence[list[int]] = hidden) -> Tensor:
            """Return the sum of log p over the places that each row hides."""
            scores = []
            for vectors, places in zip(fused, hidden, strict=True):
                predicted = model.masked_word_head(vectors[places])
                logits = predicted @ model.text_encoder.words.weight.T + model.masked_word_head.bias
                log_probabilities = logits.float().log_softmax(-1)
                scores.append(log_probabilities.gather(1, word_ids[places].unsqueeze(1)).sum())
            return torch.stack(scores)

        found = _heat(model, rows, context, score_of, layer)
        maps += [one[places].mean(0) for one, places in zip(found.maps, hidden, strict=True)]
        wholes.append(found.maps.mean(1))
        total += float(found.scores.sum())
    return text.explanation(torch.stack(maps), torch.cat(wholes).mean(0), "masked_language", total, layer)


def explain_answer(
    model: Reasoner,
    images: Float[Tensor, "n 3 H W"],
    text: str,
    *,
    answer: str | None = None,
    layer: int | None = None,
) -> ExplainedAnswer:
    """Say which places of the images speak for an answer, for each word of the text.

    As `attention_heat`, the score being the log-likelihood with which the decoder writes the answer while it
    looks at the text, which has looked at the image; or the log-probability of the class.

    Args:
        images: RGB pixels in [0, 1], as many as the model is given with each text.
        text: A question, statement or hypothesis, cleaned as in training; cut to the model's positions.
        answer: None for the model's own; otherwise any words for `vqa`, or one of the classes.
        layer: As for `explain`.
    """
    body, num_images = model.body, model.config.num_images
    _check_images(body, images, num_images)
    tokenized = _Text(body, text)
    layer = default_layer(len(body.fusion.layers)) if layer is None else layer
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        ids = tokenized.word_ids.unsqueeze(0).to(next(model.parameters()).device)
        words, images = Words(ids, torch.zeros_like(ids, dtype=torch.bool)), images.to(ids.device)
        if answer is None:
            answer = model.config.answers[int(model.rank(images, words).numbers[0, 0])]
        score_of = _score_of(model, plain_text(answer), words.key_padding)
        found = attention_heat(
            body.fusion, body.encode_text(words.word_ids, words.key_padding).repeat(num_images, 1, 1),
            body.image_context(body.encode_image(images)), words.key_padding.repeat(num_images, 1), score_of,
            layer=layer,
        )  # fmt: skip
    score = float(found.scores.sum())
    heat = found.maps[..., 1:]  # without the class
    return ExplainedAnswer(
        answer, score, tuple(tokenized.of_tokens(one, "answer", score, layer) for one in heat)
    )


def _score_of(model: Reasoner, answer: str, key_padding: Tensor) -> ScoreOf:
    """Return the score of an answer as a function of the fused text: a part of it for each image."""
    if model.decoder is None:
        classes = model.config.answers
        if answer not in classes:
            raise ValueError(f"expected one of {', '.join(classes)} as the answer, got {quoted(answer)}")
        number = classes.index(answer)

        def of_class(fused: Tensor) -> Tensor:
            log_probabilities = model.class_logits(fused.unsqueeze(0)).log_softmax(-1)
            return log_probabilities[0, number].expand(len(fused)) / len(fused)

        return of_class
    # One more than fits, so that what is too long is noticed.
    ids = model.tokenize_texts([answer], model.config.max_answer_words + 1).word_ids.to(key_padding.device)
    if not 3 <= ids.shape[1] <= model.config.max_answer_words:
        raise ValueError(
            f"expected an answer of 1 to {model.config.max_answer_words - 2} words (tokens), got {quoted(answer)}"
        )
    decoder, words = model.decoder, Words(ids, torch.zeros_like(ids, dtype=torch.bool))

    def of_written(fused: Tensor) -> Tensor:
        return model.log_likelihoods(words, decoder.project(fused, key_padding))

    return of_written


def _check_images(model: CBViLA, images: Float[Tensor, "I 3 H W"], count: int) -> None:
    """Refuse images of another size, number or range than the model's."""
    size = model.config.image_size
    if images.shape[1:] != (3, size, size):
        raise ValueError(f"expected images of shape (I, 3, {size}, {size}), got {tuple(images.shape)}")
    if len(images) != count:
        raise ValueError(f"expected {count} images with the text, got {len(images)}")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise ValueError(f"expected pixels in [0, 1], got {low:g} to {high:g}")


class _Text:
    """A text as the model tokenizes it: word ids from start to end, words with their places, words left out."""

    def __init__(self, model: CBViLA, text: str) -> None:
        tokenizer = model.tokenizer
        bare = model.tokenize_texts([text], _ENDLESS).word_ids[0, 1:-1]
        if not len(bare):
            raise ValueError(f"expected a text of one word or more, got {quoted(text)}")
        room = model.config.text.positions - 2
        self.words = _joined(tokenizer.words(bare[:room]))
        self.left_out = tuple(word for word, _ in _joined(tokenizer.words(bare[room:])))
        start, end = torch.tensor([tokenizer.start_id]), torch.tensor([tokenizer.end_id])
        self.word_ids = torch.cat([start, bare[:room], end])

    def of_tokens(self, heat: Tensor, explained: ExplainedScore, score: float, layer: int) -> Explanation:
        """Return what was found, `heat` being (tokens, places) without the class."""
        maps = torch.stack([heat[places].mean(0) for _, places in self.words])
        return self.explanation(maps, heat.mean(0), explained, score, layer)

    def explanation(
        self, heat: Tensor, whole: Tensor, explained: ExplainedScore, score: float, layer: int
    ) -> Explanation:
        """Return what was found, `heat` being (words, places) and `whole` (places), both without the class."""
        grid, words = math.isqrt(len(whole)), tuple(word for word, _ in self.words)
        maps = heat.view(-1, grid, grid).cpu()
        return Explanation(words, maps, whole.view(grid, grid).cpu(), explained, score, layer, self.left_out)


def _joined(pieces: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Return the words that pieces make up, and where those of each stand behind the start of the text."""
    words: list[tuple[str, list[int]]] = []
    for place, piece in enumerate(pieces, start=1):
        if piece.startswith("##") and words:
            word, places = words.pop()
            words.append((word + piece[2:], [*places, place]))
        else:
            words.append((piece.removeprefix("##"), [place]))
    return words
