"""The store of an index: a Lance table, and a head that names its model and the version that holds."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from pixlex.files import Damaged, locked, read_json, sealed, unsealed, write_json
from pixlex.messages import not_installed
from pixlex.models import Precision

HEAD, TABLE = "index.json", "images"
_LOCK = "lock"
_FORMAT = 2
_ENCODING = ("utf-8", "surrogateescape")  # file names may be bytes that are no UTF-8
_KNOWN = ["key", "size", "modified", "digest"]

# More files than this, and small ones are joined and old versions removed.
_MOST_FILES = 200
# Keys named in one condition.
_KEYS_AT_ONCE = 1000
# Longer than any index is kept, and so short that only the newest version is younger.
_NEVER, _AT_ONCE = timedelta(days=36500), timedelta(milliseconds=1)
# Candidates that a walk of the graph keeps in sight.
_LEAST_SIGHT = 128


class DamagedIndex(ValueError):
    """A file of an index is not what was written, or is gone."""


@dataclass(frozen=True)
class Entry:
    """What is known of an image in an index: its key in the source, and of what is stored there bytes and SHA-256.

    `modified` is when its file was last written, in nanoseconds since 1970; -1 where that says nothing.
    """

    key: str
    size: int
    modified: int
    digest: bytes


@dataclass(frozen=True)
class Head:
    """What an index is of, and the version of its table that holds.

    Attributes:
        model: where its model lies.
        fingerprint: of that model, see `pixlex.models.checkpoint.fingerprint`.
        width: of the vectors.
        source: the description that opens its images; None where it was given none.
        revision: branch, tag or commit of a model on the hub.
        language_model: where the model's tokenizer lies, if not where it was trained with.
        version: of the table; 0 where there is none yet.
        files: CRC-32 of each file of the table; of none at a URL, whose storage has checksums of its own.
    """

    model: str
    fingerprint: str
    precision: Precision
    width: int
    source: str | None = None
    revision: str | None = None
    language_model: str | None = None
    version: int = 0
    files: Mapping[str, str] = field(default_factory=dict)


def is_url(path: str) -> bool:
    """Whether an index lies on object storage."""
    return "://" in path


def read_head(path: str) -> Head:
    """Return what an index is of; `ValueError` where there is none, or one of another version or damaged."""
    try:
        if is_url(path):
            with fsspec.open(f"{path}/{HEAD}", "rb") as file:
                values = unsealed(file.read())
        else:
            values = read_json(Path(path) / HEAD)
        if (found := values.pop("format")) == 1:
            raise ValueError(
                f"{path} was made by an earlier version of pixlex: move it away and index its images again, "
                f"`pixlex index SOURCE --out {path}`"
            )
        if found != _FORMAT:
            raise ValueError(f"{path}/{HEAD}: expected index format {_FORMAT}, got {found!r:.80}")
        head = Head(**values)
        kinds = {"model": str, "fingerprint": str, "width": int, "version": int, "files": dict}
        if any(type(getattr(head, name)) is not kind for name, kind in kinds.items()):
            raise TypeError("a field is of another type")
        return head
    except FileNotFoundError as fault:
        there = f"it holds no {HEAD}" if is_url(path) or Path(path).is_dir() else "there is no such folder"
        raise ValueError(
            f"{path} is no index, {there}: make one with `pixlex index SOURCE --out INDEX`, INDEX a new folder"
        ) from fault
    except (KeyError, TypeError, Damaged) as fault:
        raise DamagedIndex(
            f"{path}/{HEAD} is damaged ({fault}): move {path} away and make the index anew"
        ) from fault


def write_head(path: str, head: Head) -> None:
    """Write what an index is of, in one move."""
    values = {"format": _FORMAT, **asdict(head)}
    if is_url(path):
        files, place = fsspec.url_to_fs(f"{path}/{HEAD}")
        files.makedirs(os.path.dirname(place), exist_ok=True)
        files.pipe_file(place, json.dumps(sealed(values)).encode())
    else:
        write_json(Path(path) / HEAD, values)


def is_fresh(path: str) -> bool:
    """Whether an index can begin here: there is nothing, or what a command left that has just begun."""
    if is_url(path):
        files, place = fsspec.url_to_fs(path)
        return not files.exists(place)
    folder = Path(path)
    if not folder.exists():
        return True
    return folder.is_dir() and all(
        one.name == _LOCK or one.name.endswith(".partial") for one in folder.iterdir()
    )


def writing(path: str) -> AbstractContextManager[None]:
    """Hold an index for writing, `ValueError` where another process does; a URL cannot be held."""
    if is_url(path):
        return nullcontext()
    return locked(Path(path) / _LOCK, f"{path} is being written by another process")


class Store:
    """The table of an index in the version that its head names.

    Every change is committed by Lance, then sealed: the head names the new version and the checksums of all files.
    A commit that was not sealed, because its process died, is dropped by the next writer. A file that is gone, or
    not what was written, is a `DamagedIndex`.

    Args:
        path: a folder, or a URL.
        writes: whether it is opened for writing, inside `writing`.
    """

    def __init__(self, path: str, *, writes: bool = False) -> None:
        self.path = path
        self._folder = Path(path) / f"{TABLE}.lance"
        self._open(writes)

    def _open(self, writes: bool = False) -> None:
        """Open the table in the version of the head; anew where another process changes both meanwhile."""
        while True:
            self.head = read_head(self.path)
            self._table: Any = None
            if self.head.version == 0:
                return
            if not is_url(self.path) and not self._folder.exists():
                if writes:  # whoever removes it wants all images embedded anew
                    self.head = replace(self.head, version=0, files={})
                    return
                raise DamagedIndex(f"{self.path} has lost {self._folder.name}: {self._remedy()}")
            try:
                self._verify()
                self._table = _lancedb().connect(self.path).open_table(TABLE)
                newest = self._table.version
                self._table.checkout(self.head.version)
                if writes and newest == self.head.version:
                    self._table.checkout_latest()
                elif writes:
                    self._table.restore()
                return
            except (RuntimeError, ValueError) as fault:
                if read_head(self.path) == self.head:
                    if isinstance(fault, DamagedIndex):
                        raise
                    raise DamagedIndex(
                        f"{self._folder} is damaged ({fault!s:.200}): {self._remedy()}"
                    ) from fault

    def _verify(self) -> None:
        for name, checksum in self.head.files.items():
            path = self._folder / name
            if path.exists() and (found := _crc32(path)) != checksum:  # Lance misses those that it needs
                raise DamagedIndex(
                    f"{path} is damaged (expected the checksum {checksum}, got {found}): {self._remedy()}"
                )

    def _remedy(self) -> str:
        command = f"`pixlex index SOURCE --out {self.path}`"
        return f"delete {self._folder} and run {command} again, which embeds all anew"

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """Ask the table; anew where another process has removed the version that was opened."""
        try:
            return question(self._table)
        except (RuntimeError, ValueError):
            self._open()
            return question(self._table)

    def __len__(self) -> int:
        return 0 if self._table is None else int(self._ask(lambda table: table.count_rows()))

    def entries(self) -> list[Entry]:
        """Return what is known of all images."""
        if self._table is None:
            return []
        return _entries(self._ask(lambda table: table.search().select(_KNOWN).to_arrow()))

    def vectors(self, digests: Sequence[bytes]) -> dict[bytes, Float32[np.ndarray, " e"]]:
        """Return vectors by the digests of their images."""
        if not digests:
            return {}
        condition = _one_of("digest", digests)
        found = self._ask(lambda t: t.search().where(condition).select(["digest", "vector"]).to_arrow())
        return dict(zip(found["digest"].to_pylist(), _matrix(found), strict=True))

    def nearest(
        self, query: Float32[np.ndarray, " e"], count: int, *, approximate: bool = False
    ) -> list[tuple[Entry, float]]:
        """Return the images with the largest inner products, best first, ties by key.

        Exact up to float32's rounding of the products, except by the graph (`approximate`).
        """
        most = count + 1  # one more shows whether others are as near as the last
        while True:

            def ask(table: Any, most: int = most) -> Any:
                asked = table.search(query, vector_column_name="vector").distance_type("dot").limit(most)
                asked = asked.ef(max(_LEAST_SIGHT, 2 * most)) if approximate else asked.bypass_vector_index()
                return asked.select([*_KNOWN, "vector", "_distance"]).to_arrow()

            found = self._ask(ask)
            # Row by row, so that equal vectors have equal products.
            products = (_matrix(found).astype(np.float64) * query).sum(1).astype(np.float32).tolist()
            pairs = sorted(
                zip(_entries(found), products, strict=True), key=lambda pair: (-pair[1], pair[0].key)
            )
            if approximate or len(pairs) < most or pairs[count - 1][1] > pairs[count][1]:
                return pairs[:count]
            most *= 2

    def build_graph(self) -> None:
        """Make the graph (HNSW, arXiv:1603.09320), or take in what came since, and keep it with the table."""
        if self._is_in_graph():
            return
        with writing(self.path):
            self._open(writes=True)
            if not self._is_in_graph():
                if self._table.list_indices():
                    self._table.optimize(cleanup_older_than=_NEVER)
                else:
                    from lancedb.index import HnswFlat

                    graph = HnswFlat(distance_type="dot", num_partitions=1)
                    self._table.create_index("vector", config=graph)
                self._seal()
        self._open()

    def _is_in_graph(self) -> bool:
        """Whether nearly all rows are in the graph; Lance compares the rest one by one."""
        indices = self._table.list_indices()
        return bool(indices) and 10 * self._table.index_stats(indices[0].name).num_unindexed_rows <= len(self)

    def change(
        self, entries: Sequence[Entry], vectors: Float32[np.ndarray, "N e"], dropped: Sequence[str] = ()
    ) -> None:
        """Add images, in the place of those of the same keys, and drop others; on return it is on the disk."""
        rows = pa.table(
            {
                "key": pa.array([entry.key.encode(*_ENCODING) for entry in entries], pa.binary()),
                "size": pa.array([entry.size for entry in entries], pa.int64()),
                "modified": pa.array([entry.modified for entry in entries], pa.int64()),
                "digest": pa.array([entry.digest for entry in entries], pa.binary(32)),
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.head.width),
            }
        )
        with _refused(self._folder):
            if self._table is None:
                database = _lancedb().connect(self.path)
                mode = "overwrite" if database.list_tables().tables else "create"
                self._table = database.create_table(TABLE, rows, mode=mode)
            elif entries:
                merge = self._table.merge_insert("key")
                merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)
            for first in range(0, len(dropped), _KEYS_AT_ONCE):
                keys = [key.encode(*_ENCODING) for key in dropped[first : first + _KEYS_AT_ONCE]]
                self._table.delete(_one_of("key", keys))
            self._seal()

    def set_source(self, source: str) -> None:
        """Remember the description that opens the images."""
        self.head = replace(self.head, source=source)
        write_head(self.path, self.head)

    def tidy(self, num_void: int) -> None:
        """Join small files and remove old versions where there are many, or more void rows than others."""
        if len(self.head.files) > _MOST_FILES or num_void > len(self):
            with _refused(self._folder):
                # The version that the head names goes only when the head names the next.
                self._table.optimize(cleanup_older_than=_NEVER)
                self._seal()
                self._table.optimize(cleanup_older_than=_AT_ONCE, delete_unverified=not is_url(self.path))
                self._seal()

    def _seal(self) -> None:
        """Let the head name the table as it is now."""
        files = {}
        if not is_url(self.path):
            for path in sorted(self._folder.rglob("*.*")):
                name = path.relative_to(self._folder).as_posix()
                if path.suffix != ".json":  # a hint at the newest version, which is written again and again
                    files[name] = self.head.files.get(name) or _crc32(path, flush=True)
        self.head = replace(self.head, version=self._table.version, files=files)
        write_head(self.path, self.head)


def _lancedb() -> Any:
    try:
        import lancedb
    except ModuleNotFoundError as fault:
        raise not_installed("searching", "lancedb", "search") from fault
    return lancedb


@contextmanager
def _refused(folder: Path) -> Iterator[None]:
    """Let what the disk refuses to Lance be an error of the system."""
    try:
        yield
    except RuntimeError as fault:
        raise OSError(errno.EIO, f"cannot be written: {fault!s:.300}", str(folder)) from fault


def _crc32(path: Path, *, flush: bool = False) -> str:
    checksum = 0
    with path.open("rb+" if flush else "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
        if flush:
            os.fsync(file.fileno())
    return f"{checksum:08x}"


def _one_of(column: str, values: Sequence[bytes]) -> str:
    """Return the condition that a column holds one of these bytes."""
    literals = (f"X'{value.hex()}'" for value in values)
    return f"{column} IN ({', '.join(literals)})"


def _entries(rows: pa.Table) -> list[Entry]:
    columns = (rows[name].to_pylist() for name in _KNOWN)
    return [Entry(key.decode(*_ENCODING), *rest) for key, *rest in zip(*columns, strict=True)]


def _matrix(rows: pa.Table) -> Float32[np.ndarray, "N e"]:
    vectors = rows["vector"].combine_chunks()
    numbers = vectors.flatten().to_numpy()
    matrix: Float32[np.ndarray, "N e"] = numbers.reshape(len(rows), vectors.type.list_size)
    return matrix
