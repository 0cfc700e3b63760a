"""Names that can be answers: ImageNet's first synonyms, those of a classes.csv, texts without odd characters."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pixlex.data.images import open_source
from pixlex.data.labels import (
    imagenet_classes,
    labels_of_known_classes,
    resolve_labels,
    row_label,
    spoken_names,
)

Picture = Callable[..., bytes]
FOX = "kit fox, Vulpes macrotis"
FIRST = "by their first synonym"


def test_the_thousand_classes() -> None:
    classes = imagenet_classes()
    assert len(classes) == 1000
    assert list(classes) == sorted(classes)
    assert classes["n01440764"] == (0, "tench, Tinca tinca")
    assert classes["n02119789"] == (278, FOX)
    assert classes["n15075141"][0] == 999


def test_the_classes_of_real_data(shared_data: Path) -> None:
    """Its synonyms are ours, and its numbers."""
    with (shared_data / "tinyimages" / "classes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert imagenet_classes()[row["wnid"]][1] == row["imagenet_synonyms"]
    photographs = pq.read_table(
        shared_data / "photos256" / "photos.parquet", columns=["label", "class_name", "wnid"]
    ).to_pylist()
    for row in photographs:
        number, synonyms = imagenet_classes()[row["wnid"]]
        assert (number, synonyms.split(",")[0]) == (row["label"], row["class_name"])


@pytest.mark.parametrize(
    ("given", "spoken"),
    [
        ("n02119789", "kit fox"),
        ("n02119789_kit_fox", "kit fox"),
        ("n99999999 blue moon", "blue moon"),
        (FOX, "kit fox"),
        ("barn owl ,Tyto alba", "barn owl"),
        ("caf\udce9\x07 bar", "caf bar"),
        ("\ufeffcat", "cat"),
    ],
)
def test_names_are_spoken(given: str, spoken: str) -> None:
    with pytest.warns(UserWarning, match=f"set: 1 of 2 class names are taken {FIRST}") as said:
        assert spoken_names({0: given, 1: "dog"}, "set", None) == {0: spoken, 1: "dog"}
    assert len(said) == 1


@pytest.mark.parametrize("given", ["cat", "1,000 dollars", "salt & pepper", "naïve art"])
def test_names_that_are_names_stay_without_a_word(given: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert spoken_names({0: given, 1: "dog"}, "set", None)[0] == given


def test_names_that_would_be_shared_stay_and_are_said() -> None:
    """But ImageNet has two cranes."""
    with pytest.warns(UserWarning, match="2 of 2 class names are lists or ids.*'red, round'"):
        assert spoken_names({0: "red, round", 1: "red, square"}, "set", None) == {
            0: "red, round",
            1: "red, square",
        }
    with pytest.warns(UserWarning, match=FIRST):
        assert set(spoken_names({0: "n03710637", 1: "maillot, tank suit"}, "set", None).values()) == {
            "maillot"
        }
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


def test_a_folder_that_is_no_utf_8(tmp_path: Path, picture: Picture) -> None:
    for name in (b"caf\xe9", b"dog"):
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
        Path(os.fsdecode(folder), "0.png").write_bytes(picture(0))
    with pytest.warns(UserWarning, match="without characters that no tokenizer reads"):
        source = open_source(str(tmp_path))
    assert source.class_names == ("caf", "dog")
    assert source.read(0).data == picture(0)


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
    assert resolve_labels([row_label(0, FOX, "row")], "set", tmp_path).class_names == ("a fox",)
    pq.write_table(pa.table({"image": [b"x"], "label": [0.0], "class_name": [FOX]}), tmp_path / "a.parquet")
    assert open_source(str(tmp_path / "a.parquet")).class_names == ("a fox",)
