"""Fields of configurations: default, sentence, range and choices; and the parts that every run has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pixlex.messages import quoted


@dataclass(frozen=True)
class Range:
    """What the values of a field must be: the end of a sentence, and the test."""

    sentence: str
    holds: Callable[[Any], bool]


POSITIVE = Range("must be above 0", lambda value: value > 0)
NOT_NEGATIVE = Range("must be 0 or more", lambda value: value >= 0)
FRACTION = Range("must lie in [0, 1]", lambda value: 0 <= value <= 1)
INSIDE = Range("must lie in (0, 1)", lambda value: 0 < value < 1)
BELOW_ONE = Range("must lie in [0, 1)", lambda value: 0 <= value < 1)


def at_least(least: int, why: str = "") -> Range:
    """Return the range of the whole numbers from one on."""
    return Range(f"must be {least} or more{why}", lambda value: value >= least)


def naming(what: str) -> Range:
    """Return the range of the texts that are not blank."""
    return Range(f"must name {what}", lambda value: bool(value.strip()))


def describe(default: Any, sentence: str, range: Range | None = None) -> Any:
    """Return a dataclass field with its default, its range and the sentence that `pixlex describe` prints."""
    return field(default=default, metadata={"sentence": sentence, "range": range})


def part(kind: Callable[[], Any], sentence: str) -> Any:
    """Return a dataclass field holding another configuration with all its defaults."""
    return field(default_factory=kind, metadata={"sentence": sentence})


@dataclass(frozen=True, kw_only=True)
class Config:
    """A frozen dataclass whose fields are checked when it is made.

    Raises:
        ValueError: naming the field, the rule and the value.
    """

    def __post_init__(self) -> None:
        """Check each field, then what fields have to do with each other."""
        kind: Any = type(self)
        choices = _choices(kind)
        for one in fields(kind):
            value, allowed = getattr(self, one.name), choices.get(one.name)
            if allowed is not None:
                self._require(one.name, value in allowed, f"must be one of {', '.join(allowed)}")
            if isinstance(value, float | int):
                self._require(one.name, -math.inf < value < math.inf, "must be finite")
            values = one.metadata.get("range")
            if values is not None:
                self._require(one.name, values.holds(value), values.sentence)
        self._check()

    def _check(self) -> None:
        """Check what fields have to do with each other."""

    def _require(self, name: str, holds: bool, sentence: str) -> None:
        """Raise `ValueError` with the field, the rule and the value unless `holds`."""
        if not holds:
            value = getattr(self, name)
            got = "" if is_dataclass(value) else f", got {quoted(value)}"  # a whole part says nothing
            raise ValueError(f"{type(self).__name__}.{name} {sentence}{got}")


@cache
def _choices(kind: type[Any]) -> dict[str, tuple[str, ...]]:
    hints = get_type_hints(kind)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


# How an image becomes a square: its centered square, or all of it in another shape.
ResizeMode = Literal["center", "squash"]
RESIZE_MODE_MEANING = (
    "How images that are not square become so, random crops aside: center cuts out a square; squash keeps "
    "all of the image and not its shape (LQAE, ALBEF)."
)
SQUARE: Mapping[ResizeMode, str] = {
    "center": "images cut at the center",
    "squash": "images squashed to squares",
}

_LARGEST = 65_536  # pixels
_CROP = Range("must lie in (0, 1]", lambda value: 0 < value <= 1)


@dataclass(frozen=True, kw_only=True)
class VisionTowerConfig(Config):
    """The layers of a vision transformer."""

    width: int = describe(768, "Width of the patch vectors; ViT-base has 768.", POSITIVE)
    depth: int = describe(12, "Number of blocks; ViT-base has 12.", POSITIVE)
    heads: int = describe(12, "Attention heads; must divide the width.", POSITIVE)
    mlp_ratio: float = describe(
        4.0, "Width of the feed-forward part over the width of the patch vectors.", POSITIVE
    )

    def _check(self) -> None:
        self._require("heads", self.width % self.heads == 0, f"must divide the width {self.width}")


@dataclass(frozen=True, kw_only=True)
class GridConfig(Config):
    """A network that reads square images as a grid of square patches."""

    image_size: int = describe(256, "Side of the square image in pixels.", POSITIVE)
    patch_size: int = describe(16, "Side of a patch in pixels; must divide the image size.", POSITIVE)
    resize_mode: ResizeMode = describe("center", RESIZE_MODE_MEANING)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    def _check(self) -> None:
        side, patch = self.image_size, self.patch_size
        self._require("image_size", side <= _LARGEST, f"must be at most {_LARGEST}")
        self._require("image_size", side % patch == 0, f"must be a multiple of the patch size {patch}")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Where images come from and how they are prepared."""

    train: str = describe(
        "embedded:photographs:train",
        "Training images: a folder, a .parquet, .csv or .jsonl file, .tar shards (these and .parquet also at an "
        "address such as s3://BUCKET/train-{000..063}.tar), hf:NAME[:SPLIT] or "
        "embedded:digits|photographs:train|test or embedded:scenes:train|test[:COUNT].",
        naming("a source of images"),
    )
    validation: str = describe("", "Validation images, described as above; empty for none.")
    augment: Literal["random_resized_crop", "resize"] = describe(
        "random_resized_crop",
        "How training images are cut: a random area, or resized as for evaluation (model.resize_mode).",
    )
    crop_scale_min: float = describe(
        0.2,
        "Smallest fraction of the image's area that a random crop keeps, in (0, 1]; LQAE's code uses 0.2.",
        _CROP,
    )
    horizontal_flip: bool = describe(True, "Mirror half of the training images.")
    max_broken_fraction: float = describe(
        0.05,
        "Fraction of unreadable images, in [0, 1], above which a run stops instead of going on.",
        FRACTION,
    )
    shuffle_blocks: int = describe(
        0,
        "0: any image may follow any other. N: tar shards, or row groups of Parquet files, come in random order, "
        "and the images of N of them are mixed at a time, so that slow disks and large files are read forward.",
        NOT_NEGATIVE,
    )
    streams: int = describe(
        1,
        "Parts of the images that each fill their share of a batch. With shuffle_blocks, and as many streams as "
        "processes or a multiple, processes read different shards; the batch is the same for all such numbers.",
        POSITIVE,
    )
    workers: int = describe(
        0, "Processes that decode images; 0 decodes in the training process.", NOT_NEGATIVE
    )


