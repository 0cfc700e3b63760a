"""An index on the disk: parts that are only ever added, and which of their rows still hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from pixlex.files import Damaged, locked, read_json, write_json
from pixlex.models.inference import Precision
from pixlex.search.parts import (
    DamagedIndex,
    Entry,
    Part,
    listed_parts,
    place_of,
    read_part,
    write_part,
)

HEAD, PARTS = "index.json", "parts"
_LOCK = "lock"
_FORMAT = 1

# Rows that are looked at, or written into one part, at once: 64 MiB of 256 numbers each.
_ROWS_AT_ONCE = 65_536

# More parts than this, or more void rows than others, and they are written anew.
_MOST_PARTS = 64

# How often parts are listed again that vanish while they are read.
_TRIES = 5


@dataclass(frozen=True)
class Head:
    """What an index is of.

    Attributes:
        model: where its model lies.
        fingerprint: of that model, see `pixlex.models.pretrained.fingerprint`.
        precision: fp32 or bf16.
        width: of the vectors.
        source: the description that opens its images; None where it was given none.
        revision: branch, tag or commit of a model on the hub.
        language_model: where the model's tokenizer lies, if not where it was trained with.
    """

    model: str
    fingerprint: str
    precision: Precision
    width: int
    source: str | None = None
    revision: str | None = None
    language_model: str | None = None


def read_head(folder: Path) -> Head:
    """Return what an index is of.

    Raises:
        ValueError: the folder is no index, or one of another version.
    """
    path = folder / HEAD
    if not path.is_file():
        there = "it holds no index.json" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"{folder} is no index, {there}: make one with `pixlex index SOURCE --out {folder}`")
    try:
        values = read_json(path)
        found = values.pop("format")
        if found != _FORMAT:
            raise ValueError(f"{path}: expected index format {_FORMAT}, got {found!r:.80}")
        head = Head(**values)
        if (
            type(head.width) is not int
            or not isinstance(head.fingerprint, str)
            or not isinstance(head.model, str)
        ):
            raise TypeError("a field is of another type")
        return head
    except (KeyError, TypeError, Damaged) as fault:
        raise DamagedIndex(
            f"{path} is damaged ({fault}): move {folder} away and make the index anew"
        ) from fault


def is_fresh(folder: Path) -> bool:
    """Whether an index can begin in a folder: there is nothing, or what a command left that has just begun."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(
        path.name == _LOCK or path.name.endswith(".partial") for path in folder.iterdir()
    )


