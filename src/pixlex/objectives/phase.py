"""What is trained, at which steps, by which loss: the shape every family's training takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixlex.distributed import all_processes
from pixlex.nn.codebook import Quantized


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
        model: the network.
        config: weights and switches; None where there are none.
        steps: length of the training.

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
