"""Images in columns of tables: parquet files, data sets of the `datasets` library."""

from __future__ import annotations

import base64
import bisect
import io
import os
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pixlex.data.decoding import ImageRecord, UnreadableImage, holds_image
from pixlex.data.labels import (
    Labeled,
    Labels,
    labels_of_known_classes,
    named_class,
    resolve_labels,
    row_label,
)
from pixlex.data.remote import AnyPath, NoSuchFile, RangeFile, RemotePath, Unreachable
from pixlex.data.sources import PassedOver, fingerprint, names_within, stored_bytes
from pixlex.data.text import check_columns, json_value
from pixlex.files import open_regular, read_regular
from pixlex.messages import not_installed, quoted

# Row groups are decompressed whole and kept, in each process, up to this many bytes of images.
CACHE_BYTES = 1 << 30

# A column of texts is one of images where more than half of its first ones are images in base64.
_LOOKED_AT = 32

_BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def columns_without_images(path: AnyPath) -> list[str]:
    """Return the columns of a parquet file if none of them holds images, else nothing."""
    parquet = _open_parquet(path)
    return [] if _image_columns(parquet, path) else list(parquet.schema_arrow.names)


def image_columns(path: AnyPath) -> list[str]:
    """Return the columns of a parquet file that hold images: bytes, or texts in base64."""
    return _image_columns(_open_parquet(path), path)


def table_rows(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a parquet file, some columns alone; raises `ValueError` if it cannot be read."""
    parquet = _open_parquet(path)
    names = list(parquet.schema_arrow.names if columns is None else columns)
    found = [_read_column(parquet, path, name) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*found, strict=True)]


class _RowGroup(NamedTuple):
    """Where a run of rows lies: rows first, first + 1, ... of the source are row group `group` of a file."""

    file: int
    group: int
    first: int


class ParquetSource(Labeled):
    """Images in a column of parquet files, read by row group when one of its rows is asked for.

    `column` is that of the images, where there are several and none is called "image"; `label` that of the class
    names, instead of `label` and `class_name`; `ignored` what lies beside the files. For `numbered` see
    `pixlex.data.labels.resolve_labels`.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[AnyPath],
        *,
        numbered: bool = False,
        column: str | None = None,
        label: str | None = None,
        ignored: tuple[PassedOver, ...] = (),
    ) -> None:
        self.name, self.ignored, self._label = name, ignored, label
        self._files, self._names, self._named = tuple(files), names_within(files), column
        self._forget()
        schema = self._parquet(0).schema_arrow
        self._column = column or _image_column(self._parquet(0), self._files[0])
        self._is_text = _is(schema.field(self._column).type, _TEXTS)
        if label is not None and label not in schema.names:
            raise _no_column(self._files[0], label, schema.names)
        usual = ("label", "class_name") if label is None else (label,)
        label_columns = [column for column in usual if column in schema.names]
        self._row_groups: list[_RowGroup] = []
        self._file_firsts: list[int] = []
        self._size = image_bytes = 0
        for number, path in enumerate(self._files):
            parquet = self._parquet(number)
            if missing := {self._column, *label_columns} - set(parquet.schema_arrow.names):
                raise ValueError(f"{path}: the columns {sorted(missing)} of {self._files[0]} are missing")
            self._file_firsts.append(self._size)
            for group in range(parquet.num_row_groups):
                about = parquet.metadata.row_group(group)
                self._row_groups.append(_RowGroup(number, group, self._size))
                self._size += about.num_rows
                image_bytes += _uncompressed_size(about, self._column)
        if not self._size:
            raise ValueError(f"{name} has no rows")
        self._firsts = [group.first for group in self._row_groups]
        self.labels = self._read_labels(schema, label_columns, numbered)
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

    @cached_property
    def identity(self) -> str:
        """A fingerprint of file names, numbers of rows, the named column, labels and class names."""
        keys = [f"{name}#{first}" for name, first in zip(self._names, self._file_firsts, strict=True)]
        keys += [self._named] if self._named else []
        return fingerprint("parquet", [*keys, str(self._size)], self.labels)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The number of images in each row group that has some."""
        return tuple(int(size) for size in np.diff([*self._firsts, self._size]) if size)

    def key(self, index: int) -> str:
        """Return the file name and row of an image, such as "train.parquet#17"."""
        number = self._row_group_of(index).file
        return f"{self._names[number]}#{index - self._file_firsts[number]}"

    def read(self, index: int) -> ImageRecord:
        """Return the bytes in a row; raises `UnreadableImage` if there are none, or the file is damaged.

        `NoSuchFile` and `Unreachable` are raised where the row group cannot be had from its URL.
        """
        key = self.key(index)
        where = self._row_group_of(index)
        try:
            cell = self._images(where)[index - where.first].as_py()
        except (Unreachable, NoSuchFile):
            raise
        except (pa.ArrowException, OSError, ValueError) as fault:
            raise UnreadableImage(key, f"its row group cannot be read: {fault}") from fault
        if isinstance(cell, str) and self._is_text:
            cell = _from_base64(cell)
            if cell is None:
                raise UnreadableImage(key, "its cell is no base64")
        data = stored_bytes(cell, self._files[where.file].parent, key)
        return ImageRecord(data, int(self.labels.indices[index]), key)

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns of the first file."""
        return tuple(self._parquet(0).schema_arrow.names)

    def values(self, name: str) -> list[Any]:
        """Return the values of a column; raises `ValueError` if a file does not have it."""
        values: list[Any] = []
        for number, path in enumerate(self._files):
            parquet = self._parquet(number)
            if name not in (present := parquet.schema_arrow.names):
                raise _no_column(path, name, present)
            values += _read_column(parquet, path, name)
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
            self._open[number] = _open_parquet(self._files[number])
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
        parquet = self._parquet(where.file)
        table = parquet.read_row_group(where.group, columns=[self._column], use_threads=False)
        images = self._cache[where] = table[self._column]
        while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return images

    def _read_labels(self, schema: Any, columns: Sequence[str], numbered: bool) -> Labels:
        rows, values = [], list[object]()
        for number, path in enumerate(self._files):
            parquet = self._parquet(number)
            found = {name: _read_column(parquet, path, name) for name in columns}
            for row in range(parquet.metadata.num_rows):
                pair = named_class({name: cells[row] for name, cells in found.items()}, self._label)
                rows.append(row_label(*pair, f"{path} row {row}"))
            values += found.get("label", [None] * parquet.metadata.num_rows)
        names, folder = _declared_names(schema, self._files[0]), self._files[0].parent
        if names and "class_name" not in columns and self._label in (None, "label"):
            return labels_of_known_classes(values, names, f"{self.name}, column label", folder)
        return resolve_labels(rows, self.name, folder, numbered=numbered or self._label is not None)


