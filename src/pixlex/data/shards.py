"""Images in WebDataset shards: .tar files in which files with one basename make one sample."""

from __future__ import annotations

import bisect
import random
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from pixlex.data.addresses import Address, Place
from pixlex.data.decoding import IMAGE_EXTENSIONS, ImageRecord, UnreadableImage
from pixlex.data.fetched import SIZE_VARIABLE, FetchedFile, cache_bytes
from pixlex.data.labels import Labels, RowLabel, no_labels, resolve_labels
from pixlex.data.shard_index import ShardIndex, open_shard, shard_index
from pixlex.data.sources import PassedOver, fingerprint, names_within
from pixlex.progress import bar_or_lines

# Shards at addresses that are fetched and read at a time when a source is opened.
_AT_A_TIME = 8


@dataclass(frozen=True, eq=False)
class ShardImages:
    """Where the images of some shards lie, in arrays: some 40 bytes an image, most of them its name.

    Attributes:
        files: name of each image's file in its shard, as bytes, a chunk for each shard.
        offsets: where its bytes begin, in bytes from the beginning of the shard.
        sizes: how many they are.
        firsts: number of the first image of each shard; behind them the number of all images.
    """

    files: pa.ChunkedArray
    offsets: Int64[np.ndarray, " images"]
    sizes: Int64[np.ndarray, " images"]
    firsts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class TarSource:
    """Images inside uncompressed tar files, read by their position.

    Args:
        name: what to call the source.
        shards: the tar files, in order.
        shard_names: what the keys of each begin with.
        images: where each image lies.
        labels: class index of each image and the class names.
        ignored: files that are neither image nor label, one entry for each kind.
        captions: the texts of each image, where the shards were opened for them; else empty.
    """

    name: str
    shards: tuple[Path | FetchedFile, ...]
    shard_names: tuple[str, ...]
    images: ShardImages
    labels: Labels
    ignored: tuple[PassedOver, ...] = ()
    captions: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.images.offsets)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index; empty without labels."""
        return self.labels.class_names

    @cached_property
    def identity(self) -> str:
        """A fingerprint of the keys, the sizes of the images, labels and class names."""
        return fingerprint("tar", self._keys_and_sizes(), self.labels)

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """The number of images in each shard that has some."""
        return tuple(end - first for first, end in pairwise(self.images.firsts) if end > first)

    def key(self, index: int) -> str:
        """Return shard and file name of an image, such as "shard-000.tar/0017.jpg"."""
        return self._key(self._shard_number(index), index)

    def read(self, index: int) -> ImageRecord:
        """Return the bytes of an image; the shard is fetched first where it lies at an address.

        Raises:
            UnreadableImage: the shard is gone or shorter than it was.
            Unreachable: the shard cannot be fetched.
        """
        shard = self._shard_number(index)
        key, size = self._key(shard, index), int(self.images.sizes[index])
        try:
            # Opened for each image: a file kept open would share its position with forked processes.
            with open_shard(self.shards[shard]) as file:
                file.seek(int(self.images.offsets[index]))
                data = file.read(size)
        except OSError as fault:
            raise UnreadableImage(key, f"the shard cannot be read: {fault.strerror or fault}") from fault
        if len(data) < size:
            raise UnreadableImage(key, f"the shard is cut off: {size} bytes expected, {len(data)} found")
        return ImageRecord(data, int(self.labels.indices[index]), key)

    def shard_of(self, index: int) -> Path | FetchedFile:
        """Return the shard that an image lies in."""
        return self.shards[self._shard_number(index)]

    def _shard_number(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, got index {index}")
        return bisect.bisect_right(self.images.firsts, index) - 1

    def _key(self, shard: int, index: int) -> str:
        return self._named(shard, self.images.files[int(index)].as_py())

    def _named(self, shard: int, file: bytes) -> str:
        return f"{self.shard_names[shard]}/{file.decode(errors='surrogateescape')}"

    def _keys_and_sizes(self) -> Iterator[str]:
        for shard, (first, end) in enumerate(pairwise(self.images.firsts)):
            files = self.images.files.slice(first, end - first).to_pylist()
            for file, size in zip(files, self.images.sizes[first:end].tolist(), strict=True):
                yield f"{self._named(shard, file)}:{size}"


def open_shards(name: str, paths: Sequence[Place], *, captioned: bool = False) -> TarSource:
    """Index tar shards by scanning their headers, once: what is found is kept for later starts.

    As in WebDataset, the basename of a file ends at the first dot of its name, and the files of one
    basename within a shard make one sample: an image of any format that a folder reads and its class; an image
    without an extension stands alone. The class index is in .cls, in `label` of .json or in .txt (if that is an
    integer); its name in .cls, in `class_name` of .json or in .txt beside an index (a .txt alone is a caption, not
    a class). Of a damaged shard what can be read is read, see `pixlex.data.tar.members`. Nothing else is read,
    which `ignored` counts, and nothing is ever unpickled.

    Captions are `captions`, `caption` or `text` of .json, or else a .txt that is no class.

    Shards at addresses are fetched for it, several at a time, in another order in each process: of processes that
    share a folder of what is kept, each does a part.

    Args:
        name: what to call the source.
        paths: the shards, in order.
        captioned: keep the captions, and call classes without a name by their number.

    Raises:
        ValueError: if a shard is not an uncompressed tar file, none holds an image, or labels and names do
            not fit.
        Unreachable: a shard cannot be fetched.
    """
    names = names_within(paths)
    found = _indexed(name, paths, names, captioned)
    indexes = [index for _, index in found]
    ignored = _counted(indexes)
    if not any(len(index.sizes) for index in indexes):
        others = ", ".join(f"{one.count:,} {one.kind}" for one in ignored) or "nothing else"
        raise ValueError(
            f"no image in the {len(paths)} shards of {name}: expected files ending in "
            f"{', '.join('.' + extension for extension in IMAGE_EXTENSIONS)}; found {others}"
        )
    labels = _labels(indexes, name, paths[0].parent, captioned)
    images = ShardImages(
        files=pa.chunked_array([index.files for index in indexes], pa.binary()),
        offsets=np.concatenate([index.offsets for index in indexes]),
        sizes=np.concatenate([index.sizes for index in indexes]),
        firsts=tuple(accumulate((len(index.sizes) for index in indexes), initial=0)),
    )
    captions = tuple(texts for index in indexes for texts in index.captions)
    return TarSource(name, tuple(shard for shard, _ in found), names, images, labels, ignored, captions)


def _counted(indexes: Sequence[ShardIndex]) -> tuple[PassedOver, ...]:
    """Return what shards pass over, one entry for each kind."""
    found: dict[str, PassedOver] = {}
    for one in (one for index in indexes for one in index.ignored):
        before = found.get(one.kind, replace(one, count=0))
        found[one.kind] = replace(before, count=before.count + one.count)
    return tuple(found[kind] for kind in sorted(found))


def _indexed(
    name: str, paths: Sequence[Place], names: Sequence[str], captioned: bool
) -> list[tuple[Path | FetchedFile, ShardIndex]]:
    """Return the shards and what each holds."""

    def index(number: int) -> tuple[Path | FetchedFile, ShardIndex]:
        path = paths[number]
        shard = FetchedFile(path, path.state()) if isinstance(path, Address) else path
        return shard, shard_index(shard, names[number], captioned=captioned)

    if not any(isinstance(path, Address) for path in paths):
        return [index(number) for number in range(len(paths))]
    found: dict[int, tuple[Path | FetchedFile, ShardIndex]] = {}
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
    fetched = [shard for shard, _ in found.values() if isinstance(shard, FetchedFile)]
    total, limit = sum(shard.state.size or 0 for shard in fetched), cache_bytes()
    if total > limit:
        warnings.warn(
            f"{name}: {total / 1e9:.1f} GB of shards exceed the {limit / 1e9:.1f} GB that are kept on this "
            "machine; reading in random order would fetch shards again for single images: train with "
            f"data.shuffle_blocks, or keep more ({SIZE_VARIABLE})",
            stacklevel=3,
        )
    return [found[number] for number in range(len(paths))]


def _labels(indexes: Sequence[ShardIndex], name: str, folder: Place, numbered: bool) -> Labels:
    """Return the labels of all images; each pair of label and class name is looked at once."""
    numbers: dict[RowLabel, int] = {}
    positions: list[int] = []
    codes: list[Int64[np.ndarray, " images"]] = []
    first = 0
    for index in indexes:
        for label, row in zip(index.labels, index.firsts, strict=True):
            if label not in numbers:
                numbers[label] = len(numbers)
                positions.append(first + row)
        codes.append(np.array([numbers[label] for label in index.labels], dtype=np.int64)[index.codes])
        first += len(index.codes)
    if set(numbers) == {RowLabel(None, None)}:
        return no_labels(first)
    resolved = resolve_labels(list(numbers), name, folder, numbered=numbered, positions=positions)
    return Labels(resolved.indices[np.concatenate(codes)], resolved.class_names)
