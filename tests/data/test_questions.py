"""Items opened by description: joined, cleaned, drawn, those of real data; text assignment."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import get_args

import pytest

from pixlex.config.cbvila import ReasoningTask
from pixlex.data.captions import assignment_items
from pixlex.data.records import Records
from pixlex.data.sources import subset
from pixlex.data.synthetic import ScenesSource
from pixlex.data.text import build_answers
from pixlex.families import open_items


@pytest.mark.parametrize("task", get_args(ReasoningTask))
def test_scenes(task: ReasoningTask) -> None:
    """Every task has drawn items, whose images are those of the scenes."""
    source = open_items("embedded:scenes:test:12", task)
    assert len(source) == (60 if task == "assignment" else 12)  # five captions each
    assert all(len(given) == 1 for given in source.answers)
    assert source.identity == open_items("embedded:scenes:test:12", task).identity
    assert source.identity != open_items("embedded:scenes:train:12", task).identity
    assert bool(source.kinds) == (task == "vqa")


def test_several_texts_about_each_scene() -> None:
    source = open_items("embedded:scenes:train:9?texts=4", "vqa")
    assert (len(source), len(source.images), source.name) == (36, 36, "embedded:scenes:train:9?texts=4")
    assert [source.images.key(item) for item in (0, 3, 4)] == [f"scenes/train-00000{k}" for k in (0, 0, 1)]
    assert len(set(source.ids)) == 36
    assert source.first_texts[::4] == open_items("embedded:scenes:train:9", "vqa").first_texts
    for texts in ("0", "some", "1.5", "-2"):
        with pytest.raises(ValueError, match=f"expected a whole number of 1 or more as texts, got '{texts}'"):
            open_items(f"embedded:scenes:train:9?texts={texts}", "vqa")
    with pytest.raises(ValueError, match="drawn scenes take the options texts, got images"):
        open_items("embedded:scenes:train:9?images=there", "vqa")


TEXTS = [("one", "uno"), ("two",), ("one", "three"), ("four",), ("five",)]


def _pairs(count: int = 5) -> Records:
    return Records("pairs", ScenesSource("test", count), tuple(TEXTS[:count]))


def test_a_caption_stands_beside_its_image_or_two_others() -> None:
    """The class says where; no other image has the caption; the three classes are about as frequent."""
    texts = tuple((f"text {number}", f"line {number}") for number in range(300))
    pairs = Records("pairs", ScenesSource("test", 300), texts)
    items = assignment_items(pairs)
    assert (len(items), items.num_images) == (600, 2)
    for item, text in enumerate(items.first_texts):
        row = int(text.split()[1])
        names = [items.images.key(2 * item + place) for place in (0, 1)]
        own = pairs.key(row)
        assert len(set(names)) == 2
        (answer,) = items.answers[item]
        assert [name == own for name in names] == [answer == "first", answer == "second"]
    counts = Counter(answer for (answer,) in items.answers)
    assert set(counts) == {"first", "second", "neither"}
    assert min(counts.values()) > 160


def test_an_image_with_the_same_caption_is_no_partner() -> None:
    items = assignment_items(_pairs())
    of_one = [item for item, text in enumerate(items.first_texts) if text == "one"]
    assert len(of_one) == 2
    twins = {_pairs().key(0), _pairs().key(2)}
    for item in of_one:
        names = {items.images.key(2 * item + place) for place in (0, 1)}
        assert len(names & twins) == (items.answers[item] != ("neither",))


def test_rows_of_one_image_are_no_partners_of_each_other() -> None:
    """A source that lists an image more than once, with other captions each time."""
    images = subset(ScenesSource("test", 3), [0, 0, 0, 1, 2])
    items = assignment_items(Records("pairs", images, (("a",), ("b",), ("c",), ("d",), ("e",))))
    for item in range(len(items)):
        assert items.images.key(2 * item) != items.images.key(2 * item + 1)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="expected three images or more to assign texts to"):
        assignment_items(_pairs(2))
    with pytest.raises(ValueError, match="nearly every image has the caption 'same'"):
        assignment_items(Records("pairs", ScenesSource("test", 4), (("same",),) * 4))


def test_answers_to_choose_from() -> None:
    """The most frequent first, equally frequent ones as they occur; an item counts once."""
    answers = (
        ("blue", "Blue.", "red"), ("the red", "green", "red"), ("two",), ("red", "green"),
        ("green", "red", "green"), (), ("Red",), ("2",), ("a", "the", "blue"), ("a",),
    )  # fmt: skip
    answered = replace(open_items(f"embedded:scenes:train:{len(answers)}", "vqa"), answers=answers)
    assert build_answers(answered, 1) == ("red", "blue", "2", "green")
    assert build_answers(answered, 2) == ("red", "blue", "2")
    assert build_answers(answered, 3) == ("red",)
    with pytest.raises(ValueError, match="an answer of 4 items or more, the most frequent one has 3"):
        build_answers(answered, 4)
    with pytest.raises(ValueError, match="min_count must be 1 or more, got 0"):
        build_answers(answered, 0)
