"""What ablations leave in a folder: results.json, a table, plots of its columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pixlex.config.ablation import NOT_DESCRIBED
from pixlex.eval.evaluate import metric_of
from pixlex.eval.published import PublishedTable
from pixlex.files import write_json, write_text
from pixlex.messages import printable
from pixlex.report.curves import GRAY, dress, save
from pixlex.report.figures import drawn

AblationValues = Mapping[str, Any]  # name, title, group, paper, failure, numbers: column -> Measured
Measured = Mapping[str, float | None]  # value, low, high


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
        written.append(drawn(folder / "rows.png", lambda path: _draw_rows(done, path)))
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
    lines = [head, ["---"] * len(head)]
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
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


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
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _draw_rows(rows: Sequence[AblationValues], path: Path) -> Path:
    """Draw every column over the rows; the unchanged recipe is a line across."""
    columns = _columns(rows)
    figure = Figure(figsize=(9, 2.2 * len(columns)), layout="constrained")
    for axes, column in zip(figure.subplots(len(columns), squeeze=False)[:, 0], columns, strict=True):
        shown = [row for row in rows if column in row["numbers"]]
        places = [float(place) for place in range(len(shown))]
        values = [row["numbers"][column]["value"] for row in shown]
        axes.bar(places, values, color=["#d1652b" if row["name"] == "base" else "#3b6fb6" for row in shown])
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
        axes.plot(sorted(ratios), [one["value"] for one in numbers], marker="o", color="#3b6fb6")
        _intervals(axes, sorted(ratios), numbers)
        axes.set_xlabel("fraction of words hidden")
        dress(axes, _label(column), grid=None)
    return save(figure, path, 120)


def _intervals(axes: Axes, places: Sequence[float], numbers: Sequence[Measured]) -> None:
    """Draw the intervals of those that have one."""
    for place, one in zip(places, numbers, strict=True):
        if one["low"] is not None and one["high"] is not None:
            axes.vlines(place, one["low"], one["high"], color="#1c1c21", linewidth=1.2)
