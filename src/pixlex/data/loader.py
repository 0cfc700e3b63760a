"""Batches of images or records, in an order that is a function of seed and step alone."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pixlex import distributed
from pixlex.batch import ImageBatch, Skipped, TooManyBroken
from pixlex.config.fields import DataConfig, ResizeMode
from pixlex.data.decoding import (
    ImageRecord,
    UnreadableImage,
    decode_record,
    decoding_bytes,
    evaluation_crop,
    float_images,
    minimum_decoded_side,
    training_crop,
)
from pixlex.data.shards import prefetching
from pixlex.data.sources import ImageSource, evenly_spaced

Batch = TypeVar("Batch", covariant=True)
T = TypeVar("T")

# Pixels, label, key, index and epoch of an image; the pixels of a batch, the rest of its rows, what was skipped.
_Row = tuple[Tensor, int, str, int, int]
_Stacked = tuple[Tensor | None, list[tuple[int, str, int, int]], list[Skipped]]

# Images in a row that may be unreadable before the search for a replacement is given up.
_MAX_REPLACEMENTS = 1000
# Sets the generator of an epoch's order apart from those of its images: NumPy gives the seeds
# (seed, epoch) and (seed, epoch, 0) the same numbers.
_ORDER = 1 << 63
# Pillow decodes without holding Python's lock; more threads than this only wait for the disk.
_MOST_DECODERS = 8
# What the images that are read and not yet prepared may take together; one that takes more is prepared alone.
MAX_BYTES = 1 << 30


@runtime_checkable
class Rows(Protocol[Batch]):
    """What a batch is made of: images in groups, and what is added to those that were read.

    `num_images` that follow each other are one group, which is read or replaced whole; at most `texts_per_group`
    texts come with it in training.
    """

    images: ImageSource
    num_images: int
    texts_per_group: int

    def training(self, batch: ImageBatch, seed: int) -> Batch:
        """Return a training batch."""

    def evaluation(self, batch: ImageBatch) -> Batch:
        """Return a batch of an evaluation."""


@dataclass
class Images:
    """Images alone, or in groups of `num_images`."""

    images: ImageSource
    num_images: int = 1
    texts_per_group: int = 1

    def training(self, batch: ImageBatch, seed: int) -> ImageBatch:
        """Return the batch as it is."""
        return batch

    def evaluation(self, batch: ImageBatch) -> ImageBatch:
        """Return the batch as it is."""
        return batch


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How images become batches.

    Attributes:
        image_size: side of the images, in pixels.
        batch_size: images (pairs, questions) in a batch: of all processes in training, of one in evaluation.
        resize_mode: how images become square (see `evaluation_crop`).
        workers: processes that decode; 0 decodes in this one.
        data: augmentation and shuffling, in training alone.
        seed: of order and augmentation, 0 or more.
        rank: number of this process, in [0, world_size).
    """

    image_size: int
    batch_size: int
    resize_mode: ResizeMode = "center"
    workers: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    seed: int = 0
    rank: int = field(default_factory=distributed.rank)
    world_size: int = field(default_factory=distributed.world_size)

    def __post_init__(self) -> None:
        """Name the number that is out of range."""
        for name in ("image_size", "batch_size", "world_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank must lie in [0, world_size), got rank {self.rank} and world_size {self.world_size}"
            )


def loading(config: Any, batch_size: int, **more: Any) -> LoaderConfig:
    """Return how images become batches for a model of this configuration; `more` as for `LoaderConfig`."""
    return LoaderConfig(
        image_size=config.image_size, resize_mode=config.resize_mode, batch_size=batch_size, **more
    )


