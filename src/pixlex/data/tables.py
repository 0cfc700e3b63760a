"""Images in a column of parquet files."""

from __future__ import annotations

import bisect
import json
import os
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pixlex.data.addresses import Address, NoSuchFile, Place, RangeFile, Unreachable
from pixlex.data.decoding import ImageRecord, UnreadableImage
from pixlex.data.labels import Labels, RowLabel, labels_of_known_classes, resolve_labels, row_label
from pixlex.data.sources import fingerprint, names_within, stored_bytes

# Row groups are decompressed whole and kept, in each process, up to this many bytes of images.
CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class _RowGroup:
    """Where a run of rows lies: rows first, first + 1, ... of the source are row group `group` of a file."""

    file: int
    group: int
    first: int


class ParquetSource:
    """Images in a column of parquet files, read by row group when one of its rows is asked for.

    Args:
        name: what to call the source.
        files: the parquet files, in order.
        numbered: call classes without a name by their number, see `pixlex.data.labels.resolve_labels`.
        column: the column of the images, where there are several.

    Raises:
        ValueError: if a file cannot be read, there are no rows, not exactly one column holds images (one
            named "image" is preferred), the files differ in their columns, or labels and names do not fit.
        Unreachable: a file at an address cannot be had.
    """

    def __init__(
        self, name: str, files: Sequence[Place], *, numbered: bool = False, column: str | None = None
    ) -> None:
        self.name = name
        self._files = tuple(files)
        self._names = names_within(files)
        self._row_groups: list[_RowGroup] = []
        self._file_firsts: list[int] = []
        self._forget()
        schema = self._parquet(0).schema_arrow
        self._named = column
        self._column = column or _image_column(schema, self._files[0])
        self._label_columns = [column for column in ("label", "class_name") if column in schema.names]
        first = image_bytes = 0
        for number, path in enumerate(self._files):
            parquet = self._parquet(number)
            if missing := {self._column, *self._label_columns} - set(parquet.schema_arrow.names):
                raise ValueError(f"{path}: the columns {sorted(missing)} of {self._files[0]} are missing")
            self._file_firsts.append(first)
            for group in range(parquet.num_row_groups):
                self._row_groups.append(_RowGroup(number, group, first))
                first += parquet.metadata.row_group(group).num_rows
                image_bytes += _uncompressed_size(parquet.metadata.row_group(group), self._column)
        if not first:
            raise ValueError(f"{name} has no rows")
        self._firsts = [group.first for group in self._row_groups]
        self._size = first
        self.labels = self._read_labels(schema, numbered)
        self._forget()
        if image_bytes > CACHE_BYTES:
            warnings.warn(
                f"{name}: {image_bytes / 1e9:.1f} GB of images in row groups exceed the cache of "
                f"{CACHE_BYTES / 1e9:.1f} GB a process; reading in random order will be slow, "
                "tar shards or image files are faster at this size, and so is training with data.shuffle_blocks",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return self._size

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index; empty without labels."""
        return self.labels.class_names

    @cached_property
    def identity(self) -> str:
        """A fingerprint of file names, numbers of rows, the named column, labels and class names."""
        keys = [f"{name}#{first}" for name, first in zip(self._names, self._file_firsts, strict=True)]
        keys += [self._named] if self._named else []
        return fingerprint("parquet", [*keys, str(self._size)], self.labels)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The number of images in each row group that has some."""
        sizes = np.diff([*self._firsts, self._size])
        return tuple(int(size) for size in sizes if size)

    def key(self, index: int) -> str:
        """Return the file name and row of an image, such as "train.parquet#17"."""
        number = self._row_group_of(index).file
        return f"{self._names[number]}#{index - self._file_firsts[number]}"

    def read(self, index: int) -> ImageRecord:
        """Return the bytes in a row.

        Raises:
            UnreadableImage: there are none, or the file is damaged.
            NoSuchFile: nothing is at the address any more.
            Unreachable: the row group cannot be had from its address.
        """
        key = self.key(index)
        where = self._row_group_of(index)
        try:
            cell = self._images(where)[index - where.first].as_py()
        except (Unreachable, NoSuchFile):
            raise
        except (pa.ArrowException, OSError, ValueError) as fault:
            raise UnreadableImage(key, f"its row group cannot be read: {fault}") from fault
        data = stored_bytes(cell, self._files[where.file].parent, key)
        return ImageRecord(data, int(self.labels.indices[index]), key)

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns of the first file."""
        return tuple(self._parquet(0).schema_arrow.names)

    def values(self, name: str) -> list[Any]:
        """Return the values of a column.

        Raises:
            ValueError: if a file does not have it.
        """
        values: list[Any] = []
        for number, path in enumerate(self._files):
            present = self._parquet(number).schema_arrow.names
            if name not in present:
                raise ValueError(f"{path}: expected a column {name}, found {', '.join(present)}")
            values += self._parquet(number).read(columns=[name], use_threads=False)[name].to_pylist()
        self._forget()
        return values

    def __getstate__(self) -> dict[str, Any]:
        # Open files and decompressed rows stay behind: each process opens its own.
        return {**self.__dict__, "_open": {}, "_cache": OrderedDict()}

    def _forget(self) -> None:
        self._process = os.getpid()
        self._open: dict[int, Any] = {}
        self._cache: OrderedDict[_RowGroup, Any] = OrderedDict()

    def _parquet(self, number: int) -> Any:
        if self._process != os.getpid():  # opened before a fork
            self._forget()
        if number not in self._open:
            self._open[number] = _opened(self._files[number])
        return self._open[number]

    def _row_group_of(self, index: int) -> _RowGroup:
        if not 0 <= index < self._size:
            raise IndexError(f"{self.name} has {self._size} images, got index {index}")
        return self._row_groups[bisect.bisect_right(self._firsts, index) - 1]

    def _images(self, where: _RowGroup) -> Any:
        """Return the image column of a row group, from the most recently used ones if it is there."""
        if where in self._cache:
            self._cache.move_to_end(where)
            return self._cache[where]
        # One thread: pyarrow's pool of threads would not survive the fork of a worker process.
        table = self._parquet(where.file).read_row_group(
            where.group, columns=[self._column], use_threads=False
        )
        images = self._cache[where] = table[self._column]
        while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return images

    def _read_labels(self, schema: Any, numbered: bool) -> Labels:
        rows: list[RowLabel] = []
        values: list[object] = []
        names = _declared_names(schema)
        for number, path in enumerate(self._files):
            table = self._parquet(number).read(columns=self._label_columns, use_threads=False)
            columns = {column: table[column].to_pylist() for column in self._label_columns}
            count = self._parquet(number).metadata.num_rows
            labels = columns.get("label", [None] * count)
            values += labels
            for row, pair in enumerate(zip(labels, columns.get("class_name", [None] * count), strict=True)):
                rows.append(row_label(*pair, f"{path} row {row}"))
        if names and "class_name" not in self._label_columns:
            return labels_of_known_classes(values, names, self.name)
        return resolve_labels(rows, self.name, self._files[0].parent, numbered=numbered)


def columns_without_images(path: Place) -> list[str]:
    """Return the columns of a parquet file if none of them holds bytes, else nothing.

    Raises:
        ValueError: if the file cannot be read.
    """
    schema = _opened(path).schema_arrow
    return [] if any(_holds_bytes(field.type) for field in schema) else list(schema.names)


def image_columns(path: Place) -> list[str]:
    """Return the columns of a parquet file that hold bytes.

    Raises:
        ValueError: if the file cannot be read.
    """
    return [field.name for field in _opened(path).schema_arrow if _holds_bytes(field.type)]


def _opened(path: Place) -> Any:
    try:
        return pq.ParquetFile(RangeFile(path) if isinstance(path, Address) else path, memory_map=True)
    except (pa.ArrowException, OSError) as fault:
        raise ValueError(f"{path} cannot be read as parquet: {fault}") from fault


def table_rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a parquet file, some columns alone."""
    rows: list[dict[str, Any]] = pq.read_table(path, columns=list(columns), use_threads=False).to_pylist()
    return rows


def _image_column(schema: Any, path: Place) -> str:
    """Return the name of the column of bytes, or of struct{bytes, path}."""
    columns = [field.name for field in schema if _holds_bytes(field.type)]
    if "image" in columns:
        return "image"
    if len(columns) != 1:
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise ValueError(
            f"{path}: expected one column of image bytes (or struct with bytes and path), or one of them "
            f"named 'image'; found {found}"
        )
    return str(columns[0])


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return bool(position >= 0 and _holds_bytes(kind.field(position).type))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _uncompressed_size(row_group: Any, column: str) -> int:
    chunks = (row_group.column(number) for number in range(row_group.num_columns))
    return sum(
        chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column
    )


def _declared_names(schema: Any) -> list[str]:
    """Return the class names that `datasets` writes into the metadata of its parquet files."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return []
    feature = json.loads(text).get("info", {}).get("features", {}).get("label", {})
    return list(feature.get("names") or []) if isinstance(feature, dict) else []
