"""Order of training: every image once an epoch, few blocks at a time, the same for any number of processes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.tiny import training_batches

from pixlex.config.data import DataConfig
from pixlex.data.images import open_source
from pixlex.data.loader import LoaderConfig, TrainingOrder
from pixlex.data.sources import concatenate, subset

BLOCKS = (5, 1, 9, 4, 4, 7, 2, 8)


def order_of(
    count: int, batch_size: int, seed: int = 0, first_step: int = 0, *, blocks: tuple[int, ...] = (),
    window: int = 0, streams: int = 1, **processes: int,
) -> TrainingOrder:  # fmt: skip
    data = DataConfig(shuffle_blocks=window, streams=streams)
    config = LoaderConfig(image_size=4, batch_size=batch_size, seed=seed, data=data, **processes)
    return TrainingOrder(count, config, first_step, blocks)


def groups(order: TrainingOrder, steps: int) -> list[int]:
    return [group for batch in islice(order, steps) for _, group in batch]


@given(
    blocks=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    window=st.integers(0, 5), streams=st.integers(1, 4), seed=st.integers(0, 3), epoch=st.integers(0, 3),
)  # fmt: skip
@settings(deadline=None)
def test_an_epoch_is_a_permutation(
    blocks: list[int], window: int, streams: int, seed: int, epoch: int
) -> None:
    count = sum(blocks)
    if streams > count:
        return
    order = order_of(count, streams, seed, blocks=tuple(blocks), window=window, streams=streams)
    assert sorted(order.epoch(epoch).tolist()) == list(range(count))


def test_without_a_window_it_is_the_permutation_of_seed_and_epoch() -> None:
    """What runs begun before blocks existed go on with."""
    expected = [
        *np.random.default_rng((3, 0, 1 << 63)).permutation(40),
        *np.random.default_rng((3, 1, 1 << 63)).permutation(40),
    ]
    assert groups(order_of(40, 6, 3), 10) == expected[:60]


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("window", [1, 3])
def test_few_blocks_are_read_at_a_time(window: int, streams: int) -> None:
    """Any stretch of a stream as long as a window comes from the blocks of two windows, cut ones included."""
    blocks = (10,) * 40
    order = order_of(400, streams, 0, blocks=blocks, window=window, streams=streams)
    for epoch in range(2):
        for stream in order.epoch(epoch).reshape(streams, -1):
            for start in range(len(stream) - 10 * window):
                assert len(set(stream[start : start + 10 * window] // 10)) <= 2 * window + 2
    first, second = order.epoch(0), order.epoch(1)
    assert (first != second).mean() > 0.9
    mixed = np.diff(first[: 10 * window])
    assert (mixed != 1).any()


def test_each_stream_fills_its_share_and_sees_its_own_images() -> None:
    """Rows 0 to 2 are of the first stream, 3 to 5 of the second; an epoch of each holds other images."""
    order = order_of(40, 6, 1, blocks=BLOCKS, window=2, streams=2)
    steps = list(islice(order, 6))  # 18 of 20 of each stream
    seen = [{group for batch in steps for _, group in batch[part]} for part in (slice(0, 3), slice(3, 6))]
    assert [len(one) for one in seen] == [18, 18]
    assert not seen[0] & seen[1]
    epochs = {epoch for batch in islice(order, 7, 12) for epoch, _ in batch}
    assert epochs == {1}
    left_out = order_of(41, 2, 1, streams=2)
    first, second = ({group for batch in islice(left_out, start, start + 20) for _, group in batch}
                     for start in (0, 20))  # fmt: skip
    assert len(first) == len(second) == 40
    assert first != second


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batch_of_one_and_read_different_blocks(world_size: int) -> None:
    sizes = {"blocks": (10,) * 16, "window": 2, "streams": 4}
    whole = list(islice(order_of(160, 8, 5, **sizes), 5))
    parts = [
        list(islice(order_of(160, 8, 5, rank=rank, world_size=world_size, **sizes), 5))
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        assert [row for part in parts for row in part[step]] == batch
    opened = [{group // 10 for batch in part for _, group in batch} for part in parts]
    for number, one in enumerate(opened):
        for other in opened[number + 1 :]:
            assert len(one & other) <= 1  # the block that the border between two streams cuts


def test_it_goes_on_in_the_middle_of_a_block() -> None:
    sizes = {"blocks": BLOCKS, "window": 2, "streams": 2}
    whole = list(islice(order_of(40, 4, 5, **sizes), 30))
    for first in (1, 9, 23):
        assert list(islice(order_of(40, 4, 5, first, **sizes), 7)) == whole[first : first + 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 6, "streams": 4}, "multiple of the streams, .*got batch_size 6, 40 images and 4 str"),
        (
            {"batch_size": 82, "streams": 41},
            "the images as many or more, got batch_size 82, 40 images and 41",
        ),
        ({"batch_size": 4, "window": 2, "blocks": (3, 4)}, "expected blocks of 40 images in all .* got 7"),
    ],
)
def test_numbers_that_do_not_fit(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        order_of(40, **arguments)  # type: ignore[arg-type]


def _pixels(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number, number, number)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of 4, 3 and 5 images."""
    numbers: Iterator[int] = iter(range(12))
    for shard, count in enumerate((4, 3, 5)):
        with tarfile.open(tmp_path / f"shard-{shard}.tar", "w") as file:
            for _ in range(count):
                number = next(numbers)
                data = _pixels(number)
                entry = tarfile.TarInfo(f"{number:03d}.png")
                entry.size = len(data)
                file.addfile(entry, io.BytesIO(data))
    return tmp_path


def test_blocks_of_sources(shards: Path, tmp_path: Path) -> None:
    """Shards, row groups, and what is chosen of them in order."""
    tar = open_source(str(shards / "shard-*.tar"))
    assert tar.blocks == (4, 3, 5)
    table = pa.table({"image": [_pixels(number) for number in range(10)]})
    pq.write_table(table, tmp_path / "table.parquet", row_group_size=4)
    rows = open_source(str(tmp_path / "table.parquet"))
    assert rows.blocks == (4, 4, 2)
    assert subset(tar, [0, 1, 1, 5, 11]).blocks == (3, 1, 1)
    assert subset(tar, [0, 5, 1]).blocks == ()
    assert concatenate("both", [tar, rows]).blocks == (4, 3, 5, 4, 4, 2)
    assert concatenate("both", [tar, open_source("embedded:digits:test")]).blocks == ()


def test_training_reads_shard_by_shard(shards: Path) -> None:
    """One shard at a time: every image once an epoch, with the epoch it belongs to."""
    source = open_source(str(shards / "shard-*.tar"))
    config = DataConfig(shuffle_blocks=1, augment="resize", horizontal_flip=False)
    batches = list(islice(training_batches(source, config=config, image_size=4, batch_size=4, seed=0), 6))
    indices = [index for batch in batches for index in batch.indices.tolist()]
    assert sorted(indices[:12]) == sorted(indices[12:]) == list(range(12))
    assert [epoch for batch in batches for epoch in batch.epochs.tolist()] == [0] * 12 + [1] * 12
    for batch in batches:
        levels = (batch.images[:, 0, 0, 0] * 255).round().int().tolist()
        assert levels == batch.indices.tolist()
    digits = open_source("embedded:digits:test")
    with pytest.raises(ValueError, match="expected tar shards or Parquet files to shuffle by blocks"):
        next(training_batches(digits, config=config, image_size=8, batch_size=4, seed=0))
