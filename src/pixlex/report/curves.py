"""The curves of a run from its log, and what all plots share; PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from pixlex.eval.evaluate import metric_of
from pixlex.messages import printable
from pixlex.training.logging import read_metrics

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
    "eval/num_images", "eval/words_per_image", "eval/mean_color_mse", "eval/patch_color_mse",
    "eval/images_per_second", "eval/codebook_usage", "eval/text_recall_at_5", "eval/image_recall_at_5",
    "eval/temperature", "eval/text_round_trip_rate", "eval/tokenizer_round_trip_rate", "eval/num_items",
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
GRAY = "#7d7d7d"


def read_log(path: Path) -> dict[str, Curve]:
    """Read the curves of a log, `metrics.jsonl`: one JSON object a line, with "step" and numbers by name.

    A line that is not what was written (the last one of a killed run, say) is passed over, and so is what is not
    a finite number. Where a step occurs twice, after a resumed run, the later line counts. Steps are ascending.
    """
    found: dict[str, dict[float, float]] = {}
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: there is no log")
    for entry in read_metrics(path):
        step = entry["step"]
        for name, value in entry.items():
            if name != "step" and _is_number(step) and _is_number(value):
                found.setdefault(name, {})[float(step)] = float(value)
    return {
        name: (np.array(sorted(values)), np.array([values[step] for step in sorted(values)]))
        for name, values in found.items()
    }


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def curves(metrics_path: Path, out: Path) -> Path:
    """Draw a run's losses, its codebook and its evaluations over the steps, one small panel for each measure."""
    log = read_log(metrics_path)
    panels: dict[str, dict[str, Curve]] = {}
    for key in sorted(log.keys() - _NOT_DRAWN):
        name = key.rpartition("/")[2]
        panels.setdefault(_PANEL_OF.get(name, name), {})[key] = log[key]
    place = {name: number for number, name in enumerate(_ORDER)}
    ordered = sorted(panels, key=lambda name: (place.get(name, len(place)), name))
    rows = max(1, math.ceil(len(panels) / _COLUMNS))
    figure = Figure(figsize=(4.2 * _COLUMNS, 2.7 * rows), layout="constrained", facecolor="white")
    all_axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axes, panel in zip(all_axes, ordered, strict=False):
        _draw(axes, panel, panels[panel])
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    if not panels:
        all_axes[0].text(0, 0.5, "nothing was logged yet", fontsize=12)
    return save(figure, out, 110)


def _draw(axes: Axes, panel: str, lines: Mapping[str, Curve]) -> None:
    scale = 100.0 if metric_of(panel).unit == "%" else 1.0
    training, evaluation = iter(_COLORS * len(lines)), iter(_EVALUATION_COLORS * len(lines))
    # Training lies under the evaluations, and a measure comes before its variants, which have longer names.
    for key in sorted(lines, key=lambda key: (key.startswith("eval/"), len(key), key)):
        steps, values = lines[key][0], scale * lines[key][1]
        label = _legend(key, panel)
        if key in _BASELINES:
            # Measured once, at the end, or with each evaluation: the level is what counts.
            axes.axhline(float(values[-1]), color=GRAY, label=label, ls=_BASELINES[key], lw=1.2)
            continue
        color = next(evaluation if key.startswith("eval/") else training)
        if len(steps) < _SMOOTHED_FROM or panel in _EXACT:
            marker = "o" if len(steps) < 30 else ""
            axes.plot(steps, values, color=color, label=label, lw=1.4, marker=marker, ms=3)
        else:  # a faint line under a running mean
            axes.plot(steps, values, color=color, alpha=0.25, lw=0.8)
            axes.plot(steps, running_mean(values, len(values) // 40), color=color, label=label, lw=1.6)
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel(metric_of(panel).unit, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    dress(axes, metric_of(panel).label, legend={})
    everything = np.concatenate([values for _, values in lines.values()])
    if panel in _LOGARITHMIC and everything.max() > _LOGARITHMIC_FROM * everything.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(key: str, panel: str) -> str:
    """Name a curve: its phase, and its measure where the panel's title does not say it."""
    phase, _, name = key.rpartition("/")
    label = metric_of(name).label.removeprefix("for comparison: ")
    if label.startswith(metric_of(panel).label):
        label = label.removeprefix(metric_of(panel).label).strip(" ,")
    if name in _WHOLE_SET:
        label = "the whole set" if phase == "eval" else "one batch"
    return ", ".join(part for part in (phase, label) if part) or name


def running_mean(values: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Return the mean of each value and so many neighbors on both sides, fewer of them at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - radius, 0), np.minimum(places + radius, len(values) - 1) + 1
    means: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return means


def dress(
    axes: Axes,
    title: str = "",
    *,
    grid: Literal["both", "x", "y"] | None = "both",
    legend: Mapping[str, Any] | None = None,
) -> None:
    """Give axes the look of all plots: a title, small numbers, a faint grid, no box; a legend with settings."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.tick_params(labelsize=8)
    if grid:
        axes.grid(alpha=0.25, axis=grid)
    axes.spines[["top", "right"]].set_visible(False)
    if legend is not None:
        axes.legend(fontsize=7, frameon=False, **legend)


def save(figure: Figure, path: Path, dpi: int) -> Path:
    """Write a picture, its folder made if missing; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=dpi)
    return path


def plotted(text: str) -> str:
    """Return a name as matplotlib shows it, which knows no broken UTF-8 and reads dollars as formulas."""
    return printable(text).replace("$", r"\$")
