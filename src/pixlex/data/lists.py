"""Lists of image files: .csv, .tsv and .jsonl."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixlex.data.labels import resolve_labels, row_label
from pixlex.data.sources import FileSource


def open_list(path: Path) -> FileSource:
    """Read a list of images: .csv or .tsv with a header line, or .jsonl with one object a line.

    Columns: `path` (relative to the list file, or absolute), optionally `label` (integer) with
    `class_name`; other columns are not looked at.

    Raises:
        ValueError: if the list is empty, a line is malformed, `path` is missing, or labels and names do
            not fit (see `pixlex.data.labels.resolve_labels`).
    """
    rows = list_rows(path)
    paths = []
    pairs = []
    for line, row in rows:
        where = f"{path} line {line}"
        entry = row.get("path")
        if entry is None and "path" not in row:
            raise ValueError(f"{where}: expected a column 'path', found {_listed(row)}")
        if not isinstance(entry, str) or not entry.strip():
            raise ValueError(f"{where}: expected a path, got {entry!r}")
        paths.append(entry.strip())
        pairs.append(row_label(row.get("label"), row.get("class_name"), where))
    labels = resolve_labels(pairs, str(path), path.parent)
    return FileSource(str(path), path.parent, tuple(paths), labels)


def list_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the rows of a .csv, .tsv or .jsonl list, all columns, each with the number of its line.

    Raises:
        ValueError: if the list is empty or a line is malformed.
    """
    match path.suffix.lower():
        case ".csv":
            rows = list(_csv_rows(path))
        case ".tsv":
            rows = _tsv_rows(path)
        case _:
            rows = list(json_lines(path))
    if not rows:
        raise ValueError(f"{path} lists no image")
    return rows


def _tsv_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return rows with quotes as spreadsheets and pandas write them, else with quotes as plain letters."""
    try:
        return list(_csv_rows(path, delimiter="\t"))
    except ValueError:
        return list(_csv_rows(path, delimiter="\t", quoting=csv.QUOTE_NONE))


def _csv_rows(path: Path, **form: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True, **form)
        try:
            for row in reader:
                if None in row:
                    width = len(reader.fieldnames or ())
                    raise ValueError(f"{path} line {reader.line_num}: expected {width} columns, found more")
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as fault:
            raise ValueError(
                f"{path} after line {reader.line_num}: not a readable {path.suffix[1:]} file: {fault}"
            ) from fault


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file that has one a line, each with the number of its line.

    Raises:
        ValueError: if a line holds something else.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as fault:  # JSONDecodeError, UnicodeDecodeError
                raise ValueError(f"{path} line {number}: not JSON: {fault}") from fault
            if not isinstance(row, dict):
                raise ValueError(f"{path} line {number}: expected an object, got {row!r:.80}")
            yield number, row


def _listed(row: dict[str, Any]) -> str:
    return ", ".join(repr(name) for name in row) or "no column"