class Loader(Generic[Batch]):
    """Batches of `Images`, `Pairs` or `Questions`.

    `ValueError` where there are no images, or they do not divide by the groups.
    """

    def __init__(self, rows: Rows[Batch], config: LoaderConfig) -> None:
        images, together = rows.images, rows.num_images
        if len(images) < 1:
            raise ValueError(f"{images.name} has no images")
        if len(images) % together:
            raise ValueError(f"{images.name}: expected groups of {together} images, got {len(images)} images")
        self.rows, self.config, self.num_groups = rows, config, len(images) // together

    def training(self, first_step: int = 0) -> Iterator[Batch]:
        """Return this process's part of an endless stream of training batches, from a step (0 or more) on.

        The order is that of `TrainingOrder`, an image's augmentation a function of (seed, epoch, index): a batch
        is the same for any number of workers, and whether or not the steps before it were read. A group with an
        image that cannot be read is replaced by the next readable one, and named in `skipped`.

        Raises:
            ValueError: The batch does not divide by processes, streams or texts of an image, a number is out of
                range, or blocks are to be shuffled where there are none.
            TooManyBroken: While reading, if 1000 images in a row, or all, cannot be read.
        """
        config, each = self.config, self.rows.texts_per_group
        if config.seed < 0 or first_step < 0:
            raise ValueError(f"seed and first_step must be 0 or more, got {config.seed} and {first_step}")
        if config.batch_size % (each * config.world_size):
            raise ValueError(
                "the batch must divide evenly over the processes and the texts of an image, got batch_size "
                f"{config.batch_size} and world_size {config.world_size} times texts_per_image {each}"
            )
        images, blocks = self.rows.images, ()
        if config.data.shuffle_blocks and self.rows.num_images == 1:
            blocks = getattr(images, "blocks", ())
        if config.data.shuffle_blocks and not blocks:
            raise ValueError(
                f"{images.name}: expected tar shards or Parquet files to shuffle by blocks, images in the order "
                "in which they lie there, and items of one image each; set data.shuffle_blocks to 0"
            )
        groups = replace(config, batch_size=config.batch_size // each)
        order = TrainingOrder(self.num_groups, groups, first_step, blocks)
        batches = self._read(order, training=True)
        return (self.rows.training(batch, config.seed) for batch in batches)

    def evaluation(self, limit: int | None = None) -> Iterator[Batch]:
        """Return this process's part of one pass over the images (or `limit` of them, evenly spaced), in order.

        Rank r gets every world_size-th batch from the r-th on, so that a batch is the same on any number of
        processes; nothing is repeated to fill up. A group with an image that cannot be read is left out and named
        in `skipped` of its batch, or of a neighboring one where a batch has no readable image; with several
        processes that one comes empty, so that every batch keeps its turn (see `distributed.in_turn`).
        `TooManyBroken` while reading, if none of the images can be read by the only process.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be 1 or more, or None for all images, got {limit}")
        groups = [(0, group) for group in evenly_spaced(self.num_groups, limit)]
        size, rank, processes = self.config.batch_size, self.config.rank, self.config.world_size
        order = [groups[first : first + size] for first in range(rank * size, len(groups), size * processes)]
        batches = self._read(order, training=False)
        if processes == 1:
            batches = _without_empty_batches(batches, self.rows.images.name)
        return map(self.rows.evaluation, batches)

    def _read(self, order: Iterable[list[tuple[int, int]]], *, training: bool) -> Iterator[ImageBatch]:
        images, together = self.rows.images, self.rows.num_images
        loader: DataLoader[Any] = DataLoader(
            _Groups(images, together, self.config, training),
            batch_sampler=order,
            num_workers=self.config.workers,
            collate_fn=_stacked,
            # Its own generator: DataLoader would take a number from PyTorch's global one.
            generator=torch.Generator(),
        )
        wanted = (
            [group * together + place for _, group in batch for place in range(together)] for batch in order
        )
        batches = iter(loader)  # worker processes begin before the thread does
        with prefetching(images, wanted) as shards:
            try:
                for batch in batches:
                    yield _to_images(batch)
                    if shards is not None:
                        shards.batch_done()
            except ValueError as fault:
                # PyTorch puts the traceback of a worker process in front of what was said.
                _, name, said = str(fault).rpartition(f"{type(fault).__name__}: ")
                if not name or not str(fault).startswith("Caught "):
                    raise
                raise type(fault)(said.strip()) from fault


@dataclass(frozen=True)
class TrainingOrder:
    """The (epoch, group) pairs of one process's part of each global batch, without end.

    An epoch shows every group once, in an order drawn from (seed, epoch). Epochs follow each other without a gap
    and are cut into global batches, of which rank r gets the rows [r * b, (r + 1) * b). With `data.shuffle_blocks`
    blocks (shards, row groups) come in random order and so many of them are mixed at a time: few are open at
    once, each is read forward, once an epoch, or twice where a window ends inside it.

    With `data.streams` an epoch is cut into as many stretches of one length, and a batch takes as many groups from
    each: row r belongs to stream r // (batch_size / streams). Processes that divide the streams read different
    blocks. Groups left over, fewer than there are streams, are left out of an epoch, others each time.

    `config.batch_size` counts groups of images that come together, and so do `num_groups` and the sizes of
    `blocks`, which a window needs. `ValueError` for a batch that cannot be divided, or a window without blocks.
    """

    num_groups: int
    config: LoaderConfig
    first_step: int = 0
    blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Name the numbers that do not fit."""
        size, streams = self.config.batch_size, self.config.data.streams
        if size % streams or streams > self.num_groups:
            raise ValueError(
                f"the batch must be a multiple of the streams, and the images as many or more, got batch_size "
                f"{size}, {self.num_groups} images and {streams} streams"
            )
        if self.config.data.shuffle_blocks and sum(self.blocks) != self.num_groups:
            raise ValueError(
                f"expected blocks of {self.num_groups} images in all to shuffle by, got {sum(self.blocks)}"
            )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # Two epochs: a batch may lie across the border between them.
        order = lru_cache(maxsize=2)(self.epoch)
        config, step = self.config, self.first_step
        own, each = config.batch_size // config.world_size, config.batch_size // config.data.streams
        length = self.num_groups // config.data.streams
        while True:
            batch = []
            for row in range(config.rank * own, (config.rank + 1) * own):
                stream, place = divmod(row, each)
                epoch, at = divmod(step * each + place, length)
                batch.append((epoch, int(order(epoch)[stream * length + at])))
            yield batch
            step += 1

    def epoch(self, number: int) -> Int64[np.ndarray, " groups"]:
        """Return the order of an epoch: all groups, those of the first stream first."""
        window, streams = self.config.data.shuffle_blocks, self.config.data.streams
        generator = np.random.default_rng((self.config.seed, number, _ORDER))
        if not window:
            return generator.permutation(self.num_groups)
        sizes = np.array(self.blocks, dtype=np.int64)
        drawn = generator.permutation(len(sizes))
        # Where a block starts, less where it comes to lie: added to the places, it gives the groups.
        moved = (np.cumsum(sizes) - sizes)[drawn] - (np.cumsum(sizes[drawn]) - sizes[drawn])
        order = np.repeat(moved, sizes[drawn]) + np.arange(self.num_groups)
        length, mixed = self.num_groups // streams, max(1, round(window * sizes.mean()))
        for first in range(0, length * streams, length):
            for start in range(first, first + length, mixed):
                generator.shuffle(order[start : min(start + mixed, first + length)])
        return order


@dataclass(frozen=True)
class _Groups(Dataset[tuple[list[_Row], list[Skipped]]]):
    """Groups of images by (epoch, group), with those that had to be skipped; without rows where none was read."""

    images: ImageSource
    together: int
    config: LoaderConfig
    is_training: bool

    def __getitem__(self, item: tuple[int, int]) -> tuple[list[_Row], list[Skipped]]:
        _, group = item
        num_groups, places = len(self.images) // self.together, range(self.together)
        tries = min(num_groups, _MAX_REPLACEMENTS) if self.is_training else 1
        skipped: list[Skipped] = []
        for candidate in range(group, group + tries):
            try:
                return [self._row(candidate % num_groups, place, item) for place in places], skipped
            except UnreadableImage as fault:
                skipped.append(Skipped(fault.key, fault.reason))
        if not self.is_training:
            return [], skipped
        raise TooManyBroken(
            f"{self.images.name}: {len(skipped)} images in a row cannot be read, from "
            f"{skipped[0].key} ({skipped[0].reason}) to {skipped[-1].key} ({skipped[-1].reason})"
        )

    def _row(self, group: int, place: int, wanted: tuple[int, int]) -> _Row:
        config, index, epoch = self.config, group * self.together + place, wanted[0]
        record = self.images.read(index)
        if self.is_training:
            image = decode_record(record, minimum_side=minimum_decoded_side(config.image_size, config.data))
            # The image that was asked for decides, so that a replacement is cut unlike the image itself.
            seed = (config.seed, epoch, wanted[1] * self.together + place)
            generator = np.random.default_rng(seed)
            pixels = training_crop(image, config.image_size, config.data, generator, config.resize_mode)
        else:
            pixels = evaluation_crop(decode_record(record), config.image_size, config.resize_mode)
        return pixels, record.label, record.key, index, epoch


def _stacked(groups: Sequence[tuple[list[_Row], list[Skipped]]]) -> _Stacked:
    """Return a batch as worker processes hand it over: bytes, a quarter of what floats would be."""
    rows = [row for read, _ in groups for row in read]
    pixels = torch.stack([row[0] for row in rows]) if rows else None
    return pixels, [row[1:] for row in rows], [one for _, skipped in groups for one in skipped]


def _to_images(stacked: _Stacked) -> ImageBatch:
    pixels, rows, skipped = stacked
    labels, keys, indices, epochs = zip(*rows, strict=True) if rows else ((), (), (), ())
    return ImageBatch(
        images=torch.empty(0, 3, 1, 1) if pixels is None else float_images(pixels),
        labels=torch.tensor(labels, dtype=torch.int64),
        keys=keys,
        indices=torch.tensor(indices, dtype=torch.int64),
        epochs=torch.tensor(epochs, dtype=torch.int64),
        skipped=tuple(skipped),
    )


def _without_empty_batches(batches: Iterator[ImageBatch], name: str) -> Iterator[ImageBatch]:
    """Hand what a batch without readable images skipped to the next batch, or at the end to the last."""
    held: ImageBatch | None = None
    orphans: tuple[Skipped, ...] = ()
    for batch in batches:
        if not batch.keys:
            orphans += batch.skipped
            continue
        if held is not None:
            yield held
        held, orphans = replace(batch, skipped=orphans + batch.skipped), ()
    if held is not None:
        yield replace(held, skipped=held.skipped + orphans)
    elif orphans:
        first = orphans[0]
        raise TooManyBroken(
            f"{name}: none of {len(orphans)} images can be read, the first is {first.key} ({first.reason})"
        )


def prefetch(
    source: ImageSource, indices: Sequence[int], batch_size: int, prepare: Callable[[int, ImageRecord], T]
) -> Iterator[list[T | Skipped]]:
    """Yield what `prepare` makes of images, in order; threads prepare the next batch while this one is in use.

    Images that are read and not yet prepared take bounded memory, however large they are: see `MAX_BYTES`. One
    that cannot be read, here or when `prepare` (called with index and record) raises `UnreadableImage`, is a
    `Skipped`.
    """
    batches = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
    queue: deque[list[Future[T | Skipped]]] = deque()
    used, changed = [0], threading.Condition()

    def prepared(index: int, record: ImageRecord, size: int) -> T | Skipped:
        try:
            return prepare(index, record)
        except UnreadableImage as fault:
            return Skipped(fault.key, fault.reason)
        finally:
            with changed:
                used[0] -= size
                changed.notify_all()

    def submit(index: int) -> Future[T | Skipped]:
        # Read here and decoded there: sources are not made for threads.
        try:
            record = source.read(index)
        except UnreadableImage as fault:
            return pool.submit(Skipped, fault.key, fault.reason)
        size = decoding_bytes(record)
        with changed:
            changed.wait_for(lambda: not used[0] or used[0] + size <= MAX_BYTES)
            used[0] += size
        return pool.submit(prepared, index, record, size)

    threads = min(_MOST_DECODERS, os.cpu_count() or 1)
    with prefetching(source, iter(batches)) as shards, ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            queue.append([submit(index) for index in batch])
            if shards is not None:
                shards.batch_done()
            if len(queue) > 1:
                yield [future.result() for future in queue.popleft()]
        for futures in queue:
            yield [future.result() for future in futures]
