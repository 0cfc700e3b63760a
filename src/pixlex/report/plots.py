"""Curves of a run, from its log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from pixlex.eval.metrics import metric_of
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
