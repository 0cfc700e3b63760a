"""What is read: the sources of images and how they are cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pixlex.config.check import Check, describe

# How an image becomes a square: its centered square, or all of it in another shape.
Cut = Literal["center", "squash"]
CUT_MEANING = (
    "How images that are not square become so, random crops aside: center cuts out a square; squash keeps "
    "all of the image and not its shape (LQAE, ALBEF)."
)
SQUARE: Mapping[Cut, str] = {"center": "images cut at the center", "squash": "images squashed to squares"}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from and how they are prepared."""

    train: str = describe(
        "embedded:photographs:train",
        "Training images: a folder, a .parquet, .csv or .jsonl file, .tar shards (these and .parquet also at an "
        "address such as s3://BUCKET/train-{000..063}.tar), hf:NAME[:SPLIT] or "
        "embedded:digits|photographs:train|test or embedded:scenes:train|test[:COUNT].",
    )
    validation: str = describe("", "Validation images, described as above; empty for none.")
    augment: Literal["random_resized_crop", "resize"] = describe(
        "random_resized_crop",
        "How training images are cut: a random area, or resized as for evaluation (model.cut).",
    )
    crop_scale_min: float = describe(
        0.2, "Smallest share of the image's area that a random crop keeps, in (0, 1]; LQAE's code uses 0.2."
    )
    horizontal_flip: bool = describe(True, "Mirror half of the training images.")
    max_broken_share: float = describe(
        0.05, "Share of unreadable images, in [0, 1], above which a run stops instead of going on."
    )
    shuffle_blocks: int = describe(
        0,
        "0: any image may follow any other. N: tar shards, or row groups of Parquet files, come in random order, "
        "and the images of N of them are mixed at a time, so that slow disks and large files are read forward.",
    )
    streams: int = describe(
        1,
        "Parts of the images that each fill their share of a batch. With shuffle_blocks, and as many streams as "
        "processes or a multiple, processes read different shards; the batch is the same for all such numbers.",
    )
    workers: int = describe(0, "Processes that decode images; 0 decodes in the training process.")

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        check = Check(self)
        check.rule("train", bool(self.train.strip()), "must name a source of images")
        check.one_of("augment", ("random_resized_crop", "resize"))
        check.rule("crop_scale_min", 0 < self.crop_scale_min <= 1, "must lie in (0, 1]")
        check.share("max_broken_share")
        check.not_negative("workers", "shuffle_blocks")
        check.positive("streams")


@dataclass(frozen=True, kw_only=True)
class PairDataConfig(DataConfig):
    """Where images with captions come from and how they are prepared."""

    train: str = describe(
        "embedded:scenes:train",
        "Images with captions: .parquet, .csv, .tsv, .jsonl, .json (ALBEF, Karpathy, COCO, Visual Genome), .tar "
        "shards, a folder, hf:NAME[:SPLIT] or embedded:scenes:train; options follow, as in "
        "FILE.json?split=train&images=DIR; several joined by ' + ', each with an optional 'WEIGHT * ' in front.",
    )
    validation: str = describe("", "Validation images with captions, described as above; empty for none.")
    horizontal_flip: bool = describe(
        False, "Mirror half of the training images; captions know left and right."
    )
