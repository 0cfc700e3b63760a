"""`evaluate`: the measures of a model, few-shot classification aside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pixlex.cli.options import (
    DATA,
    PAIRS,
    BatchOptions,
    BrokenOption,
    Count,
    Folder,
    Fraction,
    LanguageModelOptions,
    LimitOption,
    MachineOptions,
    ModelOptions,
    Options,
    Positive,
    SizeOptions,
    UntrainedOption,
    option,
)

_ITEMS = (
    "images with texts and answers: the official files of the task, ALBEF's .json, .parquet, .csv, .tsv, "
    ".jsonl or embedded:scenes:test[:COUNT]; with options such as QUESTIONS.json?annotations=FILE&images=DIR; "
    "several as 'ONE + OTHER'; for assignment images with captions"
)


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(MachineOptions, BrokenOption, BatchOptions, LimitOption, ModelOptions):
    """What most measures have."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions(MeasureOptions):
    """Options of `evaluate reconstruction`."""

    data: str = option(text=DATA, metavar="DATA")
    out: Folder | None = option(None, "write results.json, reconstruction.png and report.html there", "DIR")
    mask_ratio: Fraction = option(0.5, "words hidden for masked_mse; default %(default)s")
    fid_features: Path | None = option(None, "TorchScript network for rFID", "FILE")
    lpips_network: Path | None = option(None, "TorchScript network for LPIPS", "FILE")


@dataclass(frozen=True, kw_only=True)
class PairOptions(MeasureOptions, UntrainedOption, SizeOptions):
    """What measures on images with captions have."""

    data: str = option(text=PAIRS, metavar="PAIRS")
    raw_captions: bool = option(False, "captions as they are, not cleaned")


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(PairOptions):
    """Options of `evaluate retrieval`."""

    score: Literal["contrastive", "matching", "matching+contrastive"] = option(
        "matching", "what pairs are ranked by; default %(default)s, among the best by contrast"
    )
    top_k: Positive | None = option(
        None,
        "captions of each image, and images of each caption, that matching scores; default 128, for COCO 256",
        "K",
    )
    max_words: Positive | None = option(
        None,
        "longest caption in words (tokens); default 30, or as many as the model was trained with if more",
    )
    out: Folder | None = option(
        None, "write results.json there; an interrupted evaluation goes on there", "DIR"
    )


@dataclass(frozen=True, kw_only=True)
class PretrainingOptions(PairOptions):
    """Options of `evaluate pretraining`."""

    seed: int = option(0, "of what is hidden; default %(default)s")
    out: Folder | None = option(None, "write results.json, pictures and report.html there", "DIR")


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(MachineOptions, BrokenOption, LimitOption, LanguageModelOptions):
    """Options of `evaluate linear-probe`."""

    model: tuple[str, ...] = option(text="model directories, run folders or hub repositories", metavar="M")
    data: str = option(text=f"labeled training images: {DATA}", metavar="TRAIN")
    test: str = option(text="labeled test images of the same classes", metavar="TEST")
    validation: str | None = option(
        None,
        "labeled images that the strength of regularization is chosen on; default a fifth of TRAIN",
        "VAL",
    )
    features: tuple[Literal["layers", "last", "encoder", "codes", "pixels"], ...] | None = option(
        None, "default: layers of the language model; of a model without one, encoder and codes"
    )
    per_layer: bool = option(False, "probe each layer of the language model too")
    untrained: bool = option(False, "probe each model with fresh weights too")
    repeats: Positive | None = option(
        None,
        "how often encoder and codes stand side by side; default of a VQ-VAE: as wide as the first LQAE's layers",
        "R",
    )
    test_limit: Positive | None = option(None, "most test and validation images", "LIMIT")
    allow_overlap: bool = option(False, "go on when the same image is in two of the sets")
    seed: Count = option(0, "of the validation split; default %(default)s")
    out: Folder = option(text="write results.json, pictures and report.html there", metavar="DIR")
    cache: Folder | None = option(None, "where features are kept; default OUT/features", "DIR")


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(Options):
    """How a fine-tuned model answers."""

    generate: bool = option(False, "write answers freely, not out of the list")
    shortlist: Positive = option(
        128, "answers of the list whose whole likelihood is computed; default %(default)s", "K"
    )


@dataclass(frozen=True, kw_only=True)
class TaskOptions(MeasureOptions, AnswerOptions, SizeOptions):
    """Options of the tasks that a CB-ViLA is fine-tuned to."""

    data: str = option(text=_ITEMS, metavar="ITEMS")
    training_data: str | None = option(
        None,
        "what the baselines without images learn from; default: what the model was fine-tuned on",
        "ITEMS",
    )
    first_token_twice: bool = option(False, "count the first word of an answer twice, as ALBEF's code does")
    out: Folder | None = option(None, "write numbers, answers and a page there", "DIR")


def reconstruction(options: ReconstructionOptions) -> int:
    """How well images survive as words."""
    from pixlex.cli import measures

    return measures.evaluate(options)


def linear_probe(options: ProbeOptions) -> int:
    """What a linear classifier reads from frozen features."""
    from pixlex.cli import probing

    return probing.linear_probe(options)


def retrieval(options: RetrievalOptions) -> int:
    """Images found by texts and texts by images."""
    from pixlex.cli import pair_measures

    return pair_measures.retrieval(options)


def pretraining(options: PretrainingOptions) -> int:
    """Losses, codebook and rebuilt pixels of a CB-ViLA on pairs that it was not trained on."""
    from pixlex.cli import pair_measures

    return pair_measures.pretraining(options)


def vqa(options: TaskOptions) -> int:
    """How often questions about images are answered rightly."""
    from pixlex.cli import reasoning

    return reasoning.evaluate(options, "vqa")


def nlvr2(options: TaskOptions) -> int:
    """How often sentences about images are judged rightly."""
    from pixlex.cli import reasoning

    return reasoning.evaluate(options, "nlvr2")


def entailment(options: TaskOptions) -> int:
    """How often what images entail is classified rightly."""
    from pixlex.cli import reasoning

    return reasoning.evaluate(options, "entailment")


def assignment(options: TaskOptions) -> int:
    """How often a caption is assigned rightly to one of two images, or to neither."""
    from pixlex.cli import reasoning

    return reasoning.evaluate(options, "assignment")
