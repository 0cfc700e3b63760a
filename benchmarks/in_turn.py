"""Contestants of a benchmark, each in a process of its own, in turn, so that peak memory is its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence


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
            command = [sys.executable, script, "--one", name, *arguments]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[name].append(json.loads(printed.splitlines()[-1]))
    return {
        name: {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        for name, runs in found.items()
    }
