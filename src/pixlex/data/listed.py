"""Items as files list them: read row by row, put together column by column."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int64

from pixlex.data.reasoning import ReasoningSource
from pixlex.data.sources import ImageSource, subset
from pixlex.data.text import id_text, plain_text, whole_number
from pixlex.messages import quoted

Row = Mapping[str, Any]
One = TypeVar("One")


class LeftOut(Exception):
    """A row that is no item, and why; not a fault of the file."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item.

    Attributes:
        images: what its images are called: paths or ids, or places in the table that is read.
        text: a question, a statement or a hypothesis.
        answers: as given; empty where unknown.
        id: the data set's own name; empty for the number of the row.
        scale: what the weights of its answers add up to in training.
        sentence: equal where items put the same sentence to other images; empty where unknown.
        kind: kind of the item; empty where unknown.
    """

    images: tuple[str | int, ...]
    text: str
    answers: tuple[str, ...]
    id: str
    scale: float = 1.0
    sentence: str = ""
    kind: str = ""


ReadRow = Callable[[int, Row], Iterable[Item]]


@dataclass(frozen=True)
class Rows:
    """The rows of a file.

    Args:
        path: the file, as messages name it.
        unit: what a row is called in messages, such as "line".
        rows: number and content of each.
    """

    path: Path
    unit: str
    rows: Iterable[tuple[int, Row]]


@dataclass
class Listing:
    """The items of a file, column by column; the columns are those of `ReasoningSource`."""

    path: Path
    images: list[str | int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    answers: list[tuple[str, ...]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def add(self, item: Item, name: str, answers: tuple[str, ...]) -> None:
        """Append an item under a name, with its answers as they are stored.

        Raises:
            ValueError: it has more or fewer images than those before.
        """
        if self.texts and len(item.images) != self.num_images:
            raise ValueError(f"expected {self.num_images} images as before, got {len(item.images)}")
        self.images += item.images
        self.texts.append(item.text)
        self.answers.append(answers)
        self.ids.append(name)
        self.scales.append(item.scale)
        self.sentences.append(item.sentence)
        self.kinds.append(item.kind)

    @property
    def num_images(self) -> int:
        """Images of each item."""
        return len(self.images) // len(self.texts)

    def with_images(self, images: ImageSource, rows: Int64[np.ndarray, " names"]) -> ReasoningSource:
        """Return the items with their images.

        Args:
            images: the distinct images.
            rows: which of them each name is; -1 where there is none: its item is left out.

        Raises:
            ValueError: no item has all of its images.
        """
        places = rows.reshape(-1, self.num_images)
        present = (places >= 0).all(axis=1)
        ignored = []
        for item in np.flatnonzero(~present).tolist():
            missing = item * self.num_images + int(np.argmin(places[item]))
            ignored.append(f"{self.ids[item]:.80}: {images.name} has no image {self.images[missing]!s:.80}")
        if not present.any():
            raise ValueError(f"{self.path}: no item has its images; {ignored[0]}")
        kept = np.flatnonzero(present).tolist()
        return ReasoningSource(
            name=str(self.path),
            images=subset(images, places[present].ravel()),
            num_images=self.num_images,
            texts=_taken(self.texts, kept),
            answers=_taken(self.answers, kept),
            ids=_taken(self.ids, kept),
            scales=_taken(self.scales, kept) if set(self.scales) != {1.0} else (),
            sentences=_taken(self.sentences, kept) if all(self.sentences) else (),
            kinds=_taken(self.kinds, kept) if any(self.kinds) else (),
            ignored=(*self.ignored, *ignored),
        )


def read_listing(rows: Rows, read_row: ReadRow) -> Listing:
    """Read the items of a file.

    Equal answers share their memory: VQA v2 has 6.6 million of them and some 200,000 different ones.

    Raises:
        ValueError: a row is malformed, two items have one id, or there are no items.
    """
    listing = Listing(rows.path)
    ids: set[str] = set()
    shared: dict[str, str] = {}
    for number, row in rows.rows:
        try:
            for item in read_row(number, row):
                name = item.id or f"{rows.unit} {number}"
                if name in ids:
                    raise ValueError(f"expected ids that occur once, got {name:.80} again")
                ids.add(name)
                listing.add(item, name, tuple(map(shared.setdefault, item.answers, item.answers)))
        except LeftOut as reason:
            listing.ignored.append(f"{rows.unit} {number}: {reason}")
        except ValueError as fault:
            raise ValueError(f"{rows.path} {rows.unit} {number}: {fault}") from fault
    if not listing.texts:
        first = f"; left out: {listing.ignored[0]}" if listing.ignored else ""
        raise ValueError(f"{rows.path} lists no item{first}")
    return listing


def text_of(row: Row, names: Sequence[str]) -> str:
    """Return the text in the first of some fields that is there.

    Raises:
        ValueError: none is there, or it is no text, or empty.
    """
    name = field_of(row, names)
    value = row[name]
    text = plain_text(value).strip() if isinstance(value, str) else ""
    if not text:
        raise ValueError(f"expected a text in {name}, got {quoted(value)}")
    return text


def field_of(row: Row, names: Sequence[str]) -> str:
    """Return the first of some fields that a row has.

    Raises:
        ValueError: it has none of them.
    """
    name = next((name for name in names if name in row), None)
    if name is None:
        found = ", ".join(map(str, row)) or "nothing"
        raise ValueError(f"expected a field {' or '.join(names)}, found {found:.200}")
    return name


def is_nothing(value: object) -> bool:
    """Whether a cell says nothing: None, NaN or a blank text."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def id_of(row: Row, names: Sequence[str]) -> str:
    """Return the id in the first of some fields that says something, else nothing.

    Raises:
        ValueError: it is neither a text nor a whole number.
    """
    for name in names:
        value = row.get(name)
        if is_nothing(value):
            continue
        if not isinstance(value, str) and whole_number(value) is None:
            raise ValueError(f"expected a text or a whole number in {name}, got {quoted(value)}")
        return id_text(value)
    return ""


def _taken(values: Sequence[One], items: Sequence[int]) -> tuple[One, ...]:
    return tuple(values) if len(items) == len(values) else tuple(values[item] for item in items)
