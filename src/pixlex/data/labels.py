"""Class labels of a source: integers and their names, checked against each other, as a person would say them."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from pixlex.data.text import csv_rows, is_nothing, plain_text, whole_number
from pixlex.messages import quoted

if TYPE_CHECKING:
    from pixlex.data.remote import AnyPath

# The file beside a source that names its classes.
CLASSES_FILE = "classes.csv"

# A larger "class index" is some other number (an identifier, a date) in a column that is called label.
MAX_CLASSES = 1_000_000

# A number, though perhaps no label, and so no name.
_NUMBER = re.compile(r"\s*[+-]?\d+(?:\.0*)?\s*")
# A WordNet id, perhaps with a name behind it, as in n02119789_kit_fox.
_WORDNET_ID = re.compile(r"(n\d{8})(?:[\s_-]+(.*))?")
_COMMA = re.compile(r"\s*(?:(?<!\d),|,(?!\d))\s*")


@dataclass(frozen=True)
class Labels:
    """The class index of each image of a source, -1 where unknown; the name of each, "" where it has no image."""

    indices: Int64[np.ndarray, " images"]
    class_names: tuple[str, ...]


class Labeled:
    """What a source with labels has."""

    labels: Labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index; empty without labels."""
        return self.labels.class_names


class RowLabel(NamedTuple):
    """What one row of a list says of its class; None where it says nothing."""

    label: int | None
    class_name: str | None

    @property
    def is_half(self) -> bool:
        """Whether one of the two is missing."""
        return (self.label is None) != (self.class_name is None)


def no_labels(count: int) -> Labels:
    """Return the labels of `count` images of which none is known."""
    return Labels(np.full(count, -1, dtype=np.int64), ())


def row_label(label: object, class_name: object, where: str) -> RowLabel:
    """Read the two fields of one row as they come from text, JSON, parquet or a shard.

    A label is an integer, the text of one, or nothing (None, "", NaN, -1); a text that is no integer is taken as
    the class name if there is no other. A class name is a text or nothing (None, "", NaN).
    """
    if not (is_nothing(class_name) or isinstance(class_name, str)):
        raise ValueError(f"{where}: class_name must be a text, got {quoted(class_name)}")
    name = None if is_nothing(class_name) else str(class_name).strip()
    if is_nothing(label):
        return RowLabel(None, name)
    number = whole_number(label)
    if number is None and isinstance(label, str) and name is None and not _NUMBER.fullmatch(label):
        return RowLabel(None, label.strip())
    if number is None:
        raise ValueError(f"{where}: label must be an integer, got {quoted(label)}")
    if not -1 <= number < MAX_CLASSES:
        raise ValueError(f"{where}: label must lie in [0, {MAX_CLASSES}), or be -1 for unknown, got {number}")
    return RowLabel(None if number == -1 else number, name)


def named_class(row: Mapping[str, Any], column: str | None) -> tuple[object, object]:
    """Return label and class name of a row: its own, or no number and the value of a column that names classes."""
    if column is None:
        return row.get("label"), row.get("class_name")
    value = row[column]
    return None, str(value) if type(value) is int else value


def labels_of_known_classes(
    values: Sequence[object], names: Sequence[str], source: str, folder: AnyPath | None = None
) -> Labels:
    """Return labels whose classes are declared beforehand, as in a `datasets.ClassLabel`; see `resolve_labels`.

    Values are indices of names, or -1 or None for unknown.
    """
    indices = np.full(len(values), -1, dtype=np.int64)
    for row, value in enumerate(values):
        number = -1 if value is None else whole_number(value)
        if number is None or not -1 <= number < len(names):
            raise ValueError(
                f"{source} row {row}: labels must be integers in [0, {len(names)}), for there are {len(names)} "
                f"class names; got {quoted(value)}"
            )
        indices[row] = number
    return Labels(indices, tuple(spoken_names(dict(enumerate(names)), source, folder).values()))


