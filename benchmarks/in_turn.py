"""Contestants of a benchmark, each in a process of its own, in turn, so that peak memory is its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence

import torch

FULL = {"out_of_memory": 1.0}


def last_line(script: str, arguments: Sequence[str], launcher: Sequence[str] = ()) -> str:
    """Return the last line that a benchmark prints in a process of its own; its errors are shown.

    Args:
        script: path of the benchmark.
        arguments: what it is given.
        launcher: the module and its arguments that start it, as `-m torch.distributed.run`; Python alone if empty.
    """
    command = [sys.executable, *launcher, script, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


def measured_in_turn(
    script: str, names: Sequence[str], rounds: int, arguments: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return the median of each number that `script --one NAME` prints as JSON on its last line.

    Args:
        script: path of the benchmark.
        names: the contestants.
        rounds: times that all of them run, one after the other.
        arguments: what else the script is given.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(json.loads(last_line(script, ["--one", name, *arguments])))
            if found[name][-1] == FULL:
                raise ValueError(f"{name}: out of the device's memory; expected a --batch that fits")
    return {
        name: {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        for name, runs in found.items()
    }


def or_full(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return what was measured, or that the memory of the GPU was full."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        return dict(FULL)


def doubled_until_full(
    script: str, name: str, first: int, most: int | None, arguments: Sequence[str]
) -> dict[int, dict[str, float]]:
    """Return what a contestant measured at each batch, doubled until the memory of the GPU is full.

    Args:
        script: path of the benchmark; `--one NAME --batch B` prints `or_full` as JSON on its last line.
        name: the contestant.
        first: images of the first batch.
        most: no larger batch is tried; None for no limit.
        arguments: what else the script is given.
    """
    found: dict[int, dict[str, float]] = {}
    batch = first
    while most is None or batch <= most:
        numbers = json.loads(last_line(script, ["--one", name, "--batch", str(batch), *arguments]))
        if numbers == FULL:
            break
        found[batch] = numbers
        batch *= 2
    return found
