"""The first phase of an image encoder: what is alike, learned from images alone by contrast of views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pixlex.config.fields import TeacherConfig
from pixlex.distributed import Processes
from pixlex.losses import image_contrastive_loss
from pixlex.nn.codebook import AllMean
from pixlex.nn.vision import NUM_DRAWS, alone, measure_statistics, random_views
from pixlex.objectives.phase import LossTerms, Phase, Step

TEACHER = "teacher"
# Batches that statistics of norms are measured on.
_BATCHES = 20


def teacher_phase(config: TeacherConfig, model: Any, tower: Any, trains: tuple[str, ...]) -> Phase:
    """Return the phase that trains an image encoder, and what is compared with it, beside a contrastive head.

    Args:
        config: length and schedule.
        model: configuration of the network.
        tower: of its image encoder.
        trains: name prefixes of the parameters.

    Raises:
        ValueError: views of a size that the encoder does not read.
    """
    size, patch = config.view_size, model.patch_size
    if size and (tower.block != "convolutional" or size % patch or size > model.image_size):
        raise ValueError(
            f"objective.teacher.view_size must be a multiple of {patch}, at most {model.image_size}, with "
            f"convolutions, and 0 without, got {size}"
        )
    return Phase(TEACHER, config.steps, (*trains, "contrastive_head."), 0, config.learning_rate)


def over_batch(processes: Processes) -> AllMean:
    """Return whose statistics norms take in training: those of the batch of all processes."""
    return processes.all_mean if processes.size > 1 else alone


def measure_norms(
    encoder: nn.Module,
    encode: Callable[[Tensor, AllMean], object],
    batches: Iterator[Any],
    processes: Processes,
) -> None:
    """Measure the statistics of an encoder's norms on some batches, once its weights stand still."""
    passes = (partial(encode, batch.images, over_batch(processes)) for batch in islice(batches, _BATCHES))
    measure_statistics(encoder, passes)


def contrast_views(
    images: Float[Tensor, "B 3 H W"],
    encode: Callable[[Tensor], Float[Tensor, "V D"]],
    config: TeacherConfig,
    processes: Processes,
    step: Step,
    same: Bool[Tensor, "B A"] | None = None,
) -> LossTerms:
    """Return the contrast of two random views of each image with those of all others (SimCLR, algorithm 1).

    Args:
        images: pixels in [0, 1].
        encode: makes a vector of each view.
        config: of the views and the loss.
        processes: that share the batch.
        step: whose generator draws.
        same: (B, A), True where images of this process and of all belong together; None where each stands alone.
    """
    size = len(images)
    draws = torch.rand(2, size * processes.size, NUM_DRAWS, generator=step.generator)
    own = draws.chunk(processes.size, dim=1)[processes.rank]
    with torch.autocast(images.device.type, enabled=False):
        views = torch.cat([random_views(images, config.views, one, config.view_size or None) for one in own])
    vectors = encode(views)
    # Of every process its first views, then its second ones.
    every = processes.gather_rows(vectors)
    numbers = torch.arange(size, device=images.device).repeat(2)
    others = torch.arange(size * processes.size, device=images.device).view(processes.size, 1, size)
    others = others.expand(-1, 2, -1).flatten()
    mine = numbers + size * processes.rank
    alike = mine[:, None] == others if same is None else same[numbers][:, others]
    first = 2 * size * processes.rank
    itself = torch.arange(first, first + 2 * size, device=images.device)[:, None] == torch.arange(
        len(every), device=images.device
    )
    loss = image_contrastive_loss(vectors, every, alike, itself, config.temperature)
    return LossTerms(loss, {"contrast": loss})
