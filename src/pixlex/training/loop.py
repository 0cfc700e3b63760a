"""The training loop: knows phases, not families."""

from __future__ import annotations

import json
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from pixlex.batch import ImageBatch, Skipped
from pixlex.config.fields import TrainConfig
from pixlex.files import write_text
from pixlex.nn.nearest import NotFinite
from pixlex.nn.transformer import where_exact
from pixlex.objectives.phase import LossTerms, Objective, Phase, Step
from pixlex.training.logging import OnLog, RunLog
from pixlex.training.parallel import Parallel, learning_rate


class LossNotFinite(ArithmeticError):
    """A term of the loss became infinite or not a number."""


def fit(
    objective: Objective,
    batches: Callable[[int], Iterator[ImageBatch]],
    config: TrainConfig,
    folder: Path,
    *,
    skipped: Callable[[Sequence[Skipped], int], None] = lambda images, num_readable: None,
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    settings: Mapping[str, Any] | None = None,
    on_log: OnLog | None = None,
) -> int:
    """Train an objective through its phases, from the newest checkpoint of the folder if there is one.

    The result does not depend on interruptions: order of data, augmentation, masks and every other draw are
    functions of (seed, step).

    Args:
        batches: called with the steps finished; yields this process's part of each batch from there on.
        config: length, optimizer, precision, intervals.
        skipped: called with images that could not be read, and the number of those that could since the last call.
        evaluate: called with the finished steps, on all processes; returns numbers for the log.
        settings: the whole configuration, for the trackers that show it.
        on_log: called with the finished steps and what is logged, on the first process.

    Returns:
        The steps finished: `config.steps`, fewer after an interrupt.

    Raises:
        LossNotFinite: with step, terms and images in the message and in `not-finite.json`; on a GPU found one step
            later, so that no step waits for the numbers of the one before it, and before anything is written.
    """
    parallel = Parallel(objective, config)
    step = parallel.resume(folder / "checkpoints")
    log = RunLog(folder, step, config, parallel.device, settings, on_log)
    stream = _on_device(batches(step), parallel.device)
    pending, in_flight = deque[_StepNumbers](), int(parallel.device.type == "cuda")
    phase, stops, num_readable = objective.phase_at(step), False, 0
    with closing(log), _interruptible() as interrupted:
        while step < config.steps and not stops:
            asked = time.perf_counter()
            batch = next(stream)
            log.waited += time.perf_counter() - asked
            num_readable += len(batch.keys)
            if batch.skipped:
                skipped(batch.skipped, num_readable)
                num_readable = 0
            if step == phase.last_step:
                phase = objective.phase_at(step)
            if step == phase.first_step:
                parallel.prepare(phase, lambda: _on_device(batches(0), parallel.device))
            with _reporting(step, batch.keys, folder, "patches or codewords"):
                pending.append(_take_step(parallel, batch, phase, step))
            step += 1
            log.steps += 1
            log.bar.update()
            last, stops = step == config.steps, parallel.anywhere(interrupted())  # all at the same step
            logs, saves, evaluates = (
                every > 0 and step % every == 0
                for every in (config.log_every, config.checkpoint_every, config.evaluate_every)
            )
            while len(pending) > (0 if logs or saves or evaluates or last or stops else in_flight):
                numbers = pending.popleft().checked(folder)
            if logs or last:
                log.write_step(step, phase.name, numbers)
            if saves or last or stops:
                parallel.save(folder / "checkpoints", step)
            if (evaluates or last) and evaluate is not None:
                with parallel.gathered(), _reporting(step, (), folder, "the evaluation"):
                    log.write(step, evaluate(step))  # as `pixlex evaluate` will
    parallel.close()
    return step


