"""Grad-CAM of cross-attention: for each word, the places of an image that speak for a score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pixlex.messages import quoted
from pixlex.models.cbvila import CBViLA
from pixlex.nn.bert import Context, FusionEncoder

ScoreOf = Callable[[Tensor], Tensor]  # fused vectors (B, T, D) -> one number for each row (B,)
ExplainedScore = Literal["matching", "masked_language", "answer"]

# The layer that localizes best of six (ALBEF's grounding; LAVIS issue 336).
_BEST_LAYER = 3
# More than any text that one would read as one.
_ENDLESS = 1_000_000


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
        score: the logit of "belongs", the logarithm of what the hidden words were foretold with, or the
            log-likelihood of an answer (nats).
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
        score_of: maps fused vectors to one score for each row, whose sum is explained: the logit of a head, the
            log-likelihood of an answer.
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


def check_images(model: CBViLA, images: Float[Tensor, "I 3 H W"]) -> None:
    """Raise `ValueError` for images of another size or range than the model's."""
    size = model.config.image_size
    if images.ndim != 4 or images.shape[1:] != (3, size, size):
        raise ValueError(f"expected images of shape (I, 3, {size}, {size}), got {tuple(images.shape)}")
    low, high = (float(images.min()), float(images.max())) if len(images) else (0.0, 1.0)
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise ValueError(f"expected pixels in [0, 1], got {low:g} to {high:g}")


class ReadText:
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
        bare = model.tokenize_texts([text], _ENDLESS).word_ids[0, 1:-1]
        if not len(bare):
            raise ValueError(f"text {number}: expected one word or more, got {quoted(text)}")
        room = model.config.text.positions - 2
        self.words = _joined(tokenizer.words(bare[:room]))
        self.left_out = tuple(_text(pieces) for pieces, _ in _joined(tokenizer.words(bare[room:])))
        start, end = torch.tensor([tokenizer.start_id]), torch.tensor([tokenizer.end_id])
        self.word_ids = torch.cat([start, bare[:room], end])

    def of_tokens(self, heat: Tensor, explained: ExplainedScore, score: float, layer: int) -> Explanation:
        """Return what was found, `heat` being (tokens, places) without the class; padding may follow."""
        maps = torch.stack([heat[places].mean(0) for _, places in self.words])
        return self.explained(maps, heat[: len(self.word_ids)].mean(0), explained, score, layer)

    def explained(
        self, heat: Tensor, whole: Tensor, explained: ExplainedScore, score: float, layer: int
    ) -> Explanation:
        """Return what was found, `heat` being (words, places) and `whole` (places), both without the class."""
        grid = math.isqrt(len(whole))
        return Explanation(
            tuple(_text(pieces) for pieces, _ in self.words), heat.view(-1, grid, grid).cpu(),
            whole.view(grid, grid).cpu(), explained, score, layer, self.left_out,
        )  # fmt: skip


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
