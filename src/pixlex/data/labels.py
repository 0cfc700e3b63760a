"""Class labels of a source: integers and their names, checked against each other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from pixlex.data.addresses import Place
from pixlex.data.class_names import SIDECAR, imagenet_classes, names_beside, spoken_names
from pixlex.data.text import whole_number
from pixlex.messages import quoted

# A larger "class index" is some other number (an identifier, a date) in a column that is called label.
MAX_CLASSES = 1_000_000

# What is a number, though perhaps no label, and so no name.
_NUMBER = re.compile(r"\s*[+-]?\d+(?:\.0*)?\s*")


@dataclass(frozen=True)
class Labels:
    """The class of each image of a source.

    Attributes:
        indices: class index of each image, -1 where unknown.
        class_names: name of each class index, "" for an index that does not occur; empty without labels.
    """

    indices: Int64[np.ndarray, " images"]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class RowLabel:
    """What one row of a list says of its class; None where it says nothing."""

    label: int | None
    class_name: str | None


def no_labels(count: int) -> Labels:
    """Return the labels of `count` images of which none is known."""
    return Labels(np.full(count, -1, dtype=np.int64), ())


def row_label(label: object, class_name: object, where: str) -> RowLabel:
    """Read the two fields of one row as they come from text, JSON, parquet or a shard.

    Args:
        label: an integer, the text of one, or nothing (None, "", NaN, -1); a text that is no integer is
            taken as the class name if there is no other.
        class_name: a text or nothing (None, "").
        where: the row, for the error.

    Raises:
        ValueError: if the label is not an integer or not in [0, 1 000 000), or the name is not a text.
    """
    if class_name != class_name:  # NaN, as pandas reads an empty cell
        class_name = None
    if class_name is not None and not isinstance(class_name, str):
        raise ValueError(f"{where}: class_name must be a text, got {quoted(class_name)}")
    name = (class_name or "").strip() or None
    if label is None or label != label or (isinstance(label, str) and not label.strip()):
        return RowLabel(None, name)
    number = whole_number(label)
    if number is None and isinstance(label, str) and name is None and not _NUMBER.fullmatch(label):
        return RowLabel(None, label.strip())
    if number is None:
        raise ValueError(f"{where}: label must be an integer, got {quoted(label)}")
    if not -1 <= number < MAX_CLASSES:
        raise ValueError(f"{where}: label must lie in [0, {MAX_CLASSES}), or be -1 for unknown, got {number}")
    return RowLabel(None if number == -1 else number, name)


def labels_of_known_classes(
    values: Sequence[object], names: Sequence[str], source: str, folder: Place | None = None
) -> Labels:
    """Return labels whose classes are declared beforehand, as in a `datasets.ClassLabel`.

    Args:
        values: class index of each image; None or -1 where unknown.
        names: name of each class index.
        source: name of the source, for errors.
        folder: where `classes.csv` is looked for, see `pixlex.data.class_names.spoken_names`.

    Raises:
        ValueError: if an index is no whole number, or lies outside the names.
    """
    indices = np.full(len(values), -1, dtype=np.int64)
    for row, value in enumerate(values):
        if value is None:
            continue
        number = whole_number(value)
        if number is None or not -1 <= number < len(names):
            raise ValueError(
                f"{source} row {row}: labels must be integers in [0, {len(names)}), for there are {len(names)} "
                f"class names; got {quoted(value)}"
            )
        indices[row] = number
    spoken = spoken_names(dict(enumerate(names)), source, folder)
    return Labels(indices, tuple(spoken.values()))


def resolve_labels(
    rows: Sequence[RowLabel],
    source: str,
    folder: Place | None = None,
    *,
    numbered: bool = False,
    positions: Sequence[int] | None = None,
) -> Labels:
    """Number and name the classes of a source.

    Every labeled row must have both an index and a name: an index without a name says nothing to a
    language model, and names numbered by us would be numbered otherwise in a second list with fewer
    classes. Where one of the two is missing, a file `classes.csv` (columns label, class_name) beside the
    list gives it. One name may belong to several indices (ImageNet has two classes "crane"), not one
    index to several names.

    Args:
        rows: what each row says.
        source: name of the source, for errors.
        folder: where `classes.csv` is looked for; None: nowhere.
        numbered: call classes that nothing names by their number, and number names in sorted order where no
            image has a number; for sources whose labels are not what they are opened for.
        positions: what number the error gives each row, where rows that say the same are left out.

    Raises:
        ValueError: for labels without names, names without labels, or an index with two names.
    """
    rows = list(rows)
    at = range(len(rows)) if positions is None else positions
    if all(row.label is None and row.class_name is None for row in rows):
        return no_labels(len(rows))
    if any((row.label is None) != (row.class_name is None) for row in rows):
        rows = _completed(rows, source, folder, numbered, at)
    names: dict[int, str] = {}
    for position, row in zip(at, rows, strict=True):
        if row.label is None or row.class_name is None:
            continue
        known = names.setdefault(row.label, row.class_name)
        if known != row.class_name:
            raise ValueError(
                f"{source} row {position}: label {row.label} has two names, {quoted(known)} and "
                f"{quoted(row.class_name)}"
            )
    indices = np.array([-1 if row.label is None else row.label for row in rows], dtype=np.int64)
    spoken = spoken_names(names, source, folder)
    return Labels(indices, tuple(spoken.get(label, "") for label in range(max(names) + 1)))


def _completed(
    rows: Sequence[RowLabel], source: str, folder: Place | None, numbered: bool, positions: Sequence[int]
) -> list[RowLabel]:
    """Fill in the half that a row leaves out, from the file of classes beside the source."""
    beside = names_beside(folder)
    names = {} if beside is None else dict(beside.names)
    if numbered:
        names |= _numbered(rows, names)
    # A name with two labels cannot say which of them is meant.
    occurrences = Counter(names.values())
    labels = {name: label for label, name in names.items() if occurrences[name] == 1}
    labels = {wordnet_id: number for wordnet_id, (number, _) in imagenet_classes().items()} | labels
    complete = []
    for position, row in zip(positions, rows, strict=True):
        if row.label is not None and row.class_name is None:
            row = RowLabel(row.label, names.get(row.label))
        elif row.class_name is not None and row.label is None:
            row = RowLabel(labels.get(row.class_name), row.class_name)
        if (row.label is None) != (row.class_name is None):
            raise ValueError(_half_a_label(row, position, source, folder))
        complete.append(row)
    return complete


def _numbered(rows: Sequence[RowLabel], names: dict[int, str]) -> dict[int, str]:
    """Return names for the labels that have none, or labels for the names if no row has a label."""
    labels = {row.label for row in rows if row.label is not None}
    if not labels and not names:
        return dict(enumerate(sorted({row.class_name for row in rows if row.class_name is not None})))
    given: dict[int, str] = {}
    for row in rows:
        if row.label is not None and row.class_name is not None:
            given.setdefault(row.label, row.class_name)
    return {label: given.get(label, str(label)) for label in labels - names.keys()}


def _half_a_label(row: RowLabel, position: int, source: str, folder: Place | None) -> str:
    given = (
        f"label {row.label} has no name"
        if row.class_name is None
        else f"{quoted(row.class_name)} has no label"
    )
    remedy = "give each labeled image an integer label and a class_name"
    if folder is not None:
        remedy += f", or name the classes in {folder / SIDECAR} (columns label,class_name)"
    return f"{source}: {given} (row {position}); {remedy}, or leave out both"
