"""The same training on one and on two processes of torchrun: images a second, and the share of the exchange.

Small networks of both families, the batch of a step the same on any number of processes, gloo on the CPU, one
thread a process; losses of the last step must agree. The exchange of gradients is what forward and backward pass
take longer with it than without (DistributedDataParallel's `no_sync`); what contrast, matching and statistics send
is part of both. Images a second of the clock, and by the time that a process had a processor: what it would be if
nothing else kept the cores busy and no process waited for another. Each run is started by torchrun; numbers of
processes take turns for several rounds.

    python benchmarks/scaling.py [--rounds 2] [--steps 5] [--batch 64]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from contextlib import nullcontext
from dataclasses import fields, replace

import torch
from torch import Tensor

import cbvila_step
import lqae_step
from in_turn import last_line
from measuring import Sizes
from pixlex import distributed
from pixlex.batch import ImageBatch
from pixlex.config.lqae import LQAEObjectiveConfig
from pixlex.objectives.lqae import LQAEObjective
from pixlex.objectives.phase import Objective, Step
from pixlex.training.parallel import share_gradients

PROCESSES = (1, 2)
CPU = torch.device("cpu")
FAMILIES = ("lqae", "cbvila")
SIZES = Sizes(image_size=128, width=192, depth=4, heads=4, codewords=8192)
PAIR_SIZES = replace(SIZES, codewords=1024)


def work_of(family: str, batch: int, steps: int, *, small: bool) -> tuple[Objective, ImageBatch]:
    """Return an objective and a whole batch, the same on every process."""
    if family == "lqae":
        sizes = lqae_step.SMALL if small else SIZES
        objective = LQAEObjective(lqae_step.build(sizes).train(), LQAEObjectiveConfig(), steps)
        return objective, lqae_step.batch_of(sizes, batch, CPU)
    pairs = cbvila_step.build(cbvila_step.ALL, steps, cbvila_step.SMALL if small else PAIR_SIZES)
    return pairs, cbvila_step.pairs_of(pairs.model, batch)


def part_of(data: ImageBatch) -> ImageBatch:
    """Return the part of a batch that is this process's."""
    size = len(data.images) // distributed.world_size()
    own = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
    values = {field.name: getattr(data, field.name) for field in fields(data)}
    return replace(
        data, **{name: one[own] for name, one in values.items() if isinstance(one, Tensor | tuple)}
    )


def measure(family: str, batch: int, steps: int, *, small: bool) -> dict[str, float]:
    """Return images a second, both ways, the share of the exchange of gradients, the loss of the last step."""
    objective, data = work_of(family, batch, steps, small=small)
    data, phase = part_of(data), objective.phases[-1]
    for name, parameter in objective.named_parameters():
        parameter.requires_grad_(name.startswith(phase.trains))
    wrapped = share_gradients(objective)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-4)
    alone = distributed.world_size() == 1
    seconds, processor, without, loss = [], [], [], 0.0
    for number in range(steps + 1):  # the first does not count
        for exchanges in (True,) if alone else (False, True):
            distributed.barrier()
            began, processor_began = time.perf_counter(), time.process_time()
            with nullcontext() if exchanges else wrapped.no_sync():
                terms = wrapped(data, phase, Step(number, torch.Generator().manual_seed(number)))
                terms.total.backward()
            passed = time.perf_counter() - began
            if exchanges:
                optimizer.step()
                seconds.append((time.perf_counter() - began, passed))
                processor.append(time.process_time() - processor_began)
                loss = terms.total.item()
            else:
                without.append(passed)
            optimizer.zero_grad(set_to_none=True)
    whole = statistics.median(step for step, _ in seconds[1:])
    longer = (
        0.0 if alone else statistics.median(both for _, both in seconds[1:]) - statistics.median(without[1:])
    )
    numbers = {
        "images": batch / whole,
        "by_processor": batch / statistics.median(processor[1:]),
        "exchange": longer / whole,
        "loss": loss,
    }
    return distributed.mean_numbers(numbers)


def in_processes(count: int, family: str, given: argparse.Namespace) -> dict[str, float]:
    """Return what `measure` does on so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    options = ["--one", family, "--batch", str(given.batch), "--steps", str(given.steps)]
    return json.loads(last_line(__file__, options + ["--small"] * given.small, launcher))


def main() -> None:
    """Run all in turn and print a table with ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64, help="images of a step, over all processes")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--small", action="store_true", help="tiny networks, to try the script")
    parser.add_argument("--one", choices=FAMILIES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.batch % max(PROCESSES):
        parser.error(f"--batch: expected a multiple of {max(PROCESSES)} processes, got {given.batch}")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if given.one:
        distributed.initialize()
        numbers = measure(given.one, given.batch, given.steps, small=given.small)
        if distributed.rank() == 0:
            print(json.dumps(numbers))
        distributed.shutdown()
        return
    print(
        f"torch {torch.__version__}, {os.cpu_count()} cores, one thread a process, batch {given.batch}, fp32, gloo"
    )
    print(
        "| family | processes | images per second | over one process | by the processor | over one process "
        "| exchange of gradients | loss |\n|---|---|---|---|---|---|---|---|"
    )
    for family in given.families:
        runs = {count: [] for count in PROCESSES}
        for _ in range(given.rounds):
            for count in PROCESSES:
                runs[count].append(in_processes(count, family, given))
        rows = {
            count: {key: statistics.median(one[key] for one in found) for key in found[0]}
            for count, found in runs.items()
        }
        alone = rows[1]
        for count, row in rows.items():
            assert math.isclose(row["loss"], alone["loss"], rel_tol=1e-3), "the processes did other work"
            print(
                f"| {family} | {count} | {row['images']:.2f} | {row['images'] / alone['images']:.2f} | "
                f"{row['by_processor']:.2f} | {row['by_processor'] / alone['by_processor']:.2f} | "
                f"{row['exchange']:.1%} | {row['loss']:.5f} |"
            )


if __name__ == "__main__":
    main()
