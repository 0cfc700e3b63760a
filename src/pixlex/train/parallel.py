"""Precision and processes of a training run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from pixlex import distributed
from pixlex.config.train import TrainConfig
from pixlex.models.inference import Precision
from pixlex.nn.transformer import multiplies_bfloat16


def pick_precision(name: str, device: torch.device) -> Precision:
    """Return the precision that `auto`, `bf16` or `fp32` names.

    A processor without units for bfloat16 computes it several times slower than float32 (docs/decisions.md).
    """
    match name:
        case "bf16" | "fp32":
            return name
        case _:
            return "bf16" if multiplies_bfloat16(device) else "fp32"


def mixed_precision(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return bfloat16 autocast where `precision` names bf16 (see `pick_precision`), else nothing."""
    mixed = pick_precision(precision, device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext()


def share_gradients(objective: nn.Module) -> nn.Module:
    """Wrap an objective so that processes average their gradients; alone or in parts, return it as it is."""
    if distributed.world_size() == 1 or isinstance(objective, FSDPModule):
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
