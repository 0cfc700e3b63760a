"""What a few-shot evaluation leaves behind: numbers, tables, a figure, a page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pixlex.eval.few_shot.published import published_rows
from pixlex.eval.few_shot.run import Cell
from pixlex.files import write_json, write_text
from pixlex.messages import printable
from pixlex.report.drawing import escape, plotted
from pixlex.report.few_shot_tables import (
    Row,
    column_title,
    columns_of,
    markdown_table,
    notes_of,
    rows_of,
    table_lines,
    ways_of,
)


def write_results(folder: Path, cells: Sequence[Cell], about: Mapping[str, Any]) -> None:
    """Write results.json and table.md.

    Args:
        folder: where; made if missing.
        cells: what was measured.
        about: plain values that stand before the results: models, data, seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = [
        {
            **{key: value for key, value in vars(cell).items() if key not in ("answers", "setting")},
            "setting": asdict(cell.setting),
        }
        for cell in cells
    ]
    published = [asdict(row) for ways in ways_of(cells) for row in published_rows(ways)]
    write_json(folder / "results.json", {**about, "results": values, "published": published})
    parts = [f"## {ways}-way\n\n{markdown_table(table_lines(cells, ways))}" for ways in ways_of(cells)]
    notes = "\n".join(f"- {note}" for note in notes_of(cells))
    tables = printable("\n\n".join([*parts, notes]), keep="\n")
    write_text(folder / "table.md", f"{tables}\n")


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


def write_few_shot_page(
    path: Path,
    cells: Sequence[Cell],
    *,
    title: str,
    commands: Sequence[str],
    about: Mapping[str, Any],
    pictures: Sequence[tuple[str, Path]] = (),
) -> Path:
    """Write a page: tables, pictures, the numbers one by one; one file that needs nothing else.

    Args:
        path: the HTML file to write.
        cells: what was measured.
        title: heading of the page.
        commands: what to type to get this result, exactly.
        about: models, data, seed; plain values.
        pictures: heading and PNG of each picture.

    Returns:
        The path of the page.
    """
    tables = "\n".join(
        f"<h2>{ways}-way</h2>\n{_html_table(table_lines(cells, ways))}" for ways in ways_of(cells)
    )
    images = "\n".join(_picture(heading, path) for heading, path in pictures)
    source = resources.files("pixlex.report").joinpath("page.html").read_text("utf-8")
    page = Template(source).substitute(
        title=escape(title),
        introduction="<p>Each image was written as words; whoever answers saw a few labeled images and was "
        "asked for the name of another one.</p>",
        examples=f"{tables}\n{images}",
        numbers="\n".join(_number_rows(cells)),
        notes="<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes_of(cells)) + "</ul>",
        curves="",
        commands=escape("\n".join(commands)),
        config=escape(yaml.safe_dump(dict(about), sort_keys=False, allow_unicode=True)),
    )
    write_text(path, page)
    return path


def _html_table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    rows = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for line in body:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in line)
        rows.append(f"<tr>{cells}</tr>")
    return '<div class="scroll"><table>' + "\n".join(rows) + "</table></div>"


def _number_rows(cells: Sequence[Cell]) -> list[str]:
    head = [
        "answers",
        "scorer",
        "setting",
        "%",
        "95 % interval",
        "episodes",
        "failed",
        "% if failures are wrong",
    ]
    lines = [head] + [
        [
            cell.answerer,
            cell.scorer,
            cell.setting.label,
            "" if cell.accuracy is None else f"{100 * cell.accuracy:.1f}",
            "" if cell.low is None or cell.high is None else f"{100 * cell.low:.1f} to {100 * cell.high:.1f}",
            str(cell.num_episodes),
            str(cell.num_failed),
            "does not fit"
            if cell.accuracy_with_failures is None
            else f"{100 * cell.accuracy_with_failures:.1f}",
        ]
        for cell in cells
    ]
    return [
        "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in line) + "</tr>"
        for tag, line in zip(["th", *["td"] * len(cells)], lines, strict=True)
    ]


def _picture(heading: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<h2>{escape(heading)}</h2>\n<img class="curves" alt="{escape(heading)}" '
        f'src="data:image/png;base64,{data}">'
    )
