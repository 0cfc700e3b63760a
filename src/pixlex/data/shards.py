"""Images in WebDataset shards: .tar files in which files with one basename make one sample."""

from __future__ import annotations

import bisect
import hashlib
import io
import itertools
import json
import random
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from pixlex import distributed
from pixlex.data.decoding import IMAGE_EXTENSIONS, ImageRecord, UnreadableImage
from pixlex.data.labels import Labeled, Labels, RowLabel, resolve_labels
from pixlex.data.remote import (
    SIZE_VARIABLE,
    AnyPath,
    CachedFile,
    FileState,
    RemotePath,
    cache_bytes,
)  # fmt: skip
from pixlex.data.sources import ImageSource, ImageSubset, PassedOver, fingerprint, names_within, place_of
from pixlex.data.tar import scan_shard
from pixlex.files import cache_folder, open_regular, read_regular, write_atomically
from pixlex.progress import bar_or_lines

Shard = Path | CachedFile

# Remote shards that are downloaded and read at a time when a source is opened.
_AT_A_TIME = 8
# A file that was written so recently may be written again without a later time of change.
_SETTLED_SECONDS = 2.0
# Goes up where an index of before would be read wrongly.
_FORM = 3
# Of the SHA-256 in front of an index.
_CHECKSUM_BYTES = 32
# Batches that `Prefetch` looks ahead: enough for a shard to arrive, and soon looked through.
_MOST_BATCHES = 1000