def _no_column(path: object, name: str, present: Sequence[str]) -> ValueError:
    return ValueError(f"{path}: expected a column {name}, found {', '.join(present):.200}")


def _open_parquet(path: AnyPath) -> Any:
    """Open a parquet file; raises `ValueError` if it cannot be read, or two columns share a name."""
    try:
        if not isinstance(path, RemotePath):
            open_regular(path).close()
        file = RangeFile(path) if isinstance(path, RemotePath) else path
        parquet = pq.ParquetFile(file, memory_map=True, page_checksum_verification=True)
        check_columns(parquet.schema_arrow.names, path)
        about = parquet.metadata
        if sum(about.row_group(one).num_rows for one in range(about.num_row_groups)) != about.num_rows:
            raise ValueError(f"{path} is damaged: its row groups have not as many rows as the whole")
    except (pa.ArrowException, OSError) as fault:
        raise ValueError(f"{path} cannot be read as parquet: {quoted(str(fault), 200)}") from fault
    return parquet


def _read_column(parquet: Any, path: AnyPath, name: str) -> list[Any]:
    """Return the values of a column; raises `ValueError` naming file, column and row that cannot be read."""
    try:
        cells = parquet.read(columns=[name], use_threads=False)[name]
    except (pa.ArrowException, OSError, NotImplementedError) as fault:
        raise _unreadable_column(path, name, fault) from fault
    try:
        return list(cells.to_pylist())
    except UnicodeDecodeError:
        return [_text(cell, f"{path}#{row}, column {name}") for row, cell in enumerate(cells)]


def _text(cell: Any, where: str) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as fault:
        raise ValueError(
            f"{where}: expected UTF-8 text, got {quoted(fault.object)} ({fault.reason})"
        ) from fault


