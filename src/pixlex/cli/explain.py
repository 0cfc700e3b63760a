"""`explain`, `ask` and `gallery`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pixlex.cli.evaluate import AnswerOptions
from pixlex.cli.options import (
    DATA,
    BatchOptions,
    Count,
    LimitOption,
    MachineOptions,
    ModelOptions,
    Picture,
    Positive,
    SizeOptions,
    option,
    positional,
)


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(MachineOptions, SizeOptions, ModelOptions):
    """Options of `explain`."""

    paths: tuple[Path, ...] = positional("IMAGE", "an image file; two where the model reads two")
    text: str = positional("TEXT", "what is said or asked of it, in quotes")
    answer: str | None = option(None, "of a fine-tuned model: the answer to explain; default its own", "TEXT")
    out: Picture = option(text="the picture", metavar="FILE.png")
    score: Literal["matching", "masked_language"] | None = option(
        None,
        "what is explained of a pretrained model: that text and image belong together (the default), or that "
        "each word, hidden, is predicted from the image and the other words; of a fine-tuned one it is the answer",
    )
    layer: Positive | None = option(
        None,
        "of the fusion encoder, counted from 1; default the third, or the last but one of fewer than four",
        "N",
    )
    raw_text: bool = option(False, "the text as it is, not cleaned")


@dataclass(frozen=True, kw_only=True)
class AskOptions(MachineOptions, AnswerOptions, ModelOptions):
    """Options of `ask`."""

    paths: tuple[str, ...] = positional("IMAGE", "an image file; two where the model reads two")
    text: str = positional("QUESTION", "the question, or the sentence to judge")
    top: Positive = option(5, "most answers shown; default %(default)s")


@dataclass(frozen=True, kw_only=True)
class GalleryOptions(MachineOptions, BatchOptions, LimitOption, ModelOptions):
    """Options of `gallery`."""

    data: str = option(text=DATA, metavar="DATA")
    out: Picture = option(text="the picture", metavar="FILE.png")
    codewords: Positive = option(12, "rows; default %(default)s")
    seed: Count = option(0, "of the draw; default %(default)s")


def explain(options: ExplainOptions) -> int:
    """Draw where each word of a text finds itself in an image, or what speaks for an answer."""
    from pixlex.cli import explaining

    return explaining.explain_pair(options)


def ask(options: AskOptions) -> int:
    """Answer a question about an image, with probabilities."""
    from pixlex.cli import reasoning

    return reasoning.ask(options)


def gallery(options: GalleryOptions) -> int:
    """Draw codewords with patches that they stand for."""
    from pixlex.cli import pair_measures

    return pair_measures.draw_gallery(options)
