"""Where images lie that rows name: in files, in a table of their own, in the rows themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int64

from pixlex.data.annotations import NamedImages, Row
from pixlex.data.folders import FileSource, below, image_path, is_image_name, open_folder
from pixlex.data.images import DatasetSource
from pixlex.data.item_annotations import id_of, is_nothing
from pixlex.data.labels import no_labels
from pixlex.data.sources import ImageSource, concatenate
from pixlex.data.tables import ParquetSource
from pixlex.data.text import id_text, list_in
from pixlex.messages import quoted

PATH_FIELDS = ("path", "filepath", "image", "file_name")
ID_FIELDS = ("image_id", "Flickr30K_ID", "Flikr30kID")
Table = ParquetSource | DatasetSource
Found = tuple[ImageSource, Int64[np.ndarray, " names"]]


@dataclass(frozen=True)
class FileImages(NamedImages):
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
class TableImages(NamedImages):
    """Images in a table of their own, with a column image_id."""

    table: Table

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
class RowImages(NamedImages):
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
