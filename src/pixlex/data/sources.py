"""What a source of images is; rows of one or several sources."""

from __future__ import annotations

import hashlib
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import unquote

import numpy as np
from jaxtyping import Int64

from pixlex.batch import TooManyBroken
from pixlex.data.decoding import IMAGE_SUFFIXES, MAX_FILE_BYTES, ImageRecord, UnreadableImage
from pixlex.data.remote import AnyPath, NoSuchFile, RemotePath, Unreachable
from pixlex.files import read_regular
from pixlex.messages import quoted

if TYPE_CHECKING:
    from pixlex.data.labels import Labels

Options = Mapping[str, str]

NO_FILE = "the file does not exist"

# Kind of what systems leave in folders; passed over without a remark.
HIDDEN = "hidden"
_LEFT_BY_SYSTEMS = frozenset(("__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini"))

# Labels and captions in files of their own are short; what is larger is something else, and is not read.
MAX_TEXT_BYTES = 1 << 20

# What `?` begins options rather than matching one character of a file name.
_OPTIONS = re.compile(r"(?P<path>.*?)\?(?P<options>[A-Za-z_]+=.*)", re.DOTALL)
OPTIONS: Mapping[str, str] = {
    "split": "splits of Karpathy's files, joined by +, or all; split of VQA v2 and NLVR",
    "images": "folder that image paths are relative to, or table of images",
    "index": "Visual Genome's image_data.json",
    "captions": "column of the captions",
    "label": "column of class names, of tables and lists of images",
    "annotations": "VQA v2's annotations of the questions",
    "answers": "column of the answers",
    "texts": "questions, statements or hypotheses about each drawn scene",
    "rows": "images (a row for each image) or captions (one for each caption)",
}
# Kinds of files that a remark names.
_SHOWN_KINDS = 5

# Images that are read before a run begins, until one can be.
_TRIED = 16


@runtime_checkable
class ImageSource(Protocol):
    """A finite, ordered collection of stored images; pickleable, for it is read in worker processes."""

    def __len__(self) -> int: ...

    @property
    def name(self) -> str:
        """What to call the source in messages and tables."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index; empty if the source has no labels."""

    @property
    def identity(self) -> str:
        """A fingerprint of the listing (keys, order, labels, class names), independent of where it lies."""

    def key(self, index: int) -> str:
        """Return the stable name of an image inside the source, without reading the image."""

    def read(self, index: int) -> ImageRecord:
        """Return a stored image; raises `UnreadableImage` if it cannot be fetched."""


class PassedOverWarning(UserWarning):
    """Something that a source passes over."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Files of a kind (".heic", "link", "hidden") that a source does not read: the first, or why, and how many."""

    kind: str
    name: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.name} and {self.count - 1:,} more {self.kind}" if self.count > 1 else self.name


def remark_passed_over(source: ImageSource) -> None:
    """Warn of files that a source passes over, unless they are hidden ones alone."""
    counts: Counter[str] = Counter()
    for one in getattr(source, "ignored", ()):
        if isinstance(one, PassedOver) and one.kind != HIDDEN:
            counts[one.kind] += one.count
    if counts:
        shown = [f"{count:,} {kind}" for kind, count in counts.most_common(_SHOWN_KINDS)]
        shown += ["..."] if len(counts) > _SHOWN_KINDS else []
        warnings.warn(
            f"{source.name}: {counts.total():,} file{'' if counts.total() == 1 else 's'} passed over "
            f"({', '.join(shown)}), `pixlex doctor` lists them",
            PassedOverWarning,
            stacklevel=3,
        )


def remark_left_out(name: str, left_out: Sequence[str], what: str) -> None:
    """Warn of images or items of a source that are passed over, naming the first."""
    if left_out:
        more = ", ..." if len(left_out) > 1 else ""
        said = f"{name}: {len(left_out):,} {what} passed over ({left_out[0]}{more})"
        warnings.warn(said, PassedOverWarning, stacklevel=3)


def count_in(text: str, start: str, what: str) -> int:
    """Return the count that a part of a description writes; what is none raises `ValueError`, which begins so."""
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ValueError(f"{start} a whole number of 1 or more as {what}, got {quoted(text)}")
    return int(text)


