"""Decoded images that stay in memory: the same batches, without reading anything twice."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.test_loader import Broken, Numbers, assert_same

from pixlex.batch import ImageBatch
from pixlex.config.data import DataConfig
from pixlex.data.chosen import choose
from pixlex.data.decoding import ImageRecord
from pixlex.data.images import open_source
from pixlex.data.loader import training_batches
from pixlex.data.sources import ImageSource

KEEPING = DataConfig(keep_decoded=1)


class Noted(Numbers):
    """Large pictures, of which every reading is noted in a file, whichever process reads."""

    def __init__(self, count: int, notes: Path, side: int = 64) -> None:
        super().__init__(count)
        self.notes, self.side = notes, side

    def read(self, index: int) -> ImageRecord:
        with self.notes.open("a") as file:
            file.write(f"{index}\n")
        pixels = np.random.default_rng(index).integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
        return ImageRecord(pixels, index, str(index))

    def readings(self) -> list[int]:
        return [int(line) for line in self.notes.read_text().split()]


def train(source: ImageSource, steps: int, config: DataConfig, **options: int) -> list[ImageBatch]:
    settings = {"image_size": 8, "batch_size": 4, "seed": 3, **options}
    return list(islice(training_batches(source, config=config, **settings), steps))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_and_nothing_read_twice(tmp_path: Path, workers: int) -> None:
    steps = 48  # four epochs
    expected = train(Noted(48, tmp_path / "plain", 24), steps, DataConfig())
    source = Noted(48, tmp_path / "kept", 24)
    assert_same(train(source, steps, replace(KEEPING, workers=workers)), expected)
    readings = source.readings()
    assert set(readings) == set(range(48))
    # Batches of two workers overlap where the first epoch ends; without a common memory there would be 96.
    assert len(readings) == 48 or (workers and len(readings) < 64)


def test_files_that_are_decoded_smaller_than_stored(tmp_path: Path) -> None:
    """JPEG files in class folders, of which a crop of 8 px needs an eighth."""
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        (folder := tmp_path / "images" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((480, 360)).save(folder / f"{number}.jpg")
    source = open_source(str(tmp_path / "images"))
    assert_same(train(source, 9, KEEPING), train(source, 9, DataConfig()))


def test_without_room_for_all_the_rest_is_read_again(tmp_path: Path) -> None:
    side = 256  # 192 KiB each: five in 1 MiB
    source = Noted(8, tmp_path / "notes", side)
    expected = train(Noted(8, tmp_path / "plain", side), 8, DataConfig())
    assert_same(train(source, 8, KEEPING), expected)
    counts = np.bincount(source.readings(), minlength=8)
    assert sorted(counts) == [1, 1, 1, 1, 1, 4, 4, 4]


def test_rows_that_are_the_same_image_are_kept_once(tmp_path: Path) -> None:
    source = Noted(4, tmp_path / "notes")
    rows = [0, 0, 1, 2, 3, 3, 3, 1]
    expected = train(choose(Noted(4, tmp_path / "plain"), rows), 8, DataConfig())
    assert_same(train(choose(source, rows), 8, KEEPING), expected)
    assert sorted(source.readings()) == [0, 1, 2, 3]


def test_broken_images_are_not_kept() -> None:
    source = Broken(6, (2, 3))
    assert_same(train(source, 9, KEEPING), train(source, 9, DataConfig()))


def test_too_little_shared_memory_is_said_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64 << 20, 0, 64 << 20))
    monkeypatch.setattr("os.path.isdir", lambda path: True)
    with pytest.raises(ValueError, match=r"data\.keep_decoded must be at most 48 \(MiB\) .* got 49"):
        train(Numbers(4), 1, DataConfig(keep_decoded=49, workers=2))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"must be at most 12 .* got 13"):
        train(Numbers(4), 1, DataConfig(keep_decoded=13, workers=2))


def test_fewer_than_none_are_refused() -> None:
    with pytest.raises(ValueError, match="keep_decoded"):
        DataConfig(keep_decoded=-1)
