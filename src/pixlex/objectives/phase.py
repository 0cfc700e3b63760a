"""What is trained, at which steps, by which loss: the shape every family's training takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        name: appears in log keys, `phase/term`.
        last_step: first step that is no longer part of the phase; phases follow one another.
        trains: parameters whose names start with one of these are trained, all others stay bit-equal.
    """

    name: str
    last_step: int
    trains: tuple[str, ...] = ("model.",)


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
    """What a step minimizes and what it shows.

    Attributes:
        total: the weighted sum that is minimized.
        terms: its parts before weighting, by the names of the log.
        measures: other numbers worth a line in the log.
    """

    total: Float[Tensor, ""]
    terms: Mapping[str, Tensor]
    measures: Mapping[str, Tensor | float] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """What is minimized, with which weights, in which order; what DistributedDataParallel wraps.

    Neither `forward` nor `after_step` may read a number from the device, or a GPU stands still until the next
    operation is asked for: what is decided by counts and positions is decided from `batch.on_host`, or has a fixed
    shape. tests/objectives/test_waiting.py holds every family to it but Frozen, whose language model reads its
    mask of padding.

    Attributes:
        model: the network.
        phases: stretches of training, in order.
    """

    model: nn.Module
    phases: tuple[Phase, ...]

    @abstractmethod
    def forward(self, batch: Any, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of one process's part of a batch."""

    @abstractmethod
    def after_step(self, step: Step) -> Mapping[str, Tensor | float]:
        """Do the housekeeping that lies outside autograd; return what it found, for the log."""

    def phase_at(self, step: int) -> Phase:
        """Return the phase that a step belongs to."""
        for phase in self.phases:
            if step < phase.last_step:
                return phase
        return self.phases[-1]
