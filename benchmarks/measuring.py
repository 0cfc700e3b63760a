"""What benchmarks share: seconds, memory and operations on CPU and GPU, and the tables of a training step."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker

from in_turn import doubled_until_full, or_full
from pixlex.config.fields import TrainConfig
from pixlex.distributed import pick_device
from pixlex.training.logging import peak_memory
from pixlex.training.parallel import build_optimizer, mixed_precision, pick_precision

Numbers = Mapping[str, float]
_PRODUCTS = 50
_UNTIMED = 2


@dataclass(frozen=True)
class Sizes:
    """Networks of a step: image side in pixels; width and heads of all, depth of the image encoder; codewords."""

    codewords: int
    image_size: int = 256
    width: int = 768
    depth: int = 12
    heads: int = 12


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_product_rate(device: torch.device, precision: str = "auto") -> float:
    """Return the operations a second of a large product of matrices, undisturbed by other work at best."""
    side = 8192 if device.type == "cuda" else 512
    left, right = torch.rand(2, side, side, device=device).unbind()
    seconds = []
    with torch.no_grad(), mixed_precision(device, precision):
        for _ in range(_PRODUCTS):
            synchronize(device)
            before = time.perf_counter()
            torch.mm(left, right)
            synchronize(device)
            seconds.append(time.perf_counter() - before)
    return 2 * side**3 / min(seconds)


class _NoHooks(ModuleTracker):
    """No operations by module: the hooks that tell modules apart would keep alive what checkpointing drops."""

    def __enter__(self) -> _NoHooks:
        return self

    def __exit__(self, *args: object) -> None:
        pass


def operations_of(take_step: Callable[[], object]) -> int:
    """Return the operations of a step: products of matrices, convolutions, attention; recomputed ones count."""
    uncounted = {  # attention of the CPU, which torch's counter does not know; given shapes
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *others, **options: (
            sdpa_flop_count(q, k, v)
        ),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *others, **_: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    counter = FlopCounterMode(display=False, custom_mapping=uncounted)
    counter.mod_tracker = _NoHooks()
    # Compiled layers cannot be counted, and would stay uncompiled afterwards.
    with torch.compiler.set_stance("force_eager"), counter:
        take_step()
    return counter.get_total_flops()


class PeakMemory:
    """The most memory held since it was made: on a GPU by tensors, on the CPU by the whole process.

    Args:
        device: where the work is done.

    Attributes:
        before: held when it was made, in MiB.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._restarts = Path("/proc/self/clear_refs")
        if device.type == "cuda":
            synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device) / 2**20
        elif self._restarts.exists():
            self._restarts.write_text("5", encoding="ascii")  # the peak starts again from here
            self.before = _resident("VmRSS")
        else:  # no Linux: the peak of the process so far
            self.before = peak_memory(device) / 2**20

    def peak(self) -> float:
        """Return the most that was held since then, in MiB."""
        on_linux = self.device.type == "cpu" and self._restarts.exists()
        return _resident("VmHWM") if on_linux else peak_memory(self.device) / 2**20


def _resident(field: str) -> float:
    """Return a field of this process's memory account, in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"expected {field} in the memory account of the process, got none")


def measured_steps(
    take_step: Callable[[int], object], device: torch.device, steps: int, batch: int
) -> dict[str, float]:
    """Take two steps that do not count, then some that do; return medians.

    Args:
        take_step: is given the number of the step.
        device: where it is taken.
        steps: that count.
        batch: images (or pairs) of a step.

    Returns:
        `seconds`, those of the `processor` (all threads; they bear company better) and `operations` (10^12) of an
        image, `peak` memory and what of it is `above_model` (MiB), and `utilization`: operations a second over
        those of a large product of matrices in the same precision.
    """
    rate, memory = best_product_rate(device), PeakMemory(device)
    operations = operations_of(lambda: take_step(0)) / batch
    seconds, processor = [], []
    for number in range(1, steps + _UNTIMED):  # layers are compiled in the first of these
        synchronize(device)
        began, processor_began = time.perf_counter(), time.process_time()
        take_step(number)
        synchronize(device)
        seconds.append((time.perf_counter() - began) / batch)
        processor.append((time.process_time() - processor_began) / batch)
    median, peak = statistics.median(seconds[_UNTIMED - 1 :]), memory.peak()
    return {
        "seconds": median,
        "processor": statistics.median(processor[_UNTIMED - 1 :]),
        "peak": peak,
        "above_model": peak - memory.before,
        "operations": operations / 1e12,
        "utilization": operations / median / rate,
    }


def optimizer_of(objective: nn.Module, *, plain: bool) -> torch.optim.Optimizer:
    """Return the optimizer of training, or torch's as it comes."""
    if plain:
        return torch.optim.AdamW(objective.parameters(), lr=1e-4)
    return build_optimizer(objective, TrainConfig(learning_rate=1e-4))


