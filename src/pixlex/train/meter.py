"""How fast training is, beside what the device can do: images, operations, memory, waiting for data."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker

from pixlex.train.parallel import mixed_precision

# Side of the square matrices whose product tells what the device can do.
_SIDE = {"cpu": 512, "cuda": 8192}
_PRODUCTS = 5
_SECONDS = 0.5  # after which no further product is begun
_ASKING = 0.1  # seconds that a line of the log may take to ask again


def _attention(queries: Any, keys: Any, values: Any, *others: Any, **options: Any) -> int:
    return int(sdpa_flop_count(queries, keys, values))  # type: ignore[no-untyped-call]


def _attention_backward(
    gradient: Any, queries: Any, keys: Any, values: Any, *others: Any, **options: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient, queries, keys, values))  # type: ignore[no-untyped-call]


# Attention of the CPU, which torch's counter does not know; the functions are given shapes.
_UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class _NoHooks(ModuleTracker):
    """No operations by module: the hooks that tell modules apart would keep alive what checkpointing drops."""

    def __enter__(self) -> _NoHooks:
        return self

    def __exit__(self, *args: object) -> None:
        pass


class Meter:
    """Sums between two lines of the log.

    Utilization is the operations a second over those of one large matrix product in the same precision. Operations
    are those of products of matrices, convolutions and attention, counted in the first step of each phase. So it
    is the model FLOP utilization of PaLM (Chowdhery et al. 2022, appendix B) but for two things: what activation
    checkpointing computes again counts, and the device is asked what it can do, not its data sheet; a CPU at each
    line again, the best answer counts.

    Args:
        device: where training computes.
        precision: `auto`, `bf16` or `fp32`.
        batch_size: of a step, over all processes: images, or items where these are texts about images.
    """

    def __init__(self, device: torch.device, precision: str, batch_size: int) -> None:
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self.rate = 0.0
        self._ask()
        self._operations: dict[str, int] = {}
        self.restart()

    def _ask(self) -> None:
        """Ask what the device can do; again later if it answers fast and others may have had its cores."""
        began = time.perf_counter()
        self.rate = max(self.rate, product_rate(self.device, self.precision))
        self._asks_again = self.device.type == "cpu" and time.perf_counter() - began < _ASKING

    def restart(self) -> None:
        """Begin anew, after a line or after something that is no training."""
        self._started, self._waited, self._steps, self._done = time.perf_counter(), 0.0, 0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as spent waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    @contextmanager
    def step(self, phase: str) -> Iterator[None]:
        """Count a step of a phase."""
        if phase in self._operations:
            yield
        else:
            counter = FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)
            counter.mod_tracker = _NoHooks()
            # Compiled layers cannot be counted, and would stay uncompiled afterwards.
            with torch.compiler.set_stance("force_eager"), counter:
                yield
            self._operations[phase] = counter.get_total_flops()
        self._steps += 1
        self._done += self._operations[phase]

    def line(self) -> dict[str, float]:
        """Return the numbers of this process since the beginning, and begin anew."""
        seconds = max(1e-9, time.perf_counter() - self._started)
        if self._asks_again:
            self._ask()
        line = {
            "speed/images": self._steps * self.batch_size / seconds,
            "speed/operations": self._done / seconds / 1e12,
            "speed/utilization": self._done / seconds / self.rate,
            "memory/peak": peak_memory(self.device) / 2**20,
            "data/wait": self._waited / seconds,
        }
        self.restart()
        return line


def product_rate(device: torch.device, precision: str) -> float:
    """Return the operations a second of a large matrix product, the fastest of a few.

    Args:
        device: where to compute.
        precision: `auto`, `bf16` or `fp32`.
    """
    side = _SIDE.get(device.type, _SIDE["cpu"])
    generator = torch.Generator(device).manual_seed(0)
    left, right = torch.rand(2, side, side, generator=generator, device=device).unbind()
    seconds = []
    with torch.no_grad(), mixed_precision(device, precision):
        for _ in range(_PRODUCTS):
            _synchronize(device)
            before = time.perf_counter()
            torch.mm(left, right)
            _synchronize(device)
            seconds.append(time.perf_counter() - before)
            if sum(seconds) > _SECONDS:
                break
    if device.type == "cuda":  # the peak of training is not that of these matrices
        del left, right
        torch.cuda.reset_peak_memory_stats(device)
    return 2 * side**3 / min(seconds)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held so far: on the GPU by tensors, on the CPU by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
