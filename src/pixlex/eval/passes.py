"""One pass over a set: the model's mode meanwhile, how far it is, and where it ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn
from tqdm import tqdm

from pixlex import distributed
from pixlex.batch import ImageBatch
from pixlex.progress import bar_or_lines


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


def progress_bar(total: int | None, unit: str, description: str, *, shown: bool) -> tqdm[Any]:
    """Return a bar of what this process does, shown by the first one alone.

    Args:
        total: what all processes do together, which is dealt out evenly; None where unknown.
        unit: what is counted.
        description: what is done.
        shown: whether the caller wants a bar.
    """
    processes = distributed.world_size()
    own = total if total is None else -(-total // processes)
    if processes > 1:
        description += f" (process 1 of {processes})"
    return bar_or_lines(
        total=own, unit=f" {unit}", desc=description, disable=not shown or not distributed.is_first()
    )


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
