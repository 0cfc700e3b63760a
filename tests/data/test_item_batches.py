"""Items of the same images brought together: each as often as another, beside its own images, in any process."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from pixlex.batch import ReasoningBatch, Words
from pixlex.config.data import DataConfig
from pixlex.data.loader import Loader, LoaderConfig
from pixlex.data.records import ReasoningSource
from pixlex.data.rows import Questions, group_items
from pixlex.data.sources import subset
from pixlex.data.synthetic_texts import ScenesSource

CONFIG = DataConfig(augment="resize", horizontal_flip=False)
# Which of five scenes each question is about: 0 has one, 1 three, 4 five.
ABOUT = (4, 1, 2, 4, 1, 4, 3, 0, 4, 1, 4, 2)
PAIRED = ((0, 1), (1, 0), (0, 1), (2, 3), (0, 1))


def questions() -> ReasoningSource:
    return _source(ABOUT, 1)


def pairs() -> ReasoningSource:
    return _source([image for pair in PAIRED for image in pair], 2)


def _source(about: object, together: int) -> ReasoningSource:
    images = subset(ScenesSource("train", 5), np.array(about))
    count = len(images) // together
    return ReasoningSource(
        name="items", images=images, num_images=together, texts=tuple(f"text {k}" for k in range(count)),
        answers=tuple((str(k),) for k in range(count)), ids=tuple(map(str, range(count))),
    )  # fmt: skip


def encode(texts: tuple[str, ...]) -> Words:
    ids = torch.tensor([[int(text.split()[1])] for text in texts])
    return Words(ids, torch.zeros_like(ids, dtype=torch.bool))


def batches(
    source: ReasoningSource, steps: int, first_step: int = 0, texts_per_image: int = 2, **options: int
) -> list[ReasoningBatch]:
    config = LoaderConfig(**{"image_size": 24, "batch_size": 6, "seed": 3, "data": CONFIG, **options})
    rows = Questions(source, encode, texts_per_image)
    return list(islice(Loader(rows, config).training(first_step), steps))


@pytest.mark.parametrize("source", [questions(), pairs()], ids=["questions", "pairs"])
def test_every_item_looks_at_its_own_images(source: ReasoningSource) -> None:
    """Text, answer, words and images of an item belong together, and images stand in a batch once."""
    together = source.num_images
    for batch in batches(source, 8):
        assert batch.looks_at is not None
        assert len(batch.keys) == 3 * together
        assert sorted(set(batch.looks_at.tolist())) == [0, 1, 2]
        for item, group in zip(batch.items.tolist(), batch.looks_at.tolist(), strict=True):
            for place in range(together):
                row = group * together + place
                assert batch.keys[row] == source.images.key(item * together + place)
                assert source.images.key(int(batch.indices[row])) == batch.keys[row]
        numbers = batch.items.tolist()
        assert batch.word_ids[:, 0].tolist() == numbers
        assert batch.texts == tuple(source.texts[item] for item in numbers)
        assert batch.answers == tuple(source.answers[item] for item in numbers)


def test_items_of_an_image_take_turns() -> None:
    """After five epochs each of five questions about an image came twice, two at a time; a lone one five times."""
    found = Counter(item for batch in batches(questions(), 25, batch_size=2) for item in batch.items.tolist())
    expected = {4: 2, 1: 10 / 3, 2: 5, 3: 5, 0: 5}
    for item, image in enumerate(ABOUT):
        assert abs(found[item] - expected[image]) < 1, (item, image)
    assert sum(found.values()) == 5 * (2 + 2 + 2 + 1 + 1)


def test_groups_hold_every_item_once() -> None:
    groups = group_items(pairs())
    assert len(groups) == 3  # (0, 1), (1, 0) and (2, 3)
    assert sorted(groups.items.tolist()) == [0, 1, 2, 3, 4]
    assert [groups.taken(group, 0, 9, 0).tolist() for group in range(3)] == [[0, 2, 4], [1], [3]]
    # Images that are no choice of others are all distinct.
    assert len(group_items(_source(range(5), 1))) == 5


def test_the_stream_goes_on_where_it_was_cut() -> None:
    whole = batches(questions(), 9)
    for first in (1, 4, 7):
        (again,) = batches(questions(), 1, first_step=first)
        assert torch.equal(again.items, whole[first].items)
        assert torch.equal(again.images, whole[first].images)
        assert torch.equal(again.looks_at, whole[first].looks_at)


def test_two_processes_share_the_items_of_one() -> None:
    whole = batches(questions(), 6, batch_size=4)
    parts = [batches(questions(), 6, batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        joined = torch.cat([part[step].items for part in parts])
        assert torch.equal(joined, batch.items)


def test_numbers_that_do_not_fit() -> None:
    for texts in (0, -2):
        with pytest.raises(ValueError, match=f"texts_per_image must be 1 or more, got {texts}"):
            batches(questions(), 1, texts_per_image=texts)
    for texts, processes in ((4, 1), (2, 2)):
        expected = f"got batch_size 6 and world_size {processes} times texts_per_image {texts}"
        with pytest.raises(ValueError, match=expected):
            batches(questions(), 1, texts_per_image=texts, world_size=processes)
