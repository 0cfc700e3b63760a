"""Images with captions: read from any table, drawn from seed, epoch and index, in an order that resumes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.tiny import training_batches, write_images

from pixlex.batch import ImageTextBatch, Words
from pixlex.config.data import DataConfig
from pixlex.data.captions import open_pairs
from pixlex.data.loader import Loader, LoaderConfig
from pixlex.data.records import NoCaptions, PairSource
from pixlex.data.rows import Pairs

NAMES = [f"{number}.png" for number in range(7)]
CAPTIONS = [[f"image {number} text {text}" for text in range(1 + number % 3)] for number in range(7)]


def encode(texts: Sequence[str]) -> Words:
    """One word for each letter."""
    longest = max(map(len, texts))
    ids = torch.tensor([[ord(letter) for letter in text.ljust(longest)] for text in texts])
    return Words(ids, torch.tensor([[place >= len(text) for place in range(longest)] for text in texts]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures as files and in a parquet file, with captions in every form."""
    folder = write_images(tmp_path_factory.mktemp("pairs"), NAMES)
    images = [(folder / name).read_bytes() for name in NAMES]
    pq.write_table(
        pa.table({"image": images, "captions": CAPTIONS}), folder / "many.parquet", row_group_size=3
    )
    pq.write_table(pa.table({"image": images, "caption": NAMES}), folder / "one.parquet")
    rows = [{"path": name, "captions": texts} for name, texts in zip(NAMES, CAPTIONS, strict=True)]
    (folder / "many.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    (folder / "one.csv").write_text("path,caption\n" + "".join(f'{name},"a, {name}"\n' for name in NAMES))
    return folder


def _train(source: PairSource, first_step: int = 0, **settings: int) -> list[ImageTextBatch]:
    config = LoaderConfig(**{"image_size": 16, "batch_size": 4, "seed": 3, **settings})
    return list(islice(Loader(Pairs(source, encode), config).training(first_step), 8))


def test_captions_are_read_from_every_kind_of_table(folder: Path) -> None:
    """Lists and single texts; the images are those that `open_source` gives."""
    for name in ("many.parquet", "many.jsonl"):
        source = open_pairs(str(folder / name))
        assert source.captions == tuple(map(tuple, CAPTIONS))
        assert len(source) == 7
        assert source.read(2).data == (folder / "2.png").read_bytes()
    assert open_pairs(str(folder / "one.csv")).captions[1] == ("a, 1.png",)
    assert open_pairs(str(folder / "one.parquet")).captions[6] == ("6.png",)


def test_the_identity_knows_the_captions(folder: Path, tmp_path: Path) -> None:
    """Same pictures, other words."""
    table = pq.read_table(folder / "many.parquet")
    path = tmp_path / "many.parquet"
    pq.write_table(table, path)
    same = open_pairs(str(path)).identity
    assert same == open_pairs(str(folder / "many.parquet")).identity
    changed = [["other"], *CAPTIONS[1:]]
    pq.write_table(table.set_column(1, "captions", pa.array(changed)), path)
    assert open_pairs(str(path)).identity != same


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


def test_evaluation_takes_the_first_caption_of_every_image(folder: Path) -> None:
    source = open_pairs(str(folder / "many.parquet"))
    batches = list(Loader(Pairs(source, encode), LoaderConfig(image_size=16, batch_size=3)).evaluation())
    assert [text for batch in batches for text in batch.texts] == [texts[0] for texts in CAPTIONS]


def test_what_has_no_captions_is_refused(folder: Path, tmp_path: Path) -> None:
    """A folder of images, a table without the column, an image with none."""
    image = (folder / "0.png").read_bytes()
    with pytest.raises(ValueError, match=r"has no captions: expected \.parquet"):
        open_pairs(str(folder / "0.png"))
    for columns, message in (
        ({"sentence": ["a"]}, "expected a column captions, caption, title or text, found image, sentence"),
        ({"captions": [["", " "]]}, "none of 1 images has a caption of one character or more"),
        ({"caption": [3]}, "expected a caption or a list of captions, got 3"),
        ({"captions": pa.array([None], pa.list_(pa.string()))}, "none of 1 images has a caption"),
    ):
        pq.write_table(pa.table({"image": [image], **columns}), tmp_path / "bad.parquet")
        with pytest.raises(ValueError, match=message):
            open_pairs(str(tmp_path / "bad.parquet"))
    (tmp_path / "bad.csv").write_text("path,words\n0.png,1\n")
    with pytest.raises(NoCaptions, match=r"expected a column captions, .* found path, words; another can be"):
        open_pairs(str(tmp_path / "bad.csv"))


def test_captions_of_real_data(shared_data: Path) -> None:
    """Five captions for every one of a thousand photographs."""
    source = open_pairs(str(shared_data / "captions/val.parquet"))
    assert {len(texts) for texts in source.captions} == {5}
    (batch,) = Loader(Pairs(source, encode), LoaderConfig(image_size=32, batch_size=4)).evaluation(4)
    assert batch.images.shape == (4, 3, 32, 32)
