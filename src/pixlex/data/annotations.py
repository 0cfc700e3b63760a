"""How rows of annotation files become records, and where the images lie that they name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64

from pixlex.data.folders import FileSource, below, image_path, is_image_name, open_folder
from pixlex.data.images import DatasetSource
from pixlex.data.labels import no_labels
from pixlex.data.records import Record
from pixlex.data.sources import ImageSource, concatenate
from pixlex.data.tables import ParquetSource
from pixlex.data.text import id_text, json_value, list_in, plain_text, whole_number
from pixlex.files import read_regular
from pixlex.messages import quoted

PATH_FIELDS = ("path", "filepath", "image", "file_name")
ID_FIELDS = ("image_id", "Flickr30K_ID", "Flikr30kID")
Table = ParquetSource | DatasetSource
Found = tuple[ImageSource, Int64[np.ndarray, " names"]]
Row = Mapping[str, Any]
ReadRow = Callable[[int, Row], Iterable[Record]]


class LeftOut(Exception):
    """A row that is no item, and why; not a fault of the file."""


@dataclass(frozen=True)
class FileImages:
    """Images that are files below a folder.

    Args:
        name: what to call the source.
        folder: what paths are relative to.
    """

    name: str
    folder: Path

    def of(self, number: int, row: Row) -> tuple[str | int, ...]:
        """Return the path of a row; an image id is a file's name."""
        names = _names_in(row, (*PATH_FIELDS, *ID_FIELDS))
        paths = [image_path(name, "image", self.folder) for name in names]
        return tuple(path if is_image_name(path) else f"{path}.jpg" for path in paths)

    def called(self, image_id: str, path: str) -> str:
        """Return the path."""
        return path

    def find(self, names: Sequence[str | int]) -> Found:
        """Return the files; a missing one is found when it is read.

        Raises:
            ValueError: all of them are missing.
        """
        number = {path: row for row, path in enumerate(dict.fromkeys(map(str, names)))}
        paths = tuple(below(list(number), self.folder))
        if not any(os.path.isfile(self.folder / path) for path in paths):
            raise ValueError(
                f"{self.name}: none of {len(paths):,} images exists, the first is {self.folder}/{paths[0]:.80}; "
                "say where they lie, such as ?images=FOLDER"
            )
        rows = np.array([number[str(name)] for name in names], dtype=np.int64)
        return FileSource(self.name, self.folder, paths, no_labels(len(paths))), rows

    def located(self, name: str) -> str:
        """Return the path of a file somewhere below the folder, or its bare name where there is none.

        Raises:
            ValueError: several such files lie there, or no image at all.
        """
        paths = self._below.get(name, [name])
        if len(paths) > 1:
            raise ValueError(
                f"expected one file {name:.80} below {self.folder}, found {paths[0]} and {paths[1]}; name the "
                "folder that is meant with ?images="
            )
        return paths[0]

    @cached_property
    def _below(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in open_folder(self.folder).paths:
            found.setdefault(PurePosixPath(path).name, []).append(path)
        return found


@dataclass(frozen=True)
class TableImages:
    """Images in a table of their own, with a column image_id."""

    table: Table
    folder: ClassVar[None] = None

    def of(self, number: int, row: Row) -> tuple[str | int, ...]:
        """Return the image id of a row."""
        return _names_in(row, (*ID_FIELDS, *PATH_FIELDS))

    def called(self, image_id: str, path: str) -> str:
        """Return the id."""
        return image_id

    def located(self, name: str) -> str:
        """Return the name of the file."""
        return name

    def find(self, names: Sequence[str | int]) -> Found:
        """Return the table and the rows that have the ids, with or without the ending of a file; -1 for none.

        Raises:
            ValueError: the table has no column image_id, or an id twice.
        """
        if "image_id" not in self.table.column_names:
            found = ", ".join(self.table.column_names)
            raise ValueError(f"{self.table.name}: expected a column image_id, found {found:.200}")
        rows: dict[str, int] = {}
        for row, value in enumerate(self.table.values("image_id")):
            if rows.setdefault(id_text(value), row) != row:
                raise ValueError(
                    f"{self.table.key(row)}: expected ids that occur once, got {quoted(value)} again"
                )
        for name in list(rows):
            rows.setdefault(_bare(name), rows[name])
        wanted = map(str, names)
        found_rows = [rows[name] if name in rows else rows.get(_bare(name), -1) for name in wanted]
        return self.table, np.array(found_rows, dtype=np.int64)


@dataclass(frozen=True)
class RowImages:
    """Images in the rows themselves, as many as there are tables.

    Args:
        name: what to call the source.
        tables: the same rows, each with another column of images.
    """

    name: str
    tables: tuple[Table, ...]

    def of(self, number: int, row: Row) -> tuple[str | int, ...]:
        """Return the place of each image among those of all tables."""
        return tuple(place * len(self.tables[0]) + number for place in range(len(self.tables)))

    def find(self, names: Sequence[str | int]) -> Found:
        """Return the tables one after the other; every image is there."""
        images = self.tables[0] if len(self.tables) == 1 else concatenate(self.name, self.tables)
        return images, np.array(names, dtype=np.int64)


# Images of a file of their own, which official files name; those of any file.
ListedImages = FileImages | TableImages
NamedImages = ListedImages | RowImages


@dataclass(frozen=True)
class Format:
    """A kind of annotation file.

    Attributes:
        name: what it holds, in messages.
        shape: its content, in messages.
        options: of a description, that it takes.
        fits: whether a content is of this kind.
        open: content, images, options -> what a row is called, the rows, what reads one.
    """

    name: str
    shape: str
    options: tuple[str, ...]
    fits: Callable[[Any], bool]
    open: Callable[[Any, ListedImages, Mapping[str, str]], tuple[str, Iterable[Any], ReadRow]]


def read_annotations(
    path: Path, formats: tuple[Format, ...], images: ListedImages, options: Mapping[str, str]
) -> tuple[Any, list[Record]]:
    """Read a .json file of any of some formats, told by its content.

    Args:
        path: the file.
        formats: `CAPTION_FORMATS` or `QUESTION_FORMATS`.
        images: where the images lie.
        options: those of its description.

    Returns:
        The content, and the records in the order of the file.

    Raises:
        ValueError: it is no JSON, of no known format, an entry is malformed, or an option says nothing to it.
    """
    content = load_json(path)
    if isinstance(content, dict) and isinstance(content.get("image_urls"), list):
        raise ValueError(
            f"{path} lists web addresses; download the pictures first, for example with img2dataset"
        )
    known = next((one for one in formats if one.fits(content)), None)
    if known is None:
        expected = " or ".join(f"{one.name} ({one.shape})" for one in formats)
        raise ValueError(f"{path}: expected {expected}; found {found_in(content)}")
    check_options(path, known.name, known.options, options)
    try:
        unit, rows, read_row = known.open(content, images, options)
    except ValueError as fault:
        raise ValueError(f"{path}: {fault}") from fault
    records, _ = read_records(path, unit, enumerate(rows), read_row)
    return content, records


def check_options(path: object, kind: str, known: Iterable[str], options: Mapping[str, str]) -> None:
    """Raise `ValueError` for an option that says nothing to this kind of source."""
    if foreign := [name for name in options if name not in known]:
        raise ValueError(f"{path}: {kind} take the options {', '.join(known)}, got {foreign[0]}")


def read_records(
    path: Path, unit: str, rows: Iterable[tuple[int, Any]], read_row: ReadRow
) -> tuple[list[Record], list[str]]:
    """Read records row by row.

    Equal answers share their memory: VQA v2 has 6.6 million of them and some 200,000 different ones.

    Args:
        path: the file, as messages name it.
        unit: what a row is called in messages, such as "line".
        rows: number and content of each.
        read_row: yields the records of a row.

    Returns:
        The records, each with an id, and what was left out, a line each.

    Raises:
        ValueError: a row is malformed, two records have one id or other numbers of images, or there are none.
    """
    records: list[Record] = []
    left_out: list[str] = []
    ids: set[str] = set()
    shared: dict[str, str] = {}
    for number, row in rows:
        where = f"{path} {unit} {number}"
        try:
            for record in read_row(number, row):
                name = record.id or f"{unit} {number}"
                if name in ids:
                    raise ValueError(f"expected ids that occur once, got {name:.80} again")
                ids.add(name)
                if records and len(record.images) != len(records[0].images):
                    raise ValueError(
                        f"expected {len(records[0].images)} images as before, got {len(record.images)}"
                    )
                answers = tuple(map(shared.setdefault, record.answers, record.answers))
                records.append(replace(record, id=name, answers=answers))
        except LeftOut as reason:
            left_out.append(f"{unit} {number}: {reason}")
        except ValueError as fault:
            raise ValueError(f"{where}: {fault}") from fault
        except KeyError as fault:
            raise ValueError(f"{where} has no field {quoted(fault.args[0])}") from fault
        except (TypeError, AttributeError) as fault:
            raise ValueError(f"{where}: expected an object, got {quoted(row)}") from fault
    if not records:
        first = f"; left out: {left_out[0]}" if left_out else ""
        raise ValueError(f"{path} lists no item{first}")
    return records, left_out


def load_json(path: Path) -> Any:
    """Return what is in a .json file, without what is not looked at; raises `ValueError` if it cannot be read."""
    try:
        data = read_regular(path)
    except OSError as fault:
        raise ValueError(f"{path} cannot be read: {fault.strerror or fault}") from fault
    return json_value(data, path, _without_bulk)


def _without_bulk(entry: dict[str, Any]) -> Any:
    """Keep what is used: Visual Genome has 5.4 million regions, VQA v2 6.6 million answers."""
    if "phrase" in entry and "regions" not in entry:
        return {"phrase": entry["phrase"]}
    if "raw" in entry and "tokens" in entry:
        return {"raw": entry["raw"]}
    if "answer_id" in entry and "answer" in entry:
        return entry["answer"]
    if "qa_id" in entry:
        return {name: entry.get(name) for name in ("qa_id", "question", "answer")}
    return entry


def has_some(entries: Any, *keys: str) -> bool:
    """Whether this is a list in which an object has all these keys."""
    return isinstance(entries, list) and any(
        isinstance(one, dict) and entries and one.keys() >= set(keys) for one in entries
    )


def found_in(content: Any) -> str:
    """Say what is in a file that is of no known kind."""
    if isinstance(content, dict):
        parts = [
            f"{key}: {found_in(value)}" if isinstance(value, list) else key for key, value in content.items()
        ]
        return f"an object of {', '.join(parts[:8]) or 'nothing':.200}"
    if isinstance(content, list) and content:
        first = content[0]
        inside = (
            f"objects of {', '.join(map(str, first)):.200}" if isinstance(first, dict) else quoted(first, 40)
        )
        return f"a list of {len(content)} {inside}"
    return quoted(content, 40)


def _names_in(row: Row, fields: Sequence[str]) -> tuple[str, ...]:
    """Return what the images of a row are called: a list `images`, or the first of some fields."""
    several = row.get("images")
    if is_nothing(several):
        names = (id_of(row, *fields),)
    else:
        several = list_in(several) if isinstance(several, str) else several
        if not isinstance(several, list) or not several or not all(isinstance(one, str) for one in several):
            raise ValueError(f"expected a list of names as images, got {quoted(row['images'])}")
        names = tuple(name.strip() for name in several)
    if not all(names):
        found = ", ".join(map(str, row)) or "nothing"
        raise ValueError(f"expected an image in images or one of {', '.join(fields)}; found {found:.200}")
    for name in names:
        if "://" in name and not name.startswith("file:"):
            raise ValueError(f"the image is a web address ({quoted(name, 60)}): download the pictures first")
    return names


def _bare(name: str) -> str:
    """Return a name without the ending of an image file."""
    return name.rsplit(".", 1)[0] if is_image_name(name) else name


def text_of(row: Row, *names: str) -> str:
    """Return the text in the first of some fields that is there; raises `ValueError` without one."""
    name = field_of(row, *names)
    text = plain_text(row[name]).strip() if isinstance(row[name], str) else ""
    if not text:
        raise ValueError(f"expected a text in {name}, got {quoted(row[name])}")
    return text


def field_of(row: Row, *names: str) -> str:
    """Return the first of some fields that a row has; raises `ValueError` without one."""
    name = next((name for name in names if name in row), None)
    if name is None:
        found = ", ".join(map(str, row)) or "nothing"
        raise ValueError(f"expected a field {' or '.join(names)}, found {found:.200}")
    return name


def is_nothing(value: object) -> bool:
    """Whether a cell says nothing: None, NaN or a blank text."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def id_of(row: Row, *names: str) -> str:
    """Return the id in the first of some fields that says something, else ""; `ValueError` if it is none."""
    for name in names:
        value = row.get(name)
        if is_nothing(value):
            continue
        if not isinstance(value, str) and whole_number(value) is None:
            raise ValueError(f"expected a text or a whole number in {name}, got {quoted(value)}")
        return id_text(value)
    return ""
