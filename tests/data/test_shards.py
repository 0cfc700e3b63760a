"""Shards: cached indexes give the same source, labels are those of the rows, remote shards are fetched in time."""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from tests.data.far import Far, asked
from tests.data.test_tar import write_tar
from tests.tiny import evaluation_batches, training_batches

from pixlex.config.fields import DataConfig
from pixlex.data.captions import open_pairs
from pixlex.data.images import open_source
from pixlex.data.loader import prefetch
from pixlex.data.remote import NoSuchFile, Unreachable
from pixlex.data.shards import TarSource
from pixlex.data.sources import ImageSource, subset
from pixlex.files import cache_folder

Picture = Callable[..., bytes]
NAMES = ("plain.png", "folder/ünï.jpg", "\udcff\udc80.png", "no-class.webp")
SHARDS, EACH = 6, 4
BLOCKS = DataConfig(shuffle_blocks=1)


@pytest.fixture(autouse=True)
def indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test."""
    monkeypatch.setenv("PIXLEX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "indexes"


@pytest.fixture
def shard(tmp_path: Path, picture: Picture) -> Path:
    """A shard with a name that is no UTF-8 and a caption with half a character, written an hour ago."""
    files = {name: picture(number) for number, name in enumerate(NAMES)}
    files |= {"plain.cls": b"1", "folder/ünï.cls": b"0", "\udcff\udc80.cls": b"1", "a.flac": b"x"}
    files |= {"plain.json": b'{"class_name": "dog", "caption": "half \\ud800"}', "\udcff\udc80.txt": b"dog"}
    files |= {"folder/ünï.json": b'{"class_name": "cat", "captions": ["one", "two"]}'}
    return settle(write_tar(tmp_path / "set.tar", files))


def settle(path: Path, seconds: float = 3600.0) -> Path:
    changed = path.stat().st_mtime - seconds
    os.utime(path, (changed, changed))
    return path


def described(source: TarSource) -> tuple[object, ...]:
    records = [source.read(index) for index in range(len(source))]
    return source.identity, source.class_names, source.ignored, source.blocks, source.captions, records


def test_a_second_start_reads_no_headers(shard: Path, indexes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, pairs = open_source(str(shard)), open_pairs(str(shard))
    assert [first.key(index) for index in range(4)] == [f"set.tar/{name}" for name in NAMES]
    assert [str(one) for one in first.ignored] == ["set.tar/a.flac"]
    assert pairs.texts == (("half",), ("one", "two"))
    monkeypatch.setattr(tarfile, "open", None)
    assert described(open_source(str(shard))) == described(first)
    assert open_pairs(str(shard)).identity == pairs.identity
    assert len(list(indexes.iterdir())) == 2  # with captions and without


def test_a_changed_shard_is_read_again(shard: Path, picture: Picture) -> None:
    assert len(open_source(str(shard))) == 4
    settle(write_tar(shard, {name: picture(number) for number, name in enumerate(NAMES[:3])}), 1800)
    source = open_source(str(shard))
    assert (len(source), source.class_names) == (3, ())
    with pytest.raises(IndexError, match="has 3 images, got index 3"):
        source.key(3)
    with pytest.raises(IndexError, match="got index -1"):
        source.read(-1)


def test_a_shard_just_written_is_not_indexed(tmp_path: Path, picture: Picture, indexes: Path) -> None:
    path = write_tar(tmp_path / "new.tar", {"a.png": picture(0)})
    assert len(open_source(str(path))) == 1
    assert not indexes.exists()
    open_source(str(settle(path)))
    assert len(list(indexes.iterdir())) == 1


def test_damage_anywhere_is_noticed(shard: Path, indexes: Path) -> None:
    """Many a byte is changed in turn, and the end cut off: the source stays the same."""
    expected = described(open_source(str(shard)))
    (path,) = indexes.iterdir()
    good = path.read_bytes()
    changed = [good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :] for at in range(0, len(good), 61)]
    for data in (*changed, *(good[:size] for size in (0, 4, len(good) // 2, len(good) - 1))):
        path.write_bytes(data)
        assert described(open_source(str(shard))) == expected
    path.unlink()
    path.mkdir()
    assert described(open_source(str(shard))) == expected


def test_keys_begin_behind_the_folder_of_all_shards(tmp_path: Path, picture: Picture) -> None:
    for name in ("a/0.tar", "b/0.tar"):
        (tmp_path / name).parent.mkdir()
        settle(write_tar(tmp_path / name, {"x.png": picture(0)}))
    alone, both = open_source(str(tmp_path / "a")), open_source(str(tmp_path / "{a,b}" / "0.tar"))
    assert (alone.key(0), both.key(0), both.key(1)) == ("0.tar/x.png", "a/0.tar/x.png", "b/0.tar/x.png")


@pytest.fixture
def source(far: Path, picture: Picture) -> ImageSource:
    """Six remote shards, opened, and then not cached any more."""
    for shard in range(SHARDS):
        write_tar(far / f"{shard}.tar", {f"{row}.png": picture(10 * shard + row) for row in range(EACH)})
    opened = open_source("far://{0..5}.tar")
    forget()
    return opened


def forget() -> None:
    for path in (cache_folder() / "shards").iterdir():
        path.unlink()
    Far.log.write_text("")


def come(count: int) -> bool:
    """Wait for so many full shards."""
    end = time.monotonic() + 20
    while (found := len(list((cache_folder() / "shards").glob("*.tar")))) != count and time.monotonic() < end:
        time.sleep(0.01)
    return found == count


def test_shards_are_there_before_their_images(source: ImageSource) -> None:
    settings = {"config": BLOCKS, "image_size": 4, "batch_size": EACH, "seed": 0}
    batches = training_batches(source, **settings)
    found = [next(batches)]
    assert come(SHARDS)
    found += islice(batches, 2 * SHARDS)
    assert len(asked("stream")) == SHARDS
    again = islice(training_batches(source, **settings), len(found))
    assert all(torch.equal(one.images, other.images) for one, other in zip(found, again, strict=True))


@pytest.mark.parametrize("processes", ["1", "2"])
def test_no_more_than_half_of_the_cache(
    source: ImageSource, far: Path, monkeypatch: pytest.MonkeyPatch, processes: str
) -> None:
    size = (far / "0.tar").stat().st_size
    monkeypatch.setenv("PIXLEX_CACHE_GB", str(8.5 * size / 1e9))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    fit = 4 // int(processes)
    batches = training_batches(source, config=BLOCKS, image_size=4, batch_size=EACH, seed=0)
    next(batches)
    assert come(fit)
    time.sleep(0.1)
    assert len(asked("stream")) == fit
    next(batches)
    assert come(fit + 1)
    list(islice(batches, SHARDS - 2))
    assert len(asked("stream")) == SHARDS


def test_evaluation_and_encoding_prefetch_too(source: ImageSource) -> None:
    chosen = subset(source, [0, 1, 9, 17])  # of three shards
    for batches in (
        evaluation_batches(chosen, image_size=4, batch_size=1),
        prefetch(chosen, range(4), 1, lambda _, record: record.key),
    ):
        next(iter(batches))
        assert come(3)
        forget()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_is_raised_when_the_shard_is_wanted(source: ImageSource, far: Path, workers: int) -> None:
    """What came before is handed over; the message names the URL and nothing of a worker's traceback."""
    (far / "3.tar").unlink()
    batches = evaluation_batches(source, image_size=4, batch_size=EACH, workers=workers)
    assert [next(batches).keys[0] for _ in range(2)] == ["0.tar/0.png", "1.tar/0.png"]
    with pytest.raises(NoSuchFile, match=r"^far://3\.tar does not exist$"):
        list(batches)
    (far / "3.tar").write_bytes(b"x" * 10)
    batches = training_batches(source, config=DataConfig(), image_size=4, batch_size=SHARDS * EACH, seed=0)
    with pytest.raises(Unreachable, match=r"^far://3\.tar cannot be read after 3 tries: OSError: expected"):
        next(batches)