@dataclass(frozen=True, eq=False)
class TarSource(Labeled):
    """Images inside uncompressed tar files, read by their position.

    Keys begin with `shard_names`. `rows` have the name of each image's file, as bytes, where its content begins in
    the shard, and its size; `firsts` the number of each shard's first image, and behind them that of all images.
    """

    name: str
    shards: tuple[Shard, ...]
    shard_names: tuple[str, ...]
    rows: pa.Table
    firsts: tuple[int, ...]
    labels: Labels
    ignored: tuple[PassedOver, ...] = ()
    captions: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return self.firsts[-1]

    @cached_property
    def identity(self) -> str:
        """A fingerprint of the keys, the sizes of the images, labels and class names."""
        parts = (self.rows.slice(first, end - first) for first, end in itertools.pairwise(self.firsts))
        keys = (
            f"{self._key(shard, file)}:{size}"
            for shard, rows in enumerate(parts)
            for file, size in zip(rows["file"].to_pylist(), rows["size"].to_pylist(), strict=True)
        )
        return fingerprint("tar", keys, self.labels)

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """The number of images in each shard that has some."""
        return tuple(end - first for first, end in itertools.pairwise(self.firsts) if end > first)

    def key(self, index: int) -> str:
        """Return shard and file name of an image, such as "shard-000.tar/0017.jpg"."""
        return self._key(self._shard_number(index), self.rows["file"][index].as_py())

    def read(self, index: int) -> ImageRecord:
        """Return the bytes of an image; a remote shard is downloaded first, or `Unreachable`.

        `UnreadableImage` where the shard is gone or shorter than it was.
        """
        key, size = self.key(index), self.rows["size"][index].as_py()
        try:
            # Opened for each image: a file kept open would share its position with forked processes.
            with _open_shard(self.shard_of(index)) as file:
                file.seek(self.rows["offset"][index].as_py())
                data = file.read(size)
        except OSError as fault:
            raise UnreadableImage(key, f"the shard cannot be read: {fault.strerror or fault}") from fault
        if len(data) < size:
            raise UnreadableImage(key, f"the shard is cut off: {size} bytes expected, {len(data)} found")
        return ImageRecord(data, int(self.labels.indices[index]), key)

    def shard_of(self, index: int) -> Shard:
        """Return the shard that an image lies in."""
        return self.shards[self._shard_number(index)]

    def _shard_number(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, got index {index}")
        return bisect.bisect_right(self.firsts, index) - 1

    def _key(self, shard: int, file: bytes) -> str:
        return f"{self.shard_names[shard]}/{file.decode(errors='surrogateescape')}"


def open_shards(name: str, paths: Sequence[AnyPath], *, captioned: bool = False) -> TarSource:
    """Index tar shards by scanning their headers, once: what is found is cached for later starts.

    As in WebDataset, the basename of a file ends at the first dot of its name, and the files of one
    basename within a shard make one sample: an image of any format that a folder reads and its class; an image
    without an extension stands alone. The class index is in .cls, in `label` of .json or in .txt (if that is an
    integer); its name in .cls, in `class_name` of .json or in .txt beside an index (a .txt alone is a caption, not
    a class). Of a damaged shard what can be read is read, see `members`. Nothing else is read, which `ignored`
    counts, and nothing is ever unpickled. Captions are `captions`, `caption` or `text` of .json, or else a .txt
    that is no class.

    Remote shards are downloaded for it, several at a time, in another order in each process: of processes that
    share a cache, each does a part. `captioned` keeps the captions, and calls classes without a name by their
    number.
    """
    names = names_within(paths)
    found = _indexed(name, paths, names, captioned)
    counts: dict[str, PassedOver] = {}
    notes = (json.loads(table.schema.metadata[b"ignored"]) for _, table in found)
    for one in itertools.starmap(PassedOver, itertools.chain.from_iterable(notes)):
        before = counts.get(one.kind, replace(one, count=0))
        counts[one.kind] = replace(before, count=before.count + one.count)
    ignored = tuple(counts[kind] for kind in sorted(counts))
    firsts = tuple(itertools.accumulate((table.num_rows for _, table in found), initial=0))
    if not firsts[-1]:
        others = ", ".join(f"{one.count:,} {one.kind}" for one in ignored) or "nothing else"
        raise ValueError(
            f"no image in the {len(paths)} shards of {name}: expected files ending in "
            f"{', '.join('.' + extension for extension in IMAGE_EXTENSIONS)}; found {others}"
        )
    table = pa.concat_tables(table for _, table in found)
    row_of = cache(lambda label, name: RowLabel(label, _decoded(name)))  # few among many rows
    rows = map(row_of, table["label"].to_pylist(), table["class_name"].to_pylist())
    captions = table["captions"].to_pylist() if captioned else ()
    return TarSource(
        name,
        tuple(shard for shard, _ in found),
        names,
        table.select(["file", "offset", "size"]).combine_chunks(),
        firsts,
        resolve_labels(rows, name, paths[0].parent, numbered=captioned),
        ignored,
        tuple(tuple(map(_decoded, texts)) for texts in captions),
    )


def _decoded(text: bytes | None) -> Any:
    return None if text is None else text.decode(errors="surrogatepass")


def _indexed(
    name: str, paths: Sequence[AnyPath], names: Sequence[str], captioned: bool
) -> list[tuple[Shard, pa.Table]]:
    def index(number: int) -> tuple[Shard, pa.Table]:
        path = paths[number]
        shard = CachedFile(path, path.state()) if isinstance(path, RemotePath) else path
        return shard, _index_of(shard, names[number], captioned)

    if not any(isinstance(path, RemotePath) for path in paths):
        return [index(number) for number in range(len(paths))]
    found: dict[int, tuple[Shard, pa.Table]] = {}
    pool = ThreadPoolExecutor(_AT_A_TIME)
    try:
        order = random.SystemRandom().sample(range(len(paths)), len(paths))
        waiting = {pool.submit(index, number): number for number in order}
        for done in bar_or_lines(
            as_completed(waiting), "index", len(waiting), unit=" shards", disable=None, leave=False
        ):
            found[waiting[done]] = done.result()
    finally:
        pool.shutdown(cancel_futures=True)
    total = sum(shard.state.size or 0 for shard, _ in found.values() if isinstance(shard, CachedFile))
    if total > (limit := cache_bytes()):
        warnings.warn(
            f"{name}: {total / 1e9:.1f} GB of shards exceed the {limit / 1e9:.1f} GB that are kept on this "
            "machine; reading in random order would fetch shards again for single images: train with "
            f"data.shuffle_blocks, or keep more ({SIZE_VARIABLE})",
            stacklevel=3,
        )
    return [found[number] for number in range(len(paths))]


def _index_of(shard: Shard, name: str, captioned: bool) -> pa.Table:
    """Return what `scan_shard` finds in a shard, cached until the shard changes."""
    state = _state_of(shard)
    where = str(shard) if isinstance(shard, CachedFile) else str(shard.absolute())
    named = hashlib.sha256(f"{where}\n{captioned}".encode(errors="surrogateescape")).hexdigest()[:32]
    path = cache_folder() / "indexes" / f"{named}.arrow"
    expected: dict[str, Any] = {"form": _FORM, "shard": where, "captioned": captioned}
    if state is not None:
        expected |= {"size": state.size, "version": state.version}
        if (table := read_index(path, expected)) is not None:
            return table
    try:
        with _open_shard(shard) as file:
            table = scan_shard(file, shard, name, captioned=captioned)
    except OSError as fault:
        raise ValueError(f"{shard} cannot be read: {fault.strerror or fault}") from fault
    if state is not None:
        write_index(table, path, expected)
    return table


def _open_shard(shard: Shard) -> io.BufferedReader:
    return shard.open() if isinstance(shard, CachedFile) else open_regular(shard)


def _state_of(shard: Shard) -> FileState | None:
    """Return what tells the content of a shard from another; None where nothing does."""
    if isinstance(shard, CachedFile):
        return shard.state if shard.state.version else None
    try:
        found = shard.stat()
    except OSError:
        return None
    settled = time.time() - found.st_mtime > _SETTLED_SECONDS
    return FileState(found.st_size, str(found.st_mtime_ns)) if settled else None


def read_index(path: Path, expected: dict[str, Any]) -> pa.Table | None:
    """Read an index; None if there is none, it is of another content, or damaged."""
    try:
        content = read_regular(path)
    except OSError:
        return None
    checksum, content = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    if hashlib.sha256(content).digest() != checksum:
        return None
    with pa.ipc.open_stream(content) as file:
        table = file.read_all()
    return table if json.loads(table.schema.metadata[b"of"]) == expected else None


def write_index(table: pa.Table, path: Path, expected: dict[str, Any]) -> None:
    """Write an index; where the folder cannot be written, or is full, the next start reads the headers again."""
    table = table.replace_schema_metadata({**table.schema.metadata, "of": json.dumps(expected)})
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        file.write_table(table)
    content = hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: temporary.write_bytes(content))


