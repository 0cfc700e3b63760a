"""Open one file or table of items by its description."""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_never

from pixlex.data import entailment_files, nlvr_files, vqa_files
from pixlex.data.annotations import found_in, load_json
from pixlex.data.descriptions import SetDescription
from pixlex.data.images import open_source, remote_tables
from pixlex.data.item_images import ID_FIELDS, PATH_FIELDS, ItemImages, RowImages, Table, images_of
from pixlex.data.listed import ReadRow, Rows, read_listing
from pixlex.data.reasoning import ListedTask, ReasoningSource
from pixlex.data.remote import AnyPath
from pixlex.data.sources import remark_passed_over
from pixlex.data.tables import ParquetSource, columns_without_images, image_columns, table_rows
from pixlex.data.text import json_lines, json_value, list_rows
from pixlex.files import open_regular

_FIELDS = {"vqa": vqa_files.FIELDS, "nlvr2": nlvr_files.FIELDS, "entailment": entailment_files.FIELDS}


def open_item_file(described: SetDescription, task: ListedTask) -> ReasoningSource:
    """Open one set, see `pixlex.data.items.open_items`; its weight is not looked at."""
    path = Path(described.path).expanduser()
    suffix = path.suffix.lower() if os.path.isfile(path) else ""
    if suffix == ".parquet" and (columns := columns_without_images(path)):
        return _open_rows_of_table(path, columns, described, task)
    if suffix not in (".json", ".jsonl", ".csv", ".tsv"):
        return _open_rows_with_images(described, task)
    images = images_of(path, described.options.get("images"))
    if suffix == ".json" and task == "vqa":
        rows, read_row = vqa_files.question_file(path, images, described)
    elif suffix in (".json", ".jsonl") and task == "nlvr2" and _begins_with(path, "identifier"):
        described.only(("images", "split"), "NLVR2's and NLVR's lines")
        rows = Rows(path, "line", json_lines(path))
        read_row = nlvr_files.official_rows(images, described.options.get("split", path.stem))
    else:
        described.only(("images", "answers"), "lists of items")
        rows, read_row = _rows_of_list(path, suffix), _reader(task, images, described)
    return images.join(read_listing(rows, read_row))


def _rows_of_list(path: Path, suffix: str) -> Rows:
    """Return the rows of ALBEF's files and of lists."""
    if suffix == ".jsonl":
        return Rows(path, "line", json_lines(path))
    if suffix != ".json":
        return Rows(path, "line", list_rows(path))
    content = load_json(path, dict)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ValueError(f"{path}: expected ALBEF's list of objects; found {found_in(content)}")
    return Rows(path, "entry", enumerate(content))


def _begins_with(path: Path, name: str) -> bool:
    """Whether the first line of a file is an object with this field."""
    with open_regular(path) as file:
        first = next((line for line in file if line.strip()), b"")
    # A whole list in one line is not read twice.
    if not first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
        return False
    try:
        found = json_value(first, path)
    except ValueError:
        return False
    return isinstance(found, dict) and name in found


def _open_rows_of_table(
    path: Path, columns: Sequence[str], described: SetDescription, task: ListedTask
) -> ReasoningSource:
    """Open a .parquet file that names its images."""
    described.only(("images", "answers"), "tables of items")
    images = images_of(path, described.options.get("images"))
    wanted = (*_FIELDS[task], *ID_FIELDS, *PATH_FIELDS, "images", described.options.get("answers"))
    rows = enumerate(table_rows(path, [name for name in columns if name in wanted]))
    return images.join(read_listing(Rows(path, "row", rows), _reader(task, images, described)))


def _open_rows_with_images(described: SetDescription, task: ListedTask) -> ReasoningSource:
    """Open a table that holds its images."""
    described.only(("answers",), "tables of items with images")
    tables = _tables(described.path)
    wanted = (*_FIELDS[task], described.options.get("answers"))
    names = [name for name in tables[0].column_names if name in wanted]
    if not names:
        found = ", ".join(tables[0].column_names)
        raise ValueError(
            f"{described.path}: expected columns such as {', '.join(_FIELDS[task])}; found {found:.200}"
        )
    columns: list[list[Any]] = [tables[0].values(name) for name in names]
    rows = enumerate(dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
    images = RowImages(described.path, tables)
    return images.join(
        read_listing(Rows(Path(described.path), "row", rows), _reader(task, images, described))
    )


def _tables(description: str) -> tuple[Table, ...]:
    """Open the columns of images of a table, in the order of their names."""
    path = Path(description).expanduser()
    files: Sequence[AnyPath] = sorted(path.glob("*.parquet")) if os.path.isdir(path) else [path]
    remote = remote_tables(description)
    if remote or (files and files[0].suffix.lower() == ".parquet" and os.path.isfile(str(files[0]))):
        files = remote or files
        names = sorted(image_columns(files[0]))
        if len(names) > 1:
            return tuple(ParquetSource(description, files, numbered=True, column=name) for name in names)
    table = open_source(description, captioned=True)
    if not isinstance(table, Table):
        raise ValueError(
            f"{description} holds no items: expected .json, .jsonl, .csv, .tsv, .parquet, hf:NAME:SPLIT or "
            "embedded:scenes:train|test"
        )
    remark_passed_over(table)
    return (table,)


def _reader(task: ListedTask, images: ItemImages, described: SetDescription) -> ReadRow:
    """Return what reads rows whose columns are called as in tables."""
    match task:
        case "vqa":
            return vqa_files.question_rows(images, described.options.get("answers"))
        case "nlvr2":
            return nlvr_files.statement_rows(images)
        case "entailment":
            return entailment_files.hypothesis_rows(images)
        case _:
            assert_never(task)
