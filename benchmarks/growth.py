"""How time and memory grow: the search with N and K, a training step of LQAE with image size and batch.

Ours beside the straightforward way, as in nearest.py (all distances, one-hot product) and lqae_step.py. Every
point is measured in a process of its own, ours and the other way one after the other. Seconds are those of the
processor (all threads together) on a CPU, which bear company, and of the clock on a GPU. Prints a table for each
axis and draws all of them, both axes logarithmic.

    python benchmarks/growth.py [--rounds 1] [--device cuda] [--out growth]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

import lqae_step
import nearest
from in_turn import measured_in_turn
from measuring import Sizes, synchronize
from pixlex.distributed import pick_device

WAYS = ("ours", "straightforward")
_COLORS = dict(zip(WAYS, ("#3b6fb6", "#d1652b"), strict=True))
# What is varied, through which values, and by its side what the other one is.
SEARCH = {"vectors N": (256, 512, 1024, 2048, 4096), "codewords K": (1024, 4096, 16384, 65536)}
STEP = {"image size": (64, 128, 192, 256), "batch": (1, 2, 4, 8, 16)}
TITLES = {
    "vectors N": "search, K = 8,192, D = 256",
    "codewords K": "search, N = 1,024, D = 256",
    "image size": "LQAE step, batch 4",
    "batch": "LQAE step, 128 px",
}
ROWS, CODEWORDS, WIDTH = 1024, 8192, 256
# Four layers of width 192 in encoder, decoder and language model.
SIZES = Sizes(image_size=128, width=192, depth=4, heads=4, codewords=8192)
BATCH = 4
Points = Mapping[int, Mapping[str, Mapping[str, float]]]  # value, way, number


def search_numbers(way: str, rows: int, codewords: int, device: torch.device) -> dict[str, float]:
    """Return seconds of a search (median of three, see above) and the memory above its inputs, in MB."""
    name = {"ours": nearest.OURS, "straightforward": "full distances, one-hot product"}[way]
    torch.manual_seed(0)
    codebook = torch.randn(codewords, WIDTH).to(device)
    z = torch.randn(rows, WIDTH).to(device)
    memory = nearest.memory_of(name, z, codebook, "cosine")
    search, seconds = nearest.CONTESTANTS[name](codebook, "cosine"), []
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for _ in range(3):
        synchronize(device)
        began = clock()
        search(z)
        synchronize(device)
        seconds.append(clock() - began)
    return {"seconds": statistics.median(seconds), "memory": memory}


def step_numbers(way: str, sizes: Sizes, batch: int, device: torch.device) -> dict[str, float]:
    """Return seconds of a step, not of an image (median of three), and the memory above the model, in MiB."""
    found = lqae_step.measure(way, sizes, batch, 3, device)
    return {
        "seconds": batch * found["processor" if device.type == "cpu" else "seconds"],
        "memory": found["above_model"],
    }


def numbers_of(axis: str, value: int, way: str, device: torch.device) -> dict[str, float]:
    match axis:
        case "vectors N":
            return search_numbers(way, value, CODEWORDS, device)
        case "codewords K":
            return search_numbers(way, ROWS, value, device)
        case "image size":
            return step_numbers(way, replace(SIZES, image_size=value), BATCH, device)
        case _:
            return step_numbers(way, SIZES, value, device)


def show(axis: str, points: Points) -> None:
    """Print a table with the ratios of an axis."""
    print(
        f"\n| {axis} ({TITLES[axis]}) | ours: seconds | MB | straightforward: seconds | MB | ratio | ratio of MB |"
    )
    print("|---|---|---|---|---|---|---|")
    for value, ways in points.items():
        ours, plain = (ways[way] for way in WAYS)
        print(
            f"| {value:,} | {ours['seconds']:.3g} | {ours['memory']:.0f} | {plain['seconds']:.3g} | "
            f"{plain['memory']:.0f} | {plain['seconds'] / ours['seconds']:.2f} | "
            f"{plain['memory'] / ours['memory']:.2f} |"
        )


def draw(found: Mapping[str, Points]) -> Figure:
    """Draw seconds above memory, a column for each axis."""
    figure = Figure(figsize=(3.1 * len(found), 5.2), layout="constrained")
    panels = figure.subplots(2, len(found), squeeze=False, sharex="col")
    for column, (axis, points) in enumerate(found.items()):
        for row, (key, label) in enumerate((("seconds", "seconds"), ("memory", "MB"))):
            panel = panels[row][column]
            for way in WAYS:
                values = [numbers[way][key] for numbers in points.values()]
                panel.loglog(list(points), values, marker="o", markersize=4, color=_COLORS[way], label=way)
            panel.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
            panel.set_axisbelow(True)
            panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.yaxis.set_minor_formatter(NullFormatter())
            panel.tick_params(axis="y", labelsize=7)
            panel.set_ylabel(label)
        panels[0][column].set_title(TITLES[axis], fontsize=9)
        panels[1][column].set_xlabel(axis)
        panels[1][column].xaxis.set_major_locator(FixedLocator(list(points)))
        panels[1][column].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        panels[1][column].xaxis.set_minor_formatter(NullFormatter())
        panels[1][column].tick_params(axis="x", labelsize=7)
    panels[0][0].legend(fontsize=8)
    return figure


def axes_of(given: argparse.Namespace) -> dict[str, Sequence[int]]:
    """Return what is varied through which values."""
    axes = {**SEARCH, **STEP}
    return {axis: values[: given.points] for axis, values in axes.items() if axis in given.axes}


def main() -> None:
    """Measure all points in turn, print tables, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps")
    parser.add_argument("--out", type=Path, help="folder that growth.png is written to; default none")
    parser.add_argument("--axes", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--points", type=int, help="the first so many values of each axis; default all")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    device = pick_device(given.device)
    if given.one:
        axis, value, way = given.one.split("/")
        print(json.dumps(numbers_of(axis, int(value), way, device)))
        return
    lqae_step.check_equal(device)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.device}")
    found = {}
    for axis, values in axes_of(given).items():
        names = [f"{axis}/{value}/{way}" for value in values for way in WAYS]
        rows = measured_in_turn(__file__, names, given.rounds, ["--device", given.device])
        found[axis] = {value: {way: rows[f"{axis}/{value}/{way}"] for way in WAYS} for value in values}
        show(axis, found[axis])
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        draw(found).savefig(given.out / "growth.png", dpi=80)
        print(f"\n{given.out / 'growth.png'}")


if __name__ == "__main__":
    main()