def kind_of(name: str) -> str:
    """Return the kind of a file that is no image by its name."""
    parts = name.split("/")
    if any(part in _LEFT_BY_SYSTEMS or part.startswith("._") for part in parts):
        return HIDDEN
    ending = os.path.splitext(parts[-1])[1].lower()
    if not any(part.startswith(".") for part in parts):
        return ending or "without an ending"
    return f"{HIDDEN} {ending}" if ending in IMAGE_SUFFIXES else HIDDEN


def fingerprint(kind: str, keys: Iterable[str], labels: Labels) -> str:
    """Return a hash of a listing: its kind, its keys in their order, its labels and class names."""
    digest = hashlib.sha256(kind.encode())
    for text in (*labels.class_names, "\n", *keys):
        encoded = text.encode(errors="surrogateescape")  # file names may be bytes that are no UTF-8
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    digest.update(labels.indices.astype("<i8").tobytes())
    return digest.hexdigest()


def read_file(path: AnyPath, key: str) -> bytes:
    """Return the bytes of an image file, or raise `UnreadableImage` saying what the system said."""
    try:
        return path.read_bytes() if isinstance(path, RemotePath) else read_regular(path, MAX_FILE_BYTES)
    except Unreachable:
        raise
    except (FileNotFoundError, NoSuchFile) as fault:
        raise UnreadableImage(key, NO_FILE if str(path) == key else f"{NO_FILE}: {path}") from fault
    except OSError as fault:
        raise UnreadableImage(key, f"the file cannot be read: {fault.strerror or fault}") from fault
    except ValueError as fault:  # a zero byte in a path
        raise UnreadableImage(key, f"not a path: {fault}") from fault


def stored_bytes(cell: Any, folder: AnyPath, key: str) -> bytes:
    """Return the bytes of a table's cell: bytes themselves, or {"bytes", "path"} as `datasets` stores images.

    A path without bytes is relative to the folder; raises `UnreadableImage` naming the key.
    """
    path = None
    if isinstance(cell, dict):
        path, cell = cell.get("path"), cell.get("bytes")
    if cell is None and path:
        return read_file(folder / path, key)
    if cell is None:
        raise UnreadableImage(key, "the row holds no image (null)")
    try:
        return bytes(cell)
    except (TypeError, ValueError) as fault:  # a list with a gap
        raise UnreadableImage(key, f"expected bytes, got {quoted(cell)}") from fault


def names_within(paths: Sequence[AnyPath]) -> tuple[str, ...]:
    """Return the paths of files relative to the folder that holds them all, with forward slashes."""
    full = [path.path if isinstance(path, RemotePath) else path.absolute() for path in paths]
    folder = os.path.commonpath([path.parent for path in full])
    return tuple(path.relative_to(folder).as_posix() for path in full)


