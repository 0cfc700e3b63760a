"""Images in a column of parquet files."""

from __future__ import annotations

import bisect
import os
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pixlex.data.addresses import NoSuchFile, Place, Unreachable
from pixlex.data.columns import declared_names, from_base64, image_column, is_text, open_parquet, read_columns
from pixlex.data.decoding import ImageRecord, UnreadableImage
from pixlex.data.labels import Labels, RowLabel, labels_of_known_classes, resolve_labels, row_label
from pixlex.data.sources import PassedOver, fingerprint, names_within, stored_bytes

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
        self.ignored: tuple[PassedOver, ...] = ()  # what lies beside the files, as whoever listed them says
        self._files = tuple(files)
        self._names = names_within(files)
        self._row_groups: list[_RowGroup] = []
        self._file_firsts: list[int] = []
        self._forget()
        schema = self._parquet(0).schema_arrow
        self._named = column
        self._column = column or image_column(self._parquet(0), self._files[0])
        self._kind = schema.field(self._column).type
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
        if isinstance(cell, str) and is_text(self._kind):
            cell = from_base64(cell)
            if cell is None:
                raise UnreadableImage(key, "its cell is no base64")
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
            parquet = self._parquet(number)
            if name not in (present := parquet.schema_arrow.names):
                raise ValueError(f"{path}: expected a column {name}, found {', '.join(present):.200}")
            values += read_columns(parquet, path, [name])[name]
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
            self._open[number] = open_parquet(self._files[number])
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
        names = declared_names(schema, self._files[0])
        for number, path in enumerate(self._files):
            columns = read_columns(self._parquet(number), path, self._label_columns)
            count = self._parquet(number).metadata.num_rows
            labels = columns.get("label", [None] * count)
            values += labels
            for row, pair in enumerate(zip(labels, columns.get("class_name", [None] * count), strict=True)):
                rows.append(row_label(*pair, f"{path} row {row}"))
        if names and "class_name" not in self._label_columns:
            return labels_of_known_classes(values, names, f"{self.name}, column label", self._files[0].parent)
        return resolve_labels(rows, self.name, self._files[0].parent, numbered=numbered)


def _uncompressed_size(row_group: Any, column: str) -> int:
    chunks = (row_group.column(number) for number in range(row_group.num_columns))
    return sum(
        chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column
    )
