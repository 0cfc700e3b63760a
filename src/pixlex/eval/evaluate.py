"""One pass over a set, shared by processes: what all evaluations have in common, and how sure a number is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pixlex import distributed
from pixlex.batch import ReasoningBatch, Skipped
from pixlex.eval.metrics import Number, metric_of
from pixlex.files import check_zip
from pixlex.models.inference import Precision
from pixlex.progress import bar_or_lines

_Z = 1.959963984540054  # two-sided 95 % of a normal distribution
_ROUNDING = 1e-9


class NothingToEvaluate(ValueError):
    """Not a single image or item could be read."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """How a set is gone through.

    Attributes:
        precision: bf16 computes networks under autocast; measures are always computed in float32.
        total: Images or items expected, for the time left on the progress bar; None where unknown.
        save_examples: Images or items that are returned with what became of them.
        progress: Show a bar.
    """

    precision: Precision = "fp32"
    total: int | None = None
    save_examples: int = 8
    progress: bool = True


DEFAULT_PASS = Pass()


@dataclass(frozen=True)
class Measured:
    """What was found in a batch, on the CPU.

    Attributes:
        sums: By name a sum and its weight; the mean over the set is all sums over all weights.
        rows: By name a tensor or tuple with something for each image or item.
        examples: The same for the first images or items alone.
    """

    sums: Mapping[str, tuple[Number, Number]] = field(default_factory=dict)
    rows: Mapping[str, Any] = field(default_factory=dict)
    examples: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found on the whole set.

    Attributes:
        values: The numbers by name, described in `METRICS`; one that could not be had is missing.
        skipped: Images that could not be read.
        rows: By name a tensor or tuple with something for each image or item.
        examples: The same for the examples.
        notes: What must be known before a number is compared.
        protocol: What the numbers mean, in a line.
    """

    values: Mapping[str, Number]
    skipped: tuple[Skipped, ...]
    rows: Mapping[str, Any] = field(default_factory=dict, repr=False)
    examples: Mapping[str, Any] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    protocol: str = ""

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers by their names in the log: `eval/psnr` and so on."""
        return {f"eval/{name}": float(value) for name, value in self.values.items()}

    @property
    def table(self) -> list[tuple[str, str]]:
        """Label and value with its unit of each number."""
        return labeled(self.values)


def labeled(values: Mapping[str, Number]) -> list[tuple[str, str]]:
    """Return label and value with its unit of each number."""
    return [(metric_of(name).label, metric_of(name).text(value)) for name, value in values.items()]


@torch.no_grad()  # not inference_mode: what a model caches meanwhile must stay usable in training
def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    measure: Callable[[Any, int], Measured],
    how: Pass,
    *,
    unit: str = "images",
    description: str = "evaluate",
) -> Evaluation:
    """Measure each batch and put together what all processes found.

    The model is in evaluation mode meanwhile, and afterwards in the mode it was in. Whole batches go to one
    process each and are summed up in their order, so any number of processes gives the same numbers.

    Args:
        model: What is evaluated, where it is.
        batches: The images, pairs or items, each once; of several processes each brings its own.
        measure: Given a batch on the model's device, one image or item at least, and how many examples there is
            room for, returns what it found; runs without gradients, networks in the precision asked for.
        how: How the set is gone through.
        unit: What is counted, as `num_` + unit.
        description: What the bar is called.

    Returns:
        Numbers, rows and examples of the whole set on every process; a mean of no weight is missing.

    Raises:
        NothingToEvaluate: Nothing could be read.
    """
    device = next(model.parameters()).device
    found: list[tuple[int, tuple[Skipped, ...], Measured]] = []
    room = how.save_examples
    bar = progress_bar(how.total, unit, description, shown=how.progress)
    with evaluating(model), autocast(device, how.precision), bar:
        for batch in batches:
            size = len(batch.texts if isinstance(batch, ReasoningBatch) else batch.images)
            one = measure(batch.to(device), room) if size else Measured()
            found.append((size, batch.skipped, one))
            room -= max(map(len, one.examples.values()), default=0)
            bar.update(size)
    everyone = distributed.in_turn(found)
    count = sum(size for size, _, _ in everyone)
    skipped = tuple(chain.from_iterable(some for _, some, _ in everyone))
    if count == 0:
        raise NothingToEvaluate(f"no {unit[:-1]} to evaluate ({len(skipped)} could not be read)")
    parts = [one for _, _, one in everyone]
    return Evaluation(
        values={f"num_{unit}": count, **_means([one.sums for one in parts])},
        skipped=skipped,
        rows=_joined([one.rows for one in parts], None),
        examples=_joined([one.examples for one in parts], how.save_examples),
    )


def _means(parts: Sequence[Mapping[str, tuple[Number, Number]]]) -> dict[str, Number]:
    totals: dict[str, tuple[Number, Number]] = {}
    for part in parts:
        for name, (value, weight) in part.items():
            total, weights = totals.get(name, (0.0, 0.0))
            totals[name] = total + value, weights + weight
    return {name: total / weights for name, (total, weights) in totals.items() if weights}


def _joined(parts: Sequence[Mapping[str, Any]], most: int | None) -> dict[str, Any]:
    joined = {}
    for name in dict.fromkeys(chain.from_iterable(parts)):
        values = [part[name] for part in parts if name in part]
        whole = torch.cat(values) if isinstance(values[0], Tensor) else tuple(chain.from_iterable(values))
        joined[name] = whole[:most]
    return joined


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


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which networks compute in a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def progress_bar(total: int | None, unit: str, description: str, *, shown: bool) -> tqdm[Any]:
    """Return a bar of what this process does, shown by the first one alone.

    Args:
        total: What all processes do together, in even parts; None where unknown.
        unit: What is counted.
        description: What is done.
        shown: Whether the caller wants a bar.
    """
    processes = distributed.world_size()
    own = total if total is None else -(-total // processes)
    if processes > 1:
        description += f" (process 1 of {processes})"
    return bar_or_lines(
        total=own, unit=f" {unit}", desc=description, disable=not shown or not distributed.is_first()
    )


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays, which `read_arrays` compares with their checksums; see `write_atomically`."""
    with path.open("wb") as file:
        np.savez(file, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return what `write_arrays` wrote; nothing where there is no file, or not what was written."""
    try:
        check_zip(path)
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, LookupError, BadZipFile):
        return {}


def wilson_interval(ratio: Number, count: int) -> tuple[float, float]:
    """Return the 95 % interval of the success ratio of independent trials (Wilson 1927).

    With partial credits the ratio is a mean of numbers in [0, 1], whose variance is at most that of right and
    wrong with the same mean: the interval is then too wide, never too narrow. It covers the draw of the trials
    alone: images and classes that are the same in all of them are not in it.

    Args:
        ratio: Fraction of successes, or mean credit, in [0, 1].
        count: Trials, 1 or more.

    Returns:
        The bounds, between which the ratio itself always lies.

    Raises:
        ValueError: No trials, or a ratio out of range.
    """
    if count < 1 or not -_ROUNDING <= ratio <= 1 + _ROUNDING:
        raise ValueError(f"expected a ratio in [0, 1] of 1 or more trials, got {ratio} of {count}")
    ratio = min(1.0, max(0.0, ratio))  # means of many numbers are rounded
    center = ratio + _Z**2 / (2 * count)
    spread = _Z * math.sqrt(ratio * (1 - ratio) / count + _Z**2 / (4 * count**2))
    scale = 1 + _Z**2 / count
    # At 0 and 1 the ratio is a bound, which rounding would put on its wrong side.
    return min(ratio, max(0.0, (center - spread) / scale)), max(ratio, min(1.0, (center + spread) / scale))
