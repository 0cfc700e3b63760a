"""What is trained, at which steps, by which loss: the shape every family's training takes; contrast of views."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pixlex.config.fields import TeacherConfig
from pixlex.distributed import Processes, all_processes
from pixlex.losses import image_contrastive_loss
from pixlex.nn.codebook import AllMean, Quantized
from pixlex.nn.vision import NUM_DRAWS, ViewKind, alone, measure_statistics, random_views

# The first phase of an image encoder: what is alike, learned by contrast of views.
TEACHER = "teacher"
# Batches that statistics of norms and of vectors are measured on.
NUM_BATCHES = 20


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        name: appears in log keys, `phase/term`.
        last_step: first step that is no longer part of the phase; phases follow one another.
        trains: parameters whose names start with one of these are trained, all others stay bit-equal.
        first_step: where the learning rate begins to rise; from there to the end of the run.
        learning_rate: the peak of a schedule of the phase's own, which ends with it.
    """

    name: str
    last_step: int
    trains: tuple[str, ...] = ("model.",)
    first_step: int = 0
    learning_rate: float | None = None


@dataclass(frozen=True)
class Step:
    """One step of training.

    Attributes:
        number: steps finished before this one.
        generator: seeded from (seed, step), on the CPU, the same on every process.
    """

    number: int
    generator: torch.Generator


@dataclass(frozen=True)
class LossTerms:
    """What a step minimizes, what it logs, and what `after_step` needs of it.

    Attributes:
        total: the weighted sum that is minimized.
        terms: its parts before weighting, by the names of the log.
        measures: other numbers for the log.
        quantized: the patches of this process's images, where they are quantized.
        trains_codebook: whether the phase does.
    """

    total: Float[Tensor, ""]
    terms: Mapping[str, Tensor]
    measures: Mapping[str, Tensor | float] = field(default_factory=dict)
    quantized: Quantized | None = None
    trains_codebook: bool = True


class Objective(nn.Module, ABC):
    """What is minimized, with which weights, in which order; what DistributedDataParallel wraps.

    Neither `forward` nor `after_step` may read a number from the device, or a GPU stands idle until the next
    operation arrives: what depends on counts and positions is decided on the CPU, or has a fixed shape. Frozen is
    excepted, whose language model reads its padding mask.

    Args:
        config: weights and switches; None where there are none.

    Attributes:
        phases: stretches of training, in order; a single one unless said otherwise.
        processes: those that share a batch in training; an evaluation's batch belongs to one process.
    """

    model: Any
    config: Any
    phases: tuple[Phase, ...]

    def __init__(self, model: nn.Module, config: Any, steps: int) -> None:
        super().__init__()
        self.model, self.config, self.processes = model, config, all_processes()
        self.phases = (Phase("train", steps),)

    @abstractmethod
    def forward(self, batch: Any, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of this process's part of a batch; it changes nothing."""

    def prepare(self, phase: Phase, batches: Callable[[], Iterator[Any]]) -> None:
        """Do what must be done before the first step of a phase; `batches` begins the training batches anew."""

    def after_step(self, step: Step, loss: LossTerms) -> Mapping[str, Tensor | float]:
        """Do the housekeeping outside autograd, after the optimizer's step; return numbers for the log."""
        return {}

    def phase_at(self, step: int) -> Phase:
        """Return the phase that a step belongs to."""
        return next((phase for phase in self.phases if step < phase.last_step), self.phases[-1])


def teacher_phase(config: TeacherConfig, model: Any, tower: Any, trains: tuple[str, ...]) -> Phase:
    """Return the phase that trains an image encoder, and what is compared with it, beside a contrastive head.

    Args:
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


def measure_norms(encoder: nn.Module, batches: Iterator[Any], processes: Processes) -> None:
    """Measure the statistics of an encoder's norms on some batches, once its weights stand still."""
    passes = (partial(encoder, batch.images, over_batch(processes)) for batch in islice(batches, NUM_BATCHES))
    measure_statistics(encoder, passes)


def draw_views(
    images: Float[Tensor, "B 3 H W"], kind: ViewKind, processes: Processes, step: Step, size: int = 0
) -> Float[Tensor, "B 3 s s"]:
    """Return a random view of each image of this process, drawn for those of all; see `random_views`.

    Args:
        images: pixels in [0, 1].
        size: side of a view in pixels; 0 for the image's own.
    """
    draws = torch.rand(len(images) * processes.size, NUM_DRAWS, generator=step.generator)
    with torch.autocast(images.device.type, enabled=False):
        return random_views(images, kind, draws.chunk(processes.size)[processes.rank], size or None)


def draw_compared_views(
    images: Float[Tensor, "B 3 H W"], config: TeacherConfig, processes: Processes, step: Step, count: int = 2
) -> Float[Tensor, "V 3 s s"]:
    """Return some views of each image: all first ones, then all second ones, and so on."""
    views = [draw_views(images, config.views, processes, step, config.view_size) for _ in range(count)]
    return torch.cat(views)


def contrast_views(
    vectors: Float[Tensor, "V D"],
    config: TeacherConfig,
    processes: Processes,
    same: Bool[Tensor, "B A"] | None = None,
) -> LossTerms:
    """Return the contrast of two random views of each image with those of all others (SimCLR, algorithm 1).

    Args:
        vectors: of two `draw_compared_views`.
        same: (B, A), True where images of this process and of all belong together; None where each stands alone.
    """
    size, device = len(vectors) // 2, vectors.device
    # Of every process its first views, then its second ones.
    every = processes.gather_rows(vectors)
    numbers = torch.arange(size, device=device).repeat(2)
    others = torch.arange(size * processes.size, device=device).view(processes.size, 1, size)
    others = others.expand(-1, 2, -1).flatten()
    mine = numbers + size * processes.rank
    alike = mine[:, None] == others if same is None else same[numbers][:, others]
    first = 2 * size * processes.rank
    own = torch.arange(first, first + 2 * size, device=device)
    itself = own[:, None] == torch.arange(len(every), device=device)
    loss = image_contrastive_loss(vectors, every, alike, itself, config.temperature)
    return LossTerms(loss, {"contrast": loss})
