"""Lists of image files: .csv, .tsv and .jsonl."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from pixlex.data.labels import resolve_labels, row_label
from pixlex.data.sources import FileSource
from pixlex.data.text import csv_rows, decode_text, json_value
from pixlex.files import open_regular
from pixlex.messages import quoted

# Files of one folder that are looked for before the folder is given up.
_TRIES = 16
# Of any system that we know; longer ones are something else.
_LONGEST_PATH = 4096
_ABSOLUTE = re.compile(r"/|[A-Za-z]:/")
_HALVES = re.compile("[\\0\ud800-\udc7f\udd00-\udfff]")


def open_list(path: Path) -> FileSource:
    """Read a list of images: .csv or .tsv with a header line, or .jsonl with one object a line.

    Columns: `path` (relative to the list file, or absolute), optionally `label` (integer) with
    `class_name`; other columns are not looked at.

    Raises:
        ValueError: if the list is empty, a line is malformed, `path` is missing, or labels and names do
            not fit (see `pixlex.data.labels.resolve_labels`).
    """
    paths = []
    pairs = []
    for line, row in list_rows(path):
        where = f"{path} line {line}"
        if "path" not in row:
            raise ValueError(f"{where}: expected a column 'path', found {_listed(row)}")
        paths.append(image_path(row["path"], where, path.parent))
        pairs.append(row_label(row.get("label"), row.get("class_name"), where))
    labels = resolve_labels(pairs, str(path), path.parent)
    return FileSource(str(path), path.parent, tuple(paths), labels)


def image_path(value: object, where: str, folder: Path) -> str:
    """Return the path of an image as a cell names it; of a file:// address what it stands for.

    Args:
        value: what the cell holds.
        where: the row, for the error.
        folder: what paths are relative to.

    Raises:
        ValueError: it is no text, empty, no path, an address of the web, or written with backslashes.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: expected a path, got {quoted(value)}")
    path = value.strip()
    if path.isascii() and path.isprintable() and len(path) < 256 and ":" not in path and "\\" not in path:
        return path  # nearly all
    if path.startswith("file:"):
        path = unquote(re.sub("^file:(//(localhost)?)?(?=/)", "", path))
    if "://" in path:
        raise ValueError(
            f"{where}: the image is a web address ({quoted(path, 60)}): download the pictures first, for example "
            "with img2dataset, and name what it wrote"
        )
    if _HALVES.search(path) or len(path) > _LONGEST_PATH:
        raise ValueError(f"{where}: expected a path, got {quoted(path)}, which no file can have")
    if "\\" in path and os.sep == "/" and not os.path.exists(folder / path):
        raise ValueError(
            f"{where}: the path {quoted(path)} is written with backslashes, as Windows does, and there is no such "
            "file; write it with /"
        )
    return path


def below(paths: Sequence[str], folder: Path) -> list[str]:
    """Return paths with those that are absolute, but not of this machine, replaced by their tails below a folder.

    ALBEF's lists name images of the machine that they were written on: of `/export/coco/train2014/1.jpg` the
    longest tail that exists below the folder is taken, such as `train2014/1.jpg`. Where there is none it stays.
    """
    known: dict[str, str] = {}
    tries: dict[str, int] = {}
    found = []
    for path in paths:
        above, _, name = path.rpartition("/")
        if _ABSOLUTE.match(path) and above not in known and tries.get(above, 0) < _TRIES:
            tries[above] = tries.get(above, 0) + 1
            tails = [
                PurePosixPath(*PurePosixPath(above).parts[drop:]) for drop in range(1, above.count("/") + 2)
            ]
            here = (
                str(tail) for tail in (PurePosixPath(above), *tails) if os.path.isfile(folder / tail / name)
            )
            if (tail := next(here, None)) is not None:
                known[above] = tail
        found.append(str(PurePosixPath(known[above], name)) if above in known else path)
    return found


def list_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the rows of a .csv, .tsv or .jsonl list, all columns, each with the number of its line.

    Raises:
        ValueError: if the list is empty or a line is malformed.
    """
    match path.suffix.lower():
        case ".csv":
            rows = list(csv_rows(path))
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
        return list(csv_rows(path, delimiter="\t"))
    except ValueError:
        return list(csv_rows(path, delimiter="\t", quoting=csv.QUOTE_NONE))


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file that has one a line, each with the number of its line.

    Raises:
        ValueError: if a line holds something else.
    """
    offset = 0
    with open_regular(path) as file:
        for number, line in enumerate(file, start=1):
            where = f"{path} line {number}"
            text = decode_text(line, where, offset)
            offset += len(line)
            if not text.strip():
                continue
            row = json_value(text, where)
            if not isinstance(row, dict):
                raise ValueError(f"{where}: expected an object, got {quoted(row)}")
            yield number, row


def _listed(row: dict[str, Any]) -> str:
    return f"{', '.join(map(quoted, row)) or 'no column':.200}"
