"""What linear probes and ablations leave in a folder: results.json, tables, pictures, a page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pixlex.config.ablation import NOT_DESCRIBED
from pixlex.eval.evaluate import metric_of
from pixlex.eval.published import PublishedTable
from pixlex.files import write_json, write_text
from pixlex.messages import printable
from pixlex.report.curves import GRAY, dress, plotted, save
from pixlex.report.figures import drawn
from pixlex.report.page import Page, Table, markdown_table, write_page

if TYPE_CHECKING:
    from pixlex.eval.probe_features import ProbeRow
    from pixlex.eval.probe_sets import ProbeSets

AblationValues = Mapping[str, Any]  # name, title, group, paper, failure, numbers: column -> Measured
Measured = Mapping[str, float | None]  # value, low, high

# (row, top-1) as quoted in QLIP (Zhao et al. 2025, arXiv:2502.05178), Table 10.
PROBES_PUBLISHED = (("LQAE", 0.397), ("VQ-VAE", 0.184))
PROBES_NOTE = "published, not comparable: ImageNet, 1,000 classes; as quoted in QLIP, Table 10"

_COLORS = ("#3b6fb6", "#d1652b", "#3d8f5f", "#8a5aa8", "#a67c00", "#b3226b", "#5c4a3d")
_INK = "#1c1c21"
# Confusion matrices of so few classes have their numbers written in; those of more than the second number
# have no names, which nobody could read.
_MOST_WRITTEN = 15
_MOST_NAMED = 200


def row_values(row: ProbeRow, class_names: Sequence[str]) -> dict[str, Any]:
    """Return a row as plain values for `results.json`."""
    result, names = row.result, list(class_names)
    left_out = ("classifier", "confusion", "class_accuracy")
    values = {name: value for name, value in vars(result).items() if name not in left_out}
    # Those that occur twice with their number.
    distinct = [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names)]
    accuracy = [None if math.isnan(one) else float(one) for one in result.class_accuracy]
    return {
        "name": row.name, "model": row.model, "features": row.features, **values,
        "class_accuracy": dict(zip(distinct, accuracy, strict=True)),
        "confusion": result.confusion.tolist(),
        "skipped": [asdict(one) for one in row.skipped],
    }  # fmt: skip


def row_text(row: ProbeRow) -> str:
    """Return the accuracies of a row."""
    result = row.result
    top5 = "" if result.top5 is None else f", top-5 {_percent(result.top5, result.top5_interval)}"
    return f"top-1 {_percent(result.top1, result.top1_interval)}{top5}"


def _percent(value: float, interval: tuple[float, float] | None) -> str:
    assert interval is not None
    return f"{100 * value:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def write_linear_probe(
    folder: Path, rows: Sequence[ProbeRow], sets: ProbeSets, *, commands: Sequence[str], notes: Sequence[str]
) -> Path | None:
    """Write results.json, the pictures and report.html; return the page, None where it could not be made.

    Rows of single layers (`layer 3`) are drawn in a picture of their own; the notes are of all rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = sets.train.class_names
    values = {
        "train": sets.train.source.name,
        "test": sets.test.source.name,
        "validation": sets.validation.source.name if sets.validation else None,
        "class_names": list(names),
        "rows": [row_values(row, names) for row in rows],
        "published": [{"name": name, "top1": top1, "note": PROBES_NOTE} for name, top1 in PROBES_PUBLISHED],
        "notes": list(notes),
        "commands": list(commands),
    }
    write_json(folder / "results.json", values)
    whole = [row for row in rows if not row.features.startswith("layer ")]
    pictures = {"Accuracy": drawn(folder / "accuracy.png", partial(_draw_rows, whole))}
    if len(whole) < len(rows):
        pictures["Single layers"] = drawn(folder / "layers.png", partial(_draw_layers, rows))
    pictures["Choice of the strength"] = drawn(folder / "strength.png", partial(_draw_strengths, whole))
    best = max(whole, key=lambda row: row.result.top1)
    for row in whole:
        name = f"confusion-{re.sub(r'[^a-z0-9]+', '-', row.name.lower()).strip('-')}.png"
        confusion = drawn(folder / name, partial(draw_confusion, row, names))
        if row is best:
            pictures[f"Who is taken for whom: {row.name}"] = confusion
    page = _page(values, rows, pictures)
    return drawn(folder / "report.html", lambda path: write_page(path, page))


