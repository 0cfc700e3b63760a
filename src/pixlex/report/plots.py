"""Plots: curves of a run from its log, accuracies, probes, ablations; PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from pixlex.eval.few_shot.run import Cell
from pixlex.eval.linear_probe import ProbeRow
from pixlex.eval.metrics import metric_of
from pixlex.report.drawing import plotted
from pixlex.report.tables import (
    AblationValues,
    Measured,
    Row,
    ablation_columns,
    ablation_label,
    column_title,
    columns_of,
    rows_of,
    ways_of,
)
from pixlex.train.logging import read_metrics

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, values

# Panels come in this order, all others after them by name. Curves of one panel share an axis.
_ORDER = (
    "total", "reconstruction", "image_text_contrastive", "image_text_matching", "masked_language",
    "masked_image", "masked_image_gain", "pixel", "hidden_mse", "commitment", "codebook", "entropy",
    "quantization_error_share", "distinct_codewords", "perplexity", "recall", "cosine", "norm_z",
    "psnr", "ssim", "learning_rate", "gradient_norm", "images", "peak", "wait",
)  # fmt: skip
_PANEL_OF = {"mse": "reconstruction", "masked_mse": "reconstruction", "mean_image_mse": "reconstruction"}
_PANEL_OF |= {"majority_accuracy": "accuracy", "text_alone_accuracy": "accuracy"}
_PANEL_OF |= {"norm_codeword": "norm_z", "visible_mse": "hidden_mse"}
_PANEL_OF |= {f"{side}_recall_at_{k}": "recall" for side in ("text", "image") for k in (1, 10)}
# Constants of an evaluation, or what another panel shows already.
_NOT_DRAWN = {
    "eval/num_images", "eval/words_per_image", "eval/mean_color_mse", "eval/images_per_second",
    "eval/codebook_usage", "eval/text_recall_at_5", "eval/image_recall_at_5", "eval/temperature",
    "eval/text_round_trip_rate", "eval/tokenizer_round_trip_rate", "eval/num_items",
    "speed/operations", "speed/utilization",  # of older versions
}  # fmt: skip
# What is reached without what the panel measures, each with its dashes.
_BASELINES = {"eval/mean_image_mse": "--", "eval/majority_accuracy": ":", "eval/text_alone_accuracy": "--"}
# Drawn over several powers of ten where the values need it.
_LOGARITHMIC = {"total", "reconstruction", "pixel", "commitment", "codebook", "norm_z", "gradient_norm"}

_COLUMNS = 3
_LOGARITHMIC_FROM = 3.0  # largest value over smallest
_SMOOTHED_FROM = 100  # points
_EXACT = {"learning_rate"}
_WHOLE_SET = {"distinct_codewords", "perplexity"}
_COLORS = ("#3b6fb6", "#3d8f5f", "#8a5aa8", "#a67c00")
_EVALUATION_COLORS = ("#d1652b", "#b3226b", "#5c4a3d")
_BASELINE_COLOR = "#7d7d7d"
_ROW_COLORS = ("#3b6fb6", "#d1652b", "#3d8f5f", "#8a5aa8", "#a67c00", "#b3226b", "#5c4a3d")
# Confusion matrices of so few classes have their numbers written in; those of more than the second number
# have no names, which nobody could read.
_MOST_WRITTEN = 15
_MOST_NAMED = 200


def read_log(path: Path) -> dict[str, Curve]:
    """Read the curves of a log: one JSON object a line, with "step" and numbers by name.

    A line that is not what was written (the last one of a killed run, say) is passed over, and so is what is not
    a finite number. Where a step occurs twice, after a resumed run, the later line counts.

    Args:
        path: the log, `metrics.jsonl`.

    Returns:
        Steps in ascending order and values, for each name.
    """
    found: dict[str, dict[float, float]] = {}
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: there is no log")
    for entry in read_metrics(path):
        step = entry["step"]
        if not _is_number(step):
            continue
        for name, value in entry.items():
            if name != "step" and _is_number(value):
                found.setdefault(name, {})[float(step)] = float(value)
    return {
        name: (np.array(sorted(values)), np.array([values[step] for step in sorted(values)]))
        for name, values in found.items()
    }


def _is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value of the log is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def curves(metrics_path: Path, out: Path) -> Path:
    """Draw a run's losses, its codebook and its evaluations over the steps, one small panel for each measure.

    Args:
        metrics_path: the log, `metrics.jsonl` (see `read_log`).
        out: the PNG to write.

    Returns:
        The path written.

    Raises:
        FileNotFoundError: there is no log.
    """
    panels = _panels(read_log(metrics_path))
    rows = max(1, math.ceil(len(panels) / _COLUMNS))
    figure = Figure(figsize=(4.2 * _COLUMNS, 2.7 * rows), layout="constrained", facecolor="white")
    all_axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axes, (panel, lines) in zip(all_axes, panels.items(), strict=False):
        _draw(axes, panel, lines)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    if not panels:
        all_axes[0].text(0, 0.5, "nothing was logged yet", fontsize=12)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="png", dpi=110)
    return out


def _panels(log: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
    """Sort the curves into panels by the measure they show, in the order of the picture."""
    panels: dict[str, dict[str, Curve]] = {}
    for key in sorted(log):
        name = key.rpartition("/")[2]
        if key not in _NOT_DRAWN:
            panels.setdefault(_PANEL_OF.get(name, name), {})[key] = log[key]
    place = {name: number for number, name in enumerate(_ORDER)}
    return {
        name: panels[name] for name in sorted(panels, key=lambda name: (place.get(name, len(place)), name))
    }


def _draw(axes: Axes, panel: str, lines: Mapping[str, Curve]) -> None:
    """Draw one panel."""
    scale = 100.0 if metric_of(panel).unit == "%" else 1.0
    training, evaluation = iter(_COLORS * len(lines)), iter(_EVALUATION_COLORS * len(lines))
    # Training lies under the evaluations, and a measure comes before its variants, which have longer names.
    for key in sorted(lines, key=lambda key: (key.startswith("eval/"), len(key), key)):
        steps, values = lines[key]
        if key in _BASELINES:
            # Measured once, at the end, or with each evaluation: the level is what counts.
            level = scale * float(values[-1])
            axes.axhline(level, color=_BASELINE_COLOR, label=_legend(key, panel), ls=_BASELINES[key], lw=1.2)
        else:
            color = next(evaluation if key.startswith("eval/") else training)
            _draw_line(axes, (steps, scale * values), color, _legend(key, panel), smooth=panel not in _EXACT)
    _dress(axes, panel)
    everything = np.concatenate([values for _, values in lines.values()])
    if panel in _LOGARITHMIC and everything.max() > _LOGARITHMIC_FROM * everything.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _dress(axes: Axes, panel: str) -> None:
    """Say what a panel shows."""
    axes.set_title(metric_of(panel).label, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel(metric_of(panel).unit, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)


def _legend(key: str, panel: str) -> str:
    """Name a curve: its phase, and its measure where the panel's title does not say it."""
    phase, _, name = key.rpartition("/")
    label = metric_of(name).label.removeprefix("for comparison: ")
    if label.startswith(metric_of(panel).label):
        label = label.removeprefix(metric_of(panel).label).strip(" ,")
    if name in _WHOLE_SET:
        label = "the whole set" if phase == "eval" else "one batch"
    return ", ".join(part for part in (phase, label) if part) or name