def step_parser(description: str | None, contestants: Sequence[str], rounds: int) -> argparse.ArgumentParser:
    """Return the options that the benchmarks of a step have in common."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--steps", type=int, default=2, help="timed in each round, after two that are not")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps")
    parser.add_argument("--compile", action="store_true", help="compiled layers as one more row (minutes)")
    parser.add_argument("--small", action="store_true", help="tiny networks, to try the script")
    parser.add_argument(
        "--largest-batch",
        type=int,
        nargs="?",
        const=0,
        metavar="MOST",
        help="instead: double the batch, from --batch on, until the GPU's memory is full or MOST is reached",
    )
    parser.add_argument("--one", choices=list(contestants), help=argparse.SUPPRESS)
    return parser


def checked_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return what was asked for; leave with a message where it cannot be."""
    given = parser.parse_args()
    try:
        device = pick_device(given.device)
    except ValueError as error:
        parser.error(str(error))
    if given.largest_batch == 0 and device.type == "cpu":
        parser.error(
            "--largest-batch: expected --device cuda or a MOST; a CPU's memory does not end in an error but in "
            "swapping or a killed process"
        )
    return given


def passed_on(given: argparse.Namespace, *, batch: bool = True) -> list[str]:
    """Return the options that each process of one contestant is given again."""
    options = ["--steps", str(given.steps), "--device", given.device]
    return options + ["--small"] * given.small + (["--batch", str(given.batch)] if batch else [])


def print_one(measure: Callable[[], dict[str, float]]) -> None:
    """Print what one contestant measured, for the process that compares."""
    print(json.dumps(or_full(measure)))


def print_machine(given: argparse.Namespace) -> None:
    """Print where and in which precision the numbers below were measured."""
    device = pick_device(given.device)
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    )
    print(f"torch {torch.__version__}, {name}, batch {given.batch}, {pick_precision('auto', device)}")


def print_steps(rows: Mapping[str, Numbers], reference: str, unit: str) -> None:
    """Print seconds and memory of each row, and those of the reference over them."""
    print(
        f"| | seconds per {unit} | of the processor | peak memory (MiB) | above the model (MiB) "
        f"| {reference} / this: seconds | of the processor | peak | above the model |\n" + "|---" * 9 + "|"
    )
    keys = ("seconds", "processor", "peak", "above_model")
    for name, row in rows.items():
        # Memory that was there already may serve a step: nothing above the model.
        ratios = " | ".join(f"{rows[reference][key] / row[key]:.2f}" if row[key] else "-" for key in keys)
        print(
            f"| {name} | {row['seconds']:.3g} | {row['processor']:.3g} | {row['peak']:.0f} | "
            f"{row['above_model']:.0f} | {ratios} |"
        )


def print_rates(rows: Mapping[str, Numbers], unit: str, trainings: Mapping[str, int]) -> None:
    """Print the roofline of each row: its operations a second beside those of a large product of matrices.

    Args:
        rows: what `measured_steps` returned.
        unit: what a step has a batch of.
        trainings: how many of them a whole training goes through, by its name.
    """
    hours = "".join(f" | {name}, hours" for name in trainings)
    print(
        f"\n| | {unit}s per second | TFLOP per {unit} | TFLOP/s | over the rate of a matrix product{hours} |\n"
        "|---|---|---|---|---" + "|---" * len(trainings) + "|"
    )
    for name, row in rows.items():
        hours = "".join(f" | {count * row['seconds'] / 3600:,.0f}" for count in trainings.values())
        print(
            f"| {name} | {1 / row['seconds']:.3g} | {row['operations']:.3g} | "
            f"{row['operations'] / row['seconds']:.3g} | {row['utilization']:.1%}{hours} |"
        )


def print_largest_batch(
    script: str, names: Sequence[str], given: argparse.Namespace, unit: str, trainings: Mapping[str, int]
) -> None:
    """Print seconds, memory and roofline of each contestant at batches that are doubled until one does not fit."""
    most = given.largest_batch or None
    for name in names:
        found = doubled_until_full(script, name, given.batch, most, passed_on(given, batch=False))
        if not found:
            print(f"\n{name}: a batch of {given.batch} does not fit\n")
            continue
        largest = max(found)
        is_limit = most is None or largest * 2 <= most
        limit = f"{2 * largest} does not" if is_limit else "no larger one was tried"
        print(f"\n{name}: a batch of {largest} fits, {limit}\n")
        rows = {f"batch {batch}": numbers for batch, numbers in found.items()}
        print_steps(rows, next(iter(rows)), unit)
        print_rates(rows, unit, trainings)