@dataclass(frozen=True, eq=False)
class ImageSubset:
    """Rows of the concatenation of some sources, any of them more than once; is an `ImageSource` itself.

    Keys begin with the number of the part where parts share some (`numbered`).
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


def evenly_spaced(total: int, limit: int | None) -> list[int]:
    """Return so many of the numbers below a total, spread evenly; all of them without a limit or below it."""
    count = total if limit is None else min(limit, total)
    return [number * total // count for number in range(count)]


def subset(source: ImageSource, rows: Sequence[int] | Int64[np.ndarray, " rows"]) -> ImageSource:
    """Return the given rows of a source, in the order given."""
    wanted = np.asarray(rows, dtype=np.int64)
    if isinstance(source, ImageSubset):
        return replace(source, rows=source.rows[wanted])
    if len(wanted) == len(source) and np.array_equal(wanted, np.arange(len(source))):
        return source
    return ImageSubset(source.name, (source,), wanted)


def place_of(source: ImageSource, index: int) -> tuple[ImageSource, int]:
    """Return the source that stores an image, and its row there."""
    return source.place(index) if isinstance(source, ImageSubset) else (source, index)


def distinct_images(source: ImageSource) -> ImageSource:
    """Return the distinct images of a source that may hold some more than once."""
    if not isinstance(source, ImageSubset):
        return source
    return subset(source, np.sort(np.unique(source.rows, return_index=True)[1]))


def concatenate(name: str, sources: Sequence[ImageSource]) -> ImageSubset:
    """Return sources one after the other; keys are numbered by source if one occurs in two of them."""
    parts: list[ImageSource] = []
    rows = []
    keys: set[str] = set()
    numbered = False
    for source in sources:
        first = sum(map(len, parts))
        rows.append(first + (source.rows if isinstance(source, ImageSubset) else np.arange(len(source))))
        parts += source.parts if isinstance(source, ImageSubset) else [source]
        if not numbered:
            distinct = distinct_images(source)
            new = {distinct.key(index) for index in range(len(distinct))}
            numbered = bool(keys & new)
            keys |= new
    return ImageSubset(name, tuple(parts), np.concatenate(rows).astype(np.int64), numbered)


def require_readable(source: ImageSource) -> None:
    """Read images here and there: a wrong folder must be found before hours of training, not at their end.

    `TooManyBroken` is raised where none of them can be read.
    """
    faults = list[UnreadableImage]()
    for index in evenly_spaced(len(source), _TRIED):
        try:
            source.read(index)
        except UnreadableImage as fault:
            faults.append(fault)
        else:
            return
    if faults:
        raise TooManyBroken(
            f"{source.name}: none of {len(faults)} images tried can be read, the first {faults[0].key}: "
            f"{faults[0].reason}; say where they lie, such as ?images=FOLDER behind a file that lists them"
        )


@dataclass(frozen=True)
class SetDescription:
    """One set: a path as `open_source` takes it or an annotation file, options, its weight beside other sets."""

    path: str
    options: Options
    weight: float = 1.0

    def only(self, known: tuple[str, ...], kind: str) -> None:
        """Raise `ValueError` for an option that says nothing to this kind of source."""
        check_options(self.path, kind, known, self.options)


def read_descriptions(text: str) -> list[SetDescription]:
    """Read `[WEIGHT * ]PATH[?OPTION=VALUE&...]`, several joined by ` + `; raises `ValueError` for what is none.

    A value may hold %26 for &. A file whose whole name is the text is one set.
    """
    text = text.strip()
    if os.path.exists(os.path.expanduser(text)):  # unlike Path.exists, false for names that are too long
        return [SetDescription(text, {})]
    return [_read_set(part.strip()) for part in re.split(r"\s\+\s", text)]


def with_split(text: str, split: str) -> str:
    """Return the description of one set with its split named; `ValueError` if one is, or for several sets."""
    sets = read_descriptions(text)
    if len(sets) > 1 or "split" in sets[0].options:
        raise ValueError(
            f"the split {quoted(split)} is asked for beside those of {text}; write ?split= once per set"
        )
    if sets[0].path.startswith("hf:"):
        if sets[0].path.count(":") > 1:
            raise ValueError(f"the split {quoted(split)} is asked for beside that of {text}")
        return text.replace(sets[0].path, f"{sets[0].path}:{split}", 1)
    return f"{text}{'&' if sets[0].options else '?'}split={split}"


def _read_set(text: str) -> SetDescription:
    before, star, rest = text.partition(" * ")
    weight, path = 1.0, text
    if star:
        path = rest.strip()
        try:
            weight = float(before)
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            wrong = quoted(before.strip())
            raise ValueError(f"the weight of a set must be a number above 0, got {wrong} in {quoted(text)}")
    match = _OPTIONS.fullmatch(path)
    if match is None:
        return SetDescription(path, {}, weight)
    options: dict[str, str] = {}
    for part in match["options"].split("&"):
        name, _, value = part.partition("=")
        if name not in OPTIONS:
            near = get_close_matches(name, OPTIONS, 1)
            hint = f" (meant {near[0]}?)" if near else ""
            known = "; ".join(f"{name} ({meaning})" for name, meaning in OPTIONS.items())
            raise ValueError(f"{match['path']}: unknown option {quoted(name)}{hint}; known: {known}")
        if name in options or not value:
            raise ValueError(f"{match['path']}: the option {name} must be given once, with a value")
        options[name] = unquote(value)
    return SetDescription(match["path"], options, weight)


def check_options(path: object, kind: str, known: Iterable[str], options: Options) -> None:
    """Raise `ValueError` for an option that says nothing to this kind of source."""
    if foreign := [name for name in options if name not in known]:
        raise ValueError(f"{path}: {kind} take the options {', '.join(known)}, got {foreign[0]}")
