"""Columns of parquet files: read, and which of them hold images."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pixlex.data.addresses import Address, Place, RangeFile
from pixlex.data.decoding import ImageRecord, UnreadableImage, stored_form
from pixlex.data.text import check_columns, json_value
from pixlex.files import open_regular
from pixlex.messages import quoted

# A column of texts is one of images where more than half of its first ones are images in base64.
_LOOKED_AT = 32


def columns_without_images(path: Place) -> list[str]:
    """Return the columns of a parquet file if none of them holds images, else nothing.

    Raises:
        ValueError: if the file cannot be read.
    """
    return [] if image_columns(path) else list(open_parquet(path).schema_arrow.names)


def image_columns(path: Place) -> list[str]:
    """Return the columns of a parquet file that hold images: bytes, or texts in base64.

    Raises:
        ValueError: if the file cannot be read.
    """
    return _image_columns(open_parquet(path), path)


def table_rows(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a parquet file, some columns alone.

    Raises:
        ValueError: if the file cannot be read.
    """
    parquet = open_parquet(path)
    names = list(parquet.schema_arrow.names if columns is None else columns)
    found = read_columns(parquet, path, names)
    return [dict(zip(names, row, strict=True)) for row in zip(*(found[name] for name in names), strict=True)]


def open_parquet(path: Place) -> Any:
    """Open a parquet file; raises `ValueError` if it cannot be read, or two columns share a name."""
    try:
        if not isinstance(path, Address):
            open_regular(path).close()
        parquet = pq.ParquetFile(
            RangeFile(path) if isinstance(path, Address) else path,
            memory_map=True,
            page_checksum_verification=True,
        )
        check_columns(parquet.schema_arrow.names, path)
        about = parquet.metadata
        if sum(about.row_group(one).num_rows for one in range(about.num_row_groups)) != about.num_rows:
            raise ValueError(f"{path} is damaged: its row groups have not as many rows as the whole")
    except (pa.ArrowException, OSError) as fault:
        raise ValueError(f"{path} cannot be read as parquet: {quoted(str(fault), 200)}") from fault
    return parquet


def read_columns(parquet: Any, path: Place, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of some columns; raises `ValueError` naming file, column and row that cannot be read."""
    found: dict[str, list[Any]] = {}
    for name in names:
        try:
            cells = parquet.read(columns=[name], use_threads=False)[name]
        except (pa.ArrowException, OSError, NotImplementedError) as fault:
            raise ValueError(
                f"{path}: the column {name} cannot be read: {quoted(str(fault), 200)}"
            ) from fault
        try:
            found[name] = cells.to_pylist()
        except UnicodeDecodeError:
            found[name] = [_text(cell, f"{path}#{row}, column {name}") for row, cell in enumerate(cells)]
    return found


def _text(cell: Any, where: str) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as fault:
        raise ValueError(
            f"{where}: expected UTF-8 text, got {quoted(fault.object)} ({fault.reason})"
        ) from fault


def image_column(parquet: Any, path: Place) -> str:
    """Return the name of the column of images: "image", or the only one; raises `ValueError` if there is none."""
    columns = _image_columns(parquet, path)
    if "image" in columns:
        return "image"
    if len(columns) == 1:
        return columns[0]
    schema = parquet.schema_arrow
    several = next((field for field in schema if _holds_images(field.type)), None)
    if several is not None and not columns:
        raise ValueError(
            f"{path}: expected one image a row, got a list of them, {several.type!s:.200}, in the column "
            f"{several.name}; write a row for each"
        )
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    raise ValueError(
        f"{path}: expected one column of image bytes (binary, struct with bytes and path, list of uint8, text in "
        f"base64), or one of them named 'image'; found {found:.400}"
    )


def _image_columns(parquet: Any, path: Place) -> list[str]:
    fields = parquet.schema_arrow
    columns = [field.name for field in fields if _holds_bytes(field.type)]
    texts = (field.name for field in fields if is_text(field.type))
    return columns or [name for name in texts if _is_base64(parquet, path, name)]


def _holds_bytes(kind: Any) -> bool:
    """Whether this is a type of bytes: binary of any form, a dictionary, struct or list of it."""
    if pa.types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return bool(position >= 0 and _holds_bytes(kind.field(position).type))
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if _is_list(kind):
        return bool(pa.types.is_uint8(kind.value_type))
    tests = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(test(kind) for test in tests)


def _holds_images(kind: Any) -> bool:
    """Whether this is a list of images."""
    return _is_list(kind) and _holds_bytes(kind.value_type)


def _is_list(kind: Any) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def is_text(kind: Any) -> bool:
    """Whether this is a type of texts."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _is_base64(parquet: Any, path: Place, column: str) -> bool:
    """Whether most of the first texts of a column are images in base64."""
    try:
        batch = next(parquet.iter_batches(_LOOKED_AT, columns=[column], use_threads=False), None)
        texts = [] if batch is None else [one for one in batch[column].to_pylist() if one]
    except UnicodeDecodeError:
        return False
    except (pa.ArrowException, OSError) as fault:
        raise ValueError(f"{path}: the column {column} cannot be read: {quoted(str(fault), 200)}") from fault
    images = sum(_is_image(data) for data in map(from_base64, texts) if data)
    return images > len(texts) / 2


def _is_image(data: bytes) -> bool:
    try:
        return bool(stored_form(ImageRecord(data, -1, "")))
    except UnreadableImage:
        return False


def from_base64(text: str) -> bytes | None:
    """Return the bytes that base64 stands for, perhaps behind data:image/png;base64, ; None if it is none."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text.replace("\r", "").replace("\n", ""), validate=True)
    except ValueError:
        return None


def declared_names(schema: Any, path: Place) -> list[str]:
    """Return the class names that `datasets` writes into the metadata of its parquet files."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return []
    where = f"{path}, metadata 'huggingface'"
    found: Any = json_value(text, where)
    for key in ("info", "features", "label"):
        found = {} if not isinstance(found, dict) else found.get(key)
        found = {} if found is None else found
    names = found.get("names") if isinstance(found, dict) else None
    if not isinstance(names or [], list) or not all(isinstance(name, str) for name in names or []):
        raise ValueError(
            f"{where}: expected the class names of label to be a list of texts, got {quoted(names)}"
        )
    return list(names or [])
