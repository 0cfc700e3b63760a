"""Shards fetched before their images are wanted: as many as fit, none twice, and no fault before its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from tests.data.far import Far, asked
from tests.data.test_shards import write_tar

from pixlex.config.data import DataConfig
from pixlex.data.ahead import prepared_batches
from pixlex.data.images import open_source
from pixlex.data.loader import evaluation_batches, training_batches
from pixlex.data.remote import NoSuchFile, Unreachable, cache_folder
from pixlex.data.sources import ImageSource, subset

Picture = Callable[..., bytes]
SHARDS, EACH = 6, 4


@pytest.fixture
def source(far: Path, picture: Picture) -> ImageSource:
    """Six shards, opened, and then not kept any more."""
    for shard in range(SHARDS):
        write_tar(far / f"{shard}.tar", {f"{row}.png": picture(10 * shard + row) for row in range(EACH)})
    opened = open_source("far://{0..5}.tar")
    forget()
    return opened


def forget() -> None:
    for path in (cache_folder() / "shards").iterdir():
        path.unlink()
    Far.log.write_text("")


def copies() -> int:
    """Return how many shards are here whole."""
    return len(list((cache_folder() / "shards").glob("*.tar")))


def waited_for(there: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not there() and time.monotonic() < end:
        time.sleep(0.01)
    return there()


def test_shards_are_there_before_their_images(source: ImageSource) -> None:
    config = DataConfig(shuffle_blocks=1)
    batches = training_batches(source, config=config, image_size=4, batch_size=EACH, seed=0)
    first = next(batches)
    assert waited_for(lambda: copies() == SHARDS)
    rest = list(islice(batches, 2 * SHARDS))
    assert len(asked("stream")) == SHARDS
    again = list(islice(training_batches(source, config=config, image_size=4, batch_size=EACH, seed=0), 13))
    assert all(
        torch.equal(one.images, other.images) for one, other in zip([first, *rest], again, strict=True)
    )


@pytest.mark.parametrize("processes", ["1", "2"])
def test_no_more_than_half_of_what_is_kept(
    source: ImageSource, far: Path, monkeypatch: pytest.MonkeyPatch, processes: str
) -> None:
    size = (far / "0.tar").stat().st_size
    monkeypatch.setenv("PIXLEX_CACHE_GB", str(8.5 * size / 1e9))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    fit = 4 // int(processes)
    batches = training_batches(
        source, config=DataConfig(shuffle_blocks=1), image_size=4, batch_size=EACH, seed=0
    )
    next(batches)
    assert waited_for(lambda: copies() == fit)
    time.sleep(0.2)
    assert len(asked("stream")) == fit
    next(batches)
    assert waited_for(lambda: copies() == fit + 1)
    list(islice(batches, SHARDS - 2))
    assert len(asked("stream")) == SHARDS


def test_evaluation_and_encoding_fetch_ahead_too(source: ImageSource) -> None:
    chosen = subset(source, [0, 1, 9, 17])  # of three shards
    for batches in (
        evaluation_batches(chosen, image_size=4, batch_size=1),
        prepared_batches(chosen, range(4), 1, lambda _, record: record.key),
    ):
        next(iter(batches))
        assert waited_for(lambda: copies() == 3)
        forget()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_is_raised_when_the_shard_is_wanted(source: ImageSource, far: Path, workers: int) -> None:
    """What came before is handed over; what is said names the address and nothing of a worker's traceback."""
    (far / "3.tar").unlink()
    batches = evaluation_batches(source, image_size=4, batch_size=EACH, workers=workers)
    assert [next(batches).keys[0] for _ in range(2)] == ["0.tar/0.png", "1.tar/0.png"]
    with pytest.raises(NoSuchFile, match=r"^far://3\.tar does not exist$"):
        list(batches)


def test_a_shard_that_cannot_be_had_stops_training(source: ImageSource, far: Path) -> None:
    (far / "3.tar").write_bytes(b"x" * 10)
    batches = training_batches(
        source, config=DataConfig(workers=1), image_size=4, batch_size=SHARDS * EACH, seed=0
    )
    with pytest.raises(
        Unreachable, match=r"^far://3\.tar cannot be read after 3 tries: OSError: expected \d+ b"
    ):
        next(batches)