def write_head(folder: Path, head: Head) -> None:
    """Write what an index is of, in one move."""
    write_json(folder / HEAD, {"format": _FORMAT, **asdict(head)})


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold an index for writing.

    Raises:
        ValueError: another process holds it.
    """
    with locked(folder / _LOCK, f"{folder} is being written by another process"):
        for leftover in (folder / PARTS).glob(".*.partial"):
            leftover.unlink(missing_ok=True)
        yield


class Store:
    """The parts of an index and which of their rows hold, as they were when it was opened.

    Args:
        folder: of the index.
        width: of its vectors.

    Attributes:
        missing: numbers of parts that are gone; their images are not in the index.

    Raises:
        DamagedIndex: a part is not what was written.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder / PARTS, width
        self.folder.mkdir(exist_ok=True)
        for tries_left in reversed(range(_TRIES)):
            try:
                self._parts = _read_parts(self.folder, width)
                break
            except FileNotFoundError:  # another process has just written them anew
                if not tries_left:
                    raise
        self._holds = {number: np.ones(len(part), bool) for number, part in self._parts.items()}
        for part in self._parts.values():
            self._void(part.replaces.tolist())
        first = max((part.base for part in self._parts.values()), default=0) or 1
        self.missing = tuple(sorted(set(range(first, self._last + 1)) - set(self._parts)))

    @property
    def _last(self) -> int:
        return max(self._parts, default=0)

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the parts, which say all that is in them."""
        return tuple(part.path.name for part in self._parts.values())

    def __len__(self) -> int:
        return sum(int(holds.sum()) for holds in self._holds.values())

    def _void(self, rows: Sequence[int]) -> None:
        for row in rows:
            number, place = place_of(row)
            if number in self._holds:
                self._holds[number][place] = False

    def blocks(self) -> Iterator[tuple[Int64[np.ndarray, " N"], Float32[np.ndarray, "N e"]]]:
        """Yield rows that hold and their vectors; nothing is copied where all rows of a part hold."""
        for number, part in self._parts.items():
            for first in range(0, len(part), _ROWS_AT_ONCE):
                some = slice(first, first + _ROWS_AT_ONCE)
                holds: Bool[np.ndarray, " n"] = self._holds[number][some]
                if holds.all():
                    yield part.rows[some], part.vectors[some]
                elif holds.any():
                    yield part.rows[some][holds], part.vectors[some][holds]

    def vector(self, row: int) -> Float32[np.ndarray, " e"]:
        """Return one vector, also of a row that no longer holds."""
        number, place = place_of(row)
        vector: Float32[np.ndarray, " e"] = self._parts[number].vectors[place]
        return vector

    def entry(self, row: int) -> Entry:
        """Return what is known of the image of a row."""
        number, place = place_of(row)
        return self._parts[number].entries([place])[0]

    def entries(self) -> Iterator[Entry]:
        """Yield what is known of all images, oldest first."""
        for number, part in self._parts.items():
            yield from part.entries(np.flatnonzero(self._holds[number]))

    def append(
        self, entries: Sequence[Entry], vectors: Float32[np.ndarray, "N e"], replaces: Sequence[int]
    ) -> None:
        """Add images, and say which rows are void from now on; on return it is on the disk."""
        self._append(entries, vectors, replaces, base=0)

    def _append(
        self,
        entries: Sequence[Entry],
        vectors: Float32[np.ndarray, "N e"],
        replaces: Sequence[int],
        base: int,
    ) -> None:
        number = self._last + 1
        path = write_part(self.folder, number, entries, vectors, replaces, base=base)
        self._parts[number] = read_part(path, self.width)
        self._holds[number] = np.ones(len(entries), bool)
        self._void(replaces)

    @property
    def wasteful(self) -> bool:
        """Whether many parts are small or void, or some are gone."""
        total = sum(len(part) for part in self._parts.values())
        return bool(self.missing) or len(self._parts) > _MOST_PARTS or total > 2 * len(self) + _MOST_PARTS

    def rewrite(self) -> None:
        """Write what holds into new parts and delete the old ones; a kill at any moment loses nothing.

        Each new part replaces the rows it copies; the last one says that all before the first are void.
        """
        base, old = self._last + 1, list(self._parts)
        rows = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in self.blocks())])
        chunks = [rows[first : first + _ROWS_AT_ONCE] for first in range(0, len(rows), _ROWS_AT_ONCE)]
        for number, chunk in enumerate(chunks or [rows], start=1):
            entries, vectors = self._copied(chunk)
            self._append(entries, vectors, chunk.tolist(), base=base if number >= len(chunks) else 0)
        for gone in old:
            part = self._parts.pop(gone)
            del self._holds[gone]
            part.path.unlink()
        self.missing = ()

    def drop_void(self) -> None:
        """Delete parts that an interrupted `rewrite` has left behind."""
        for number, path in listed_parts(self.folder):
            if number not in self._parts:
                path.unlink()

    def _copied(self, rows: Int64[np.ndarray, " N"]) -> tuple[list[Entry], Float32[np.ndarray, "N e"]]:
        """Return what is known of the images of rows, sorted by their parts, and their vectors."""
        numbers, places = place_of(rows)
        entries: list[Entry] = []
        vectors = [np.empty((0, self.width), np.float32)]
        for number in np.unique(numbers).tolist():
            chosen = places[numbers == number]
            entries += self._parts[number].entries(chosen)
            vectors.append(self._parts[number].vectors[chosen])
        return entries, np.concatenate(vectors)


def _read_parts(folder: Path, width: int) -> dict[int, Part]:
    """Return the parts that are not void by their numbers."""
    found: dict[int, Part] = {}
    base = 0
    for number, path in reversed(listed_parts(folder)):
        if number < base:
            break
        found[number] = read_part(path, width)
        base = max(base, found[number].base)
    return dict(sorted(found.items()))
