"""Captions and labels in files beside the images of a folder, as of img2dataset and Hugging Face's imagefolder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pixlex.data.folders import FileSource, image_path
from pixlex.data.labels import resolve_labels, row_label
from pixlex.data.sources import MAX_TEXT_BYTES
from pixlex.data.tables import columns_without_images, table_rows
from pixlex.data.text import csv_rows, decode_text, json_lines, json_value, list_rows, texts_in
from pixlex.files import read_regular
from pixlex.messages import quoted

CAPTION_COLUMNS = ("captions", "caption", "title", "text")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_LABELS = ("label", "class_name")


@dataclass(frozen=True)
class Metadata:
    """What the metadata files of a folder of images say.

    Attributes:
        files: them, relative to the folder.
        rows: path of an image -> where its row stands, and the row.
    """

    files: tuple[str, ...]
    rows: Mapping[str, tuple[str, Mapping[str, Any]]]


def read_metadata(images: FileSource) -> Metadata:
    """Read the metadata files among the images of a folder, as Hugging Face's imagefolder does.

    `metadata.jsonl`, `.csv` or `.parquet` in a folder has a row for each of the images in it and below, with
    `file_name` relative to it. Rows of images that are not there are passed over with a warning.

    A file of this name without the column `file_name` is something else, and stays among the ignored files.

    Raises:
        ValueError: such a file is malformed, or an image has two rows in a folder.
    """
    folders = {str(above) for path in images.paths for above in PurePosixPath(path).parents}
    present = set(images.paths)
    files: list[str] = []
    rows: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for inside in sorted(folders, key=lambda folder: len(PurePosixPath(folder).parts)):  # the nearest wins
        of_folder: dict[str, tuple[str, Mapping[str, Any]]] = {}
        for name in _METADATA:
            path = images.root / inside / name
            if path.is_file() and _names_files(path):
                files.append(str(PurePosixPath(inside, name)))
                _add_rows(path, inside, present, of_folder)
        rows |= of_folder
    return Metadata(tuple(files), rows)


def _names_files(path: Path) -> bool:
    """Whether a file has the column of imagefolder's metadata."""
    if path.suffix == ".parquet":
        return "file_name" in columns_without_images(path)
    rows = json_lines(path) if path.suffix == ".jsonl" else csv_rows(path)
    return "file_name" in next(rows, (0, {}))[1]


def _add_rows(
    path: Path, inside: str, present: set[str], rows: dict[str, tuple[str, Mapping[str, Any]]]
) -> None:
    """Add the rows of one file that belong to images that are there."""
    is_table = path.suffix == ".parquet"
    missing = []
    for number, row in enumerate(table_rows(path)) if is_table else list_rows(path):
        where = f"{path} {'row' if is_table else 'line'} {number}"
        named = image_path(row.get("file_name"), f"{where}, column file_name", path.parent)
        image = str(PurePosixPath(inside, named))
        if image not in present:
            missing.append(named)
        elif rows.setdefault(image, (where, row))[1] is not row:
            raise ValueError(f"{where}: expected one row for each image, got {quoted(named)} again")
    if missing:
        warnings.warn(
            f"{path}: {len(missing)} rows name images that are not in the folder, such as {quoted(missing[0])}",
            stacklevel=4,
        )


def with_metadata_labels(images: FileSource) -> FileSource:
    """Return the images with the labels of their metadata files where those have some, else of their folders."""
    metadata = read_metadata(images)
    given = [metadata.rows.get(path, ("", {})) for path in images.paths]
    if not any(name in row for _, row in given for name in _LABELS):
        return images
    pairs = [row_label(row.get("label"), row.get("class_name"), where) for where, row in given]
    labels = resolve_labels(pairs, images.name, images.root, numbered=True)
    ignored = tuple(one for one in images.ignored if one.name not in metadata.files)
    return replace(images, labels=labels, ignored=ignored, empty_folders=())


def side_captions(
    images: FileSource, metadata: Metadata, column: str | None = None
) -> tuple[tuple[str, ...], ...]:
    """Return the captions of each image, from its metadata file or its own.

    `captions`, `caption`, `title` or `text` (or the column that is named) of its row in a metadata file, or else
    `captions`, `caption` or `text` of NAME.json, or else NAME.txt.

    Raises:
        ValueError: if such a file is no UTF-8 text, no JSON, or its field is no caption.
    """
    present = {one.name for one in images.ignored}
    rows = metadata.rows
    if column is not None and not any(column in row for _, row in rows.values()):
        raise ValueError(f"{images.name}: expected a column {column} in a metadata file, found none")
    names = CAPTION_COLUMNS if column is None else (column,)
    captions = []
    for path in images.paths:
        where, row = rows.get(path, ("", {}))
        name = next((name for name in names if name in row), None)
        found = () if name is None else texts_in(row[name], where)
        captions.append(found or _captions(images.root, PurePosixPath(path), present))
    return tuple(captions)


def without_side_files(images: FileSource, metadata: Metadata) -> FileSource:
    """Return the images with the files of their captions no longer among those that are ignored."""
    beside = {
        str(PurePosixPath(path).with_suffix(suffix)) for path in images.paths for suffix in (".json", ".txt")
    }
    beside.update(metadata.files)
    return replace(images, ignored=tuple(one for one in images.ignored if one.name not in beside))


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_TEXT_BYTES)
    except OSError as fault:
        raise ValueError(f"{path} cannot be read: {fault.strerror or fault}") from fault


def _captions(root: Path, image: PurePosixPath, present: set[str]) -> tuple[str, ...]:
    beside = str(image.with_suffix(".json"))
    fields: Any = json_value(_content(root / beside), root / beside) if beside in present else {}
    for name in ("captions", "caption", "text"):
        if isinstance(fields, dict) and (found := texts_in(fields.get(name), beside)):
            return found
    text = str(image.with_suffix(".txt"))
    return texts_in(decode_text(_content(root / text), root / text), text) if text in present else ()
