"""Rows of annotation files, official and plain ones, as records; where the images lie that they name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from pixlex.data.folders import FileSource, below, image_path, is_image_name, open_folder
from pixlex.data.labels import no_labels
from pixlex.data.records import Found, Record
from pixlex.data.sources import ImageSource, Options, check_options, concatenate
from pixlex.data.tables import DatasetSource, ParquetSource
from pixlex.data.text import id_text, is_nothing, json_value, list_in, plain_text, whole_number
from pixlex.files import read_regular
from pixlex.messages import quoted

Row = Mapping[str, Any]

PATH_FIELDS = ("path", "filepath", "image", "file_name")
ID_FIELDS = ("image_id", "Flickr30K_ID", "Flikr30kID")
# NLVR shows the three boxes of an example in every order.
_NUM_PERMUTATIONS = 6
_GENOME_FOLDERS = ("VG_100K", "VG_100K_2")


class LeftOut(Exception):
    """A row that is no item, and why; not a fault of the file."""


ReadRow = Callable[[int, Row], Iterable[Record]]


# Images in a table with other columns.
Table = ParquetSource | DatasetSource


@dataclass(frozen=True)
class FileImages:
    """Images that are files below a folder; `name` is what to call the source."""

    name: str
    folder: Path

    def of(self, number: int, row: Row) -> tuple[str | int, ...]:
        """Return the paths in a row; an image id is a file's name."""
        names = _names_in(row, (*PATH_FIELDS, *ID_FIELDS))
        paths = [image_path(name, "image", self.folder) for name in names]
        return tuple(path if is_image_name(path) else f"{path}.jpg" for path in paths)

    def called(self, image_id: str, path: str) -> str:
        """Return the path."""
        return path

    def find(self, names: Sequence[str | int]) -> Found:
        """Return the files; a missing one is found when it is read. Raises `ValueError` if all are missing."""
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
        """Return the path of the one file of a name below the folder, or the name where there is none."""
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
        """Return the image ids of a row."""
        return _names_in(row, (*ID_FIELDS, *PATH_FIELDS))

    def called(self, image_id: str, path: str) -> str:
        """Return the id."""
        return image_id

    def located(self, name: str) -> str:
        """Return the name of the file."""
        return name

    def find(self, names: Sequence[str | int]) -> Found:
        """Return the table and the rows that have the ids, with or without the ending of a file; -1 for none.

        Raises `ValueError` if the table has no column image_id, or an id twice.
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
        found_rows = [rows.get(name, rows.get(_bare(name), -1)) for name in map(str, names)]
        return self.table, np.array(found_rows, dtype=np.int64)


@dataclass(frozen=True)
class RowImages:
    """Images in the rows themselves: of each table, which differ in their columns of images, one."""

    name: str
    tables: tuple[ImageSource, ...]

    def of(self, number: int, row: Row) -> tuple[str | int, ...]:
        """Return the place of each image of a row among those of all tables."""
        return tuple(place * len(self.tables[0]) + number for place in range(len(self.tables)))

    def find(self, names: Sequence[str | int]) -> Found:
        """Return the tables one after the other; every image is there."""
        images = self.tables[0] if len(self.tables) == 1 else concatenate(self.name, self.tables)
        return images, np.array(names, dtype=np.int64)


# Images of a file of their own, which official files name; those of any file.
ListedImages = FileImages | TableImages
NamedImages = ListedImages | RowImages
# What a row is called, the rows, what reads one.
Opened = tuple[str, Iterable[Any], ReadRow]


@dataclass(frozen=True)
class Format:
    """A kind of .json file: its name and shape in messages, the options it takes; whether a content is of it."""

    name: str
    shape: str
    options: tuple[str, ...]
    fits: Callable[[Any], bool]
    open: Callable[[Any, ListedImages, Options], Opened]


def read_annotations(
    path: Path, formats: tuple[Format, ...], images: ListedImages, options: Options
) -> tuple[Any, list[Record]]:
    """Return content and records of a .json file of one of some formats, by its content; `ValueError` else."""
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


def read_records(
    path: Path, unit: str, rows: Iterable[tuple[int, Any]], read_row: ReadRow
) -> tuple[list[Record], list[str]]:
    """Return records of numbered rows, each with an id, and a line on each that was left out.

    A row is called `unit` in messages, such as "line". Equal answers share their memory: VQA v2 has 6.6 million of
    them and some 200,000 different ones. Raises `ValueError` if a row is malformed, two records have one id or
    other numbers of images, or there are none.
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
                if records and len(record.images) != (before := len(records[0].images)):
                    raise ValueError(f"expected {before} images as before, got {len(record.images)}")
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


def found_in(content: Any) -> str:
    """Say what is in a file that is of no known kind."""
    if isinstance(content, dict):
        parts = [
            f"{key}: {found_in(value)}" if isinstance(value, list) else key for key, value in content.items()
        ]
        return f"an object of {', '.join(parts[:8]) or 'nothing':.200}"
    if isinstance(content, list) and content:
        first = content[0]
        is_object = isinstance(first, dict)
        inside = f"objects of {', '.join(map(str, first)):.200}" if is_object else quoted(first, 40)
        return f"a list of {len(content)} {inside}"
    return quoted(content, 40)


