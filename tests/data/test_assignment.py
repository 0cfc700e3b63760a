"""Text assignment: each caption with its image in the right place, and with images that do not have it."""

from __future__ import annotations

from collections import Counter

import pytest

from pixlex.data.questions import assignment_items, open_items
from pixlex.data.records import PairSource
from pixlex.data.sources import subset
from pixlex.data.synthetic_texts import ScenesSource

TEXTS = [("one", "uno"), ("two",), ("one", "three"), ("four",), ("five",)]


def _pairs(count: int = 5) -> PairSource:
    return PairSource(ScenesSource("test", count), tuple(TEXTS[:count]))


def test_a_caption_stands_beside_its_image_or_two_others() -> None:
    """The class says where; no other image has the caption; the three classes are about as frequent."""
    pairs = PairSource(
        ScenesSource("test", 300), tuple((f"text {number}", f"line {number}") for number in range(300))
    )
    items = assignment_items(pairs)
    assert (len(items), items.num_images) == (600, 2)
    for item, text in enumerate(items.texts):
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
    of_one = [item for item, text in enumerate(items.texts) if text == "one"]
    assert len(of_one) == 2
    twins = {_pairs().key(0), _pairs().key(2)}
    for item in of_one:
        names = {items.images.key(2 * item + place) for place in (0, 1)}
        assert len(names & twins) == (items.answers[item] != ("neither",))


def test_rows_of_one_image_are_no_partners_of_each_other() -> None:
    """A source that lists an image more than once, with other captions each time."""
    images = subset(ScenesSource("test", 3), [0, 0, 0, 1, 2])
    items = assignment_items(PairSource(images, (("a",), ("b",), ("c",), ("d",), ("e",))))
    for item in range(len(items)):
        assert items.images.key(2 * item) != items.images.key(2 * item + 1)


def test_items_are_the_same_each_time_and_open_by_description() -> None:
    items, again = assignment_items(_pairs()), assignment_items(_pairs())
    assert items.identity == again.identity
    assert items.ids == again.ids
    opened = open_items("embedded:scenes:test:6", "assignment")
    assert (len(opened), opened.num_images) == (30, 2)
    assert all(text == text.strip().lower() for text in opened.texts)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="expected three images or more to assign texts to"):
        assignment_items(_pairs(2))
    with pytest.raises(ValueError, match="nearly every image has the caption 'same'"):
        assignment_items(PairSource(ScenesSource("test", 4), (("same",),) * 4))
