"""Images of a source read and prepared in threads, a batch ahead of who works on them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pixlex.batch import Skipped
from pixlex.data.decoding import ImageRecord, UnreadableImage
from pixlex.data.fetch_ahead import fetched_ahead
from pixlex.data.sources import ImageSource

# Pillow decodes without holding Python's lock; more threads than this only wait for the disk.
_MOST_DECODERS = 8

T = TypeVar("T")


def prepared_batches(
    source: ImageSource,
    indices: Sequence[int],
    batch_size: int,
    prepare: Callable[[int, ImageRecord], T],
) -> Iterator[list[T | Skipped]]:
    """Yield what `prepare` makes of images, in order; the next batch is prepared while this one is in use.

    Args:
        source: the images.
        indices: which of them, in which order.
        batch_size: images in a batch, 1 or more.
        prepare: called in threads with the index and the record of an image; `UnreadableImage` that it raises
            becomes a `Skipped`, as where the image cannot be fetched.
    """
    waiting: deque[list[Future[T | Skipped]]] = deque()

    def batches() -> Iterator[Sequence[int]]:
        return (indices[first : first + batch_size] for first in range(0, len(indices), batch_size))

    threads = min(_MOST_DECODERS, os.cpu_count() or 1)
    with fetched_ahead(source, batches()) as ahead, ThreadPoolExecutor(threads) as pool:
        for batch in batches():
            # Read here and decoded there: sources are not made for threads.
            chunk = [(index, _read(source, index)) for index in batch]
            if ahead is not None:
                ahead.batch_done()
            waiting.append([pool.submit(_prepared, prepare, index, record) for index, record in chunk])
            if len(waiting) > 1:
                yield [future.result() for future in waiting.popleft()]
        for futures in waiting:
            yield [future.result() for future in futures]


def _read(source: ImageSource, index: int) -> ImageRecord | Skipped:
    try:
        return source.read(index)
    except UnreadableImage as fault:
        return Skipped(fault.key, fault.reason)


def _prepared(
    prepare: Callable[[int, ImageRecord], T], index: int, record: ImageRecord | Skipped
) -> T | Skipped:
    if isinstance(record, Skipped):
        return record
    try:
        return prepare(index, record)
    except UnreadableImage as fault:
        return Skipped(fault.key, fault.reason)
