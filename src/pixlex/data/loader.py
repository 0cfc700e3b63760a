"""A source of images -> batches, in an order that is a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pixlex.batch import ImageBatch, Skipped
from pixlex.config.data import Cut, DataConfig
from pixlex.data.decoding import UnreadableImage, decode_record
from pixlex.data.order import TrainingOrder
from pixlex.data.shards import Prefetch
from pixlex.data.sources import BrokenImages, ImageSource, TooManyBroken
from pixlex.data.transforms import evaluation_crop, float_images, minimum_decoded_side, training_crop

__all__ = ["BrokenImages", "TooManyBroken", "evaluation_batches", "training_batches"]

# How many images in a row may be unreadable before the search for a replacement is given up.
_MAX_REPLACEMENTS = 1000


def training_batches(
    source: ImageSource,
    *,
    config: DataConfig,
    image_size: int,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    together: int = 1,
    cut: Cut = "center",
) -> Iterator[ImageBatch]:
    """Return this process's share of an endless stream of training batches, starting at a step.

    Each epoch is a permutation drawn from (seed, epoch); the permutations follow each other without a
    gap and are cut into global batches, of which rank r gets the rows [r * b, (r + 1) * b). `TrainingOrder` says
    what `shuffle_blocks` and `streams` of the configuration do to it. An image is augmented by a generator seeded
    with (seed, epoch, index). So batch `step` is the same for any number of workers, and whether or not the
    steps before it were read.

    An image that cannot be read is replaced by the next readable one and named in `skipped`. Where several images
    belong together, all of this holds of their groups: they come in order, and one broken image replaces them all.

    Args:
        source: where the images come from.
        config: how they are cut, and by how many worker processes.
        image_size: side of the images, in pixels.
        batch_size: images, or groups of them, in a batch over all processes.
        seed: 0 or more.
        first_step: the first step to return, 0 or more.
        rank: number of this process, in [0, world_size).
        world_size: number of processes.
        together: so many images that follow each other in the source are one group.
        cut: how images become square (see `evaluation_transform`).

    Raises:
        ValueError: if the batch does not divide by processes or streams, the source by the groups, a number is out
            of range, or blocks are to be shuffled where there are none.
        TooManyBroken: while reading, if 1000 images in a row, or all, cannot be read.
        Unreachable: while reading, if a shard or table at an address cannot be had.
    """
    num_groups = _check(source, image_size, batch_size, rank, world_size, together)
    if seed < 0 or first_step < 0:
        raise ValueError(f"seed and first_step must be 0 or more, got {seed} and {first_step}")
    order = TrainingOrder(
        num_groups, batch_size, seed, first_step, rank, world_size,
        blocks=_blocks(source, together) if config.shuffle_blocks else (),
        window=config.shuffle_blocks, streams=config.streams,
    )  # fmt: skip
    images = _TrainingImages(source, config, image_size, seed, together, cut)
    return _load(images, order, config.workers)


def evaluation_batches(
    source: ImageSource,
    *,
    image_size: int,
    batch_size: int,
    limit: int | None = None,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    together: int = 1,
    cut: Cut = "center",
) -> Iterator[ImageBatch]:
    """Return this process's share of one pass over the images: each readable image exactly once, in order.

    Rank r gets every world_size-th batch from the r-th on, so that a batch is the same on any number of
    processes, and ranks may differ by one batch; nothing is repeated to fill up. An image that cannot be read is
    left out and named in `skipped` of its batch. A batch without a readable image is left out too and what it
    skipped is named in a neighboring one; with several processes it comes empty, so that every batch keeps its
    turn (see `distributed.in_turn`). Where several images belong together, all of this holds of their groups.

    Args:
        source: where the images come from.
        image_size: side of the images, in pixels.
        batch_size: most images, or groups of them, in a batch of this process.
        limit: if given, take this many images or groups, evenly spaced over the source.
        workers: processes that decode; 0 decodes in this one.
        rank: number of this process, in [0, world_size).
        world_size: number of processes.
        together: so many images that follow each other in the source are one group.
        cut: how images become square (see `evaluation_transform`).

    Raises:
        ValueError: if a number is out of range, or the source does not divide by the groups.
        TooManyBroken: while reading, if none of the images can be read; not with several processes, for which it
            is to be found out from what all of them skipped.
        Unreachable: while reading, if a shard or table at an address cannot be had.
    """
    total = _check(source, image_size, batch_size, rank, world_size, together)
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be 1 or more, or None for all images, got {limit}")
    count = total if limit is None else min(limit, total)
    indices = [number * total // count for number in range(count)]
    order = _EvaluationOrder(indices, batch_size, rank, world_size)
    batches = _load(_EvaluationImages(source, image_size, together, cut), order, workers)
    return batches if world_size > 1 else _without_empty_batches(batches, source.name)


@dataclass(frozen=True)
class _Row:
    """One image on its way into a batch; None where it could not be read and was not replaced."""

    image: UInt8[Tensor, "3 H W"] | None
    label: int
    key: str
    index: int
    skipped: tuple[Skipped, ...]
    epoch: int = 0


@dataclass(frozen=True)
class _TrainingImages(Dataset[list[_Row]]):
    """Groups of augmented images by (epoch, group)."""

    source: ImageSource
    config: DataConfig
    image_size: int
    seed: int
    together: int
    cut: Cut

    def __getitem__(self, item: tuple[int, int]) -> list[_Row]:
        epoch, group = item
        num_groups = len(self.source) // self.together
        skipped: list[Skipped] = []
        for candidate in range(group, group + min(num_groups, _MAX_REPLACEMENTS)):
            try:
                rows = [
                    self._row(candidate % num_groups, place, (epoch, group)) for place in range(self.together)
                ]
            except UnreadableImage as fault:
                skipped.append(Skipped(fault.key, fault.reason))
                continue
            return [replace(rows[0], skipped=tuple(skipped)), *rows[1:]]
        raise TooManyBroken(
            f"{self.source.name}: {len(skipped)} images in a row cannot be read, from "
            f"{skipped[0].key} ({skipped[0].reason}) to {skipped[-1].key} ({skipped[-1].reason})"
        )

    def _row(self, group: int, place: int, asked: tuple[int, int]) -> _Row:
        position = group * self.together + place
        record = self.source.read(position)
        image = decode_record(record, minimum_side=minimum_decoded_side(self.image_size, self.config))
        # The image that was asked for decides, so that a replacement is cut unlike the image itself.
        epoch, wanted = asked
        generator = np.random.default_rng((self.seed, epoch, wanted * self.together + place))
        pixels = training_crop(image, self.image_size, self.config, generator, self.cut)
        return _Row(pixels, record.label, record.key, position, (), epoch)


@dataclass(frozen=True)
class _EvaluationImages(Dataset[list[_Row]]):
    """Groups of images by number; none of a group where one of it cannot be read."""

    source: ImageSource
    image_size: int
    together: int
    cut: Cut

    def __getitem__(self, group: int) -> list[_Row]:
        rows = []
        for index in range(group * self.together, (group + 1) * self.together):
            try:
                record = self.source.read(index)
                pixels = evaluation_crop(decode_record(record), self.image_size, self.cut)
            except UnreadableImage as fault:
                return [_Row(None, -1, fault.key, index, (Skipped(fault.key, fault.reason),))]
            rows.append(_Row(pixels, record.label, record.key, index, ()))
        return rows


@dataclass(frozen=True)
class _EvaluationOrder(Sampler[list[int]]):
    """The given indices, cut into batches, of which each process gets every world_size-th."""

    indices: Sequence[int]
    batch_size: int
    rank: int
    world_size: int

    def __iter__(self) -> Iterator[list[int]]:
        step = self.batch_size * self.world_size
        for first in range(self.rank * self.batch_size, len(self.indices), step):
            yield list(self.indices[first : first + self.batch_size])


def _load(
    images: _TrainingImages | _EvaluationImages, order: Sampler[Any], workers: int
) -> Iterator[ImageBatch]:
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        # Its own generator: DataLoader would take a number from PyTorch's global one.
        generator=torch.Generator(),
    )
    batches = iter(loader)  # worker processes begin before the thread does
    with Prefetch(images.source, _images_of(order, images.together)) as prefetch:
        try:
            for stack in batches:
                yield stack.batch()
                prefetch.batch_done()
        except ValueError as fault:
            # PyTorch puts the traceback of a worker process in front of what was said.
            _, name, said = str(fault).rpartition(f"{type(fault).__name__}: ")
            if not name or not str(fault).startswith("Caught "):
                raise
            raise type(fault)(said.strip()) from fault


def _images_of(order: Sampler[Any], together: int) -> Iterator[list[int]]:
    """Yield the images of each batch."""
    for batch in order:
        groups = (item[1] if isinstance(item, tuple) else item for item in batch)
        yield [group * together + place for group in groups for place in range(together)]


@dataclass(frozen=True)
class _Stack:
    """A batch as a worker process sends it: one tensor, of bytes, and lists."""

    pixels: UInt8[Tensor, "B 3 H W"]
    labels: list[int]
    keys: tuple[str, ...]
    indices: list[int]
    epochs: list[int]
    skipped: tuple[Skipped, ...]

    def batch(self) -> ImageBatch:
        """Return the batch, its pixels converted to float once."""
        return ImageBatch(
            images=float_images(self.pixels),
            labels=torch.tensor(self.labels, dtype=torch.int64),
            keys=self.keys,
            indices=torch.tensor(self.indices, dtype=torch.int64),
            epochs=torch.tensor(self.epochs, dtype=torch.int64),
            skipped=self.skipped,
        )


def _collate(groups: Sequence[Sequence[_Row]]) -> _Stack:
    rows = [row for group in groups for row in group]
    readable = [row for row in rows if row.image is not None]
    images = [row.image for row in readable if row.image is not None]
    return _Stack(
        pixels=torch.stack(images) if images else torch.empty(0, 3, 1, 1, dtype=torch.uint8),
        labels=[row.label for row in readable],
        keys=tuple(row.key for row in readable),
        indices=[row.index for row in readable],
        epochs=[row.epoch for row in readable],
        skipped=tuple(skipped for row in rows for skipped in row.skipped),
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


def _blocks(source: ImageSource, together: int) -> tuple[int, ...]:
    """Return the sizes of the stretches of a source that lie together in a file."""
    blocks: tuple[int, ...] = getattr(source, "blocks", ()) if together == 1 else ()
    if not blocks:
        raise ValueError(
            f"{source.name}: expected tar shards or Parquet files to shuffle by blocks, images in the order in "
            "which they lie there, and items of one image each; set data.shuffle_blocks to 0"
        )
    return blocks


def _check(
    source: ImageSource, image_size: int, batch_size: int, rank: int, world_size: int, together: int
) -> int:
    """Return the number of groups; raise `ValueError` naming the number that is out of range."""
    if len(source) < 1:
        raise ValueError(f"{source.name} has no images")
    for name, value in (
        ("image_size", image_size), ("batch_size", batch_size), ("world_size", world_size),
        ("together", together),
    ):  # fmt: skip
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in [0, world_size), got rank {rank} and world_size {world_size}")
    if len(source) % together:
        raise ValueError(f"{source.name}: expected groups of {together} images, got {len(source)} images")
    return len(source) // together
