"""One pass over a set: the model's mode meanwhile, and where the pass ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from pixlex.batch import ImageBatch


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode and each of its parts back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def first_images(batches: Iterable[ImageBatch], limit: int | None) -> Iterator[ImageBatch]:
    """Yield batches up to a number of images, the last one cut to fit."""
    left = limit
    for batch in batches:
        if left is not None and len(batch.images) > left:
            batch = replace(
                batch,
                images=batch.images[:left],
                labels=batch.labels[:left],
                keys=batch.keys[:left],
                indices=batch.indices[:left],
            )
        yield batch
        if left is not None:
            left -= len(batch.images)
            if left <= 0:
                return
