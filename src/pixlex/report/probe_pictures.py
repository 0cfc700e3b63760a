"""Pictures of linear probes: rows side by side, single layers, the choice of the strength, confusions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pixlex.eval.linear_probe import ProbeRow
from pixlex.report.drawing import plotted

# Confusion matrices of so few classes have their numbers written in; those of more than the second number
# have no names, which nobody could read.
_MOST_WRITTEN = 15
_MOST_NAMED = 200
_COLORS = ("#3b6fb6", "#d1652b", "#3d8f5f", "#8a5aa8", "#a67c00", "#b3226b", "#5c4a3d")


def draw_rows(rows: Sequence[ProbeRow], out: Path) -> Path:
    """Draw top-1 and its interval for each row, with chance and majority class as lines."""
    figure = Figure(figsize=(8, 1.3 + 0.45 * len(rows)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    top1 = np.array([row.result.top1 for row in rows])
    ends = np.array([row.result.top1_interval for row in rows])
    places = np.arange(len(rows))
    models = list(dict.fromkeys(row.model for row in rows))
    colors = [_COLORS[models.index(row.model) % len(_COLORS)] for row in rows]
    axes.barh(places, top1, color=colors, height=0.65)
    spread = np.stack([top1 - ends[:, 0], ends[:, 1] - top1])
    axes.errorbar(top1, places, xerr=spread, fmt="none", ecolor="#1c1c21", capsize=3, lw=1)
    for place, end, value in zip(places, ends[:, 1], top1, strict=True):
        axes.annotate(
            f"{100 * value:.1f} %", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    result = rows[0].result
    axes.axvline(result.chance, color="#7d7d7d", ls="--", lw=1, label=f"chance {100 * result.chance:.3g} %")
    axes.axvline(
        result.majority,
        color="#7d7d7d",
        ls=":",
        lw=1.4,
        label=f"majority class {100 * result.majority:.3g} %",
    )
    axes.set_yticks(places, [plotted(row.name) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, min(1.0, 1.15 * float(ends.max())))
    axes.set_xlabel("top-1 accuracy on test images, 95 % interval", fontsize=8)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.35 / len(rows) - 0.12), ncols=2
    )
    figure.savefig(out, format="png", dpi=120)
    return out


def draw_strengths(rows: Sequence[ProbeRow], out: Path) -> Path:
    """Draw validation accuracy over the strength of regularization, the chosen one marked."""
    figure = Figure(figsize=(8, 4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for number, row in enumerate(rows):
        result, color = row.result, _COLORS[number % len(_COLORS)]
        axes.plot(
            result.penalties,
            result.validation_accuracy,
            color=color,
            marker="o",
            ms=3,
            lw=1.4,
            label=plotted(row.name),
        )
        best = result.validation_accuracy[result.penalties.index(result.penalty)]
        axes.plot([result.penalty], [best], color=color, marker="o", ms=9, mfc="none", ls="")
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xlabel(
        "penalty on the squared weights, from strong to weak; a ring marks the chosen one", fontsize=8
    )
    axes.set_ylabel("accuracy on validation images", fontsize=8)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _finish(figure, axes, out)
    return out


def draw_layers(rows: Sequence[ProbeRow], out: Path) -> Path:
    """Draw top-1 of every single layer with its interval, and that of all together as a line."""
    figure = Figure(figsize=(8, 4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for number, model in enumerate(dict.fromkeys(row.model for row in rows)):
        color = _COLORS[number % len(_COLORS)]
        single = [row for row in rows if row.model == model and row.features.startswith("layer ")]
        layers = [int(row.features.removeprefix("layer ")) for row in single]
        top1 = np.array([row.result.top1 for row in single])
        ends = np.array([row.result.top1_interval for row in single]).reshape(-1, 2)
        axes.plot(layers, top1, color=color, marker="o", ms=4, lw=1.4, label=plotted(f"{model}, one layer"))
        axes.fill_between(layers, ends[:, 0], ends[:, 1], color=color, alpha=0.15, lw=0)
        for row in rows:
            if row.model == model and row.features == "layers":
                axes.axhline(
                    row.result.top1, color=color, ls="--", lw=1, label=plotted(f"{model}, all layers")
                )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer of the language model (0: the words before the first layer)", fontsize=8)
    axes.set_ylabel("top-1 accuracy on test images, 95 % interval", fontsize=8)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _finish(figure, axes, out)
    return out


def draw_confusion(row: ProbeRow, class_names: Sequence[str], out: Path) -> Path:
    """Draw the share of each class's test images (rows) that are taken for each class (columns).

    Many classes are sorted by accuracy, best first, so that the diagonal fades from corner to corner.

    Args:
        row: whose confusions.
        class_names: of all classes.
        out: the PNG to write.
    """
    result = row.result
    count = len(class_names)
    order = np.arange(count)
    if count > _MOST_WRITTEN:
        order = np.argsort(-np.nan_to_num(result.class_accuracy, nan=-1.0), kind="stable")
    counts = result.confusion[np.ix_(order, order)]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(16.0, 4.5 + 0.12 * count)
    figure = Figure(figsize=(side, 0.88 * side), layout="constrained", facecolor="white")
    axes = figure.subplots()
    # The square root lets a class taken for another in one of fifty images be seen.
    shown = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    if count <= _MOST_NAMED:
        names = [_shortened(class_names[place]) for place in order.tolist()]
        size = 8 if count <= _MOST_WRITTEN else max(4.0, min(8.0, 72 * side * 0.8 / count))
        axes.set_xticks(np.arange(count), names, rotation=90, fontsize=size)
        axes.set_yticks(np.arange(count), names, fontsize=size)
        axes.tick_params(length=0 if count > _MOST_WRITTEN else 3, pad=1)
    if count <= _MOST_WRITTEN:
        for (line, column), share in np.ndenumerate(shares):
            ink = "white" if share > 0.4 else "#1c1c21"
            axes.text(
                column, line, str(counts[line, column]), ha="center", va="center", fontsize=7, color=ink
            )
    sorting = ", classes from best to worst" if count > _MOST_WRITTEN else ""
    axes.set_title(plotted(f"{row.name}{sorting}"), fontsize=10, loc="left")
    axes.set_xlabel("taken for", fontsize=9)
    axes.set_ylabel("class", fontsize=9)
    bar = figure.colorbar(shown, ax=axes, shrink=0.4, format=PercentFormatter(1.0))
    bar.set_label("share of the class's test images", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.savefig(out, format="png", dpi=110)
    return out


def _shortened(name: str) -> str:
    return plotted(name if len(name) <= 22 else f"{name[:20]}...")


def _finish(figure: Figure, axes: Any, out: Path) -> None:
    """Dress and write a picture of lines."""
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(out, format="png", dpi=120)
