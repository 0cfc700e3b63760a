"""Files written whole or not at all, by one process at a time, opened only where they are files; checksums."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import stat
import struct
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile, ZipFile

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

CHECKSUM = "crc32"
FOLDER_VARIABLE = "PIXLEX_CACHE"
# The largest file that is read whole, unless told otherwise; known annotation files have up to 0.7 GB.
MAX_BYTES = 1 << 33
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")
# What the disk, not the program, refuses.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_Journal = TypeVar("_Journal", bound="Journal")
_NUMBERS = re.compile(r"\[\n[\s\d,.e+-]+\]")


class Damaged(ValueError):
    """A file does not hold what was written."""


def cache_folder() -> Path:
    """Return the folder of what can be made or downloaded again: of the environment, or the system's."""
    named = os.environ.get(FOLDER_VARIABLE, "").strip()
    return Path(named).expanduser() if named else user_cache_path("pixlex")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary_path)` make a file, flush it to disk and give it its name in one move.

    A kill or a full disk leaves the old file, if any, untouched. The umask decides who may read the file, whatever
    `write` would have. What the disk refuses is an `OSError` with `path`.
    """
    # Unique: processes in containers often share a number.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with naming(path):
            temporary.touch()  # with the rights that the umask, or the folder, gives to new files
            rights = temporary.stat().st_mode
            write(temporary)
            if temporary.stat().st_mode != rights:
                temporary.chmod(rights)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened, and need not be flushed
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; see `write_atomically`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def remove_partial(folder: Path) -> None:
    """Remove what killed writes of `write_atomically` left in a folder; nobody else may be writing there."""
    for leftover in folder.rglob(".*.partial"):
        if _PARTIAL.search(leftover.name):
            leftover.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let what the disk refuses, or torch made a RuntimeError of, name the file that was being written."""
    try:
        yield
    except (OSError, RuntimeError) as fault:
        cause = fault if isinstance(fault, OSError) else fault.__context__
        if not isinstance(cause, OSError) or cause.errno not in _DISK:
            raise
        if cause.filename is not None and not str(cause.filename).endswith(".partial"):
            raise  # another file's, which is read meanwhile
        raise OSError(cause.errno, os.strerror(cause.errno), str(path)) from fault


@contextmanager
def locked(path: Path, refusal: str, *, remove: bool = False) -> Iterator[None]:
    """Hold a lock, an empty file, that ends with the process, however it ends; forked children do not keep it.

    `refusal` is what the `ValueError` says where another process holds it; `remove` removes the file in the end.
    """
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout as fault:
        raise ValueError(refusal) from fault
    try:
        yield
    finally:
        if remove and os.name == "posix":  # while it is held; elsewhere the release removes it
            path.unlink(missing_ok=True)
        lock.release()


class Journal:
    """JSON lines that are appended and never changed, under a first line that says what they belong to.

    A line that a kill cut off is dropped at the next opening; one that is not what was written is passed over with
    a warning. Of entries of one name the last counts. `ValueError` where another process holds it, or where it is
    no journal of this kind.

    Args:
        path: the file; `PATH.lock` beside it is locked while it is open.
        header: the first line of a new journal; its first field names the kind and the version of the journal.
        name: the field of an entry that names it.
        fits: whether an entry has the fields that were written.
        overwrite: forget what is there.
    """

    def __init__(
        self,
        path: Path,
        header: Mapping[str, Any],
        name: str,
        fits: Callable[[dict[str, Any]], bool],
        *,
        overwrite: bool = False,
    ) -> None:
        self.path, self._name, self._fits = path, name, fits
        self._places: dict[Any, int] = {}  # name of an entry -> where its line begins
        with ExitStack() as stack:
            lock = path.with_name(f"{path.name}.lock")
            refusal = f"{path} is being written by another process"
            stack.enter_context(locked(lock, refusal, remove=True))
            if path.exists():  # what is no file has no end, or cannot be read again
                open_regular(path).close()
            self._file = stack.enter_context(path.open("a+b"))
            if overwrite:
                self._file.truncate(0)
            self.header = self._open(header)
            self._held = stack.pop_all()

    def _open(self, header: Mapping[str, Any]) -> Mapping[str, Any]:
        """Note where entries are, cut off what a kill left unfinished, begin where there is nothing."""
        self._file.seek(0)
        first, begun = self._file.readline(), _line(header)
        if first != begun and begun.startswith(first):  # nothing yet, or not even the whole first line
            self._file.truncate(0)
            self._file.write(begun)
            self.sync()
            return header
        kind, found = next(iter(header)), _entry(first)
        if found is None or found.get(kind) != header[kind]:
            raise ValueError(
                f"{self.path} is not a journal that this version of pixlex reads, or damaged; move it away"
            )
        end, damaged = len(first), 0
        for line in iter(self._file.readline, b""):
            if not line.endswith(b"\n"):
                break
            entry = self._whole(line)
            if entry is None:
                damaged += 1
            else:
                self._places[entry[self._name]] = end
            end += len(line)
        self._file.truncate(end)
        if damaged:
            warnings.warn(f"{self.path}: {damaged} damaged lines are passed over and made anew", stacklevel=3)
        return found

    def _whole(self, line: bytes) -> dict[str, Any] | None:
        """Return the entry of a line; None where it is not what was written."""
        entry = _entry(line)
        return entry if entry is not None and self._fits(entry) else None

    def append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write entries down; they survive the end of this process, after `sync` also that of the machine."""
        place = self._file.seek(0, os.SEEK_END)
        lines = [_line(sealed(entry)) for entry in entries]
        self._file.write(b"".join(lines))
        self._file.flush()
        for entry, line in zip(entries, lines, strict=True):
            self._places[entry[self._name]] = place
            place += len(line)

    def sync(self) -> None:
        """Have the disk hold all that was written."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[Any]:
        """Yield the names of all entries, sorted."""
        return iter(sorted(self._places))

    def __getitem__(self, name: Any) -> dict[str, Any]:
        """Read an entry; `Damaged` where it is no longer what was written."""
        self._file.seek(self._places[name])
        entry = self._whole(self._file.readline())
        if entry is None:
            raise Damaged(f"{self.path} is damaged: the line of {name} is not what was written")
        return entry

    def delete(self) -> None:
        """Remove the file: the work is finished."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        self._held.close()

    def __enter__(self: _Journal) -> _Journal:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading bytes; never waits for a pipe, nor reads a device.

    Something else is an `io.UnsupportedOperation`, which is an `OSError` and a `ValueError`.
    """
    _check_regular(path, os.stat(path).st_mode)  # before: opening a device may already do something
    flags = (getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    file = os.fdopen(os.open(path, os.O_RDONLY | sum(flags)), "rb")
    try:
        _check_regular(path, os.fstat(file.fileno()).st_mode)  # it may be another by now
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file; an `OSError` as of `open_regular`, or for more bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1) if size <= limit else b""  # memory is taken for as much as is asked for
        if len(data) > size:  # it grows, or tells no size, as those of /proc
            data += file.read(limit + 1 - len(data))
    if size > limit or len(data) > limit:
        raise io.UnsupportedOperation(f"{path} is larger than {limit:,} bytes")
    return data


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise io.UnsupportedOperation(f"{path} is no file but {kind}")


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a JSON object with a checksum of them, which `unsealed` looks at."""
    return {**values, CHECKSUM: _checksum(values)}


def unsealed(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object that a text holds, without its checksum; `Damaged` where it is another."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise Damaged(f"it is not JSON: {fault}") from fault
    if not isinstance(values, dict):
        raise Damaged(f"expected a JSON object, got {type(values).__name__}")
    return verified(values)


def verified(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of an object that was `sealed`, without the checksum; `Damaged` where they are others.

    One that has none, because an older version or somebody else wrote it, is taken as it is.
    """
    bare = {name: value for name, value in values.items() if name != CHECKSUM}
    told = values.get(CHECKSUM)
    if any(_nearly(name) for name in values):
        raise Damaged(f"expected a field {CHECKSUM!r}, got {', '.join(filter(_nearly, values))!r}")
    if not isinstance(told, str):
        return dict(values)
    if told != _checksum(bare):
        raise Damaged(
            f"its checksum does not fit; if it was changed on purpose, remove the field {CHECKSUM!r}"
        )
    return bare


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object with its checksum, in one move; lists of numbers stand on one line."""
    text = json.dumps(sealed(values), indent=2)
    write_text(path, _NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n")


def sealed_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file with one a line; a line that a kill cut off, or that is damaged, is left out."""
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        if (entry := _entry(line)) is not None:
            yield entry


def read_json(path: Path) -> dict[str, Any]:
    """Return what `write_json` wrote; `Damaged` with the file's name, or an `OSError`, where it cannot."""
    try:
        return unsealed(read_regular(path))
    except Damaged as fault:
        raise Damaged(f"{path} is damaged: {fault}") from fault


def check_zip(path: Path) -> None:
    """Compare all that a zip archive holds (a checkpoint, arrays of NumPy) with the checksums in it."""
    try:
        with ZipFile(path) as archive:
            bad = archive.testzip()
    # A flipped bit may also claim an encryption, a compression or a place that there is not.
    except (BadZipFile, zlib.error, struct.error, ValueError, EOFError, RuntimeError, LookupError) as fault:
        raise Damaged(f"{path} is damaged: {fault}") from fault
    if bad is not None:
        raise Damaged(f"{path} is damaged: the checksum of {bad} does not fit")


def _line(values: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(values)}\n".encode()


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return the object of a line, None where it is not what was written."""
    try:
        return unsealed(line)
    except Damaged:
        return None


def _nearly(name: str) -> bool:
    """Whether a name is that of the checksum but for one character."""
    return len(name) == len(CHECKSUM) and sum(map(str.__ne__, name, CHECKSUM)) == 1


def _checksum(values: Mapping[str, Any]) -> str:
    """Return the CRC-32 of values, whatever the order and the spacing they are written in."""
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"