def resolve_labels(
    rows: Iterable[RowLabel], source: str, folder: AnyPath | None = None, *, numbered: bool = False
) -> Labels:
    """Number and name the classes of a source.

    Every labeled row must have both an index and a name: an index without a name says nothing to a
    language model, and names numbered by us would be numbered otherwise in a second list with fewer
    classes. Where one of the two is missing, a file `classes.csv` (columns label, class_name) beside the
    list gives it. One name may belong to several indices (ImageNet has two classes "crane"), not one
    index to several names. With `numbered`, for sources whose labels are not what they are opened for, classes
    that nothing names are called by their number, and names numbered in sorted order where no image has a number.
    """
    rows = list(rows)
    firsts: dict[RowLabel, int] = {}
    for position, row in enumerate(rows):
        firsts.setdefault(row, position)
    filled = _filled(firsts, folder, numbered)
    for row, whole in filled.items():
        if whole.is_half:
            raise ValueError(_half_a_label(firsts[row], whole, source, folder))
    names: dict[int, str] = {}
    for row, (label, name) in filled.items():
        if label is not None and name is not None and (known := names.setdefault(label, name)) != name:
            raise ValueError(
                f"{source} row {firsts[row]}: label {label} has two names, {quoted(known)} and {quoted(name)}"
            )
    if not names:
        return no_labels(len(rows))
    numbers = {row: -1 if label is None else label for row, (label, _) in filled.items()}
    indices = np.array([numbers[row] for row in rows], dtype=np.int64)
    spoken = spoken_names(names, source, folder)
    return Labels(indices, tuple(spoken.get(label, "") for label in range(max(names) + 1)))


def _filled(
    rows: Collection[RowLabel], folder: AnyPath | None, numbered: bool
) -> Mapping[RowLabel, RowLabel]:
    """Return rows with the half that they leave out, where the file of classes beside the source has it."""
    if not any(row.is_half for row in rows):
        return {row: row for row in rows}
    names = {label: name for label, name in classes_beside(folder).items() if isinstance(label, int)}
    if numbered:
        names |= _numbered(rows, names)
    # A name with two labels cannot say which of them is meant.
    occurrences = Counter(names.values())
    labels = {wordnet_id: number for wordnet_id, (number, _) in imagenet_classes().items()}
    labels |= {name: label for label, name in names.items() if occurrences[name] == 1}
    filled = {}
    for row in rows:
        label, name = row
        if label is not None and name is None:
            name = names.get(label)
        elif label is None and name is not None:
            label = labels.get(name)
        filled[row] = RowLabel(label, name)
    return filled


def _numbered(rows: Collection[RowLabel], names: Mapping[int, str]) -> dict[int, str]:
    """Return names for the labels that have none, or labels for the names if no row has a label."""
    labels = {row.label for row in rows if row.label is not None}
    if not labels and not names:
        return dict(enumerate(sorted({row.class_name for row in rows if row.class_name is not None})))
    given: dict[int, str] = {}
    for label, name in rows:
        if label is not None and name is not None:
            given.setdefault(label, name)
    return {label: given.get(label, str(label)) for label in labels - names.keys()}


def _half_a_label(position: int, row: RowLabel, source: str, folder: AnyPath | None) -> str:
    has_no_name = row.class_name is None
    given = f"label {row.label} has no name" if has_no_name else f"{quoted(row.class_name)} has no label"
    remedy = "give each labeled image an integer label and a class_name"
    if folder is not None:
        remedy += f", or name the classes in {folder / CLASSES_FILE} (columns label,class_name)"
    return f"{source}: {given} (row {position}); {remedy}, or leave out both"


def classes_beside(folder: AnyPath | None) -> dict[int | str, str]:
    """Return the `class_name` of each `label` and each WordNet id (`wnid`) in a folder's `classes.csv`, if any."""
    found: dict[int | str, str] = {}
    path = None if folder is None else folder / CLASSES_FILE
    for line, row in csv_rows(path) if path is not None and path.is_file() else ():
        where = f"{path} line {line}"
        if "class_name" not in row or not row.keys() & {"label", "wnid"}:
            columns = f"{', '.join(map(str, row)):.200}"
            raise ValueError(f"{where}: expected the columns label (or wnid) and class_name, found {columns}")
        name, label, wnid = (
            plain_text(row.get(key) or "").strip() for key in ("class_name", "label", "wnid")
        )
        number = whole_number(label)
        wordnet_id = wnid or (label if _WORDNET_ID.fullmatch(label) else "")
        if not name or (number is None and not wordnet_id) or (number is not None and number < 0):
            raise ValueError(f"{where}: expected a label and a class_name, got {quoted(row)}")
        for key, shown in ((number, f"label {number}"), (wordnet_id or None, wordnet_id)):
            if key is not None and found.setdefault(key, name) != name:
                raise ValueError(f"{where}: {shown} has two names")
    return found


