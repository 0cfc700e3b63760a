"""Labels and names are given together, or the file beside the source completes them."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixlex.data.labels import RowLabel, labels_of_known_classes, resolve_labels, row_label


@pytest.mark.parametrize(
    ("label", "class_name", "expected"),
    [
        (3, "cat", RowLabel(3, "cat")),
        (" 3 ", " cat ", RowLabel(3, "cat")),
        (3.0, "cat", RowLabel(3, "cat")),
        ("3.0", "cat", RowLabel(3, "cat")),
        (Decimal(3), float("nan"), RowLabel(3, None)),
        ("-1.0", "", RowLabel(None, None)),
        ("3d", None, RowLabel(None, "3d")),
        (np.int32(3), None, RowLabel(3, None)),
        (None, "cat", RowLabel(None, "cat")),
        ("", "", RowLabel(None, None)),
        (float("nan"), None, RowLabel(None, None)),
        (-1, None, RowLabel(None, None)),
        ("cat", None, RowLabel(None, "cat")),
    ],
)
def test_fields_of_a_row(label: object, class_name: object, expected: RowLabel) -> None:
    assert row_label(label, class_name, "row 1") == expected


@pytest.mark.parametrize(
    ("label", "class_name", "sentence"),
    [
        (2.5, None, "row 1: label must be an integer, got 2.5"),
        ("9" * 5000, None, "row 1: label must be an integer, got '9{76}...$"),
        (0, [1] * 99, r"row 1: class_name must be a text, got .{80}$"),
        (True, None, "row 1: label must be an integer, got True"),
        ([1], None, "row 1: label must be an integer"),
        ("cat", "Felis catus", "row 1: label must be an integer, got 'cat'"),
        (-2, None, "row 1: label must lie in"),
        (20240101, None, "row 1: label must lie in"),
        (1, 7, "row 1: class_name must be a text, got 7"),
    ],
)
def test_fields_that_are_no_class(label: object, class_name: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        row_label(label, class_name, "row 1")


@given(st.lists(st.one_of(st.none(), st.integers(0, 30)), min_size=1))
def test_every_image_finds_its_name(labels: list[int | None]) -> None:
    rows = [RowLabel(label, None if label is None else f"class {label}") for label in labels]
    resolved = resolve_labels(rows, "source")
    for row, index in zip(rows, resolved.indices, strict=True):
        assert index == (-1 if row.label is None else row.label)
        assert row.class_name is None or resolved.class_names[index] == row.class_name
    assert set(resolved.class_names) - {""} == {row.class_name for row in rows} - {None}


def test_two_classes_may_share_a_name_but_not_one_class_two_names() -> None:
    resolved = resolve_labels([RowLabel(1, "crane"), RowLabel(0, "crane")], "source")
    assert resolved.class_names == ("crane", "crane")
    with pytest.raises(ValueError, match="source row 1: label 0 has two names, 'cat' and 'dog'"):
        resolve_labels([RowLabel(0, "cat"), RowLabel(0, "dog")], "source")


def test_half_a_label_is_refused_and_the_remedy_named(tmp_path: Path) -> None:
    whole = RowLabel(0, "cat")
    with pytest.raises(ValueError, match=r"source: label 4 has no name \(row 1\).*classes\.csv"):
        resolve_labels([whole, RowLabel(4, None)], "source", tmp_path)
    with pytest.raises(ValueError, match=r"source: 'dog' has no label \(row 1\)"):
        resolve_labels([whole, RowLabel(None, "dog")], "source")


def test_the_file_of_classes_completes_either_half(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("group,label,class_name\nx,0,cat\nx,4,dog\nx,5,crane\nx,6,crane\n")
    resolved = resolve_labels(
        [RowLabel(4, None), RowLabel(None, "cat"), RowLabel(None, None)], "source", tmp_path
    )
    assert resolved.indices.tolist() == [4, 0, -1]
    assert resolved.class_names == ("cat", "", "", "", "dog")
    for row in (RowLabel(7, None), RowLabel(None, "emu"), RowLabel(None, "crane")):
        with pytest.raises(ValueError, match=r"source: .* has no "):
            resolve_labels([row], "source", tmp_path)


def test_classes_without_a_name_may_be_called_by_their_number(tmp_path: Path) -> None:
    """Names that are given stay; names without any number are numbered in sorted order."""
    rows = [RowLabel(2, None), RowLabel(None, None), RowLabel(0, "cat"), RowLabel(0, None)]
    resolved = resolve_labels(rows, "source", numbered=True)
    assert resolved.indices.tolist() == [2, -1, 0, 0]
    assert resolved.class_names == ("cat", "", "2")
    words = [RowLabel(None, "neutral"), RowLabel(None, "entailment"), RowLabel(None, "neutral")]
    resolved = resolve_labels(words, "source", numbered=True)
    assert resolved.class_names == ("entailment", "neutral")
    assert resolved.indices.tolist() == [1, 0, 1]
    (tmp_path / "classes.csv").write_text("label,class_name\n2,emu\n")
    assert resolve_labels(rows, "source", tmp_path, numbered=True).class_names == ("cat", "", "emu")
    with pytest.raises(ValueError, match="'dog' has no label"):
        resolve_labels([*rows, RowLabel(None, "dog")], "source", numbered=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id,name\n0,cat\n", "expected the columns label \\(or wnid\\) and class_name, found id, name"),
        ("label,class_name\n0,cat\n0,dog\n", "line 3: label 0 has two names"),
        ("label,class_name\n0,\n", "line 2: expected a label and a class_name"),
        ("label,class_name\n0\n", "line 2: expected a label and a class_name"),
    ],
)
def test_a_malformed_file_of_classes(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        resolve_labels([RowLabel(0, None)], "source", tmp_path)


def test_declared_classes_keep_names_that_do_not_occur() -> None:
    labels = labels_of_known_classes([1, None, -1], ["cat", "dog", "emu"], "source")
    assert labels.indices.tolist() == [1, -1, -1]
    assert labels.class_names == ("cat", "dog", "emu")
    with pytest.raises(ValueError, match=r"source row 1: labels must be integers in \[0, 2\).*got 2"):
        labels_of_known_classes([0, 2], ["cat", "dog"], "source")
