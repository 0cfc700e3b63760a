"""Labels and names are given together or completed by a file beside the source; names can be answers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixlex.data.images import open_source
from pixlex.data.labels import (
    RowLabel,
    imagenet_classes,
    labels_of_known_classes,
    resolve_labels,
    row_label,
    spoken_names,
)

Picture = Callable[..., bytes]
FOX = "kit fox, Vulpes macrotis"
FIRST = "by their first synonym"


@pytest.mark.parametrize(
    ("label", "class_name", "expected"),
    [
        (" 3 ", " cat ", RowLabel(3, "cat")),
        (Decimal(3), float("nan"), RowLabel(3, None)),
        ("-1.0", "", RowLabel(None, None)),
        ("3d", None, RowLabel(None, "3d")),
        (None, "cat", RowLabel(None, "cat")),
        (float("nan"), None, RowLabel(None, None)),
    ],
)
def test_fields_of_a_row(label: object, class_name: object, expected: RowLabel) -> None:
    assert row_label(label, class_name, "row 1") == expected


@pytest.mark.parametrize(
    ("label", "class_name", "sentence"),
    [
        (2.5, None, "label must be an integer, got 2.5"),
        ("9" * 5000, None, "label must be an integer, got '9{76}...$"),
        (0, [1] * 99, r"class_name must be a text, got .{80}$"),
        (True, None, "label must be an integer, got True"),
        ("cat", "Felis catus", "label must be an integer, got 'cat'"),
        (-2, None, "label must lie in"),
        (20240101, None, "label must lie in"),
    ],
)
def test_fields_that_are_no_class(label: object, class_name: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"row 1: {sentence}"):
        row_label(label, class_name, "row 1")


@given(st.lists(st.one_of(st.none(), st.integers(0, 30)), min_size=1))
def test_every_image_finds_its_name(labels: list[int | None]) -> None:
    rows = [RowLabel(label, None if label is None else f"class {label}") for label in labels]
    resolved = resolve_labels(rows, "source")
    for row, index in zip(rows, resolved.indices, strict=True):
        assert index == (-1 if row.label is None else row.label)
        assert row.class_name is None or resolved.class_names[index] == row.class_name
    assert set(resolved.class_names) - {""} == {row.class_name for row in rows} - {None}


def test_two_classes_may_have_one_name_but_not_one_class_two_names() -> None:
    assert (
        resolve_labels([RowLabel(1, "crane"), RowLabel(0, "crane")], "source").class_names == ("crane",) * 2
    )
    with pytest.raises(ValueError, match="source row 2: label 0 has two names, 'cat' and 'dog'"):
        resolve_labels([RowLabel(0, "cat"), RowLabel(0, "cat"), RowLabel(0, "dog")], "source")


def test_the_file_of_classes_completes_either_half(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source: label 4 has no name \(row 1\).*classes\.csv"):
        resolve_labels([RowLabel(0, "cat"), RowLabel(4, None)], "source", tmp_path)
    (tmp_path / "classes.csv").write_text("group,label,class_name\nx,0,cat\nx,4,dog\nx,5,crane\nx,6,crane\n")
    rows = [RowLabel(4, None), RowLabel(None, "cat"), RowLabel(None, None)]
    resolved = resolve_labels(rows, "source", tmp_path)
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
    assert (resolved.class_names, resolved.indices.tolist()) == (("entailment", "neutral"), [1, 0, 1])
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


def test_the_thousand_classes() -> None:
    classes = imagenet_classes()
    assert (len(classes), list(classes)) == (1000, sorted(classes))
    assert (classes["n01440764"], classes["n02119789"]) == ((0, "tench, Tinca tinca"), (278, FOX))


@pytest.mark.parametrize(
    ("given", "spoken"),
    [
        ("n02119789", "kit fox"),
        ("n02119789_kit_fox", "kit fox"),
        ("n99999999 blue moon", "blue moon"),
        (FOX, "kit fox"),
        ("barn owl ,Tyto alba", "barn owl"),
        ("caf\udce9\x07 bar", "caf bar"),
    ],
)
def test_names_are_spoken(given: str, spoken: str) -> None:
    with pytest.warns(UserWarning, match=f"set: 1 of 2 class names are taken {FIRST}") as said:
        assert spoken_names({0: given, 1: "dog"}, "set", None) == {0: spoken, 1: "dog"}
    assert len(said) == 1


def test_names_that_are_names_stay_without_a_word_and_those_that_would_be_shared_with_one() -> None:
    """But ImageNet has two cranes."""
    names = dict(enumerate(["cat", "1,000 dollars", "salt & pepper", "naïve art"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert spoken_names(names, "set", None) == names
    names = {0: "red, round", 1: "red, square"}
    with pytest.warns(UserWarning, match="2 of 2 class names are lists or ids.*'red, round'"):
        assert spoken_names(names, "set", None) == names
    with pytest.warns(UserWarning, match=FIRST):
        spoken = spoken_names({0: "n03710637", 1: "maillot, tank suit"}, "set", None)
    assert set(spoken.values()) == {"maillot"}
    with pytest.warns(UserWarning, match="1 of 1 class names are lists or ids"):
        assert spoken_names({0: "n99999999"}, "set", None) == {0: "n99999999"}


def test_folders(tmp_path: Path, picture: Picture) -> None:
    """Named by WordNet ids, by a file of classes, which wins, or by bytes that are no UTF-8."""
    for name in ("n01440764", "n02119789"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(picture(0))
    with pytest.warns(UserWarning, match=FIRST) as said:
        assert open_source(str(tmp_path)).class_names == ("tench", "kit fox")
    assert len(said) == 1
    for text in (
        "wnid,class_name\nn02119789,fox\nn01440764,fish\nn0,x\n",
        "label,class_name\n0,fish\n1,fox\n",
    ):
        (tmp_path / "classes.csv").write_text(text)
        assert open_source(str(tmp_path)).class_names == ("fish", "fox")
    (tmp_path / "classes.csv").write_text("label,class_name\n0,fish\n1,fox\n2,owl\n")
    with pytest.raises(ValueError, match=r"classes\.csv: expected a column wnid.*or the labels 0 to 1"):
        open_source(str(tmp_path))


def test_rows_with_ids_or_synonyms(tmp_path: Path) -> None:
    """Ids number themselves; what classes.csv says wins; declared classes are spoken too."""
    rows = [row_label(one, None, "row") for one in ("n02119789", "n01440764", None)]
    with pytest.warns(UserWarning, match=FIRST):
        labels = resolve_labels(rows, "set", tmp_path)
    assert labels.indices.tolist() == [278, 0, -1]
    assert (labels.class_names[278], labels.class_names[0]) == ("kit fox", "tench")
    with pytest.warns(UserWarning, match=FIRST):
        assert labels_of_known_classes([0], [FOX, "dog"], "set").class_names == ("kit fox", "dog")
    (tmp_path / "classes.csv").write_text("\ufefflabel,class_name\n0.0,a fox\n", encoding="utf-8")
    pq.write_table(pa.table({"image": [b"x"], "label": [0.0], "class_name": [FOX]}), tmp_path / "a.parquet")
    assert open_source(str(tmp_path / "a.parquet")).class_names == ("a fox",)
