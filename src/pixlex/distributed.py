"""Rank, world size, this process's device, and collectives that keep gradients; alone they do nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pixlex.messages import quoted

T = TypeVar("T")

_CPU = torch.device("cpu")


def num_announced() -> int:
    """Return how many processes torchrun started, whether or not they have joined; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_on_this_machine() -> int:
    """Return how many of the processes of torchrun share this machine's memory and disks; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def initialize() -> None:
    """Join the process group that torchrun announced; nothing when started alone."""
    if num_announced() > 1 and not dist.is_initialized():
        # What lies on the CPU, such as results of evaluations, goes by gloo and needs no room on a GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def shutdown() -> None:
    """Leave the process group, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def pick_device(name: str | torch.device) -> torch.device:
    """Return the device of a name, as the error lists them; `auto` is this process's own GPU, if there is one.

    Raises:
        ValueError: not a device, or a GPU that is not there, as Apple's (`mps`) is not for several processes.
    """
    apple = torch.backends.mps.is_available() and num_announced() == 1
    count = torch.cuda.device_count()
    if name == "auto":
        # torchrun numbers the processes of a machine; other launchers may number all of them alone.
        number = int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")))
        return torch.device("cuda", number % count) if count else torch.device("mps") if apple else _CPU
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {quoted(str(name))}")
    if device.type == "mps" and not apple:
        raise ValueError(f"device {quoted(name)} is not there: expected one process on a Mac with a GPU")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device {quoted(name)} is not there: torch sees {count} GPUs")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def rank() -> int:
    """Return the number of this process, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 when alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that prints and writes for all; true when alone."""
    return rank() == 0


class _Sum(torch.autograd.Function):
    """Sum over all processes; each process's part gets the sum of the gradients of all."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_sum(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_sum(gradient)


class _Gather(torch.autograd.Function):
    """The rows of all processes; each process's part gets the sum of the gradients that all have for it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_sum(gradient).chunk(world_size())[rank()]


@dataclass(frozen=True)
class Processes:
    """The processes that share a batch, as many rows of it each: the rank of this one, and how many they are."""

    rank: int
    size: int

    def all_mean(self, tensor: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes, with gradients to each of them."""
        return tensor if self.size == 1 else _Sum.apply(tensor) / self.size  # type: ignore[no-untyped-call]

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """Return the rows of all processes in order of rank, with gradients."""
        return tensor if self.size == 1 else _Gather.apply(tensor)  # type: ignore[no-untyped-call]

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the rows of all processes in order of rank, without gradients."""
        return tensor if self.size == 1 else all_gather(tensor)


ALONE = Processes(0, 1)


def all_processes() -> Processes:
    """Return the processes of torchrun; this one alone without it."""
    return Processes(rank(), world_size())


@torch.no_grad()
def all_gather(tensor: Tensor) -> Tensor:
    """Return the tensors of all processes, joined along the first axis in order of rank, without gradients."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def all_sum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without gradients."""
    if world_size() == 1:
        return tensor
    summed = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed


@torch.no_grad()
def pick_rows(rows: Tensor, numbers: Tensor) -> Tensor:
    """Return some rows of all processes, each of which has as many, by their numbers, counted in order of rank."""
    own = numbers - rank() * len(rows)
    mine = (own >= 0) & (own < len(rows))
    return all_sum(rows[own.clamp(0, len(rows) - 1)] * mine.unsqueeze(-1).to(rows.dtype))


def anywhere(condition: bool) -> bool:
    """Return whether something holds on any process; exchanged on the CPU, so that no GPU is waited for."""
    return condition if world_size() == 1 else bool(all_gather(torch.tensor([int(condition)])).any())


def mean_numbers(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of each number over all processes; all must have the same names."""
    summed = all_sum(torch.tensor(list(numbers.values()), dtype=torch.float64))
    return dict(zip(numbers, (summed / world_size()).tolist(), strict=True))


def my_turns(work: Sequence[T]) -> Sequence[T]:
    """Return this process's part of some work that is assigned in turn; all of it when alone."""
    return work[rank() :: world_size()]


def in_turn(own: Sequence[T]) -> list[T]:
    """Return what all processes found of work that was assigned in turn, in the order of the work.

    The i-th piece of work of process r was the (i * world_size + r)-th of all: sums in this order are the same for
    any number of processes. Tensors must lie on the CPU. A process that fails must exit: whoever started them ends
    those that wait here.
    """
    parts = gather_objects(list(own))
    return [part[row] for row in range(max(map(len, parts))) for part in parts if row < len(part)]


def gather_objects(own: T) -> list[T]:
    """Return an object from each process, in order of rank; tensors in it must lie on the CPU."""
    if world_size() == 1:
        return [own]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, own)
    return found


def from_first(compute: Callable[[], T]) -> T:
    """Let the first process compute something, and return it on all of them."""
    if world_size() == 1:
        return compute()
    found: list[Any] = [compute() if is_first() else None]
    dist.broadcast_object_list(found, src=0)
    result: T = found[0]
    return result


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()