def _page(values: Mapping[str, Any], rows: Sequence[ProbeRow], pictures: Mapping[str, Path | None]) -> Page:
    result, best = rows[0].result, max(rows, key=lambda row: row.result.top1)
    lines = []
    for row in rows:
        one = row.result
        top5 = "" if one.top5 is None else _percent(one.top5, one.top5_interval)
        counts = f"{one.width:,}", f"{one.num_test:,}", f"strength {one.penalty:g}"
        lines.append([row.name, _percent(one.top1, one.top1_interval), top5, *counts])
    lines.append(["most frequent training class", f"{100 * result.majority:.1f} %", "", "", "", ""])
    lines.append(["chance", f"{100 * result.chance:.3g} %", "", "", "", ""])
    lines += [[name, f"{100 * top1:.1f} %", "", "", "", PROBES_NOTE] for name, top1 in PROBES_PUBLISHED]
    head = ("features", "top-1 (95 %)", "top-5 (95 %)", "width", "images", "")
    notes = [f"{row.name}: {note}" for row in rows for note in row.result.notes]
    return Page(
        title=f"Linear probe: {values['test']}",
        introduction=f"A linear classifier of {result.num_classes} classes on features of frozen models: fitted "
        f"on {result.num_train:,} images of {values['train']}, measured on {result.num_test:,} of "
        f"{values['test']}. The strength of its regularization was chosen on {result.num_validation:,} "
        "images, never on the test images. Intervals are 95 % (Wilson), for the draw of the test images.",
        tables=[Table("Numbers", head, lines, values=(1, 2, 3, 4), remarks=(5,))],
        notes=[*values["notes"], *notes, *_confused(best, values["class_names"])],
        pictures=pictures,
        commands=values["commands"],
        config={
            "penalties": {row.name: row.result.penalty for row in rows},
            "methods": {row.name: row.result.method for row in rows},
            "seconds": {row.name: round(row.result.seconds, 1) for row in rows},
        },
    )


def _confused(row: ProbeRow, class_names: Sequence[str]) -> Iterator[str]:
    """Yield the classes known best and worst, and the most frequent confusions, of one row."""
    accuracy = row.result.class_accuracy
    # NaN, a class without test images, is sorted to the end.
    order = np.argsort(-accuracy, kind="stable")[: np.isfinite(accuracy).sum()].tolist()
    count = min(5, len(order) // 2)
    for kind, places in (("best", order[:count]), ("worst", order[::-1][:count])):
        named = (f"{class_names[place]} {100 * accuracy[place]:.0f} %" for place in places)
        yield f"{row.name}, classes known {kind}: {', '.join(named)}"
    wrong = row.result.confusion.copy()
    np.fill_diagonal(wrong, 0)
    worst = np.argsort(-wrong, axis=None, kind="stable")[:10]
    texts = [
        f"{class_names[a]} for {class_names[b]}, {'once' if wrong[a, b] == 1 else f'{wrong[a, b]} times'}"
        for a, b in (divmod(int(place), len(class_names)) for place in worst)
        if wrong[a, b]
    ]
    if texts:
        yield f"{row.name}, taken most often: {'; '.join(texts)}"


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, figure.subplots()


def _curves(figure: Figure, axes: Axes, out: Path, across: str, up: str) -> Path:
    """Write a plot of ratios, its axes named."""
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(up, fontsize=8)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    dress(axes, legend={})
    return save(figure, out, 120)


def _draw_rows(rows: Sequence[ProbeRow], out: Path) -> Path:
    """Draw top-1 and its interval for each row, with chance and majority class as lines."""
    figure, axes = _axes(8.0, 1.3 + 0.45 * len(rows))
    top1 = np.array([row.result.top1 for row in rows])
    ends = np.array([row.result.top1_interval for row in rows])
    places = np.arange(len(rows))
    models = list(dict.fromkeys(row.model for row in rows))
    colors = [_COLORS[models.index(row.model) % len(_COLORS)] for row in rows]
    axes.barh(places, top1, color=colors, height=0.65)
    spread = np.stack([top1 - ends[:, 0], ends[:, 1] - top1])
    axes.errorbar(top1, places, xerr=spread, fmt="none", ecolor=_INK, capsize=3, lw=1)
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8}
    for place, end, value in zip(places, ends[:, 1], top1, strict=True):
        axes.annotate(f"{100 * value:.1f} %", (end, place), (4, 0), **beside)
    result = rows[0].result
    for value, name, dashes in ((result.chance, "chance", "--"), (result.majority, "majority class", ":")):
        axes.axvline(value, color=GRAY, ls=dashes, lw=1.2, label=f"{name} {100 * value:.3g} %")
    axes.set_yticks(places, [plotted(row.name) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, min(1.0, 1.15 * float(ends.max())))
    axes.set_xlabel("top-1 accuracy on test images, 95 % interval", fontsize=8)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.35 / len(rows) - 0.12), "ncols": 2}
    dress(axes, grid=None, legend=below)
    return save(figure, out, 120)