def _unreadable_column(path: object, name: str, fault: BaseException) -> ValueError:
    return ValueError(f"{path}: the column {name} cannot be read: {quoted(str(fault), 200)}")


def _uncompressed_size(row_group: Any, column: str) -> int:
    chunks = map(row_group.column, range(row_group.num_columns))
    own = (chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
    return sum(chunk.total_uncompressed_size for chunk in own)


def _image_column(parquet: Any, path: AnyPath) -> str:
    """Return the name of the column of images: "image", or the only one; raises `ValueError` if there is none."""
    columns = _image_columns(parquet, path)
    if "image" in columns or len(columns) == 1:
        return "image" if "image" in columns else columns[0]
    for field in () if columns else parquet.schema_arrow:
        if _is(field.type, _LISTS) and _holds_bytes(field.type.value_type):
            raise ValueError(
                f"{path}: expected one image a row, got a list of them, {field.type!s:.200}, in the column "
                f"{field.name}; write a row for each"
            )
    found = ", ".join(f"{field.name}: {field.type}" for field in parquet.schema_arrow)
    raise ValueError(
        f"{path}: expected one column of image bytes (binary, struct with bytes and path, list of uint8, text in "
        f"base64), or one of them named 'image'; found {found:.400}"
    )


def _image_columns(parquet: Any, path: AnyPath) -> list[str]:
    fields = parquet.schema_arrow
    columns = [field.name for field in fields if _holds_bytes(field.type)]
    texts = (field.name for field in fields if _is(field.type, _TEXTS))
    return columns or [name for name in texts if _is_base64(parquet, path, name)]


def _is(kind: Any, tests: Sequence[Any]) -> bool:
    """Whether a type, or that of the values of a dictionary, is one of some."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(test(kind) for test in tests)


def _holds_bytes(kind: Any) -> bool:
    """Whether this is a type of bytes: binary of any form, a dictionary, struct or list of it."""
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and _holds_bytes(kind.field(position).type)
    return bool(pa.types.is_uint8(kind.value_type)) if _is(kind, _LISTS) else _is(kind, _BYTES)


def _is_base64(parquet: Any, path: AnyPath, column: str) -> bool:
    """Whether most of the first texts of a column are images in base64."""
    try:
        batch = next(parquet.iter_batches(_LOOKED_AT, columns=[column], use_threads=False), None)
        texts = [] if batch is None else [one for one in batch[column].to_pylist() if one]
    except UnicodeDecodeError:
        return False
    except (pa.ArrowException, OSError) as fault:
        raise _unreadable_column(path, column, fault) from fault
    found = filter(None, map(_from_base64, texts))
    return sum(holds_image(io.BytesIO(data)) for data in found) > len(texts) / 2


def _from_base64(text: str) -> bytes | None:
    """Return the bytes that base64 stands for, perhaps behind data:image/png;base64, ; None if it is none."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text.replace("\r", "").replace("\n", ""), validate=True)
    except ValueError:
        return None


def _declared_names(schema: Any, path: AnyPath) -> list[str]:
    """Return the class names that `datasets` writes into the metadata of its parquet files."""
    text = (schema.metadata or {}).get(b"huggingface")
    where = f"{path}, metadata 'huggingface'"
    found: Any = None if text is None else json_value(text, where)
    for key in ("info", "features", "label", "names"):
        found = found.get(key) if isinstance(found, dict) else None
    names = found or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{where}: expected the class names of label to be a list of texts, got {quoted(found)}"
        )
    return names


