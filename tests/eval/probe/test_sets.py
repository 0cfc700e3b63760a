"""The images of a probe: their classes, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.eval.probe.classes import write_classes

from pixlex.data.images import open_source
from pixlex.data.sources import TooManyBroken
from pixlex.eval.probe.sets import LabeledImages, check_apart, check_counts, in_classes_of, survey


def looked_at(folder: Path, limit: int | None = None) -> LabeledImages:
    return survey(open_source(str(folder)), limit=limit)


def table(path: Path, labels: list[int | None], names: list[str | None]) -> Path:
    """A parquet file whose images all differ."""
    rows = [bytes([number, 1, 2]) for number in range(len(labels))]
    pq.write_table(pa.table({"image": rows, "label": labels, "class_name": names}), path)
    return path


def test_classes_and_contents(tmp_path: Path) -> None:
    images = looked_at(write_classes(tmp_path, 4))
    assert images.class_names == ("blue", "green", "red")
    assert np.bincount(images.labels).tolist() == [4, 4, 4]
    assert len(set(images.digests)) == len(images) == 12
    assert looked_at(tmp_path).contents == images.contents
    assert looked_at(tmp_path, limit=6).indices.tolist() == [0, 2, 4, 6, 8, 10]
    shutil.copy(tmp_path / "red" / "0.png", tmp_path / "red" / "1.png")
    assert looked_at(tmp_path).contents != images.contents


def test_images_without_a_class_are_left_out_and_counted(tmp_path: Path) -> None:
    path = table(tmp_path / "some.parquet", [5, None, 2, 5], ["cat", None, "dog", "cat"])
    images = looked_at(path)
    assert images.class_names == ("dog", "cat")
    assert (images.labels.tolist(), images.indices.tolist()) == ([1, 0, 1], [0, 2, 3])
    assert images.num_unlabeled == 1


def test_data_without_classes_is_refused(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "flat", 2) / "blue"
    with pytest.raises(ValueError, match=r"blue: expected labeled images .* got images without classes"):
        looked_at(folder)
    with pytest.raises(ValueError, match="label 3 has no name"):
        looked_at(table(tmp_path / "nameless.parquet", [3, 3], [None, None]))


def test_images_that_cannot_be_fetched(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    write_classes(tmp_path, 30, names=("cat", "dog"))
    lines = [
        f"{name}/{number}.png,{label},{name}"
        for label, name in enumerate(("cat", "dog"))
        for number in range(30)
    ]
    path.write_text("\n".join(["path,label,class_name", *lines]) + "\n")
    (tmp_path / "cat" / "3.png").unlink()
    images = looked_at(path)
    assert [one.key for one in images.skipped] == ["cat/3.png"]
    assert len(images) == 59
    for number in range(10):
        (tmp_path / "dog" / f"{number}.png").unlink()
    with pytest.raises(TooManyBroken, match="max_broken_share"):
        looked_at(path)


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    training = looked_at(write_classes(tmp_path / "train", 3))
    test = in_classes_of(training, looked_at(write_classes(tmp_path / "test", 2, names=("red", "green"))))
    assert test.class_names == training.class_names
    assert test.labels.tolist() == [1, 1, 2, 2]


def test_classes_without_training_images_are_refused(tmp_path: Path) -> None:
    training = looked_at(write_classes(tmp_path / "train", 3))
    other = looked_at(write_classes(tmp_path / "test", 2, names=("red", "mauve", "beige")))
    with pytest.raises(
        ValueError, match=r"expected the classes of .*train \(3 classes\), got 2 .*'beige', 'mauve'"
    ):
        in_classes_of(training, other)


def test_two_classes_of_one_name_are_told_apart_by_their_order(tmp_path: Path) -> None:
    names: list[str | None] = ["crane", "cat", "crane"]
    training = looked_at(table(tmp_path / "train.parquet", [0, 1, 2], names))
    test = looked_at(table(tmp_path / "test.parquet", [2, 1, 0], names))
    assert in_classes_of(training, test).labels.tolist() == [2, 1, 0]
    fewer = looked_at(table(tmp_path / "fewer.parquet", [0, 1], ["crane", "cat"]))
    with pytest.raises(ValueError, match="several classes share a name"):
        in_classes_of(training, fewer)


def test_parts_that_share_images_are_refused(tmp_path: Path) -> None:
    training = looked_at(write_classes(tmp_path / "train", 3))
    apart = write_classes(tmp_path / "test", 3, seed=1)
    assert check_apart(training, looked_at(apart)) == []
    shutil.copy(tmp_path / "train" / "red" / "2.png", apart / "red" / "renamed.png")
    message = r"1 of 10 images of .*test are also in .*train, byte by byte; .*red/renamed.png = red/2.png"
    with pytest.raises(ValueError, match=message):
        check_apart(training, looked_at(apart))
    (note,) = check_apart(training, looked_at(apart), allow=True)
    assert "1 of 10" in note


def test_too_few_images_of_a_class_are_refused(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "train", 3)
    (folder / "mauve").mkdir()
    shutil.copy(write_classes(tmp_path / "other", 1, seed=5) / "red" / "0.png", folder / "mauve" / "0.png")
    images = looked_at(folder)
    with pytest.raises(ValueError, match=r"at least 2 readable images of every class .*, got 1 of 'mauve'"):
        check_counts(images, images.labels, splits=True)
    check_counts(images, images.labels, splits=False)
    with pytest.raises(ValueError, match="got 0 of 'mauve'"):
        check_counts(images, images.labels[images.labels != 2], splits=False)
    one = looked_at(write_classes(tmp_path / "one", 3, names=("red",)))
    with pytest.raises(ValueError, match="expected at least 2 classes, got red alone"):
        check_counts(one, one.labels, splits=True)
