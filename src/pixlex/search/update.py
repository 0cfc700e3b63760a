"""Images of a source into an index: what is new or changed is embedded, what is gone is dropped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from pixlex.batch import NotFinite, Skipped
from pixlex.config.cbvila import CBViLAConfig
from pixlex.data.decoding import ImageRecord, decode_record
from pixlex.data.loader import prefetch
from pixlex.data.sources import SKIPPED_FILE, BrokenImages, ImageSource
from pixlex.progress import bar_or_lines
from pixlex.search.changes import Candidate, Changes, Stamp, compare, digest_of, size_of
from pixlex.search.parts import Entry
from pixlex.search.queries import square
from pixlex.search.store import Store

# A part is written when it has so many rows, or when so many seconds have passed since the last: what a kill
# may cost.
_ROWS_A_PART = 8192
_SECONDS_A_PART = 20.0

Embed = Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B e"]]


@dataclass(frozen=True)
class UpdateResult:
    """What `ImageIndex.update` did.

    Attributes:
        num_images: images in the index now.
        num_embedded: images that the model looked at.
        num_copied: images whose stored bytes the index knew already, such as renamed files.
        num_unchanged: images that were in the index and have stayed as they were.
        num_removed: images dropped because they are gone, or have changed and cannot be read.
        num_repeated: images left out because an earlier one of the source has the same key.
        skipped: images that could not be read; listed in INDEX/skipped.jsonl, tried again by the next update.
    """

    num_images: int
    num_embedded: int
    num_copied: int
    num_unchanged: int
    num_removed: int
    num_repeated: int
    skipped: tuple[Skipped, ...]


@dataclass
class _Pending:
    """Rows on their way into the next part; what is there is written when the pass ends, however it ends."""

    store: Store
    entries: list[Entry] = field(default_factory=list)
    vectors: list[Float32[np.ndarray, " e"]] = field(default_factory=list)
    replaces: list[int] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)

    def add(self, entry: Entry, vector: Float32[np.ndarray, " e"], before: Entry | None) -> None:
        self.entries.append(entry)
        self.vectors.append(vector)
        if before is not None:
            self.replaces.append(before.row)

    def write_if_due(self) -> None:
        if len(self.entries) >= _ROWS_A_PART or time.monotonic() - self._since >= _SECONDS_A_PART:
            self.write()

    def write(self) -> None:
        if self.entries or self.replaces:
            vectors = np.stack(self.vectors) if self.vectors else np.empty((0, self.store.width), np.float32)
            self.store.append(self.entries, vectors, self.replaces)
        self.entries, self.vectors, self.replaces = [], [], []
        self._since = time.monotonic()

    def __enter__(self) -> _Pending:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(fault, OSError):  # a full disk takes no more
            self.write()


@dataclass(frozen=True)
class _Prepared:
    """An image that was read.

    Attributes:
        candidate: which.
        entry: what is known of it now; no row yet.
        pixels: in [0, 1], ready for the model; None where its bytes are known.
    """

    candidate: Candidate
    entry: Entry
    pixels: Float[Tensor, "3 H W"] | None


def update_store(
    store: Store,
    source: ImageSource,
    embed: Embed,
    *,
    config: CBViLAConfig,
    batch_size: int,
    max_broken_share: float,
    progress: bool,
) -> UpdateResult:
    """Bring an index up to date with a source; see `ImageIndex.update`.

    Args:
        store: the index, held for writing.
        source: the images.
        embed: maps images, pixels in [0, 1], to vectors of length 1 on the CPU.
        config: of the model, which says how images are cut.
        batch_size: images at a time.
        max_broken_share: share of broken images, in [0, 1], above which the pass stops.
        progress: show a bar.
    """
    store.drop_void()
    listed = store.folder.parent
    (listed / SKIPPED_FILE).unlink(missing_ok=True)  # all that is broken is tried, and listed, anew
    broken = BrokenImages(listed, source, max_broken_share)
    changes = compare(source, store.entries())
    if changes.gone:
        store.append([], np.empty((0, store.width), np.float32), changes.gone)
    passed = len(source) - len(changes.candidates)
    broken.record((), passed)
    bar = bar_or_lines(
        total=len(source), initial=passed, unit=" images", desc="index", disable=not progress, smoothing=0.05
    )
    with _Pending(store) as pending, bar:
        one = _Pass(store, changes, embed, pending)
        candidates = {candidate.index: candidate for candidate in changes.candidates}

        def prepare(index: int, record: ImageRecord) -> _Prepared:
            return one.prepare(candidates[index], record, config)

        for batch in prefetch(source, list(candidates), batch_size, prepare):
            skipped = tuple(item for item in batch if isinstance(item, Skipped))
            one.take([item for item in batch if isinstance(item, _Prepared)])
            one.drop(skipped)
            pending.write_if_due()
            bar.update(len(batch))
            broken.record(skipped, len(batch) - len(skipped))
    if store.wasteful:
        store.rewrite()
    return UpdateResult(
        len(store), one.embedded, one.copied, one.unchanged, one.removed, changes.num_repeated,
        tuple(one.skipped),
    )  # fmt: skip


class _Pass:
    """One pass over a source.

    Args:
        store: the index.
        changes: what may have to be embedded.
        embed: see `update_store`.
        pending: where rows go.
    """

    def __init__(self, store: Store, changes: Changes, embed: Embed, pending: _Pending) -> None:
        self.store, self.changes, self.embed, self.pending = store, changes, embed, pending
        self.embedded, self.copied = 0, 0
        self.unchanged, self.removed = changes.num_unchanged, changes.num_gone
        self.skipped: list[Skipped] = []
        # Those of images that are gone as well: a renamed file is both.
        self._rows = {entry.digest: entry.row for entry in changes.known.values()}

    def prepare(self, candidate: Candidate, record: ImageRecord, config: CBViLAConfig) -> _Prepared:
        """Return an image cut to size, or without pixels where its bytes are known; called in threads."""
        digest = digest_of(record)
        stamp = candidate.stamp or Stamp(size_of(record), -1)
        entry = Entry(0, record.key, stamp.size, stamp.modified, digest)
        if digest in self._rows:
            return _Prepared(candidate, entry, None)
        return _Prepared(candidate, entry, square(decode_record(record), config))

    def take(self, batch: Sequence[_Prepared]) -> None:
        """Embed what must be embedded; keep the rest as it is.

        Raises:
            NotFinite: the model gives vectors that are not finite.
        """
        new = [(one, one.pixels) for one in batch if one.pixels is not None]
        if new:
            try:
                vectors = self.embed(torch.stack([pixels for _, pixels in new])).numpy()
            except NotFinite as fault:
                raise NotFinite(f"{new[fault.row or 0][0].entry.key}: {fault}", fault.row) from fault
            for (one, _), vector in zip(new, vectors, strict=True):
                self.pending.add(one.entry, vector, one.candidate.before)
            self.embedded += len(new)
        for one in batch:
            if one.pixels is None:
                self._keep(one)

    def _keep(self, one: _Prepared) -> None:
        """Write down what has changed of an image whose bytes are known: its key, or the time of its file."""
        before = one.candidate.before
        if before is not None and before.digest == one.entry.digest:
            self.unchanged += 1
        else:
            self.copied += 1
        if before is None or replace(before, row=0) != one.entry:
            self.pending.add(one.entry, self.store.vector(self._rows[one.entry.digest]), before)

    def drop(self, skipped: Sequence[Skipped]) -> None:
        """Void the rows of images that can no longer be read."""
        self.skipped += skipped
        for one in skipped:
            before = self.changes.known.get(one.key)
            if before is not None:
                self.pending.replaces.append(before.row)
                self.removed += 1