def _draw_strengths(rows: Sequence[ProbeRow], out: Path) -> Path:
    """Draw validation accuracy over the strength of regularization, the chosen one marked."""
    figure, axes = _axes(8.0, 4.0)
    for number, row in enumerate(rows):
        result, color = row.result, _COLORS[number % len(_COLORS)]
        tried = result.penalties, result.validation_accuracy
        axes.plot(*tried, color=color, marker="o", ms=3, lw=1.4, label=plotted(row.name))
        best = result.validation_accuracy[result.penalties.index(result.penalty)]
        axes.plot([result.penalty], [best], color=color, marker="o", ms=9, mfc="none", ls="")
    axes.set_xscale("log")
    axes.invert_xaxis()
    across = "penalty on the squared weights, from strong to weak; a ring marks the chosen one"
    return _curves(figure, axes, out, across, "accuracy on validation images")


def _draw_layers(rows: Sequence[ProbeRow], out: Path) -> Path:
    """Draw top-1 of every single layer with its interval, and that of all together as a line."""
    figure, axes = _axes(8.0, 4.0)
    for number, model in enumerate(dict.fromkeys(row.model for row in rows)):
        color = _COLORS[number % len(_COLORS)]
        own = [row for row in rows if row.model == model]
        single = [row for row in own if row.features.startswith("layer ")]
        layers = [int(row.features.removeprefix("layer ")) for row in single]
        ends = np.array([row.result.top1_interval for row in single]).reshape(-1, 2)
        top1 = [row.result.top1 for row in single]
        axes.plot(layers, top1, color=color, marker="o", ms=4, lw=1.4, label=plotted(f"{model}, one layer"))
        axes.fill_between(layers, ends[:, 0], ends[:, 1], color=color, alpha=0.15, lw=0)
        for row in own:
            if row.features == "layers":
                label = plotted(f"{model}, all layers")
                axes.axhline(row.result.top1, color=color, ls="--", lw=1, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    across = "layer of the language model (0: the words before the first layer)"
    return _curves(figure, axes, out, across, "top-1 accuracy on test images, 95 % interval")


def draw_confusion(row: ProbeRow, class_names: Sequence[str], out: Path) -> Path:
    """Draw the fraction of each class's test images (rows) that are taken for each class (columns).

    Many classes are sorted by accuracy, best first, so that the diagonal fades from corner to corner.
    """
    result, count = row.result, len(class_names)
    is_small, order = count <= _MOST_WRITTEN, np.arange(count)
    if not is_small:
        order = np.argsort(-np.nan_to_num(result.class_accuracy, nan=-1.0), kind="stable")
    counts = result.confusion[np.ix_(order, order)]
    ratios = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(16.0, 4.5 + 0.12 * count)
    figure, axes = _axes(side, 0.88 * side)
    # The square root lets a class taken for another in one of fifty images be seen.
    shown = axes.imshow(ratios, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    if count <= _MOST_NAMED:
        names = [class_names[place] for place in order.tolist()]
        names = [plotted(name if len(name) <= 22 else f"{name[:20]}...") for name in names]
        size = 8 if is_small else max(4.0, min(8.0, 72 * side * 0.8 / count))
        axes.set_xticks(np.arange(count), names, rotation=90, fontsize=size)
        axes.set_yticks(np.arange(count), names, fontsize=size)
        axes.tick_params(length=3 if is_small else 0, pad=1)
    if is_small:
        for (line, column), ratio in np.ndenumerate(ratios):
            middle: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7}
            middle["color"] = "white" if ratio > 0.4 else _INK
            axes.text(column, line, str(counts[line, column]), **middle)
    sorting = "" if is_small else ", classes from best to worst"
    axes.set_title(plotted(f"{row.name}{sorting}"), fontsize=10, loc="left")
    axes.set_xlabel("taken for", fontsize=9)
    axes.set_ylabel("class", fontsize=9)
    bar = figure.colorbar(shown, ax=axes, shrink=0.4, format=PercentFormatter(1.0))
    bar.set_label("fraction of the class's test images", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return save(figure, out, 110)


def write_ablation(
    folder: Path,
    rows: Sequence[AblationValues],
    commands: Sequence[str],
    published: PublishedTable | None = None,
) -> list[Path]:
    """Write `results.json`, `table.md`, `rows.png` and, with two or more mask ratios, `mask-ratio.png`.

    The pictures show the rows that did not fail. See `ablation_table`; returns the files.
    """
    results, table = folder / "results.json", folder / "table.md"
    printed = None if published is None else asdict(published)
    write_json(results, {"commands": list(commands), "rows": list(rows), "published": printed})
    shown = "\n".join(f"    {command}" for command in commands)
    write_text(table, printable(f"# Ablations\n\n{shown}\n\n{ablation_table(rows, published)}", keep="\n"))
    done = [row for row in rows if not row["failure"]]
    written: list[Path | None] = [results, table]
    if _columns(done):
        written.append(drawn(folder / "rows.png", lambda path: _draw_ablations(done, path)))
    ratios = {float(row["name"].removeprefix("mask-")): row for row in done if row["group"] == "mask-ratio"}
    if len(ratios) > 1:
        written.append(drawn(folder / "mask-ratio.png", lambda path: _draw_mask_ratios(ratios, path)))
    return [path for path in written if path is not None]


def ablation_table(rows: Sequence[AblationValues], published: PublishedTable | None = None) -> str:
    """Return the rows as a Markdown table, failed ones and those that the paper does not describe included.

    Args:
        rows: In the order of the table, `base` first.
        published: The paper's own values of the recalls, in percent; None where it has none for the data.
    """
    columns = _columns(rows)
    head = ["row", "changes", "paper", *(_label(column) for column in columns)]
    lines = [head]
    for row in rows:
        if row["failure"]:
            lines.append([row["name"], f"{row['title']}: failed, {row['failure']}", row["paper"]])
            continue
        cells = (_cell(column, row["numbers"].get(column)) for column in columns)
        lines.append([row["name"], row["title"], row["paper"], *cells])
    if {row["group"] for row in rows} - {"base", "mask-ratio", "IV"}:  # LQAE's Table 3
        lines += [[name, why] for name, why in NOT_DESCRIBED.items()]
    if published is not None:
        recalls = [column for column in columns if column.startswith("retrieval/")]
        for name, values in published.rows.items():
            numbers = dict(zip(recalls, values, strict=False))
            cells = (f"{numbers[column]} %" if column in numbers else "" for column in columns)
            lines.append([f"published: {name}", f"{published.source}: {published.of}", "", *cells])
    return f"{markdown_table(lines)}\n"


def _columns(rows: Iterable[AblationValues]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row["numbers"]))


def _label(column: str) -> str:
    """Name a column: measures of reconstruction have labels of their own, the others name themselves."""
    return column.replace("/", ", ", 1).replace("_", " ") if "/" in column else metric_of(column).label


def _cell(column: str, measured: Measured | None) -> str:
    if measured is None or measured["value"] is None:
        return ""
    value, low, high = measured["value"], measured["low"], measured["high"]
    if low is None or high is None:
        return metric_of(f"eval/{column}").text(value)
    return _percent(value, (low, high))


def _draw_ablations(rows: Sequence[AblationValues], path: Path) -> Path:
    """Draw every column over the rows; the unchanged recipe is a line across."""
    columns = _columns(rows)
    figure = Figure(figsize=(9, 2.2 * len(columns)), layout="constrained")
    for axes, column in zip(figure.subplots(len(columns), squeeze=False)[:, 0], columns, strict=True):
        shown = [row for row in rows if column in row["numbers"]]
        places = [float(place) for place in range(len(shown))]
        values = [row["numbers"][column]["value"] for row in shown]
        axes.bar(places, values, color=[_COLORS[row["name"] == "base"] for row in shown])
        _intervals(axes, places, [row["numbers"][column] for row in shown])
        if shown and shown[0]["name"] == "base":
            axes.axhline(values[0], color=GRAY, linewidth=0.8)
        axes.set_xticks(places, [row["name"] for row in shown], rotation=45, ha="right", fontsize=8)
        dress(axes, _label(column), grid=None)
    return save(figure, path, 120)


def _draw_mask_ratios(ratios: Mapping[float, AblationValues], path: Path) -> Path:
    """Draw every column over the fraction of hidden words (Figure 5 of the paper)."""
    ordered = [ratios[ratio] for ratio in sorted(ratios)]
    columns = [column for column in _columns(ordered) if all(column in row["numbers"] for row in ordered)]
    across, down = min(3, len(columns)), -(-len(columns) // 3)
    figure = Figure(figsize=(4 * across, 3 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes in panels[len(columns) :]:
        axes.set_visible(False)
    for axes, column in zip(panels, columns, strict=False):
        numbers = [row["numbers"][column] for row in ordered]
        axes.plot(sorted(ratios), [one["value"] for one in numbers], marker="o", color=_COLORS[0])
        _intervals(axes, sorted(ratios), numbers)
        axes.set_xlabel("fraction of words hidden")
        dress(axes, _label(column), grid=None)
    return save(figure, path, 120)


def _intervals(axes: Axes, places: Sequence[float], numbers: Sequence[Measured]) -> None:
    for place, one in zip(places, numbers, strict=True):
        if one["low"] is not None and one["high"] is not None:
            axes.vlines(place, one["low"], one["high"], color=_INK, linewidth=1.2)