@dataclass(frozen=True, kw_only=True)
class PairDataConfig(DataConfig):
    """Where images with captions come from and how they are prepared."""

    train: str = describe(
        "embedded:scenes:train",
        "Images with captions: .parquet, .csv, .tsv, .jsonl, .json (ALBEF, Karpathy, COCO, Visual Genome), .tar "
        "shards, a folder, hf:NAME[:SPLIT] or embedded:scenes:train; options follow, as in "
        "FILE.json?split=train&images=DIR; several joined by ' + ', each with an optional 'WEIGHT * ' in front.",
        naming("a source of images"),
    )
    validation: str = describe("", "Validation images with captions, described as above; empty for none.")
    horizontal_flip: bool = describe(
        False, "Mirror half of the training images; captions know left and right."
    )
    first_caption_rate: float = describe(
        0.0,
        "How often an image's first caption, its name, is drawn for a training step, in [0, 1]; images of one "
        "name are then right answers of each other. 0: captions are drawn alike.",
        FRACTION,
    )
    caption_stretch: int = describe(
        0,
        "Longest stretch of words, drawn at random, that stands for a caption in training, so that words alone "
        "are learned from lists of them; names drawn by first_caption_rate stay whole. 0: whole captions.",
        NOT_NEGATIVE,
    )
    caption_templates: tuple[str, ...] = describe(
        (),
        "Texts with a place for a caption, such as 'a picture of {}': training draws one for each caption, so "
        "that captions which are names can be asked for in phrases. None: captions as they are.",
        Range("must be texts with one {} each", lambda texts: all(one.count("{}") == 1 for one in texts)),
    )