def _take_step(parallel: Parallel, batch: ImageBatch, phase: Phase, number: int) -> _StepNumbers:
    seed = parallel.config.seed
    step = Step(number, torch.Generator().manual_seed(_mix(seed, number)))
    torch.manual_seed(_mix(seed, number, parallel.processes.rank + 1))
    rate = learning_rate(number, parallel.config, phase)
    for group in parallel.optimizer.param_groups:
        group["lr"] = rate
    loss = parallel.forward(batch, phase, step)
    measures = {**loss.measures, **parallel.update(loss)}
    measures |= {**parallel.objective.after_step(step, loss), "learning_rate": rate}
    return _StepNumbers(number, batch.keys, loss, measures)


def _mix(*numbers: int) -> int:
    """Return one seed for a tuple of numbers, different tuples giving unrelated seeds."""
    mixed = 0
    for number in numbers:
        mixed = (mixed ^ number) * 0x9E3779B97F4A7C15 & 0x7FFFFFFFFFFFFFFF
        mixed ^= mixed >> 29
    return mixed


def _on_device(batches: Iterator[ImageBatch], device: torch.device) -> Iterator[ImageBatch]:
    """Yield batches on the device; for a GPU the next one is read, into pinned memory, during the step."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    # A thread begins on the first GPU of the machine, whichever is this process's own.
    with ThreadPoolExecutor(1, "batches", torch.cuda.set_device, (device,)) as reader:
        following = reader.submit(lambda: next(batches).pinned())
        while True:
            batch = following.result()
            following = reader.submit(lambda: next(batches).pinned())
            yield batch.to(device)


class _StepNumbers:
    """The numbers of a step, copied from the device meanwhile: the host does not wait for the step."""

    def __init__(
        self, step: int, keys: tuple[str, ...], loss: LossTerms, measures: Mapping[str, Tensor | float]
    ) -> None:
        self._step, self._keys = step, keys
        self._must_be_finite = ("total", *loss.terms, "gradient_norm")
        values: dict[str, Tensor | float] = {"total": loss.total, **loss.terms, **measures}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        # In their order; those of tensors are filled in.
        self._values = {name: math.nan if isinstance(one, Tensor) else one for name, one in values.items()}
        self._names = tuple(tensors)
        numbers = torch.stack([where_exact(value.detach()).double() for value in tensors.values()])
        self._copied: torch.cuda.Event | None = None
        self._numbers = numbers
        if numbers.is_cuda:
            self._numbers = torch.empty_like(numbers, device="cpu", pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def checked(self, folder: Path) -> dict[str, float]:
        """Return the numbers, once they are there.

        Raises:
            LossNotFinite: the loss, a term or the gradient is not finite.
        """
        if self._copied is not None:
            self._copied.synchronize()
        values = self._values | dict(zip(self._names, self._numbers.tolist(), strict=True))
        if not all(math.isfinite(values[name]) for name in self._must_be_finite):
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            raise _not_finite(self._step, bad, self._keys, folder, values)
        return values


@contextmanager
def _reporting(step: int, keys: tuple[str, ...], folder: Path, what: str) -> Iterator[None]:
    """Report numbers that stopped being finite before there was a loss, as `LossNotFinite`."""
    try:
        yield
    except NotFinite as fault:
        raise _not_finite(step, [f"{what} ({fault})"], keys, folder, {}) from fault


def _not_finite(
    step: int, bad: Sequence[str], keys: Sequence[str], folder: Path, values: Mapping[str, float]
) -> LossNotFinite:
    """Write down step, terms and images in `not-finite.json`; return the error that names it."""
    shown = {name: repr(value) for name, value in values.items()}
    record = {"step": step, "not_finite": list(bad), "values": shown, "images": list(keys)}
    path = folder / "not-finite.json"
    write_text(path, json.dumps(record, indent=2) + "\n")
    return LossNotFinite(
        f"step {step}: {', '.join(bad)} not finite; terms and images are in {path}. The newest "
        "checkpoint is untouched; a lower train.learning_rate or train.precision=fp32 may help"
    )


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a request to stop after the step at hand; a second one stops at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # Signals can only be handled in the main thread.
        previous = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
