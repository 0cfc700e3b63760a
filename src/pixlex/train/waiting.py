"""What keeps a GPU from standing still: batches fetched ahead of it, numbers read behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from pixlex.batch import ImageBatch, NotFinite
from pixlex.files import write_text
from pixlex.objectives.phase import LossTerms


class LossNotFinite(ArithmeticError):
    """A term of the loss became infinite or not a number."""


def read_ahead(batches: Iterator[ImageBatch], device: torch.device) -> Iterator[ImageBatch]:
    """Yield batches, on the CPU; for a GPU the next one is read, and put where the GPU fetches it, meanwhile.

    Args:
        batches: without end.
        device: where training computes. A CPU has no time left for a second thing beside the step.
    """
    if device.type != "cuda":
        yield from batches
        return
    # A thread begins on the first GPU of the machine, whichever is this process's own.
    with ThreadPoolExecutor(1, "batches", torch.cuda.set_device, (device,)) as reader:
        following = reader.submit(lambda: next(batches).pinned())
        while True:
            batch = following.result()
            following = reader.submit(lambda: next(batches).pinned())
            yield batch


class Reading:
    """The numbers of a step, on their way from the device: asked for at once, the host would wait for the step.

    Args:
        step: steps finished before this one.
        keys: names of its images, for the report of a loss that is not finite.
        loss: what was minimized.
        gradient_norm: of all gradients together, before they were clipped.
        others: further numbers for the log.
    """

    def __init__(
        self,
        step: int,
        keys: tuple[str, ...],
        loss: LossTerms,
        gradient_norm: Tensor,
        others: Mapping[str, Tensor | float],
    ) -> None:
        self.step, self._keys = step, keys
        self._must_be_finite = ("total", *loss.terms, "gradient_norm")
        values = {
            "total": loss.total,
            **loss.terms,
            **loss.measures,
            "gradient_norm": gradient_norm,
            **others,
        }
        self._plain = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        self._order, self._names = tuple(values), tuple(tensors)
        together = torch.stack([value.detach().double() for value in tensors.values()])
        self._arrived: torch.cuda.Event | None = None
        self._numbers = together
        if together.is_cuda:
            self._numbers = torch.empty_like(together, device="cpu", pin_memory=True)
            self._numbers.copy_(together, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def checked(self, folder: Path) -> dict[str, float]:
        """Return the numbers, once they are there.

        Args:
            folder: the run folder.

        Raises:
            LossNotFinite: the loss, a term or the gradient is not finite; step and images stand in the message and
                in `not-finite.json`.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        found = {**self._plain, **dict(zip(self._names, self._numbers.tolist(), strict=True))}
        values = {name: float(found[name]) for name in self._order}
        if not all(math.isfinite(values[name]) for name in self._must_be_finite):
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            raise not_finite(self.step, bad, self._keys, folder, values)
        return values


@contextmanager
def reporting(step: int, keys: tuple[str, ...], folder: Path, what: str) -> Iterator[None]:
    """Report a step whose numbers stopped being finite before there was a loss.

    Args:
        step: steps finished before this one.
        keys: names of its images.
        folder: the run folder.
        what: what is computed inside.

    Raises:
        LossNotFinite: in place of `NotFinite`.
    """
    try:
        yield
    except NotFinite as fault:
        raise not_finite(step, [f"{what} ({fault})"], keys, folder) from fault


def not_finite(
    step: int,
    bad: Sequence[str],
    keys: Sequence[str],
    folder: Path,
    values: Mapping[str, float] | None = None,
) -> LossNotFinite:
    """Write down step, terms and images in `not-finite.json`; return the error that names it."""
    shown = {name: repr(value) for name, value in (values or {}).items()}
    record = {"step": step, "not_finite": list(bad), "values": shown, "images": list(keys)}
    path = folder / "not-finite.json"
    write_text(path, json.dumps(record, indent=2) + "\n")
    return LossNotFinite(
        f"step {step}: {', '.join(bad)} not finite; terms and images are in {path}. The newest "
        "checkpoint is untouched; a lower train.learning_rate or train.precision=fp32 may help"
    )