@dataclass(frozen=True)
class DatasetSource(Labeled):
    """Images of a data set of the `datasets` library: its image column, undecoded; `table` is all but images."""

    name: str
    column: str
    images: Any
    labels: Labels
    table: Any

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def identity(self) -> str:
        """A fingerprint of the number of rows, labels and class names."""
        return fingerprint("datasets", [str(len(self))], self.labels)

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns beside the images."""
        return tuple(self.table.column_names)

    def values(self, name: str) -> list[Any]:
        """Return the values of a column; raises `ValueError` if they cannot be read."""
        try:
            return list(self.table[name])
        except (pa.ArrowException, OSError, ValueError) as fault:
            raise _unreadable_column(self.name, name, fault) from fault

    def key(self, index: int) -> str:
        """Return the row of an image, such as "#17"."""
        return f"#{index}"

    def read(self, index: int) -> ImageRecord:
        """Return the bytes in a row; raises `UnreadableImage` if there are none."""
        key = self.key(index)
        try:
            cell = self.images[index][self.column]
        except (pa.ArrowException, OSError, ValueError) as fault:
            raise UnreadableImage(key, f"its row cannot be read: {fault}") from fault
        return ImageRecord(stored_bytes(cell, Path(), key), int(self.labels.indices[index]), key)


def open_hub(description: str, *, numbered: bool = False, label: str | None = None) -> DatasetSource:
    """Open NAME[:SPLIT] of the Hugging Face Hub through `datasets`; the split is "train" by default.

    For `numbered` see `pixlex.data.labels.resolve_labels`; `label` names the column of classes.
    """
    name, _, split = description.partition(":")
    if not name.strip(" /"):
        raise ValueError(f"expected hf:NAME[:SPLIT], got {quoted(f'hf:{description}')}")
    try:
        dataset = _datasets().load_dataset(name, split=split or "train")
    except (OSError, ValueError, RuntimeError, _datasets().exceptions.DatasetsError) as fault:
        raise ValueError(f"hf:{description} cannot be loaded: {fault}") from fault
    return dataset_source(f"hf:{name}:{split or 'train'}", dataset, None, numbered, label)


def open_saved(folder: Path, *, numbered: bool = False, label: str | None = None) -> DatasetSource:
    """Open a folder written by `Dataset.save_to_disk`; see `open_hub`."""
    if (path := folder / "dataset_dict.json").is_file():
        found = json_value(read_regular(path), path)
        splits = found.get("splits") if isinstance(found, dict) else None
        if not isinstance(splits, list):
            raise ValueError(f"{path}: expected a list of splits, got {quoted(found)}")
        named = ", ".join(str(folder / split) for split in splits)
        raise ValueError(f"{folder} holds several splits, name one of them: {named}")
    try:
        dataset = _datasets().load_from_disk(str(folder))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException) as fault:
        raise ValueError(f"{folder} cannot be loaded as a saved data set: {fault}") from fault
    return dataset_source(str(folder), dataset, folder, numbered, label)


def _datasets() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as fault:
        raise not_installed("a Hugging Face data set", "datasets", "datasets") from fault
    return datasets


def dataset_source(
    name: str, dataset: Any, folder: Path | None, numbered: bool, label: str | None
) -> DatasetSource:
    """Open a `datasets.Dataset`; see `open_hub` and `open_saved`, which name it."""
    datasets, features = _datasets(), dataset.features
    columns = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    columns = columns or [
        column
        for column, kind in features.items()
        if getattr(kind, "dtype", "") in ("binary", "large_binary")
    ]
    column = "image" if "image" in columns else columns[0] if len(columns) == 1 else None
    if column is None:
        found = ", ".join(f"{column}: {feature}" for column, feature in features.items())
        raise ValueError(f"{name}: expected one image column or one named 'image', found {found:.400}")
    if not len(dataset):
        raise ValueError(f"{name} has no rows")
    labels = _dataset_labels(name, dataset, folder, numbered, label)
    images = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return DatasetSource(name, column, images, labels, dataset.remove_columns(columns))


def _dataset_labels(
    name: str, dataset: Any, folder: Path | None, numbered: bool, wanted: str | None
) -> Labels:
    features, nothing = dataset.features, [None] * len(dataset)
    classes = [column for column, one in features.items() if isinstance(one, _datasets().ClassLabel)]
    label = "label" if "label" in features else classes[0] if len(classes) == 1 else None
    if wanted is not None:
        if wanted not in features:
            raise _no_column(name, wanted, list(features))
        label = wanted
    values = nothing if label is None else list(dataset[label])
    if label in classes:
        return labels_of_known_classes(values, features[label].names, f"{name}, column {label}", folder)
    if wanted is not None:
        pairs = [named_class({wanted: value}, wanted) for value in values]
    else:
        names = list(dataset["class_name"]) if "class_name" in features else nothing
        pairs = list(zip(values, names, strict=True))
    rows = [row_label(*pair, f"{name} row {row}") for row, pair in enumerate(pairs)]
    return resolve_labels(rows, name, folder, numbered=numbered or wanted is not None)
