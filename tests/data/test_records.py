"""Images with captions or questions: what a batch holds belongs together, in any process, from any step on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.tiny import training_batches, write_images

from pixlex.batch import ImageTextBatch, ReasoningBatch
from pixlex.config.fields import DataConfig
from pixlex.data.captions import open_pairs
from pixlex.data.loader import Loader, LoaderConfig
from pixlex.data.records import Pairs, Questions, Records, group_items
from pixlex.data.sources import subset
from pixlex.data.synthetic import ScenesSource
from pixlex.nn.bert import Words

NAMES = [f"{number}.png" for number in range(7)]
CAPTIONS = [[f"image {number} text {text}" for text in range(1 + number % 3)] for number in range(7)]


def encode(texts: Sequence[str]) -> Words:
    """One word for each letter."""
    longest = max(map(len, texts))
    ids = torch.tensor([[ord(letter) for letter in text.ljust(longest)] for text in texts])
    return Words(ids, torch.tensor([[place >= len(text) for place in range(longest)] for text in texts]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parquet file of seven pictures with captions."""
    folder = write_images(tmp_path_factory.mktemp("pairs"), NAMES)
    images = [(folder / name).read_bytes() for name in NAMES]
    pq.write_table(
        pa.table({"image": images, "captions": CAPTIONS}), folder / "many.parquet", row_group_size=3
    )
    return folder


def _train(source: Records, first_step: int = 0, **settings: int) -> list[ImageTextBatch]:
    config = LoaderConfig(**{"image_size": 16, "batch_size": 4, "seed": 3, **settings})
    return list(islice(Loader(Pairs(source, encode), config).training(first_step), 8))


def test_images_come_as_without_captions_and_texts_belong_to_them(folder: Path) -> None:
    """The same order and crops as `training_batches`."""
    source = open_pairs(str(folder / "many.parquet"))
    plain = training_batches(source.images, config=DataConfig(), image_size=16, batch_size=4, seed=3)
    for batch, bare in zip(_train(source), plain, strict=False):
        assert torch.equal(batch.images, bare.images)
        assert batch.indices.tolist() == bare.indices.tolist()
        for index, text, ids, padding in zip(
            batch.indices.tolist(), batch.texts, batch.word_ids, batch.key_padding, strict=True
        ):
            assert text in CAPTIONS[index]
            assert "".join(chr(one) for one in ids[~padding]) == text
    assert batch.to("cpu").texts == batch.texts


