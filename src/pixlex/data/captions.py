"""Open one set of images with captions by its description."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pixlex.data.annotations import Annotations, Entry, read_annotations
from pixlex.data.captioned import NoCaptions, PairSource, pair
from pixlex.data.descriptions import SetDescription
from pixlex.data.folders import FileSource, below, image_path
from pixlex.data.images import DatasetSource, open_source
from pixlex.data.labels import RowLabel, no_labels, resolve_labels, row_label
from pixlex.data.scenes import ScenesSource
from pixlex.data.shards import TarSource
from pixlex.data.side_files import CAPTION_COLUMNS, read_metadata, side_captions, without_side_files
from pixlex.data.sources import remark_passed_over
from pixlex.data.tables import ParquetSource, columns_without_images, table_rows
from pixlex.data.text import id_text, list_rows, texts_in

PATH_COLUMNS = ("path", "filepath", "image", "file_name")
_ADDRESS_COLUMNS = ("url", "image_url", "image_urls", "link")
_DOWNLOAD = "download the pictures first, for example with img2dataset, and name what it wrote"


def open_set(described: SetDescription, *, every_split: bool = False) -> PairSource:
    """Open one set, see `pixlex.data.pairs.open_pairs`; its weight is not looked at."""
    path = Path(described.path).expanduser()
    suffix = path.suffix.lower() if os.path.isfile(path) else ""
    columns = columns_without_images(path) if suffix == ".parquet" else []
    if suffix == ".json":
        source = _open_annotations(path, described, every_split)
    elif suffix in (".csv", ".tsv", ".jsonl"):
        source = _open_rows(path, list_rows(path), described)
    elif columns:
        source = _open_rows(path, _named_rows(path, columns, described), described)
    else:
        source = _open_images(described)
    match described.options.get("rows", "images"):
        case "images":
            return source
        case "captions":
            return source.by_caption()
        case other:
            raise ValueError(f"{described.path}: rows must be images or captions, got {other:.80}")


def _open_annotations(path: Path, described: SetDescription, every_split: bool) -> PairSource:
    described.only(("split", "images", "index", "rows"), "annotation files")
    folder = _image_folder(path, described)
    index = described.options.get("index")
    annotations = read_annotations(path, folder, Path(index).expanduser() if index else None)
    entries = _of_splits(annotations, described.options.get("split", "all" if every_split else None), path)
    if not entries:
        raise ValueError(f"{path} lists no image")
    paths = tuple(below([entry.path for entry in entries], folder))
    images = FileSource(str(path), folder, paths, no_labels(len(paths)))
    return pair(images, [entry.captions for entry in entries], splits=annotations.splits)


def _of_splits(annotations: Annotations, wanted: str | None, path: Path) -> Sequence[Entry]:
    """Return the images of the splits that are asked for."""
    if annotations.splits is None:
        if wanted not in (None, "all"):
            raise ValueError(f"{path} has no splits, got split={wanted}; only Karpathy's files have some")
        return annotations.entries
    sizes = annotations.splits.sizes
    known = ", ".join(f"{name} ({size:,} images)" for name, size in sizes.items())
    if wanted is None:
        raise ValueError(
            f"{path} holds the splits {known}: say which are meant, such as "
            f"{path.name}?split={'train+restval' if 'restval' in sizes else next(iter(sizes))}, or ?split=all"
        )
    names = set(sizes) if wanted == "all" else set(wanted.split("+"))
    if unknown := names - set(sizes):
        raise ValueError(f"{path} has no split {', '.join(sorted(unknown))}; known: {known}, or all")
    return [entry for entry in annotations.entries if entry.split in names]


def _open_rows(path: Path, rows: list[tuple[int, dict[str, Any]]], described: SetDescription) -> PairSource:
    """Open rows with a path and a caption; rows of one image are put together."""
    described.only(("images", "captions", "rows"), "lists of image files")
    first = rows[0][1]
    folder = _image_folder(path, described)
    where = _path_column(path, tuple(first))
    column = _caption_column(str(path), tuple(first), described)
    texts: dict[str, list[str]] = {}
    labels: dict[str, RowLabel] = {}
    for line, row in rows:
        place = f"{path} line {line}"
        name = image_path(row.get(where), f"{place}, column {where}", folder)
        texts.setdefault(name, []).extend(texts_in(row.get(column), place))
        labels.setdefault(name, row_label(row.get("label"), row.get("class_name"), place))
    classes = resolve_labels(list(labels.values()), str(path), path.parent, numbered=True)
    images = FileSource(str(path), folder, tuple(below(list(texts), folder)), classes)
    return pair(images, [tuple(found) for found in texts.values()])


def _named_rows(
    path: Path, columns: Sequence[str], described: SetDescription
) -> list[tuple[int, dict[str, Any]]]:
    """Return the rows of a .parquet file without images, those columns alone that are looked at."""
    used = {_path_column(path, columns), _caption_column(str(path), columns, described)}
    rows = table_rows(path, [name for name in columns if name in used | {"label", "class_name"}])
    if not rows:
        raise ValueError(f"{path} lists no image")
    return list(enumerate(rows))


def _open_images(described: SetDescription) -> PairSource:
    """Open images that are not named by a list: tables and shards that hold them, folders."""
    images = open_source(described.path, captioned=True)
    if isinstance(images, ParquetSource | DatasetSource):
        described.only(("captions", "rows"), "tables of images")
        pairs = _from_table(images, described)
        remark_passed_over(images)
        return pairs
    known = ("captions", "rows") if isinstance(images, FileSource) else ("rows",)
    described.only(known, "folders" if isinstance(images, FileSource) else "shards and embedded sets")
    captions: Sequence[tuple[str, ...]] = ()
    if isinstance(images, TarSource):
        captions = images.captions
    elif isinstance(images, FileSource):
        metadata = read_metadata(images)
        captions = side_captions(images, metadata, described.options.get("captions"))
        images = without_side_files(images, metadata)
    elif isinstance(images, ScenesSource):
        captions = [images.captions(index) for index in range(len(images))]
    if not any(captions):
        raise NoCaptions(
            f"{images.name} has no captions: expected .parquet with image bytes or a data set of Hugging Face, "
            f"each with a column {_named(CAPTION_COLUMNS)}; .csv, .tsv or .jsonl with a path besides; "
            "an annotation file in .json; .txt or .json beside each image of a folder or of .tar shards; "
            "metadata.jsonl or .csv in a folder; or embedded:scenes:SPLIT"
        )
    remark_passed_over(images)
    return pair(images, captions)


def _from_table(images: ParquetSource | DatasetSource, described: SetDescription) -> PairSource:
    column = _caption_column(images.name, images.column_names, described)
    captions = [texts_in(cell, images.key(row)) for row, cell in enumerate(images.values(column))]
    ids = images.values("image_id") if "image_id" in images.column_names else [None]
    known = not any(one is None for one in ids)
    return pair(images, captions, ids=[id_text(one) for one in ids] if known else ())


def _path_column(path: Path, columns: Sequence[str]) -> str:
    """Return the column of paths, or say that pictures must be downloaded."""
    column = next((name for name in PATH_COLUMNS if name in columns), None)
    if column is not None:
        return column
    if any("://" in str(name) for name in columns):
        raise ValueError(
            f"{path} has no header line and lists web addresses, as the official Conceptual Captions do: "
            f"{_DOWNLOAD}"
        )
    found = ", ".join(map(str, columns))
    if any(str(name).lower() in _ADDRESS_COLUMNS for name in columns):
        raise ValueError(f"{path} lists web addresses (columns {found:.200}): {_DOWNLOAD}")
    bytes_or = "of image bytes, or one called " if path.suffix.lower() == ".parquet" else ""
    raise ValueError(f"{path}: expected a column {bytes_or}{_named(PATH_COLUMNS)}, found {found:.200}")


def _caption_column(name: str, columns: Sequence[str], described: SetDescription) -> str:
    """Return the column of captions: the one that was named, or the first of the usual ones."""
    wanted = described.options.get("captions")
    if wanted is not None and wanted not in columns:
        raise ValueError(f"{name} has no column {wanted}, found {', '.join(map(str, columns)):.200}")
    column = wanted or next((usual for usual in CAPTION_COLUMNS if usual in columns), None)
    if column is None:
        raise NoCaptions(
            f"{name}: expected a column {_named(CAPTION_COLUMNS)}, found {', '.join(map(str, columns)):.200}; "
            "another can be named, such as ?captions=sentence"
        )
    return column


def _image_folder(path: Path, described: SetDescription) -> Path:
    """Return the folder that paths are relative to."""
    named = described.options.get("images")
    if named is None:
        return path.parent
    folder = Path(named).expanduser()
    if not os.path.isdir(folder):
        raise ValueError(f"{path}: the folder of images {folder} does not exist")
    return folder


def _named(columns: Sequence[str]) -> str:
    return f"{', '.join(columns[:-1])} or {columns[-1]}"
