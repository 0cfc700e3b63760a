"""The training loop: knows phases, not families."""

from __future__ import annotations

import gc
import math
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from pixlex import distributed
from pixlex.batch import ImageBatch
from pixlex.config.train import TrainConfig
from pixlex.distributed import pick_device
from pixlex.objectives.phase import LossTerms, Objective, Phase, Step
from pixlex.progress import bar_or_lines
from pixlex.train.checkpoint import load_newest, save_checkpoint
from pixlex.train.layers import check_compiler, prepare_layers
from pixlex.train.meter import Meter
from pixlex.train.optimizers import build_optimizer, learning_rate
from pixlex.train.parallel import mixed_precision, share_gradients
from pixlex.train.sharding import (
    clip_gradients,
    finish_gradients,
    load_optimizer,
    sharded_copy,
    shared_like,
    whole_state,
)
from pixlex.train.tracking import Tracker
from pixlex.train.waiting import LossNotFinite, Reading, read_ahead, reporting

__all__ = ["Callbacks", "LossNotFinite", "fit"]


@dataclass(frozen=True)
class Callbacks:
    """What the loop calls besides the objective.

    Attributes:
        observe: called with each batch before its step.
        evaluate: called with the finished steps, on all processes; returns numbers for the log.
    """

    observe: Callable[[ImageBatch], None] = lambda batch: None
    evaluate: Callable[[int], Mapping[str, float]] | None = None


def fit(
    objective: Objective,
    batches: Callable[[int], Iterator[ImageBatch]],
    config: TrainConfig,
    folder: Path,
    callbacks: Callbacks | None = None,
    settings: Mapping[str, Any] | None = None,
) -> int:
    """Train an objective through its phases, from the newest checkpoint of the folder if there is one.

    The result does not depend on interruptions: order of data, augmentation, masks and every other draw are
    functions of (seed, step).

    Args:
        objective: what is minimized.
        batches: called with the steps finished; yields this process's part of each batch from there on.
        config: length, optimizer, precision, intervals.
        folder: the run folder.
        callbacks: what else happens.
        settings: the whole configuration, for the trackers that show it.

    Returns:
        The steps finished: `config.steps`, fewer after an interrupt.

    Raises:
        LossNotFinite: with step, terms and images in the message and in `not-finite.json`; on a GPU found one step
            later, so that no step waits for the numbers of the one before it, and before anything is written.
    """
    callbacks = callbacks or Callbacks()
    device = pick_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what pins memory and starts kernels goes by it
    whole = objective  # what evaluates and is saved
    if config.shard_parameters and distributed.world_size() > 1:
        objective = sharded_copy(whole, device)
    else:
        objective.to(device)
    if config.compile:
        torch.compiler.reset()  # forms of models that this process trained before
        check_compiler(device)
    prepare_layers(objective.model, compiles=config.compile, checkpoints=config.checkpoint_activations)
    optimizer = build_optimizer(objective, config)
    first_step = _restore(objective, optimizer, folder / "checkpoints")
    is_first = distributed.rank() == 0
    tracker = Tracker(folder, first_step, settings, config.wandb) if is_first else None
    stream = read_ahead(batches(first_step), device)
    unread, in_flight = deque[Reading](), int(device.type == "cuda")
    bar = bar_or_lines(
        total=config.steps, initial=first_step, unit=" steps", desc="train", disable=not is_first, smoothing=0.05,
        seconds=math.inf,  # a line for each of the log
    )  # fmt: skip
    meter, step_number = Meter(device, config.precision, config.batch_size), first_step
    phase = objective.phase_at(first_step)
    wrapped = _train_only(objective, phase)
    with _interruptible() as interrupted:
        stops = False
        while step_number < config.steps and not stops:
            if objective.phase_at(step_number) is not phase:  # the next one begins
                phase = objective.phase_at(step_number)
                del wrapped
                gc.collect()  # it holds itself, and room for all gradients
                wrapped = _train_only(objective, phase)
            with meter.waiting():
                batch = next(stream)
            callbacks.observe(batch)
            with meter.step(phase.name), reporting(step_number, batch.keys, folder, "patches or codewords"):
                unread.append(
                    _step(wrapped, objective, optimizer, batch.to(device), phase, step_number, config)
                )
            step_number += 1
            bar.update()
            last = step_number == config.steps
            logs, saves = step_number % config.log_every == 0, step_number % config.checkpoint_every == 0
            evaluates = last or (config.evaluate_every and step_number % config.evaluate_every == 0)
            stops = distributed.anywhere(interrupted())  # all at the same step, or some would wait for ever
            while len(unread) > (0 if logs or saves or evaluates or stops else in_flight):
                values = unread.popleft().checked(folder)
            if logs or last:
                values = distributed.mean_numbers(values)
                line = {f"{phase.name}/{name}": value for name, value in values.items()} | meter.line()
                bar.set_postfix({"loss": f"{values['total']:.4f}", **_shown(line)})
                if tracker is not None:
                    tracker.log(step_number, line)
            if saves or last or stops:
                _save(objective, optimizer, folder / "checkpoints", step_number, config.keep_checkpoints)
            if evaluates and callbacks.evaluate is not None:
                with (
                    _put_together(objective, whole, device),
                    torch.compiler.set_stance("force_eager"),
                    reporting(step_number, (), folder, "the evaluation"),
                ):
                    numbers = callbacks.evaluate(step_number)  # as `pixlex evaluate` will
                if tracker is not None:
                    tracker.log(step_number, numbers)
                meter.restart()
    bar.close()
    prepare_layers(objective.model)  # as it was
    if tracker is not None:
        tracker.close()
    with _put_together(objective, whole, device):
        distributed.barrier()
    return step_number


