"""What is read: the sources of images and how they are cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pixlex.config.fields import FRACTION, NOT_NEGATIVE, POSITIVE, Config, Range, describe, naming

# How an image becomes a square: its centered square, or all of it in another shape.
Cut = Literal["center", "squash"]
CUT_MEANING = (
    "How images that are not square become so, random crops aside: center cuts out a square; squash keeps "
    "all of the image and not its shape (LQAE, ALBEF)."
)
SQUARE: Mapping[Cut, str] = {"center": "images cut at the center", "squash": "images squashed to squares"}

_LARGEST = 65_536  # pixels
_CROP = Range("must lie in (0, 1]", lambda value: 0 < value <= 1)


@dataclass(frozen=True, kw_only=True)
class GridConfig(Config):
    """A network that reads square images as a grid of square patches."""

    image_size: int = describe(256, "Side of the square image in pixels.", POSITIVE)
    patch_size: int = describe(16, "Side of a patch in pixels; must divide the image size.", POSITIVE)
    cut: Cut = describe("center", CUT_MEANING)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    def check(self) -> None:
        """Require an image that its patches tile exactly."""
        side, patch = self.image_size, self.patch_size
        self.require("image_size", side <= _LARGEST, f"must be at most {_LARGEST}")
        self.require("image_size", side % patch == 0, f"must be a multiple of the patch size {patch}")


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
        "How training images are cut: a random area, or resized as for evaluation (model.cut).",
    )
    crop_scale_min: float = describe(
        0.2,
        "Smallest share of the image's area that a random crop keeps, in (0, 1]; LQAE's code uses 0.2.",
        _CROP,
    )
    horizontal_flip: bool = describe(True, "Mirror half of the training images.")
    max_broken_share: float = describe(
        0.05, "Share of unreadable images, in [0, 1], above which a run stops instead of going on.", FRACTION
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