def test_batches_are_a_function_of_the_step(folder: Path) -> None:
    """Started in the middle, and shared between two processes."""
    source = open_pairs(str(folder / "many.parquet"))
    whole = _train(source)
    for one, other in zip(_train(source, first_step=3), whole[3:], strict=False):
        assert (one.texts, one.keys) == (other.texts, other.keys)
        assert torch.equal(one.images, other.images)
    parts = [_train(source, rank=rank, world_size=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert parts[0][step].texts + parts[1][step].texts == batch.texts
    assert [batch.texts for batch in _train(source, seed=4)] != [batch.texts for batch in whole]


def test_every_caption_is_drawn_as_often(folder: Path) -> None:
    """Over 300 epochs each of three captions about 100 times, and not the same in every epoch."""
    source = open_pairs(str(folder / "many.parquet"))
    counts = Counter(source.draw(2, epoch, 0) for epoch in range(300))
    assert set(counts) == set(CAPTIONS[2])
    assert all(70 < count < 130 for count in counts.values())
    assert source.draw(2, 5, 0) == source.draw(2, 5, 0)


def test_names_are_drawn_whole_and_of_other_captions_a_stretch(folder: Path) -> None:
    """A name three times in four; of other captions one to three words in a row, at every place."""
    images = open_pairs(str(folder / "many.parquet")).images
    texts = tuple((f"red panda {row // 2}", "animal asia bamboo cute fur") for row in range(7))
    source = Records("named", images, texts)
    drawn = Counter(source.draw(2, epoch, 0, 0.75, 3) for epoch in range(600))
    stretches = {" ".join(texts[2][1].split()[i : i + n]) for n in (1, 2, 3) for i in range(6 - n)}
    of_name = {" ".join(texts[2][0].split()[i : i + n]) for n in (1, 2) for i in range(4 - n)}
    assert set(drawn) == stretches | of_name | {texts[2][0]}
    # Three in four, and half of the others' draws, of which those of three words take a third.
    assert 0.75 < drawn[texts[2][0]] / 600 < 0.88
    rows, config = Pairs(source, encode, 0.75, 3), LoaderConfig(image_size=16, batch_size=7)
    batch = next(iter(Loader(rows, config).training(0)))
    same = batch.image_ids[:, None] == batch.image_ids
    assert torch.equal(same, batch.indices[:, None] // 2 == batch.indices // 2)


def test_captions_are_read_in_templates_and_told_apart_without(folder: Path) -> None:
    source, read = open_pairs(str(folder / "many.parquet")), []
    forms = ("{}", "a picture of {}")

    def reads(texts: Sequence[str]) -> Words:
        read.append(tuple(texts))
        return encode(texts)

    config = LoaderConfig(image_size=16, batch_size=7)
    plain, within = (
        list(islice(Loader(Pairs(source, reads, templates=one), config).training(0), 9))
        for one in ((), forms)
    )
    assert [batch.texts for batch in within] == [batch.texts for batch in plain] == read[:9]
    pairs = [
        one for texts, said in zip(read[:9], read[9:], strict=True) for one in zip(texts, said, strict=True)
    ]
    assert all(said in {form.format(text) for form in forms} for text, said in pairs)
    assert 0.3 < sum(text != said for text, said in pairs) / len(pairs) < 0.7


RESIZED = DataConfig(augment="resize", horizontal_flip=False)
# Which of five scenes each question is about: 0 has one, 1 three, 4 five.
ABOUT = (4, 1, 2, 4, 1, 4, 3, 0, 4, 1, 4, 2)
PAIRED = ((0, 1), (1, 0), (0, 1), (2, 3), (0, 1))


def questions() -> Records:
    return _source(ABOUT, 1)


def paired_questions() -> Records:
    return _source([image for pair in PAIRED for image in pair], 2)


def _source(about: object, together: int) -> Records:
    images = subset(ScenesSource("train", 5), np.array(about))
    count = len(images) // together
    return Records(
        name="items", images=images, num_images=together, texts=tuple((f"text {k}",) for k in range(count)),
        answers=tuple((str(k),) for k in range(count)), ids=tuple(map(str, range(count))),
    )  # fmt: skip


def encode_number(texts: tuple[str, ...]) -> Words:
    ids = torch.tensor([[int(text.split()[1])] for text in texts])
    return Words(ids, torch.zeros_like(ids, dtype=torch.bool))


def batches(
    source: Records, steps: int, first_step: int = 0, texts_per_image: int = 2, **options: int
) -> list[ReasoningBatch]:
    config = LoaderConfig(**{"image_size": 24, "batch_size": 6, "seed": 3, "data": RESIZED, **options})
    rows = Questions(source, encode_number, texts_per_image)
    return list(islice(Loader(rows, config).training(first_step), steps))


@pytest.mark.parametrize("source", [questions(), paired_questions()], ids=["questions", "paired_questions"])
def test_every_item_looks_at_its_own_images(source: Records) -> None:
    """Text, answer, words and images of an item belong together, and images stand in a batch once."""
    together = source.num_images
    for batch in batches(source, 8):
        assert batch.image_index is not None
        assert len(batch.keys) == 3 * together
        assert sorted(set(batch.image_index.tolist())) == [0, 1, 2]
        for item, group in zip(batch.items.tolist(), batch.image_index.tolist(), strict=True):
            for place in range(together):
                row = group * together + place
                assert batch.keys[row] == source.images.key(item * together + place)
                assert source.images.key(int(batch.indices[row])) == batch.keys[row]
        numbers = batch.items.tolist()
        assert batch.word_ids[:, 0].tolist() == numbers
        assert batch.texts == tuple(source.texts[item][0] for item in numbers)
        assert batch.answers == tuple(source.answers[item] for item in numbers)


def test_items_of_an_image_take_turns() -> None:
    """After five epochs each of five questions about an image came twice, two at a time; a lone one five times."""
    found = Counter(item for batch in batches(questions(), 25, batch_size=2) for item in batch.items.tolist())
    expected = {4: 2, 1: 10 / 3, 2: 5, 3: 5, 0: 5}
    for item, image in enumerate(ABOUT):
        assert abs(found[item] - expected[image]) < 1, (item, image)
    assert sum(found.values()) == 5 * (2 + 2 + 2 + 1 + 1)


def test_groups_hold_every_item_once() -> None:
    groups = group_items(paired_questions())
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
        assert torch.equal(again.image_index, whole[first].image_index)


def test_numbers_that_do_not_fit() -> None:
    for texts in (0, -2):
        with pytest.raises(ValueError, match=f"texts_per_image must be 1 or more, got {texts}"):
            batches(questions(), 1, texts_per_image=texts)
    for texts, processes in ((4, 1), (2, 2)):
        expected = f"got batch_size 6 and world_size {processes} times texts_per_image {texts}"
        with pytest.raises(ValueError, match=expected):
            batches(questions(), 1, texts_per_image=texts, world_size=processes)
