"""One part of an index: vectors and what they are of, in a file that is written once and never changed."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from pixlex.files import write_atomically

# A row is named by the number of its part and its place there.
_PLACES = 32
_NAME = re.compile(r"(\d{8})-([0-9a-f]{8})\.arrow")
_DIGEST_SIZE = 32
Row = TypeVar("Row", int, np.ndarray)
_ENCODING = ("utf-8", "surrogateescape")  # file names may be bytes that are no UTF-8


class DamagedIndex(ValueError):
    """A file of an index is not what was written, or is gone."""


@dataclass(frozen=True)
class Entry:
    """What is known of an image in an index.

    Attributes:
        row: where its vector is, see `row_ids`.
        key: the stable name of the image inside its source.
        size: of the stored image, in bytes.
        modified: when its file was last written, in nanoseconds since 1970; -1 where that says nothing.
        digest: SHA-256 of the stored image.
    """

    row: int
    key: str
    size: int
    modified: int
    digest: bytes


@dataclass(frozen=True, eq=False)
class Part:
    """A part, mapped into memory.

    Attributes:
        number: parts are numbered as they are written, from 1.
        path: the file.
        base: parts with a smaller number are void; 0 = none is.
        replaces: rows of earlier parts that are void since this one.
        vectors: of length 1.
    """

    number: int
    path: Path
    base: int
    replaces: Int64[np.ndarray, " R"]
    vectors: Float32[np.ndarray, "N e"]
    _batch: pa.RecordBatch

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def rows(self) -> Int64[np.ndarray, " N"]:
        """The names of its rows."""
        return row_ids(self.number, len(self))

    def entries(self, places: Sequence[int] | Int64[np.ndarray, " n"]) -> list[Entry]:
        """Return what is known of the images at some places."""
        columns = self._batch.select(["key", "size", "modified", "digest"]).take(pa.array(places, pa.int64()))
        return [
            Entry((self.number << _PLACES) + int(place), key.decode(*_ENCODING), size, modified, digest)
            for place, key, size, modified, digest in zip(
                places, *(column.to_pylist() for column in columns.columns), strict=True
            )
        ]


def row_ids(number: int, count: int) -> Int64[np.ndarray, " N"]:
    """Return the names of the rows of a part."""
    return (number << _PLACES) + np.arange(count, dtype=np.int64)


def place_of(row: Row) -> tuple[Row, Row]:
    """Return the number of the part and the place in it of a row, or of each of several."""
    return row >> _PLACES, row & ((1 << _PLACES) - 1)


def listed_parts(folder: Path) -> list[tuple[int, Path]]:
    """Return number and file of each part in a folder, in order.

    Raises:
        DamagedIndex: two parts of one number.
    """
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    parts = sorted((int(match[1]), path) for match, path in found)
    for (number, path), (following, other) in pairwise(parts):
        if number == following:
            raise DamagedIndex(f"{path} and {other.name} have the same number: {_remedy(other)}")
    return parts


def write_part(
    folder: Path,
    number: int,
    entries: Sequence[Entry],
    vectors: Float32[np.ndarray, "N e"],
    replaces: Sequence[int],
    *,
    base: int = 0,
) -> Path:
    """Write a part in one move; its name ends in the CRC-32 of its content.

    Args:
        folder: where parts lie.
        number: of the part.
        entries: of its images; `row` is not looked at.
        vectors: of its images.
        replaces: see `Part`.
        base: see `Part`.
    """
    batch = pa.record_batch(
        {
            "key": pa.array([entry.key.encode(*_ENCODING) for entry in entries], pa.binary()),
            "size": pa.array([entry.size for entry in entries], pa.int64()),
            "modified": pa.array([entry.modified for entry in entries], pa.int64()),
            "digest": pa.array([entry.digest for entry in entries], pa.binary(_DIGEST_SIZE)),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
        }
    ).replace_schema_metadata(
        {"replaces": np.array(replaces, "<i8").tobytes(), "base": str(base), "number": str(number)}
    )
    stream = pa.BufferOutputStream()
    with pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)
    content = stream.getvalue()
    path = folder / f"{number:08d}-{zlib.crc32(content):08x}.arrow"
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return path


def read_part(path: Path, width: int) -> Part:
    """Map a part into memory and check that it is what was written.

    Args:
        path: the file.
        width: of its vectors.

    Raises:
        DamagedIndex: it is not.
        FileNotFoundError: it is gone.
    """
    match = _NAME.fullmatch(path.name)
    assert match is not None
    number = int(match[1])
    try:
        with pa.memory_map(str(path)) as file:
            content = file.read_buffer()
    except pa.ArrowInvalid as fault:  # an empty file
        raise _damaged(path, str(fault)) from fault
    checksum = f"{zlib.crc32(content):08x}"
    if checksum != match[2]:
        raise _damaged(path, f"expected the checksum {match[2]}, got {checksum}")
    batch = pa.ipc.open_file(content).get_batch(0)
    about = batch.schema.metadata
    vectors = batch.column("vector").flatten().to_numpy(zero_copy_only=True)
    if int(about[b"number"]) != number or batch.schema.field("vector").type.list_size != width:
        raise _damaged(path, "it belongs to another index or has got another name")
    return Part(
        number,
        path,
        int(about[b"base"]),
        np.frombuffer(about[b"replaces"], "<i8").astype(np.int64),
        vectors.reshape(len(batch), width),
        batch,
    )


def _damaged(path: Path, reason: str) -> DamagedIndex:
    return DamagedIndex(f"{path} is damaged ({reason}): {_remedy(path)}")


def _remedy(path: Path) -> str:
    return (
        f"delete it and run `pixlex index SOURCE --out {path.parent.parent}` again, which embeds its images anew "
        "and no others"
    )