class Prefetch:
    """Downloads the shards of batches to come in a thread, each as soon as it and those wanted before it fit.

    Shards of batches not yet done may take so many bytes (`limit`) together; one may take more.
    """

    def __init__(self, batches: Iterable[Iterable[CachedFile]], limit: int) -> None:
        self._batches, self._limit = batches, limit
        self._changed = threading.Condition()
        self._done = 0
        self._stopped = False
        self._last: dict[CachedFile, int] = {}  # the last batch, of those looked at, that wants a shard

    def __enter__(self) -> Prefetch:
        # A daemon: the next process resumes what it is downloading when this one ends.
        threading.Thread(target=self._run, name="shard prefetch", daemon=True).start()
        return self

    def __exit__(self, *fault: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def batch_done(self) -> None:
        """Say that a batch was handed over."""
        with self._changed:
            self._done += 1
            self._changed.notify()

    def _run(self) -> None:
        for number, batch in enumerate(self._batches):
            for shard in dict.fromkeys(batch):
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or self._fits(shard, number))  # noqa: B023
                    if self._stopped:
                        return
                    is_wanted = shard not in self._last and number >= self._done
                    self._last[shard] = number
                if is_wanted:
                    with suppress(ValueError):  # raised when it is wanted, if it cannot be had then either
                        shard.open().close()

    def _fits(self, shard: CachedFile, number: int) -> bool:
        self._last = {kept: last for kept, last in self._last.items() if last >= self._done}
        taken = sum(kept.state.size or 0 for kept in self._last)
        return number < self._done + _MOST_BATCHES and (
            not taken or shard in self._last or taken + (shard.state.size or 0) <= self._limit
        )


def prefetching(
    source: ImageSource, batches: Iterator[Sequence[int]]
) -> AbstractContextManager[Prefetch | None]:
    """Return what downloads the shards of batches to come, as `Prefetch` does; None where none is remote.

    They fit into half of the cache, which the processes of the machine divide among them.
    """
    parts = source.parts if isinstance(source, ImageSubset) else (source,)
    shards = (shard for part in parts if isinstance(part, TarSource) for shard in part.shards)
    if not any(isinstance(shard, CachedFile) for shard in shards):
        return nullcontext()
    wanted = (filter(None, (_remote_shard(source, index) for index in batch)) for batch in batches)
    return Prefetch(wanted, cache_bytes() // 2 // distributed.num_on_this_machine())


def _remote_shard(source: ImageSource, index: int) -> CachedFile | None:
    part, row = place_of(source, index)
    shard = part.shard_of(row) if isinstance(part, TarSource) else None
    return shard if isinstance(shard, CachedFile) else None
