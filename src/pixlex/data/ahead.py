"""Images of a source read and prepared in threads, a batch ahead of who works on them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pixlex.batch import Skipped
from pixlex.data.decoding import ImageRecord, UnreadableImage, decoding_bytes
from pixlex.data.shards import Prefetch
from pixlex.data.sources import ImageSource

# Pillow decodes without holding Python's lock; more threads than this only wait for the disk.
_MOST_DECODERS = 8

# What the images that are read and not yet prepared may take together; one that takes more is prepared alone.
MAX_BYTES = 1 << 30

T = TypeVar("T")


class _BytesInFlight:
    """Lets images wait until there is memory for them."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._limit)
            self._used += size

    def give_back(self, size: int) -> None:
        with self._changed:
            self._used -= size
            self._changed.notify_all()


def prepared_batches(
    source: ImageSource,
    indices: Sequence[int],
    batch_size: int,
    prepare: Callable[[int, ImageRecord], T],
) -> Iterator[list[T | Skipped]]:
    """Yield what `prepare` makes of images, in order; the next batch is prepared while this one is in use.

    Decoding takes bounded memory, however large the images are: see `MAX_BYTES`.

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
    memory = _BytesInFlight(MAX_BYTES)
    with Prefetch(source, batches()) as prefetch, ThreadPoolExecutor(threads) as pool:

        def submit(index: int) -> Future[T | Skipped]:
            # Read here and decoded there: sources are not made for threads.
            record = _read(source, index)
            size = 0 if isinstance(record, Skipped) else decoding_bytes(record)
            memory.take(size)
            future = pool.submit(_prepared, prepare, index, record)
            future.add_done_callback(lambda _: memory.give_back(size))
            return future

        for batch in batches():
            waiting.append([submit(index) for index in batch])
            prefetch.batch_done()
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
