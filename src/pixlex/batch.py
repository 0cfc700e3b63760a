"""Typed batches that cross from data to models: shapes, dtypes and value ranges, written here once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
    """

    images: Float[Tensor, "B 3 H W"]
    labels: Int[Tensor, " B"]
    keys: tuple[str, ...]
    indices: Int[Tensor, " B"]
    skipped: tuple[Skipped, ...] = ()

    def to(self, device: torch.device | str) -> ImageBatch:
        """Return the batch with its tensors on `device`."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            indices=self.indices.to(device, non_blocking=True),
        )