@contextmanager
def _put_together(objective: Objective, whole: Objective, device: torch.device) -> Iterator[None]:
    """Bring the weights of an objective in parts into the one that is whole, which is on the CPU but meanwhile."""
    if objective is whole:
        yield
        return
    whole.load_state_dict(whole_state(objective.state_dict()))
    yield
    whole.cpu()
    objective.to(device)  # a frozen language model belongs to both


def _step(
    wrapped: nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batch: ImageBatch,
    phase: Phase,
    number: int,
    config: TrainConfig,
) -> Reading:
    """Take one optimizer step; return its numbers."""
    step = Step(number, torch.Generator().manual_seed(_mix(config.seed, number)))
    torch.manual_seed(_mix(config.seed, number, distributed.rank() + 1))
    rate = learning_rate(number, config)
    for group in optimizer.param_groups:
        group["lr"] = rate
    objective.train()
    with mixed_precision(batch.images.device, config.precision):
        loss: LossTerms = wrapped(batch, phase, step)
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()  # type: ignore[no-untyped-call]
    limit = config.clip_norm or float("inf")
    if isinstance(objective, FSDPModule):
        finish_gradients(objective, phase.trains)
    trained = [one for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
    clip = clip_gradients if isinstance(objective, FSDPModule) else nn.utils.clip_grad_norm_
    gradient_norm = clip(trained, limit)
    optimizer.step()
    return Reading(
        number, batch.keys, loss, gradient_norm, {**objective.after_step(step, loss), "learning_rate": rate}
    )


def _shown(line: Mapping[str, float]) -> dict[str, str]:
    """Return what the progress bar says of speed, device, memory and data."""
    return {
        "images_per_s": f"{line['speed/images']:.0f}",
        "utilization": f"{line['speed/utilization']:.0%}",
        "peak": f"{line['memory/peak']:,.0f} MiB",
        "wait": f"{line['data/wait']:.0%}",
    }


def _mix(*numbers: int) -> int:
    """Return one seed for a tuple of numbers, different tuples giving unrelated seeds."""
    mixed = 0
    for number in numbers:
        mixed = (mixed ^ number) * 0x9E3779B97F4A7C15 & 0x7FFFFFFFFFFFFFFF
        mixed ^= mixed >> 29
    return mixed


def _train_only(objective: Objective, phase: Phase) -> nn.Module:
    """Let gradients reach the parameters of a phase and no others; return what shares them with all processes."""
    for name, parameter in objective.named_parameters():
        # What is put together of parts keeps what it was at first: all get gradients (see `finish_gradients`).
        parameter.requires_grad_(name.startswith(phase.trains) or isinstance(parameter, DTensor))
    # Anew for each phase: what is wrapped waits for a gradient of every parameter that can have one.
    return share_gradients(objective)


def _restore(objective: Objective, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """Load the newest checkpoint; return the steps it had finished."""
    state = load_newest(folder)
    if state is None:
        return 0
    try:
        objective.load_state_dict(shared_like(state["objective"], objective.state_dict()))
        load_optimizer(optimizer, state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} does not fit this configuration or version: {error}") from error
    return int(state["step"])


def _save(objective: Objective, optimizer: torch.optim.Optimizer, folder: Path, step: int, keep: int) -> None:
    """Write a checkpoint on rank 0; parts of all processes are put together in it."""
    state = {"objective": objective.state_dict(), "optimizer": optimizer.state_dict()}
    if isinstance(objective, FSDPModule):
        state = whole_state(state)
    if distributed.rank() == 0:
        save_checkpoint(folder, step, state, keep)


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
