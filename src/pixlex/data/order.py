"""In which order training shows images: a function of seed and step, whatever was read before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Sampler

# Sets the generator of an epoch's order apart from those of its images: NumPy gives the seeds
# (seed, epoch) and (seed, epoch, 0) the same numbers.
_ORDER = 1 << 63


@dataclass(frozen=True)
class TrainingOrder(Sampler[list[tuple[int, int]]]):
    """The (epoch, group) pairs of one process's part of each global batch, without end.

    An epoch shows every group once, in an order drawn from (seed, epoch). Where groups lie in blocks (shards, row
    groups) that are dear to open, blocks come in random order and so many of them are mixed at a time: whoever
    reads goes through few blocks at once, forward, and opens each once an epoch, or twice where a window ends
    inside it. Worker processes take whole batches in turn, so each of them opens the blocks of a window: no matter
    with shards, of which single images are read, but row groups of Parquet are read by each worker.

    With several streams an epoch is cut into as many stretches of one length, and a batch takes as many groups
    from each: row r of the batch belongs to stream r // (batch_size / streams). Processes that divide the streams
    read different blocks, and the batch is the same for any number of them. Groups that are left over when they
    are dealt to streams, fewer than there are streams, are left out of an epoch, others each time.

    Args:
        num_groups: images, or groups of them that come together.
        batch_size: groups in a batch over all processes; a multiple of processes and streams.
        seed: 0 or more.
        first_step: the first step to return.
        rank: number of this process.
        world_size: number of processes.
        blocks: groups in each block, in order; needed for a window.
        window: blocks mixed at a time; 0 mixes all groups.
        streams: see above.

    Raises:
        ValueError: a batch that cannot be divided, or a window without blocks.
    """

    num_groups: int
    batch_size: int
    seed: int
    first_step: int = 0
    rank: int = 0
    world_size: int = 1
    blocks: tuple[int, ...] = ()
    window: int = 0
    streams: int = 1

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the numbers that do not fit."""
        if self.batch_size % self.world_size:
            raise ValueError(
                f"the batch must divide evenly over the processes, got batch_size {self.batch_size} and "
                f"world_size {self.world_size}"
            )
        if self.batch_size % self.streams or self.streams > self.num_groups:
            raise ValueError(
                f"the batch must be a multiple of the streams, and the images as many or more, got batch_size "
                f"{self.batch_size}, {self.num_groups} images and {self.streams} streams"
            )
        if self.window and sum(self.blocks) != self.num_groups:
            raise ValueError(
                f"expected blocks of {self.num_groups} images in all to shuffle by, got {sum(self.blocks)}"
            )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # Two epochs: a batch may lie across the border between them.
        order = lru_cache(maxsize=2)(self.epoch)
        own, each = self.batch_size // self.world_size, self.batch_size // self.streams
        length, step = self.num_groups // self.streams, self.first_step
        while True:
            batch = []
            for row in range(self.rank * own, (self.rank + 1) * own):
                stream, place = divmod(row, each)
                epoch, at = divmod(step * each + place, length)
                batch.append((epoch, int(order(epoch)[stream * length + at])))
            yield batch
            step += 1

    def epoch(self, number: int) -> Int64[np.ndarray, " groups"]:
        """Return the order of an epoch: all groups, those of the first stream first."""
        generator = np.random.default_rng((self.seed, number, _ORDER))
        if not self.window:
            return generator.permutation(self.num_groups)
        sizes = np.array(self.blocks, dtype=np.int64)
        drawn = generator.permutation(len(sizes))
        # Where a block starts, less where it comes to lie: added to the places, it gives the groups.
        moved = (np.cumsum(sizes) - sizes)[drawn] - (np.cumsum(sizes[drawn]) - sizes[drawn])
        order = np.repeat(moved, sizes[drawn]) + np.arange(self.num_groups)
        length, mixed = self.num_groups // self.streams, max(1, round(self.window * sizes.mean()))
        for first in range(0, length * self.streams, length):
            for start in range(first, first + length, mixed):
                generator.shuffle(order[start : min(start + mixed, first + length)])
        return order
