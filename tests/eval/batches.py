"""Images in batches, as `data/loader.py` gives them."""

from __future__ import annotations

import dataclasses

import torch

from pixlex.batch import ImageBatch


def batches_of(images: torch.Tensor, batch_size: int) -> list[ImageBatch]:
    """The images in batches, numbered from 100."""
    whole = ImageBatch(
        images,
        torch.full((len(images),), -1),
        tuple(f"image-{row}" for row in range(len(images))),
        torch.arange(len(images)) + 100,
    )
    cuts = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    return [
        dataclasses.replace(
            whole,
            images=whole.images[cut],
            labels=whole.labels[cut],
            keys=whole.keys[cut],
            indices=whole.indices[cut],
        )
        for cut in cuts
    ]