@cache
def imagenet_classes() -> Mapping[str, tuple[int, str]]:
    """Return ImageNet's 1,000 classes: WordNet id -> number in 0..999, synonyms ("kit fox, Vulpes macrotis")."""
    text = resources.files("pixlex.data").joinpath("imagenet_classes.tsv").read_text("utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return {wordnet_id: (number, synonyms) for number, (wordnet_id, synonyms) in enumerate(rows)}


def spoken_names(
    names: Mapping[int, str], source: str, folder: AnyPath | None, *, folders: bool = False
) -> dict[int, str]:
    """Return class names that can be answers: one name for each class, without synonyms, ids and odd characters.

    WordNet ids of ImageNet's classes, and their lists of synonyms, become the first synonym: `n02119789` and "kit
    fox, Vulpes macrotis" are "kit fox". Of other names with commas the part before the first is taken, unless two
    classes would then share it. What `classes.csv` in the folder says of such a class wins. Other names stay. A
    warning says what was changed.

    With `folders` the labels are the positions of folders in sorted order; `classes.csv` must number them so.
    """
    cleaned = {label: " ".join(plain_text(name).split()) for label, name in names.items()}
    unclear = {label for label, name in cleaned.items() if _COMMA.search(name) or _WORDNET_ID.fullmatch(name)}
    beside = classes_beside(folder) if unclear else {}
    numbers = {label for label in beside if isinstance(label, int)}
    if folders and numbers & unclear and numbers != names.keys():
        raise ValueError(
            f"{folder}/{CLASSES_FILE}: expected a column wnid with the names of folders, or the labels 0 to "
            f"{len(names) - 1} of the {len(names)} folders in sorted order; found {len(numbers)} labels"
        )
    spoken, given = dict(cleaned), set[int]()
    short = {label: _short(cleaned[label]) for label in unclear}
    # Two of ImageNet's classes may share a name (crane).
    classes = imagenet_classes() if unclear else {}
    imagenet = {*classes, *(synonyms for _, synonyms in classes.values())}
    is_strange = {
        label for label in unclear if {_wordnet_id(cleaned[label]), cleaned[label]}.isdisjoint(imagenet)
    }
    shared = Counter(short[label] for label in is_strange)
    for label in unclear:
        if name := beside.get(_wordnet_id(cleaned[label])) or beside.get(label):
            given.add(label)
            spoken[label] = name
        elif shared[short[label]] <= 1:
            spoken[label] = short[label]
    _warn(names, {label: name for label, name in spoken.items() if label not in given}, unclear, source)
    return spoken


def _wordnet_id(name: str) -> str:
    match = _WORDNET_ID.fullmatch(name)
    return match[1] if match else ""


def _short(name: str) -> str:
    if match := _WORDNET_ID.fullmatch(name):
        wordnet_id, behind = match.groups()
        if wordnet_id in imagenet_classes():
            name = imagenet_classes()[wordnet_id][1]
        elif behind:
            name = behind.replace("_", " ")
    return _COMMA.split(name, maxsplit=1)[0] or name


def _warn(names: Mapping[int, str], spoken: Mapping[int, str], unclear: set[int], source: str) -> None:
    """Say which names were changed, and that others are no names."""
    changed = [label for label, name in spoken.items() if name != " ".join(names[label].split())]
    same = [label for label in spoken if label in unclear and label not in changed]
    remedy = f"a {CLASSES_FILE} in their folder (label or wnid, and class_name) names them otherwise"
    if changed:
        warnings.warn(
            f"{source}: {len(changed)} of {len(names)} class names are taken by their first synonym, or without "
            f"characters that no tokenizer reads, such as {quoted(names[changed[0]])} as "
            f"{quoted(spoken[changed[0]])}; {remedy}",
            stacklevel=4,
        )
    if same:
        warnings.warn(
            f"{source}: {len(same)} of {len(names)} class names are lists or ids, and answers would be such, the "
            f"first is {quoted(spoken[same[0]])}; {remedy}",
            stacklevel=4,
        )