def has_some(entries: Any, *keys: str) -> bool:
    """Whether this is a list in which an object has all these keys."""
    return isinstance(entries, list) and any(
        isinstance(one, dict) and one.keys() >= set(keys) for one in entries
    )


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
        raise ValueError(f"expected an image in images or one of {', '.join(fields)}; found {_fields(row)}")
    for name in names:
        if "://" in name and not name.startswith("file:"):
            raise ValueError(f"the image is a web address ({quoted(name, 60)}): download the pictures first")
    return names


def _bare(name: str) -> str:
    """Return a name without the ending of an image file."""
    return name.rsplit(".", 1)[0] if is_image_name(name) else name


def _fields(row: Row) -> str:
    return f"{', '.join(map(str, row)) or 'nothing':.200}"


def field_of(row: Row, *names: str) -> str:
    """Return the first of some fields that a row has; raises `ValueError` without one."""
    name = next((name for name in names if name in row), None)
    if name is None:
        raise ValueError(f"expected a field {' or '.join(names)}, found {_fields(row)}")
    return name


def text_of(row: Row, *names: str) -> str:
    """Return the text in the first of some fields that is there; raises `ValueError` without one."""
    name = field_of(row, *names)
    text = plain_text(row[name]).strip() if isinstance(row[name], str) else ""
    if not text:
        raise ValueError(f"expected a text in {name}, got {quoted(row[name])}")
    return text


def id_of(row: Row, *names: str) -> str:
    """Return the id in the first of some fields that says something, else ""; `ValueError` if it is none."""
    for name in names:
        if is_nothing(value := row.get(name)):
            continue
        if not isinstance(value, str) and whole_number(value) is None:
            raise ValueError(f"expected a text or a whole number in {name}, got {quoted(value)}")
        return id_text(value)
    return ""


def path_of(value: object, images: ListedImages) -> str:
    """Return the path of an image of a caption, which is a file."""
    assert images.folder is not None
    return image_path(value, "image", images.folder)


def genome_image(row: Row, paths: Mapping[int, str]) -> tuple[int, str]:
    """Return number and path of an image of Visual Genome."""
    number = whole_number(row["id"] if "id" in row else row["image_id"])
    if number is None:
        raise ValueError(f"expected a whole number as id, got {quoted(dict(row))}")
    return number, paths.get(number, f"{_GENOME_FOLDERS[0]}/{number}.jpg")


def genome_paths(images: ListedImages, options: Options) -> dict[int, str]:
    """Return the path of each image below a folder, from the URLs in image_data.json or by looking."""
    paths: dict[int, str] = {}
    if "index" in options:
        index = Path(options["index"]).expanduser()
        rows = load_json(index)
        if not isinstance(rows, list) or not all(has_some([row], "image_id", "url") for row in rows):
            raise ValueError(f"{index} is no image_data.json: expected a list of {{image_id, url}}")
        for place, row in enumerate(rows):
            number = whole_number(row["image_id"])
            if number is None:
                raise ValueError(f"{index} entry {place}: expected a whole number as image_id")
            paths[number] = "/".join(str(row["url"]).split("/")[-2:])
    elif images.folder is not None:
        for folder in (*_GENOME_FOLDERS, "."):
            for name in (images.folder / folder).glob("*.jpg"):
                if name.stem.isdecimal():
                    paths.setdefault(int(name.stem), str(PurePosixPath(folder, name.name)))
    return paths


def official_statements(images: ListedImages, split: str) -> ReadRow:
    """Return what reads the lines of NLVR2 and of NLVR (of a split), told apart by their identifiers.

    Their images are looked for by name in all folders below that of the images: `split-set-pair-img0.png` and
    `img1.png` of NLVR2, six `split-sentence-image-permutation.png` of NLVR, an item each.
    """

    def read(number: int, row: Row) -> Iterable[Record]:
        name = id_of(row, "identifier")
        texts, answers = (text_of(row, "sentence"),), truth(row.get("label"))
        match len(name.split("-")):
            case 4:
                pair = name.rpartition("-")[0]
                paths = tuple(images.located(f"{pair}-img{place}.png") for place in (0, 1))
                yield Record(paths, texts, answers, name, sentence=sentence_of(name))
            case 2:
                sentence = sentence_of(f"{split}-{name}")
                for permutation in range(_NUM_PERMUTATIONS):
                    image = f"{split}-{name}-{permutation}"
                    yield Record((images.located(f"{image}.png"),), texts, answers, image, sentence=sentence)
            case _:
                raise ValueError(
                    f"expected split-set-pair-sentence or sentence-image as identifier, got {quoted(name)}"
                )

    return read


def sentence_of(name: str) -> str:
    """Return what the items of one sentence share, as the official scripts group; `ValueError` for other names.

    NLVR2: split-set-pair-sentence without the pair. NLVR: split-sentence-image without the image.
    """
    match name.split("-"):
        case [split, images, _, sentence]:
            return f"{split}-{images}-{sentence}"
        case [split, sentence, _]:
            return f"{split}-{sentence}"
    raise ValueError(
        f"expected split-set-pair-sentence or split-sentence-image as identifier, got {name:.80}"
    )


def truth(label: object) -> tuple[str, ...]:
    """Return "true" or "false" for true, "True", 1 and the like; nothing for nothing; raises `ValueError` else."""
    if is_nothing(label):
        return ()
    known = {"true": ("true",), "1": ("true",), "false": ("false",), "0": ("false",)}
    if (written := id_text(label).lower()) not in known:
        raise ValueError(f"expected true or false (or 1 or 0) as label, got {quoted(label)}")
    return known[written]