def _draw_line(axes: Axes, curve: Curve, color: str, label: str, *, smooth: bool) -> None:
    """Draw one curve: few points as points, many noisy ones as a faint line under a running mean."""
    steps, values = curve
    if len(steps) < _SMOOTHED_FROM or not smooth:
        axes.plot(
            steps, values, color=color, label=label, lw=1.4, marker="o" if len(steps) < 30 else "", ms=3
        )
        return
    axes.plot(steps, values, color=color, alpha=0.25, lw=0.8)
    axes.plot(steps, running_mean(values, len(values) // 40), color=color, label=label, lw=1.6)


def running_mean(values: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Return the mean of each value and its neighbors on both sides, fewer of them at the ends.

    Args:
        values: one after another.
        radius: neighbors on each side, 0 or more.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - radius, 0), np.minimum(places + radius, len(values) - 1) + 1
    means: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return means


def draw_accuracies(cells: Sequence[Cell], path: Path) -> Path:
    """Draw accuracies with their intervals, a panel for each number of ways, the chance level dashed."""
    ways = ways_of(cells)
    columns = columns_of(cells)
    figure = Figure(figsize=(max(7.0, 1.5 * len(columns)), 4.2 * len(ways)), layout="constrained")
    panels = figure.subplots(len(ways), 1, squeeze=False)[:, 0]
    for axes, number in zip(panels, ways, strict=True):
        _draw_panel(axes, [row for row in rows_of(cells, number) if row.scorer != "exact"], columns, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=130)
    return path


def _draw_panel(axes: Axes, rows: Sequence[Row], columns: Sequence[str], ways: int) -> None:
    colors = matplotlib.colormaps["tab10" if len(rows) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    step = 0.8 / max(len(rows), 1)
    for number, row in enumerate(rows):
        found = [(place, row.cells[column]) for place, column in enumerate(columns) if column in row.cells]
        known = [(place, cell) for place, cell in found if cell.accuracy is not None]
        places = [place - 0.4 + (number + 0.5) * step for place, _ in known]
        values = [100 * (cell.accuracy or 0.0) for _, cell in known]
        below = [value - 100 * (cell.low or 0.0) for value, (_, cell) in zip(values, known, strict=True)]
        above = [100 * (cell.high or 0.0) - value for value, (_, cell) in zip(values, known, strict=True)]
        axes.errorbar(
            places, values, yerr=[below, above], fmt="o", ms=4, lw=1.3, capsize=2,
            color=colors[number % len(colors)], label=plotted(f"{row.name} ({row.scorer})"),
        )  # fmt: skip
    axes.axhline(100 / ways, color="0.4", ls="--", lw=1, label="chance among the names")
    axes.set_xticks(range(len(columns)), [column_title(column) for column in columns], fontsize=8)
    axes.set_ylim(0, 100)
    axes.set_ylabel("episodes right, %", fontsize=8)
    axes.set_title(f"{ways}-way, 95 % intervals", fontsize=10, loc="left")
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_rows(rows: Sequence[ProbeRow], out: Path) -> Path:
    """Draw top-1 and its interval for each row, with chance and majority class as lines."""
    figure = Figure(figsize=(8, 1.3 + 0.45 * len(rows)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    top1 = np.array([row.result.top1 for row in rows])
    ends = np.array([row.result.top1_interval for row in rows])
    places = np.arange(len(rows))
    models = list(dict.fromkeys(row.model for row in rows))
    colors = [_ROW_COLORS[models.index(row.model) % len(_ROW_COLORS)] for row in rows]
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
        result, color = row.result, _ROW_COLORS[number % len(_ROW_COLORS)]
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
        color = _ROW_COLORS[number % len(_ROW_COLORS)]
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


def draw_ablation(rows: Sequence[AblationValues], path: Path) -> Path:
    """Draw every column over the rows; the unchanged recipe is a line across."""
    columns = ablation_columns(rows)
    figure = Figure(figsize=(9, 2.2 * len(columns)), layout="constrained")
    for axes, column in zip(figure.subplots(len(columns), squeeze=False)[:, 0], columns, strict=True):
        shown = [row for row in rows if column in row["numbers"]]
        places = [float(place) for place in range(len(shown))]
        values = [row["numbers"][column]["value"] for row in shown]
        axes.bar(places, values, color=["#d1652b" if row["name"] == "base" else "#3b6fb6" for row in shown])
        _intervals(axes, places, [row["numbers"][column] for row in shown])
        if shown and shown[0]["name"] == "base":
            axes.axhline(values[0], color="#7d7d7d", linewidth=0.8)
        axes.set_xticks(places, [row["name"] for row in shown], rotation=45, ha="right", fontsize=8)
        axes.set_title(ablation_label(column), fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=120)
    return path


def draw_mask_ratios(ratios: Mapping[float, AblationValues], path: Path) -> Path:
    """Draw every column over the fraction of hidden words (Figure 5 of the paper)."""
    ordered = [ratios[ratio] for ratio in sorted(ratios)]
    columns = [
        column for column in ablation_columns(ordered) if all(column in row["numbers"] for row in ordered)
    ]
    figure = Figure(figsize=(4 * min(3, len(columns)), 3 * -(-len(columns) // 3)), layout="constrained")
    grid = figure.subplots(-(-len(columns) // 3), min(3, len(columns)), squeeze=False)
    for axes in grid.flat[len(columns) :]:
        axes.set_visible(False)
    for axes, column in zip(grid.flat, columns, strict=False):
        numbers = [row["numbers"][column] for row in ordered]
        axes.plot(sorted(ratios), [one["value"] for one in numbers], marker="o", color="#3b6fb6")
        _intervals(axes, sorted(ratios), numbers)
        axes.set_xlabel("fraction of words hidden")
        axes.set_title(ablation_label(column), fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=120)
    return path


def _intervals(axes: Any, places: Sequence[float], numbers: Sequence[Measured]) -> None:
    """Draw the intervals of those that have one."""
    for place, one in zip(places, numbers, strict=True):
        if one["low"] is not None and one["high"] is not None:
            axes.vlines(place, one["low"], one["high"], color="#1c1c21", linewidth=1.2)
