"""What evaluations leave in a folder: results.json, tables, plots, a page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pixlex.eval.few_shot.published import published_rows
from pixlex.eval.few_shot.run import Cell
from pixlex.eval.linear_probe import ProbeRow
from pixlex.eval.probe_sets import ProbeSets
from pixlex.eval.published import PublishedTable
from pixlex.files import write_json, write_text
from pixlex.messages import printable
from pixlex.report.drawing import drawn
from pixlex.report.page import Page, Table, write_page
from pixlex.report.plots import (
    draw_ablation,
    draw_confusion,
    draw_layers,
    draw_mask_ratios,
    draw_rows,
    draw_strengths,
)
from pixlex.report.tables import (
    PROBES_NOTE,
    PROBES_PUBLISHED,
    AblationValues,
    ablation_columns,
    ablation_table,
    markdown_table,
    notes_of,
    percent,
    row_values,
    table_lines,
    ways_of,
)


def write_few_shot(folder: Path, cells: Sequence[Cell], about: Mapping[str, Any]) -> None:
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


def write_few_shot_page(
    path: Path,
    cells: Sequence[Cell],
    *,
    title: str,
    commands: Sequence[str],
    about: Mapping[str, Any],
    pictures: Mapping[str, Path | None],
) -> Path:
    """Write the page of few-shot classification: tables, the numbers one by one, pictures.

    Args:
        path: the HTML file to write.
        cells: what was measured.
        title: heading of the page.
        commands: what to type to get this result, exactly.
        about: models, data, seed; plain values.
        pictures: PNG of each heading.

    Returns:
        The path of the page.
    """
    tables = []
    for ways in ways_of(cells):
        head, *rows = table_lines(cells, ways)
        tables.append(Table(f"{ways}-way", head, rows))
    columns = (
        "answers",
        "scorer",
        "setting",
        "%",
        "95 % interval",
        "episodes",
        "failed",
        "% if failures are wrong",
    )
    numbers = Table("Numbers", columns, [_numbers(cell) for cell in cells])
    return write_page(
        path,
        Page(
            title=title,
            introduction="Each image was written as words; whoever answers was given a few labeled images and "
            "asked for the name of another one.",
            tables=[*tables, numbers],
            notes=notes_of(cells),
            pictures=pictures,
            commands=commands,
            config=about,
        ),
    )


def _numbers(cell: Cell) -> list[str]:
    """Return the line of a cell."""
    shown = "" if cell.low is None or cell.high is None else f"{100 * cell.low:.1f} to {100 * cell.high:.1f}"
    as_wrong = cell.accuracy_with_failures
    return [
        cell.answerer,
        cell.scorer,
        cell.setting.label,
        "" if cell.accuracy is None else f"{100 * cell.accuracy:.1f}",
        shown,
        str(cell.num_episodes),
        str(cell.num_failed),
        "does not fit" if as_wrong is None else f"{100 * as_wrong:.1f}",
    ]


def write_linear_probe(
    folder: Path, rows: Sequence[ProbeRow], sets: ProbeSets, *, commands: Sequence[str], notes: Sequence[str]
) -> Path | None:
    """Write results.json, the pictures and report.html.

    Args:
        folder: made if missing.
        rows: the table; rows of single layers (`layer 3`) are drawn in a picture of their own.
        sets: the images.
        commands: what was typed, exactly.
        notes: what is to be known of all rows.

    Returns:
        The path of the page; None where it could not be made.
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
    pictures = {"Accuracy": drawn(folder / "accuracy.png", lambda path: draw_rows(whole, path))}
    if len(whole) < len(rows):
        pictures["Single layers"] = drawn(folder / "layers.png", lambda path: draw_layers(rows, path))
    pictures["Choice of the strength"] = drawn(
        folder / "strength.png", lambda path: draw_strengths(whole, path)
    )
    best = max(whole, key=lambda row: row.result.top1)
    for row in whole:
        name = f"confusion-{re.sub(r'[^a-z0-9]+', '-', row.name.lower()).strip('-')}.png"
        confusion = drawn(folder / name, partial(draw_confusion, row, names))
        if row is best:
            pictures[f"Who is taken for whom: {row.name}"] = confusion
    page = _probe_page(values, rows, pictures)
    return drawn(folder / "report.html", lambda path: write_page(path, page))


