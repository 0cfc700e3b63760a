"""Some images of one source, or of several one after the other; any of them more than once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from pixlex.data.decoding import ImageRecord, UnreadableImage
from pixlex.data.sources import ImageSource, PassedOver


@dataclass(frozen=True, eq=False)
class ChosenImages:
    """Rows of the concatenation of some sources; is an `ImageSource` itself.

    Args:
        name: what to call the source.
        parts: the sources.
        rows: which images of the concatenation, in which order.
        numbered: keys begin with the number of the part, for parts share keys.
    """

    name: str
    parts: tuple[ImageSource, ...]
    rows: Int64[np.ndarray, " images"]
    numbered: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index; empty if the parts have different classes."""
        names = {part.class_names for part in self.parts}
        return names.pop() if len(names) == 1 else ()

    @cached_property
    def identity(self) -> str:
        """A fingerprint of the parts and the rows."""
        digest = hashlib.sha256("\n".join(part.identity for part in self.parts).encode())
        digest.update(self.rows.astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def distinct(self) -> Int64[np.ndarray, " images"]:
        """The number of each row's image among the distinct images, which are in the order of the parts."""
        return np.unique(self.rows, return_inverse=True)[1].astype(np.int64)

    @property
    def ignored(self) -> tuple[PassedOver, ...]:
        """What the parts pass over."""
        return tuple(one for part in self.parts for one in getattr(part, "ignored", ()))

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """How many images lie together, stretch by stretch; none where they are in another order."""
        sizes = [getattr(part, "blocks", ()) for part in self.parts]
        if not all(sizes) or np.any(np.diff(self.rows) < 0):
            return ()
        ends = np.cumsum([size for part in sizes for size in part])
        counts = np.bincount(np.searchsorted(ends, self.rows, side="right"), minlength=len(ends))
        return tuple(int(count) for count in counts if count)

    @cached_property
    def _firsts(self) -> Int64[np.ndarray, " parts"]:
        return np.cumsum([0, *(len(part) for part in self.parts[:-1])])

    def key(self, index: int) -> str:
        """Return the name of an image inside its part, behind the number of the part if that is needed."""
        part, row = self.place(index)
        return self._named(index, part.key(row))

    def read(self, index: int) -> ImageRecord:
        """Return a stored image; raises `UnreadableImage` if it cannot be fetched."""
        part, row = self.place(index)
        try:
            record = part.read(row)
        except UnreadableImage as fault:
            raise UnreadableImage(self._named(index, fault.key), fault.reason) from fault
        label = record.label if self.class_names else -1
        return replace(record, label=label, key=self._named(index, record.key))

    def place(self, index: int) -> tuple[ImageSource, int]:
        """Return the part in which an image lies, and its row there."""
        number = self._part_of(index)
        return self.parts[number], int(self.rows[index]) - int(self._firsts[number])

    def _part_of(self, index: int) -> int:
        if not 0 <= index < len(self.rows):
            raise IndexError(f"{self.name} has {len(self.rows)} images, got index {index}")
        return int(np.searchsorted(self._firsts, self.rows[index], side="right")) - 1

    def _named(self, index: int, key: str) -> str:
        return f"{self._part_of(index) + 1}:{key}" if self.numbered else key


def choose(source: ImageSource, rows: Sequence[int] | Int64[np.ndarray, " rows"]) -> ImageSource:
    """Return the given rows of a source, in the order given."""
    wanted = np.asarray(rows, dtype=np.int64)
    if isinstance(source, ChosenImages):
        return replace(source, rows=source.rows[wanted])
    if len(wanted) == len(source) and np.array_equal(wanted, np.arange(len(source))):
        return source
    return ChosenImages(source.name, (source,), wanted)


def first_of_each(source: ImageSource) -> ImageSource:
    """Return the distinct images of a source that may hold some more than once."""
    if not isinstance(source, ChosenImages):
        return source
    return choose(source, np.sort(np.unique(source.rows, return_index=True)[1]))


def join(name: str, sources: Sequence[ImageSource]) -> ChosenImages:
    """Return sources one after the other; keys are numbered by source if one occurs in two of them."""
    parts: list[ImageSource] = []
    rows = []
    first = 0
    for source in sources:
        chosen = source if isinstance(source, ChosenImages) else None
        rows.append(first + (np.arange(len(source)) if chosen is None else chosen.rows))
        parts += [source] if chosen is None else chosen.parts
        first = sum(len(part) for part in parts)
    joined = ChosenImages(name, tuple(parts), np.concatenate(rows).astype(np.int64))
    keys: set[str] = set()
    for source in sources:
        distinct = first_of_each(source)
        new = {distinct.key(index) for index in range(len(distinct))}
        if keys & new:
            return replace(joined, numbered=True)
        keys |= new
    return joined
