"""Networks applied to images so that what comes out of an image depends on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16"]

# A matrix product rounds by the shape of the matrix (on a CPU, patch vectors differ between batch sizes by up
# to 2e-6 in fp32 and 8e-3 in bf16), and a patch between two words then changes sides. So images are always
# computed so many patches at a time, filled up where there are fewer: neither number nor neighbors matter.
_PATCHES_AT_ONCE = 512


def compute_rows(
    inputs: Tensor,
    compute: Callable[[Tensor], Tensor],
    *,
    grid: int,
    device: torch.device,
    precision: Precision = "fp32",
    patches_at_once: int = _PATCHES_AT_ONCE,
) -> Tensor:
    """Compute one row for each row of the inputs, always in the same shape, without gradients.

    Args:
        inputs: images, or codes, one or more.
        compute: maps rows to as many rows.
        grid: patches along one side of an image.
        device: where to compute.
        precision: bf16 computes under autocast.
        patches_at_once: of which there are as many in every piece; another number rounds differently.

    Returns:
        The rows, on the CPU.
    """
    size = max(1, patches_at_once // grid**2)
    parts = []
    with computing(device, precision):
        for chunk in torch.split(inputs, size):
            filler = chunk[-1:].expand(size - len(chunk), *chunk.shape[1:])
            parts.append(compute(torch.cat([chunk, filler]).to(device))[: len(chunk)].cpu())
    return torch.cat(parts)


@contextmanager
def computing(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute without gradients in a precision, whatever the caller has switched on."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        # Switched off as well as on: the caller may stand inside an autocast of its own.
        mixed = precision == "bf16"
        stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=mixed))
        if device.type == "cuda" and not mixed:
            # Convolutions would round to TF32.
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        yield
