"""Devices, precision and processes of a training run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pixlex import distributed
from pixlex.config.train import TrainConfig


def pick_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:N` names.

    Raises:
        ValueError: not a device, or a GPU that is not there.
    """
    if name == "auto":
        name = (
            f"cuda:{distributed.rank() % max(1, torch.cuda.device_count())}"
            if torch.cuda.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"train.device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"train.device is {name!r}, but torch sees no GPU")
    return device


def mixed_precision(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return bfloat16 autocast for `bf16`, nothing for `fp32`."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def share_gradients(objective: nn.Module) -> nn.Module:
    """Wrap an objective so that processes average their gradients; alone, return it as it is."""
    if distributed.world_size() == 1:
        return objective
    # Buffers are moved by after_step alike on every process; broadcasting them would hide it if they were not.
    return DistributedDataParallel(objective, forward_sync_buffers=False)


def local_batch_size(config: TrainConfig) -> int:
    """Return the images of one process.

    Raises:
        ValueError: when the batch does not divide among the processes.
    """
    processes = distributed.world_size()
    if config.batch_size % processes:
        raise ValueError(
            f"train.batch_size must be a multiple of the {processes} processes, got {config.batch_size}"
        )
    return config.batch_size // processes