def _probe_page(
    values: Mapping[str, Any], rows: Sequence[ProbeRow], pictures: Mapping[str, Path | None]
) -> Page:
    """Return the page of linear probes."""
    result, best = rows[0].result, max(rows, key=lambda row: row.result.top1)
    introduction = (
        f"A linear classifier of {result.num_classes} classes on features of frozen models: fitted on "
        f"{result.num_train:,} images of {values['train']}, measured on {result.num_test:,} of "
        f"{values['test']}. The strength of its regularization was chosen on {result.num_validation:,} "
        "images, never on the test images. Intervals are 95 % (Wilson), for the draw of the test images."
    )
    notes = [f"{row.name}: {note}" for row in rows for note in row.result.notes]
    return Page(
        title=f"Linear probe: {values['test']}",
        introduction=introduction,
        tables=[_probe_table(rows)],
        notes=[*values["notes"], *notes, *_confused(best, values["class_names"])],
        pictures=pictures,
        commands=values["commands"],
        config={
            "penalties": {row.name: row.result.penalty for row in rows},
            "methods": {row.name: row.result.method for row in rows},
            "seconds": {row.name: round(row.result.seconds, 1) for row in rows},
        },
    )


def _probe_table(rows: Sequence[ProbeRow]) -> Table:
    """Return the table of rows, the published ones last."""
    lines = []
    for row in rows:
        result = row.result
        top5 = "" if result.top5 is None else percent(result.top5, result.top5_interval)
        top1 = percent(result.top1, result.top1_interval)
        remark = f"strength {result.penalty:g}"
        lines.append([row.name, top1, top5, f"{result.width:,}", f"{result.num_test:,}", remark])
    result = rows[0].result
    lines.append(["most frequent training class", f"{100 * result.majority:.1f} %", "", "", "", ""])
    lines.append(["chance", f"{100 * result.chance:.3g} %", "", "", "", ""])
    lines += [[name, f"{100 * top1:.1f} %", "", "", "", PROBES_NOTE] for name, top1 in PROBES_PUBLISHED]
    head = ("features", "top-1 (95 %)", "top-5 (95 %)", "width", "images", "")
    return Table("Numbers", head, lines, values=(1, 2, 3, 4), remarks=(5,))


def _confused(row: ProbeRow, class_names: Sequence[str]) -> Iterator[str]:
    """Yield the classes known best and worst, and the most frequent confusions, of one row."""
    accuracy = row.result.class_accuracy
    # NaN, a class without test images, is sorted to the end.
    order = np.argsort(-accuracy, kind="stable")[: np.isfinite(accuracy).sum()].tolist()
    count = min(5, len(order) // 2)

    def named(places: Sequence[int]) -> str:
        return ", ".join(f"{class_names[place]} {100 * accuracy[place]:.0f} %" for place in places)

    wrong = row.result.confusion.copy()
    np.fill_diagonal(wrong, 0)
    worst = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = [divmod(int(place), len(class_names)) for place in worst]
    texts = [
        f"{class_names[a]} for {class_names[b]}, {'once' if wrong[a, b] == 1 else f'{wrong[a, b]} times'}"
        for a, b in pairs
        if wrong[a, b]
    ]
    yield f"{row.name}, classes known best: {named(order[:count])}"
    yield f"{row.name}, classes known worst: {named(order[::-1][:count])}"
    if texts:
        yield f"{row.name}, taken most often: {'; '.join(texts)}"


def write_ablation(
    folder: Path,
    rows: Sequence[AblationValues],
    commands: Sequence[str],
    published: PublishedTable | None = None,
) -> list[Path]:
    """Write `results.json`, `table.md`, `rows.png` and, with two or more mask ratios, `mask-ratio.png`.

    The pictures show the rows that did not fail.

    Args:
        folder: where to.
        rows: in the order of the table, `base` first.
        commands: what was typed to get this.
        published: as for `ablation_table`.

    Returns:
        The files.
    """
    results, table = folder / "results.json", folder / "table.md"
    printed = None if published is None else asdict(published)
    values = {"commands": list(commands), "rows": list(rows), "published": printed}
    write_json(results, values)
    shown = "\n".join(f"    {command}" for command in commands)
    text = printable(f"# Ablations\n\n{shown}\n\n{ablation_table(rows, published)}", keep="\n")
    write_text(table, text)
    done = [row for row in rows if not row["failure"]]
    written: list[Path | None] = [results, table]
    if ablation_columns(done):
        written.append(drawn(folder / "rows.png", lambda path: draw_ablation(done, path)))
    ratios = {float(row["name"].removeprefix("mask-")): row for row in done if row["group"] == "mask-ratio"}
    if len(ratios) > 1:
        written.append(drawn(folder / "mask-ratio.png", lambda path: draw_mask_ratios(ratios, path)))
    return [path for path in written if path is not None]
