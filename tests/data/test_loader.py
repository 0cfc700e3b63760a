"""Batches are a function of seed and step: not of workers, processes or where reading began."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.data.conftest import encoded, pixels_of
from tests.data.test_tar import write_tar
from tests.tiny import evaluation_batches, training_batches

from pixlex.batch import ImageBatch, TooManyBroken
from pixlex.config.fields import DataConfig
from pixlex.data.decoding import ImageRecord, UnreadableImage
from pixlex.data.images import open_source
from pixlex.data.loader import LoaderConfig, TrainingOrder
from pixlex.data.sources import ImageSource, concatenate, subset

Folder = Callable[..., Path]
CONFIG = DataConfig()


class Numbers:
    """A source whose pixels say their index."""

    name = "numbers"
    identity = "numbers"
    class_names = ()

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> ImageRecord:
        if index in self.broken:
            raise UnreadableImage(str(index), "broken")
        return ImageRecord(np.full((2, 2, 3), index % 256, dtype=np.uint8), -1, str(index))


def train(source: ImageSource, steps: int, config: DataConfig = CONFIG, **options: int) -> list[ImageBatch]:
    settings = {"image_size": 8, "batch_size": 6, "seed": 3, **options}
    return list(islice(training_batches(source, config=config, **settings), steps))


def assert_same(left: list[ImageBatch], right: list[ImageBatch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.indices, other.indices)
        assert (one.keys, one.skipped) == (other.keys, other.skipped)


def test_images_labels_and_keys_belong_together(folder_of: Folder) -> None:
    folder = folder_of(9)
    (folder / "list.csv").write_text(
        "path,label,class_name\n" + "".join(f"{n:04d}.png,{n % 4},name {n % 4}\n" for n in range(9))
    )
    source = open_source(str(folder / "list.csv"))
    config = DataConfig(augment="resize", horizontal_flip=False)
    for batch in train(source, 3, config, image_size=10):
        assert batch.images.shape == (6, 3, 10, 10)
        for row, index in enumerate(batch.indices.tolist()):
            assert (batch.keys[row], int(batch.labels[row])) == (f"{index:04d}.png", index % 4)
            pixels = pixels_of(index)[:, 1:11]
            assert np.array_equal(batch.images[row].permute(1, 2, 0).numpy() * 255, pixels)


def test_an_image_is_augmented_otherwise_in_each_epoch_and_each_seed(folder_of: Folder) -> None:
    source = open_source(str(folder_of(9)))

    def cut(seed: int, epoch: int) -> torch.Tensor:
        (batch,) = train(source, 1, batch_size=9, seed=seed, first_step=epoch)
        return batch.images[batch.indices.tolist().index(7)]

    cuts = [cut(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert torch.equal(cuts[0], cut(0, 0))
    assert len({image.numpy().tobytes() for image in cuts}) == 6


@pytest.mark.parametrize("first_step", [1, 4, 11])
def test_resuming_at_a_step_is_skipping_the_steps_before(folder_of: Folder, first_step: int) -> None:
    source = open_source(str(folder_of(11, broken=(2, 3))))
    assert_same(train(source, 14)[first_step:], train(source, 14 - first_step, first_step=first_step))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(folder_of: Folder, workers: int) -> None:
    source = open_source(str(folder_of(23, broken=(2, 3, 19))))
    config = DataConfig(workers=workers)
    assert_same(train(source, 12), train(source, 12, config))
    assert_same(evaluate(source), evaluate(source, workers=workers))


def test_spawned_workers_change_nothing(tmp_path: Path) -> None:
    files = {f"{number}.png": _pixels(30 * number) for number in range(7)}
    source = open_source(str(write_tar(tmp_path / "set.tar", files)))
    expected = train(source, 2)
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert_same(expected, train(source, 2, DataConfig(workers=1)))
    finally:
        multiprocessing.set_start_method(method, force=True)


def test_the_generators_of_the_program_are_left_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    train(Numbers(10), 3)
    list(evaluation_batches(Numbers(10), image_size=4, batch_size=3))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_together_are_one_process(folder_of: Folder, world_size: int) -> None:
    source = open_source(str(folder_of(11, broken=(4,))))
    parts = [train(source, 5, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, whole in enumerate(train(source, 5)):
        together = [part[step] for part in parts]
        assert torch.equal(torch.cat([batch.images for batch in together]), whole.images)
        assert torch.equal(torch.cat([batch.indices for batch in together]), whole.indices)
        assert sum((batch.skipped for batch in together), ()) == whole.skipped


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 7), st.integers(1, 20), st.integers(0, 12))
def test_a_source_smaller_than_the_batch(count: int, batch_size: int, first_step: int) -> None:
    batches = train(Numbers(count), 3, batch_size=batch_size, first_step=first_step)
    start = first_step * batch_size
    order = train(Numbers(count), 1, batch_size=start + 3 * batch_size)[0].indices[start:]
    assert torch.equal(torch.cat([batch.indices for batch in batches]), order)


def test_a_broken_image_is_replaced_by_the_next_readable_one(folder_of: Folder) -> None:
    source = open_source(str(folder_of(10, broken=(3, 4, 9))))
    intact = open_source(str(folder_of(10, name="intact")))
    wanted = {3: 5, 4: 5, 9: 0}
    for batch, whole in zip(train(source, 10), train(intact, 10), strict=True):
        asked = whole.indices.tolist()
        assert batch.indices.tolist() == [wanted.get(index, index) for index in asked]
        missed = [number for index in asked for number in {3: [3, 4], 4: [4], 9: [9]}.get(index, [])]
        assert [skipped.key for skipped in batch.skipped] == [f"{number:04d}.png" for number in missed]
        assert batch.keys == tuple(f"{index:04d}.png" for index in batch.indices.tolist())
        # What could be read is cut as if nothing were broken.
        sound = [row for row, index in enumerate(asked) if index not in wanted]
        assert torch.equal(batch.images[sound], whole.images[sound])


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_broken_images_stops(folder_of: Folder, workers: int) -> None:
    source = open_source(str(folder_of(4, broken=(0, 1, 2, 3))))
    with pytest.raises(TooManyBroken, match=r"4 images in a row cannot be read, from 000\d\.png \(not an"):
        train(source, 1, DataConfig(workers=workers))
    with pytest.raises(TooManyBroken, match=r"none of 4 images can be read, the first is 0000\.png"):
        evaluate(source, workers=workers)


def evaluate(source: ImageSource, **options: int) -> list[ImageBatch]:
    return list(evaluation_batches(source, **{"image_size": 8, "batch_size": 4, **options}))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 13), st.integers(1, 6), st.integers(1, 3), st.one_of(st.none(), st.integers(1, 16)))
def test_evaluation_reads_each_image_once_over_all_ranks(
    count: int, batch_size: int, world_size: int, limit: int | None
) -> None:
    seen: Counter[int] = Counter()
    total = min(count, limit or count)
    options = {"image_size": 2, "batch_size": batch_size, "limit": limit}
    alone = list(evaluation_batches(Numbers(count), **options))
    num_batches = len(alone)
    for rank in range(world_size):
        batches = list(evaluation_batches(Numbers(count), rank=rank, world_size=world_size, **options))
        mine = [index for batch in batches for index in batch.indices.tolist()]
        assert mine == sorted(mine)
        assert all(len(batch.keys) == batch_size for batch in batches[:-1])
        assert len(batches) in (num_batches // world_size, -(-num_batches // world_size))
        seen.update(mine)
        for number, batch in enumerate(batches):  # the batches of one process, dealt out in turn
            assert torch.equal(batch.indices, alone[rank + number * world_size].indices)
    assert set(seen.values()) == {1}
    assert len(seen) == total
    assert min(seen) == 0
    # With a limit they are spread over the source, not taken from its beginning.
    gaps = np.diff(sorted(seen))
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    "broken", [(0,), (5,), (0, 1, 2, 3), (4, 5, 6, 7), (8, 9), (0, 1, 2, 3, 4, 6, 7, 8, 9)]
)
def test_evaluation_names_each_broken_image_once(folder_of: Folder, broken: tuple[int, ...]) -> None:
    batches = evaluate(open_source(str(folder_of(10, broken=broken))))
    assert [index for batch in batches for index in batch.indices.tolist()] == [
        index for index in range(10) if index not in broken
    ]
    named = [skipped.key for batch in batches for skipped in batch.skipped]
    assert sorted(named) == [f"{index:04d}.png" for index in broken]
    assert all(len(batch.images) == len(batch.keys) == len(batch.labels) > 0 for batch in batches)


def test_a_batch_without_readable_images_keeps_its_turn(folder_of: Folder) -> None:
    """With two processes it comes empty, with what it skipped; also where a process has no other."""
    source = open_source(str(folder_of(8, broken=(0, 1, 2, 3, 5))))
    first, second = (evaluate(source, rank=rank, world_size=2) for rank in range(2))
    assert [len(batch.keys) for batch in (*first, *second)] == [0, 3]
    assert [len(batch.skipped) for batch in (*first, *second)] == [4, 1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 6, "world_size": 4}, "batch_size 6 and world_size 4"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"image_size": 0}, "image_size must be 1 or more, got 0"),
        ({"rank": 2, "world_size": 2}, "got rank 2 and world_size 2"),
        ({"world_size": 0}, "world_size must be 1 or more"),
        ({"seed": -1}, "seed and first_step must be 0 or more, got -1 and 0"),
        ({"first_step": -1}, "must be 0 or more, got 3 and -1"),
    ],
)
def test_numbers_out_of_range_are_refused_at_once(options: dict[str, int], sentence: str) -> None:
    settings = {"image_size": 8, "batch_size": 6, "seed": 3, **options}
    with pytest.raises(ValueError, match=sentence):
        training_batches(Numbers(5), config=CONFIG, **settings)
    with pytest.raises(ValueError, match="limit must be 1 or more, or None for all images, got 0"):
        evaluation_batches(Numbers(5), image_size=4, batch_size=2, limit=0)
    with pytest.raises(ValueError, match="numbers has no images"):
        evaluation_batches(Numbers(0), image_size=4, batch_size=2)


def test_workers_end_with_their_stream(folder_of: Folder) -> None:
    source = open_source(str(folder_of(5)))
    stream: Iterator[ImageBatch] = training_batches(
        source, config=DataConfig(workers=2), image_size=8, batch_size=2, seed=0, first_step=0
    )
    before = multiprocessing.active_children()  # of another test, perhaps: on their way out
    next(stream)
    workers = [child for child in multiprocessing.active_children() if child not in before]
    assert len(workers) == 2
    stream.close()
    for worker in workers:
        worker.join(timeout=20)
        assert not worker.is_alive()


def test_images_that_belong_together_stay_together() -> None:
    """Groups come in order, none is torn; each epoch is a permutation of the groups; ranks share out groups."""
    batches = train(Numbers(20), 5, together=2, batch_size=4)
    order = torch.cat([batch.indices for batch in batches])
    assert (order[::2] % 2 == 0).all()
    assert torch.equal(order[1::2], order[::2] + 1)
    assert sorted((order[:20:2] // 2).tolist()) == list(range(10))
    ranks = [train(Numbers(20), 5, together=2, batch_size=4, rank=rank, world_size=2) for rank in (0, 1)]
    joined = [torch.cat([one.indices, other.indices]) for one, other in zip(*ranks, strict=True)]
    assert torch.equal(torch.cat(joined), order)
    ones = list(evaluation_batches(Numbers(20), image_size=8, batch_size=3, together=2))
    assert torch.cat([batch.indices for batch in ones]).tolist() == list(range(20))
    assert {len(batch.indices) for batch in ones} == {6, 2}
    some = list(evaluation_batches(Numbers(20), image_size=8, batch_size=3, together=2, limit=5))
    assert torch.cat([batch.indices for batch in some]).tolist() == [0, 1, 4, 5, 8, 9, 12, 13, 16, 17]


def test_a_broken_image_takes_its_group_with_it() -> None:
    """In training the next group stands in for all of it, in evaluation it is left out; it is named once."""
    source = Numbers(12, (5,))
    batches = train(source, 3, together=2, batch_size=6)
    for batch in batches:
        indices = batch.indices
        assert torch.equal(indices[1::2], indices[::2] + 1)
        assert not {4, 5} & set(indices.tolist())
        assert [one.key for one in batch.skipped] == ["5"]
    (whole,) = evaluation_batches(source, image_size=8, batch_size=6, together=2)
    assert whole.indices.tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]
    assert [one.key for one in whole.skipped] == ["5"]
    with pytest.raises(ValueError, match="expected groups of 5 images, got 12 images"):
        train(source, 1, together=5)


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
def test_epochs_are_permutations(blocks: list[int], window: int, streams: int, seed: int, epoch: int) -> None:
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 6, "streams": 4}, "multiple of the streams, .*got batch_size 6, 40 images and 4 str"),
        ({"batch_size": 82, "streams": 41}, "the images as many or more, got batch_size 82, 40 images and 41"),
        ({"batch_size": 4, "window": 2, "blocks": (3, 4)}, "expected blocks of 40 images in all .* got 7"),
    ],
)  # fmt: skip
def test_orders_that_do_not_fit(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        order_of(40, **arguments)  # type: ignore[arg-type]


def _pixels(number: int) -> bytes:
    return encoded(Image.new("RGB", (4, 4), (number, number, number)), "PNG")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of 4, 3 and 5 images."""
    numbers: Iterator[int] = iter(range(12))
    for shard, count in enumerate((4, 3, 5)):
        files = {f"{number:03d}.png": _pixels(number) for number in islice(numbers, count)}
        write_tar(tmp_path / f"shard-{shard}.tar", files)
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