SEED = Range("must be 0 or more and below 2 ** 63", lambda value: 0 <= value < 2**63)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """One training run."""

    steps: int = describe(
        250_200, "Optimizer steps; the paper's 100 epochs of ImageNet are 250,200.", POSITIVE
    )
    batch_size: int = describe(512, "Images in a step, over all processes.", POSITIVE)
    learning_rate: float = describe(
        3e-4,
        "Peak learning rate; the paper says 1.5e-4, its released command makes 3e-4 of that at batch 512.",
        POSITIVE,
    )
    warmup_steps: int = describe(
        12_510, "Steps of linear warm-up; the paper's 5 epochs are 12,510.", NOT_NEGATIVE
    )
    initial_learning_rate: float = describe(0.0, "Learning rate that the warm-up begins at.", NOT_NEGATIVE)
    final_learning_rate: float = describe(0.0, "Learning rate at the end of the cosine.", NOT_NEGATIVE)
    weight_decay: float = describe(5e-4, "AdamW's weight decay (paper: 0.0005).", NOT_NEGATIVE)
    decay_all: bool = describe(
        False, "Decay norms, biases and positions as well, as the released code does by accident."
    )
    beta1: float = describe(0.9, "AdamW's first beta.", BELOW_ONE)
    beta2: float = describe(0.95, "AdamW's second beta (released code: 0.95).", BELOW_ONE)
    epsilon: float = describe(1e-8, "AdamW's epsilon.", POSITIVE)
    clip_norm: float = describe(
        1.0, "Largest norm of the gradient; 0 for no limit, as in the paper.", NOT_NEGATIVE
    )
    seed: int = describe(0, "Seed of weights, data order, augmentation and masks.", SEED)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = describe(
        "auto",
        "bf16, fp16: mixed precision, distances and losses in float32, gradients of fp16 scaled; fp32: everything "
        "in float32; auto: bf16 where the device multiplies in it, else fp16 on GPUs of CUDA and fp32 elsewhere, "
        "decided when a run begins.",
    )
    checkpoint_activations: bool = describe(
        False,
        "Keep the input of each layer alone and compute the rest again for its gradients: the same numbers in "
        "less memory, about a third slower. The way to a large batch, since losses compare within it.",
    )
    compile: bool = describe(
        False,
        "Compile transformer layers (torch.compile), minutes at the start; meant for GPUs. Evaluations are "
        "not compiled; a resumed run agrees with an uninterrupted one to rounding only.",
    )
    shard_parameters: bool = describe(
        False,
        "Share weights, gradients and moments of transformer layers out among the processes of torchrun (FSDP2): "
        "for models of which one device cannot hold all that. Alone it changes nothing.",
    )
    device: str = describe("auto", "auto, cpu, cuda, cuda:N or mps.")
    log_every: int = describe(10, "Steps between lines of the log.", POSITIVE)
    checkpoint_every: int = describe(1000, "Steps between checkpoints.", POSITIVE)
    keep_checkpoints: int = describe(2, "Newest checkpoints kept.", POSITIVE)
    evaluate_every: int = describe(
        5000, "Steps between evaluations with pictures; 0 for the end alone.", NOT_NEGATIVE
    )
    wandb: bool = describe(False, "Log to Weights & Biases as well; needs the extra pixlex[wandb].")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Config):
    """How an image encoder learns from images alone what is alike (Chen et al. 2020, SimCLR)."""

    steps: int = describe(0, "Steps of the phase teacher, the first one; 0 for none.", NOT_NEGATIVE)
    learning_rate: float = describe(3e-3, "Its peak learning rate; it has a schedule of its own.", POSITIVE)
    temperature: float = describe(0.2, "Divides the cosines of views.", POSITIVE)
    view_size: int = describe(
        0,
        "Side of a view in pixels, a multiple of the patch size; 0 for the image's. With convolutions half of it "
        "costs a quarter, and whole images, whose things are smaller than those of crops, are told apart better.",
        NOT_NEGATIVE,
    )
    views: Literal["photographs", "drawings"] = describe(
        "photographs",
        "What two views of an image may differ in: photographs: crop, mirror, mild colors; drawings: size, turn, "
        "shift, stretch on a white ground, mild colors.",
    )


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Config):
    """What is measured on the validation images."""

    batch_size: int = describe(64, "Images measured at a time.", POSITIVE)
    limit: int = describe(0, "Validation images used; 0 for all.", NOT_NEGATIVE)
    examples: int = describe(8, "Images drawn with their words.", POSITIVE)
    word_folds: int = describe(
        2,
        "Passes of the language model that measure how well words predict each other, each with one of so many "
        "shares of the words hidden; 0 for none.",
        NOT_NEGATIVE,
    )
