"""What is new, changed or gone in a source since it was indexed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pixlex.data.decoding import ImageRecord
from pixlex.data.folders import FileSource
from pixlex.data.sources import ImageSource
from pixlex.search.parts import Entry

# A file that was written so shortly before it is looked at may be written again without a later time: clocks
# of file systems are coarse. What is in it is looked at once more at the next update.
_COARSE = 2_000_000_000


@dataclass(frozen=True)
class Stamp:
    """What tells that a file has changed without reading it; see `Entry`."""

    size: int
    modified: int


@dataclass(frozen=True)
class Candidate:
    """An image that must be read.

    Attributes:
        index: position in the source.
        stamp: of its file, taken before it is read; None where images are no files of their own.
        before: what the index knows of it.
    """

    index: int
    stamp: Stamp | None
    before: Entry | None


@dataclass(frozen=True)
class Changes:
    """A source beside what an index knows of it.

    Attributes:
        candidates: images that are new, or that may have changed.
        gone: rows of images that are no longer in the source, and rows that another one of the same key follows.
        num_gone: images no longer in the source.
        num_unchanged: images whose files have kept size and time.
        num_repeated: images that have the key of an earlier one of the source, and are left out.
        known: all that the index knows, by key.
    """

    candidates: tuple[Candidate, ...]
    gone: tuple[int, ...]
    num_gone: int
    num_unchanged: int
    num_repeated: int
    known: dict[str, Entry]


def compare(source: ImageSource, entries: Iterable[Entry]) -> Changes:
    """Compare a source with what an index knows; no image is read.

    Args:
        source: the images.
        entries: what the index knows, oldest first.
    """
    known: dict[str, Entry] = {}
    gone = []
    for entry in entries:
        if entry.key in known:  # a part that said so was damaged and deleted
            gone.append(known[entry.key].row)
        known[entry.key] = entry
    seen: set[str] = set()
    candidates = []
    unchanged = 0
    for index in range(len(source)):
        key = source.key(index)
        if key in seen:
            continue
        seen.add(key)
        before, stamp = known.get(key), stamp_of(source, key)
        same = before is not None and stamp is not None and stamp == Stamp(before.size, before.modified)
        if same and stamp is not None and stamp.modified >= 0:
            unchanged += 1
        else:
            candidates.append(Candidate(index, stamp, before))
    lost = [entry.row for key, entry in known.items() if key not in seen]
    return Changes(
        tuple(candidates), (*gone, *lost), len(lost), unchanged, len(source) - len(seen), known
    )  # fmt: skip


def stamp_of(source: ImageSource, key: str) -> Stamp | None:
    """Return size and time of an image's file; None where it has none of its own, or it is gone."""
    if not isinstance(source, FileSource):
        return None
    try:
        state = (source.root / key).stat()
    except (OSError, ValueError):
        return None
    settled = state.st_mtime_ns < time.time_ns() - _COARSE
    return Stamp(state.st_size, state.st_mtime_ns if settled else -1)


def digest_of(record: ImageRecord) -> bytes:
    """Return the SHA-256 of an image as it is stored."""
    if isinstance(record.data, np.ndarray):
        shape = f"{record.data.shape}".encode()
        return hashlib.sha256(shape + np.ascontiguousarray(record.data).tobytes()).digest()
    return hashlib.sha256(record.data).digest()


def size_of(record: ImageRecord) -> int:
    """Return the size of an image as it is stored, in bytes."""
    return record.data.nbytes if isinstance(record.data, np.ndarray) else len(record.data)
