"""Networks applied to images so that what comes out of an image depends on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor

from pixlex.batch import NotFinite

Precision = Literal["fp32", "bf16"]

# A matrix product rounds by the shape of the matrix (on a CPU, patch vectors differ between batch sizes by up
# to 2e-6 in fp32 and 8e-3 in bf16), and a patch between two words then changes sides. So images are always
# computed so many patches at a time, filled up where there are fewer: neither number nor neighbors matter.
_PATCHES_AT_ONCE = 512


def rows_at_once(grid: int, device: torch.device, batch_size: int) -> int:
    """Return how many images a pass computes: on a CPU always the same number, on a GPU what is asked for.

    A CPU has nothing from larger passes; a GPU would stand idle in those of a CPU.

    Args:
        grid: patches along one side of an image.
        device: where to compute.
        batch_size: of the caller.
    """
    return max(1, _PATCHES_AT_ONCE // grid**2) if device.type == "cpu" else batch_size


def compute_rows(
    inputs: Tensor,
    compute: Callable[[Tensor], Tensor],
    *,
    grid: int,
    device: torch.device,
    precision: Precision = "fp32",
    batch_size: int = 64,
) -> Tensor:
    """Compute one row for each row of the inputs, always in the same shape, without gradients.

    So a row depends neither on the rows beside it nor on their number. On a CPU it does not depend on `batch_size`
    either; on a GPU passes are as large as that, and another one may round differently.

    Args:
        inputs: images, or codes, one or more.
        compute: maps rows to as many rows.
        grid: patches along one side of an image.
        device: where to compute.
        precision: bf16 computes under autocast.
        batch_size: rows of a pass on a GPU, 1 or more, filled up where there are fewer.

    Returns:
        The rows, on the CPU.

    Raises:
        RuntimeError: the GPU's memory does not hold such a pass.
        NotFinite: what comes of an input is not finite; with its number.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    size = rows_at_once(grid, device, batch_size)
    parts = []
    with computing(device, precision):
        for number, chunk in enumerate(torch.split(inputs, size)):
            filler = chunk[-1:].expand(size - len(chunk), *chunk.shape[1:])
            try:
                part = compute(torch.cat([chunk, filler]).to(device))[: len(chunk)].cpu()
            except NotFinite as fault:  # in the row of a patch
                place = None if fault.row is None else min(fault.row // grid**2, len(chunk) - 1)
                raise _not_finite(len(inputs), None if place is None else number * size + place) from fault
            except torch.OutOfMemoryError as fault:
                # No smaller pass is tried: codes would depend on what else the memory holds at the moment.
                raise RuntimeError(
                    f"{device} does not hold a pass of {size} images: a smaller batch size may fit"
                ) from fault
            if not (finite := part.isfinite().reshape(len(part), -1).all(1)).all():
                raise _not_finite(len(inputs), number * size + int((~finite).nonzero()[0, 0]))
            parts.append(part)
    return torch.cat(parts)


def _not_finite(count: int, row: int | None) -> NotFinite:
    which = "" if row is None else f", first of number {row + 1} of {count}"
    return NotFinite(f"the model's numbers are not finite{which}: its weights are damaged or diverged", row)


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
