"""Typed batches that cross from data to models: shapes, dtypes and value ranges, written here once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Batch = TypeVar("Batch", bound="ImageBatch")


class NotFinite(ArithmeticError):
    """Numbers of a network became infinite or not a number, which a search or a result cannot be made of.

    Args:
        message: what was expected and what came.
        row: the first row concerned, of what the caller gave; None where it is none of those.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on `device` without waiting for what that device is busy with."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # from other memory the copy would wait for all that was asked before
    return tensor.to(device, non_blocking=True)


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
        origin: the batch on the CPU that this one was sent from; None there.
    """

    images: Float[Tensor, "B 3 H W"]
    labels: Int[Tensor, " B"]
    keys: tuple[str, ...]
    indices: Int[Tensor, " B"]
    skipped: tuple[Skipped, ...] = ()
    epochs: Int[Tensor, " B"] | None = None
    origin: ImageBatch | None = field(default=None, repr=False, compare=False)

    def to(self: Batch, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on `device`; see `on_host`."""
        origin = None if torch.device(device).type == "cpu" else self.on_host
        return replace(self, **self._each(lambda tensor: send(tensor, device)), origin=origin)

    def pinned(self: Batch) -> Batch:
        """Return the batch in memory that a GPU fetches from by itself."""
        return replace(self, **self._each(Tensor.pin_memory))

    @property
    def on_host(self: Batch) -> Batch:
        """The batch on the CPU: what is decided from it there makes nobody wait for the device."""
        return self if self.origin is None else self.origin  # type: ignore[return-value]

    def _each(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Words:
    """Texts as a language model reads them, padded on the right to the longest.

    Attributes:
        word_ids: rows of its word embedding; anything where padded.
        key_padding: True = padding.
    """

    word_ids: Int[Tensor, "B T"]
    key_padding: Bool[Tensor, "B T"]


@dataclass(frozen=True, kw_only=True)
class ImageTextBatch(ImageBatch):
    """Images, each with a text.

    Attributes:
        texts: one for each image.
        image_ids: equal where images are the same one, in a source that lists it more than once.
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
        word_ids: the texts as a language model reads them; anything where padded.
        key_padding: True = padding.
        answers: of each item, as people gave them; empty where unknown.
        targets: the distinct answers of each item with their weights in training.
        looks_at: of each item, which of the batch's groups of images it speaks of, counted from 0; None where the
            i-th item speaks of the i-th group.
    """

    items: Int[Tensor, " Q"]
    texts: tuple[str, ...]
    word_ids: Int[Tensor, "Q T"]
    key_padding: Bool[Tensor, "Q T"]
    answers: tuple[tuple[str, ...], ...]
    targets: tuple[Mapping[str, float], ...]
    looks_at: Int[Tensor, " Q"] | None = None
