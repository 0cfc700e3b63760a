"""Images of a source into an index: what is new or changed is embedded, what is gone is dropped."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from pixlex.batch import SKIPPED_FILE, BrokenImages, Skipped
from pixlex.config.cbvila import CBViLAConfig
from pixlex.data.decoding import ImageRecord, decode_record, evaluation_transform
from pixlex.data.folders import FileSource
from pixlex.data.loader import prefetch
from pixlex.data.sources import ImageSource
from pixlex.nn.nearest import NotFinite
from pixlex.progress import bar_or_lines
from pixlex.search.store import Entry, Store, is_url

# Rows are written when there are so many, or so many seconds after the last: what a kill may cost.
_ROWS_AT_ONCE = 8192
_SECONDS = 20.0

# Nanoseconds within which a file may be written again without a later time; its bytes are compared once more.
_COARSE = 2_000_000_000

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


def update_store(
    store: Store,
    source: ImageSource,
    embed: Embed,
    *,
    config: CBViLAConfig,
    batch_size: int,
    max_broken_fraction: float,
    progress: bool,
) -> UpdateResult:
    """Bring an index, opened for writing, up to date with a source; see `ImageIndex.update`.

    Args:
        embed: maps images, pixels in [0, 1], to vectors of length 1 on the CPU.
        config: of the model, which says how images are cut.
    """
    folder = None if is_url(store.path) else Path(store.path)
    if folder is not None:
        (folder / SKIPPED_FILE).unlink(missing_ok=True)  # all that is broken is tried, and listed, anew
    broken = BrokenImages(folder, source, max_broken_fraction)
    now = _Pass(store, source, embed, config)
    passed = len(source) - len(now.left)
    broken.record((), passed)
    bar = bar_or_lines(
        total=len(source), initial=passed, unit=" images", desc="index", disable=not progress, smoothing=0.05
    )
    with bar, now:
        for batch in prefetch(source, list(now.left), batch_size, now.prepare):
            skipped = [one for one in batch if isinstance(one, Skipped)]
            now.take([one for one in batch if not isinstance(one, Skipped)])
            now.drop([one.key for one in skipped if one.key in now.known])
            now.skipped += skipped
            now.write_if_due()
            bar.update(len(batch))
            broken.record(skipped, len(batch) - len(skipped))
        now.drop(sorted(now.known.keys() - now.numbers.keys()))  # last: files may have got other names
    store.tidy(now.void)
    return UpdateResult(
        len(store), now.embedded, now.copied, now.unchanged, now.removed,
        len(source) - len(now.numbers), tuple(now.skipped),
    )  # fmt: skip


class _Pass:
    """One pass over a source: what must be read, what is written next, and counts."""

    def __init__(self, store: Store, source: ImageSource, embed: Embed, config: CBViLAConfig) -> None:
        self.store, self.source, self.embed, self.config = store, source, embed, config
        self.known = {entry.key: entry for entry in store.entries()}
        self.numbers: dict[str, int] = {}  # of several images of one key the first counts
        for index in range(len(source)):
            self.numbers.setdefault(source.key(index), index)
        self.stamps = {key: _stamp(source, key) for key in self.numbers}
        self.left = [index for key, index in self.numbers.items() if not self._is_unchanged(key)]
        self.embedded, self.copied, self.unchanged = 0, 0, len(self.numbers) - len(self.left)
        self.removed = self.void = 0
        self.skipped: list[Skipped] = []
        self._digests = {entry.digest for entry in self.known.values()}
        self._empty()

    def _empty(self) -> None:
        self._entries: list[Entry] = []
        self._vectors: list[Float32[np.ndarray, " e"]] = []
        self._dropped: list[str] = []
        self._since = time.monotonic()

    def _is_unchanged(self, key: str) -> bool:
        """Whether a file has kept size and time, and they can be trusted."""
        before, stamp = self.known.get(key), self.stamps[key]
        return before is not None and stamp == (before.size, before.modified) and before.modified >= 0

    def prepare(self, index: int, record: ImageRecord) -> tuple[Entry, Float[Tensor, "3 H W"] | None]:
        """Return an image cut to size, or without pixels where its bytes are known; called in threads."""
        digest = digest_of(record)
        data = record.data
        stored = data.nbytes if isinstance(data, np.ndarray) else len(data)
        size, modified = self.stamps[record.key] or (stored, -1)
        entry = Entry(record.key, size, modified, digest)
        return entry, None if digest in self._digests else self._pixels(record)

    def _pixels(self, record: ImageRecord) -> Float[Tensor, "3 H W"]:
        return evaluation_transform(decode_record(record), self.config.image_size, self.config.resize_mode)

    def take(self, batch: Sequence[tuple[Entry, Float[Tensor, "3 H W"] | None]]) -> None:
        """Embed what must be embedded; of the rest write down what has changed, its key or the time of its file.

        Raises:
            NotFinite: the model gives vectors that are not finite.
        """
        new = [(entry, pixels) for entry, pixels in batch if pixels is not None]
        seen = [entry for entry, pixels in batch if pixels is None]
        vectors = self.store.vectors([entry.digest for entry in seen if self.known.get(entry.key) != entry])
        for entry in seen:
            before = self.known.get(entry.key)
            same = before is not None and before.digest == entry.digest
            if before == entry:
                self.unchanged += 1
            elif entry.digest in vectors:
                self.unchanged, self.copied = self.unchanged + same, self.copied + (not same)
                self._put(entry, vectors[entry.digest])
            else:  # the one that had these bytes has got others meanwhile
                new.append((entry, self._pixels(self.source.read(self.numbers[entry.key]))))
        if new:
            try:
                found = self.embed(torch.stack([pixels for _, pixels in new])).numpy()
            except NotFinite as fault:
                raise NotFinite(f"{new[fault.row or 0][0].key}: {fault}", fault.row) from fault
            for (entry, _), vector in zip(new, found, strict=True):
                self._put(entry, vector)
            self.embedded += len(new)

    def _put(self, entry: Entry, vector: Float32[np.ndarray, " e"]) -> None:
        self.void += entry.key in self.known
        self._entries.append(entry)
        self._vectors.append(vector)

    def drop(self, keys: Sequence[str]) -> None:
        """Remove images that are gone, or can no longer be read."""
        self._dropped += keys
        self.removed += len(keys)
        self.void += len(keys)

    def write_if_due(self) -> None:
        """Write what there is, now and then."""
        if len(self._entries) >= _ROWS_AT_ONCE or time.monotonic() - self._since >= _SECONDS:
            self._write()

    def _write(self) -> None:
        entries, vectors, dropped = self._entries, self._vectors, self._dropped
        self._empty()
        if entries or dropped:
            matrix = np.stack(vectors) if vectors else np.empty((0, self.store.head.width), np.float32)
            self.store.change(entries, matrix, dropped)

    def __enter__(self) -> _Pass:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write what is left, however the pass ends, except by a full disk, which takes no more."""
        if kind is None or not issubclass(kind, OSError):
            self._write()


def _stamp(source: ImageSource, key: str) -> tuple[int, int] | None:
    """Return size and time of an image's file, -1 where it is too new; None where it has no file of its own."""
    if not isinstance(source, FileSource):
        return None
    try:
        state = (source.root / key).stat()
    except (OSError, ValueError):
        return None
    settled = state.st_mtime_ns < time.time_ns() - _COARSE
    return state.st_size, state.st_mtime_ns if settled else -1


def digest_of(record: ImageRecord) -> bytes:
    """Return the SHA-256 of an image as it is stored."""
    data = record.data
    stored = f"{data.shape}".encode() + data.tobytes() if isinstance(data, np.ndarray) else data
    return hashlib.sha256(stored).digest()
