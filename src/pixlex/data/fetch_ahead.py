"""Shards at addresses, fetched in a thread before their images are wanted."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from pixlex import distributed
from pixlex.data.chosen import ChosenImages
from pixlex.data.fetched import FetchedFile, cache_bytes
from pixlex.data.shards import TarSource
from pixlex.data.sources import ImageSource

# Batches that are looked ahead for shards: enough for a shard to arrive, and soon looked through.
_MOST_BATCHES = 1000


@contextmanager
def fetched_ahead(source: ImageSource, batches: Iterable[Sequence[int]]) -> Iterator[ShardsAhead | None]:
    """Fetch the shards of batches to come while the block runs; None where the source has none to fetch.

    Args:
        source: the images.
        batches: which images each batch holds, in the order in which they will be wanted.
    """
    if not _is_fetched(source):
        yield None
        return
    ahead = ShardsAhead(source, batches)
    # A daemon: what it is fetching when the process ends is gone on with by the next one.
    threading.Thread(target=ahead.run, name="shards ahead", daemon=True).start()
    try:
        yield ahead
    finally:
        ahead.stop()


class ShardsAhead:
    """Goes through batches in a thread, and fetches a shard as soon as it and those wanted before it fit.

    They fit into half of what is kept on the machine, which the processes of the machine divide among them.

    Args:
        source: the images.
        batches: which images each batch holds.
    """

    def __init__(self, source: ImageSource, batches: Iterable[Sequence[int]]) -> None:
        self._source = source
        self._batches = batches
        self._limit = cache_bytes() // 2 // distributed.num_on_this_machine()
        self._changed = threading.Condition()
        self._done = 0
        self._stopped = False
        self._last: dict[FetchedFile, int] = {}  # the last batch, of those looked at, that wants a shard

    def batch_done(self) -> None:
        """Say that a batch was handed over."""
        with self._changed:
            self._done += 1
            self._changed.notify()

    def stop(self) -> None:
        """Fetch nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def run(self) -> None:
        """Fetch until the batches end or `stop` is called."""
        for number, batch in enumerate(self._batches):
            for shard in dict.fromkeys(_shard_of(self._source, index) for index in batch):
                if shard is None:
                    continue
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or self._fits(shard, number))  # noqa: B023
                    if self._stopped:
                        return
                    known = shard in self._last
                    self._last[shard] = number
                    late = number < self._done
                if not known and not late:
                    _fetch(shard)

    def _fits(self, shard: FetchedFile, number: int) -> bool:
        self._last = {kept: last for kept, last in self._last.items() if last >= self._done}
        taken = sum(kept.state.size or 0 for kept in self._last)
        return number < self._done + _MOST_BATCHES and (
            not taken or shard in self._last or taken + (shard.state.size or 0) <= self._limit
        )


def _fetch(shard: FetchedFile) -> None:
    try:
        shard.open().close()
    except ValueError:  # said when the shard is wanted, if it cannot be had then either
        return


def _is_fetched(source: ImageSource) -> bool:
    if isinstance(source, ChosenImages):
        return any(_is_fetched(part) for part in source.parts)
    return isinstance(source, TarSource) and any(isinstance(shard, FetchedFile) for shard in source.shards)


def _shard_of(source: ImageSource, index: int) -> FetchedFile | None:
    """Return the file to fetch for an image, if there is one."""
    if isinstance(source, ChosenImages):
        return _shard_of(*source.place(index))
    shard = source.shard_of(index) if isinstance(source, TarSource) else None
    return shard if isinstance(shard, FetchedFile) else None
