"""Typed batches that cross from data to models: shapes, ranges; the account of images that cannot be read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixlex.files import sealed, sealed_lines

if TYPE_CHECKING:
    from pixlex.data.sources import ImageSource

Batch = TypeVar("Batch", bound="ImageBatch")

SKIPPED_FILE = "skipped.jsonl"
# Before this many images were visited, their broken fraction says little about the source.
_MIN_VISITED = 100
# Standard errors that the broken fraction of visits must lie above the limit: a source just below the limit
# would else be stopped by the chance of which images come first.
_MARGIN = 3.0


@dataclass(frozen=True)
class Skipped:
    """An image that could not be read, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class ImageBatch:
    """Images with what is known of them.

    Attributes:
        images: RGB pixels in [0, 1], float32, without mean or standard-deviation normalization.
        labels: class indices, -1 where unknown.
        keys: the stable name of each image inside its source.
        indices: the position of each image in its source.
        skipped: images that were replaced by another (training) or left out (evaluation).
        epochs: how often the source had been gone through when each image was drawn; 0 or None outside training.
        origin: the batch on the CPU that this one was sent from: what is decided there makes nobody wait for the
            device. None on the CPU.
    """

    images: Float[Tensor, "B 3 H W"]
    labels: Int[Tensor, " B"]
    keys: tuple[str, ...]
    indices: Int[Tensor, " B"]
    skipped: tuple[Skipped, ...] = ()
    epochs: Int[Tensor, " B"] | None = None
    origin: Any = field(default=None, repr=False, compare=False)

    def to(self: Batch, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on `device`; see `origin`."""
        kind = torch.device(device).type
        there = self.pinned() if kind == "cuda" and self.images.device.type == "cpu" else self
        origin = None if kind == "cpu" else self.origin or self
        # Copies to Apple's GPUs do not keep what they copy from.
        moved = there._each(lambda one: one.to(device, non_blocking=kind == "cuda"))
        return replace(there, **moved, origin=origin)

    def pinned(self: Batch) -> Batch:
        """Return the batch in memory that a GPU fetches from by itself."""
        return replace(self, **self._each(Tensor.pin_memory))

    def _each(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}


@dataclass(frozen=True, kw_only=True)
class ImageTextBatch(ImageBatch):
    """Images, each with a text.

    Attributes:
        image_ids: equal where images are the same one, in a source that lists it more than once, or of one name.
        word_ids: the texts as a language model reads them; anything where padded.
        key_padding: True = padding.
    """

    texts: tuple[str, ...]
    image_ids: Int[Tensor, " B"]
    word_ids: Int[Tensor, "B T"]
    key_padding: Bool[Tensor, "B T"]


@dataclass(frozen=True, kw_only=True)
class ReasoningBatch(ImageBatch):
    """Items of one or more images, a text, and what may be answered; the images of a group follow each other.

    Attributes:
        items: the position of each item in its source.
        texts: questions, statements or hypotheses, one for each item.
        word_ids, key_padding: as in `ImageTextBatch`.
        answers: of each item, as people gave them; empty where unknown.
        targets: the distinct answers of each item with their weights in training.
        image_index: of each item, which of the batch's groups of images it speaks of, counted from 0; None where
            the i-th item speaks of the i-th group.
    """

    items: Int[Tensor, " Q"]
    texts: tuple[str, ...]
    word_ids: Int[Tensor, "Q T"]
    key_padding: Bool[Tensor, "Q T"]
    answers: tuple[tuple[str, ...], ...]
    targets: tuple[Mapping[str, float], ...]
    image_index: Int[Tensor, " Q"] | None = None


class TooManyBroken(ValueError):
    """More images cannot be read than the configuration allows."""


class BrokenImages:
    """Collects the images of a source that could not be read and lists them in a file.

    The file holds one JSON object a line (source, key, reason), each image once, also over resumed runs.

    Args:
        folder: The folder of the run, in which skipped.jsonl lists the images; None keeps no list. Several
            sources may use it.
        max_broken_fraction: Fraction of broken images, in [0, 1], above which `record` raises.
    """

    def __init__(self, folder: Path | None, source: ImageSource, max_broken_fraction: float) -> None:
        if not 0 <= max_broken_fraction <= 1:
            raise ValueError(f"max_broken_fraction must lie in [0, 1], got {max_broken_fraction}")
        self.path = None if folder is None else folder / SKIPPED_FILE
        self.visited = self._broken_visits = 0
        self.broken: dict[str, str] = {}
        self._name, self._num_images, self._limit = source.name, len(source), max_broken_fraction
        # Only for not writing them twice: a run that is resumed after its images were repaired starts anew.
        self._listed = set() if self.path is None else _listed_keys(self.path, source.name)

    def add(self, batch: ImageBatch) -> None:
        """Record a batch; see `record`."""
        self.record(batch.skipped, len(batch.keys))

    def record(self, skipped: Sequence[Skipped], num_readable: int) -> None:
        """Record images that could not be read and the number of those that could.

        Raises:
            TooManyBroken: The distinct broken images are more than max_broken_fraction of the source, or
                after 100 visits the broken fraction of all visits lies above it by three standard errors.
        """
        self.visited += num_readable + len(skipped)
        if not skipped:
            return
        self._broken_visits += len(skipped)
        new = {image.key: image.reason for image in skipped if image.key not in self.broken}
        self.broken.update(new)
        self._write({key: reason for key, reason in new.items() if key not in self._listed})
        margin = _MARGIN * math.sqrt(self._limit * (1 - self._limit) * self.visited)
        of_source = len(self.broken) > self._limit * self._num_images
        of_visits = self.visited >= _MIN_VISITED and self._broken_visits > self._limit * self.visited + margin
        if of_source or of_visits:
            shown = "; ".join(f"{key} ({reason})" for key, reason in list(self.broken.items())[:3])
            listed = "" if self.path is None else f"; all that were met are listed in {self.path}"
            raise TooManyBroken(
                f"{self._name}: {len(self.broken)} different images of {self._num_images} cannot be read "
                f"({self._broken_visits} of {self.visited} visits, {self._broken_visits / self.visited:.1%}), "
                f"the limit max_broken_fraction is {self._limit:.1%}: {shown}{listed}"
            )

    def _write(self, images: dict[str, str]) -> None:
        self._listed.update(images)
        if self.path is None or not images:
            return
        rows = [{"source": self._name, "key": key, "reason": reason} for key, reason in images.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            # A run that was killed may have left half a line: the next one must not continue it.
            if file.tell():
                file.seek(-1, os.SEEK_END)
                file.write(b"" if file.read() == b"\n" else b"\n")
            file.write("".join(f"{json.dumps(sealed(row))}\n" for row in rows).encode())


def _listed_keys(path: Path, source: str) -> set[str]:
    return {str(entry.get("key")) for entry in sealed_lines(path) if entry.get("source") == source}
