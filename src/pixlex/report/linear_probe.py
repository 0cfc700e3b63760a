"""Results of linear probes as text, as JSON, and as one page with its pictures."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import yaml

from pixlex.eval.linear_probe import ProbeRow
from pixlex.eval.probe_sets import ProbeSets
from pixlex.files import write_json, write_text
from pixlex.report.drawing import drawn, escape
from pixlex.report.probe_pictures import draw_confusion, draw_layers, draw_rows, draw_strengths

# (row, top-1) as quoted in QLIP (Zhao et al. 2025, arXiv:2502.05178), Table 10.
PUBLISHED = (("LQAE", 0.397), ("VQ-VAE", 0.184))
PUBLISHED_NOTE = "published, not comparable: ImageNet, 1,000 classes; as quoted in QLIP, Table 10"


def row_values(row: ProbeRow, class_names: Sequence[str]) -> dict[str, Any]:
    """Return a row as plain values for `results.json`."""
    result = row.result
    values = {
        name: value
        for name, value in vars(result).items()
        if name not in ("classifier", "confusion", "class_accuracy")
    }
    accuracy = [None if math.isnan(one) else float(one) for one in result.class_accuracy]
    return {
        "name": row.name,
        "model": row.model,
        "features": row.features,
        **values,
        "class_accuracy": dict(zip(_distinct(class_names), accuracy, strict=True)),
        "confusion": result.confusion.tolist(),
        "skipped": [asdict(one) for one in row.skipped],
    }


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names, those that occur twice with their number."""
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def row_text(row: ProbeRow) -> str:
    """Return the accuracies of a row."""
    result = row.result
    text = f"top-1 {_percent(result.top1, result.top1_interval)}"
    if result.top5 is not None:
        text += f", top-5 {_percent(result.top5, result.top5_interval)}"
    return text


def _percent(share: float, interval: tuple[float, float] | None) -> str:
    assert interval is not None
    return f"{100 * share:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


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
        "published": [{"name": name, "top1": top1, "note": PUBLISHED_NOTE} for name, top1 in PUBLISHED],
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
    there = {title: picture for title, picture in pictures.items() if picture is not None}
    return drawn(folder / "report.html", lambda path: _write_page(path, values, rows, there))


def _write_page(
    path: Path, values: Mapping[str, Any], rows: Sequence[ProbeRow], pictures: Mapping[str, Path]
) -> Path:
    """Write the page: one file that needs nothing else."""
    source = resources.files("pixlex.report").joinpath("page.html").read_text("utf-8")
    result = rows[0].result
    introduction = (
        f"A linear classifier of {result.num_classes} classes on features of frozen models: fitted on "
        f"{result.num_train:,} images of {values['train']}, measured on {result.num_test:,} of "
        f"{values['test']}. The strength of its regularization was chosen on {result.num_validation:,} "
        "images, never on the test images. Intervals are 95 % (Wilson), for the draw of the test images."
    )
    blocks = [
        f'<h2>{escape(title)}</h2>\n<img class="curves" alt="{escape(title)}" src="data:image/png;base64,'
        f'{base64.b64encode(picture.read_bytes()).decode("ascii")}">'
        for title, picture in pictures.items()
    ]
    best = max(rows, key=lambda row: row.result.top1)
    settings = {
        "penalties": {row.name: row.result.penalty for row in rows},
        "methods": {row.name: row.result.method for row in rows},
        "seconds": {row.name: round(row.result.seconds, 1) for row in rows},
    }
    page = Template(source).substitute(
        title=escape(f"Linear probe: {values['test']}"),
        introduction=f"<p>{escape(introduction)}</p>",
        examples="",
        numbers="\n".join(_table(rows)),
        notes=_list([*values["notes"], *_row_notes(rows)]),
        curves="\n".join([*blocks, *_confused(best, values["class_names"])]),
        commands=escape("\n".join(values["commands"])),
        config=escape(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)),
    )
    write_text(path, page)
    return path


def _table(rows: Sequence[ProbeRow]) -> Iterator[str]:
    """Yield the rows of the table, the published ones last."""
    heads = ("top-1 (95 %)", "top-5 (95 %)", "width", "images")
    cells = "".join(f'<th class="value">{head}</th>' for head in heads)
    yield f"<tr><th>features</th>{cells}<th></th></tr>"
    for row in rows:
        result = row.result
        top5 = "" if result.top5 is None else _percent(result.top5, result.top5_interval)
        shown = (
            _percent(result.top1, result.top1_interval),
            top5,
            f"{result.width:,}",
            f"{result.num_test:,}",
        )
        yield _line(row.name, shown, f"strength {result.penalty:g}")
    result = rows[0].result
    yield _line("most frequent training class", (f"{100 * result.majority:.1f} %", "", "", ""), "")
    yield _line("chance", (f"{100 * result.chance:.3g} %", "", "", ""), "")
    for name, top1 in PUBLISHED:
        yield _line(name, (f"{100 * top1:.1f} %", "", "", ""), PUBLISHED_NOTE)


def _line(name: str, values: Sequence[str], remark: str) -> str:
    cells = "".join(f'<td class="value">{escape(value)}</td>' for value in values)
    return f'<tr><td>{escape(name)}</td>{cells}<td class="name">{escape(remark)}</td></tr>'


def _row_notes(rows: Sequence[ProbeRow]) -> Iterator[str]:
    """Yield what is to be known of single rows."""
    for row in rows:
        for note in row.result.notes:
            yield f"{row.name}: {note}"


def _list(notes: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>" if notes else ""


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
    yield f"<h2>Classes: {escape(row.name)}</h2>"
    yield _list(
        [f"best: {named(order[:count])}", f"worst: {named(order[::-1][:count])}"]
        + ([f"taken most often: {'; '.join(texts)}"] if texts else [])
    )
