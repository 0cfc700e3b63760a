"""Items opened by description: joined, cleaned, drawn, and those of real data."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from pixlex.data.questions import open_items
from pixlex.data.records import Task
from pixlex.data.synthetic_texts import ScenesSource, scene_items

# Items, images of the first file, distinct answers.
REAL = {
    ("vqa", "vqa/val"): (786, 100, 221),
    ("nlvr2", "nlvr/val"): (158, 158, 2),
    ("entailment", "ve/val"): (483, 146, 3),
}


@pytest.mark.parametrize("task", get_args(Task))
def test_scenes(task: Task) -> None:
    """Every task has drawn items, whose images are those of the scenes."""
    source = open_items("embedded:scenes:test:12", task)
    assert len(source) == (60 if task == "assignment" else 12)  # five captions each
    assert all(len(given) == 1 for given in source.answers)
    assert source.identity == open_items("embedded:scenes:test:12", task).identity
    assert source.identity != open_items("embedded:scenes:train:12", task).identity
    assert bool(source.kinds) == (task == "vqa")


def test_both_images_of_a_pair_belong_to_it() -> None:
    source = open_items("embedded:scenes:train:9", "nlvr2")
    pairs = scene_items("nlvr2", ScenesSource("train", 9))
    assert source.num_images == 2
    for item, given in enumerate(source.answers):
        assert given == (pairs[item].answer,)
        for place, image in enumerate(pairs[item].images):
            assert source.images.key(2 * item + place) == f"scenes/train-{image:06d}"


def test_several_texts_about_each_scene() -> None:
    source = open_items("embedded:scenes:train:9?texts=4", "vqa")
    assert (len(source), len(source.images), source.name) == (36, 36, "embedded:scenes:train:9?texts=4")
    assert [source.images.key(item) for item in (0, 3, 4)] == [f"scenes/train-00000{k}" for k in (0, 0, 1)]
    assert len(set(source.ids)) == 36
    assert source.texts[::4] == open_items("embedded:scenes:train:9", "vqa").texts
    for texts in ("0", "some", "1.5", "-2"):
        with pytest.raises(ValueError, match=f"expected a whole number of 1 or more as texts, got '{texts}'"):
            open_items(f"embedded:scenes:train:9?texts={texts}", "vqa")
    with pytest.raises(ValueError, match="drawn scenes take the options texts, got images"):
        open_items("embedded:scenes:train:9?images=there", "vqa")


@pytest.mark.parametrize(("task", "name"), REAL)
def test_real_items(shared_data: Path, task: Task, name: str) -> None:
    path = shared_data / f"{name}.parquet"
    if not path.is_file():
        pytest.skip(f"no {name} among the shared data")
    source = open_items(str(path), task)
    images = {source.images.read(index).data for index in range(len(source.images))}
    answers = {answer for given in source.answers for answer in given}
    assert (len(source), len(images), len(answers), source.ignored) == (*REAL[task, name], ())
