"""Files written whole or not at all, by one process at a time, opened only where they are files; checksums."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import stat
import struct
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

CHECKSUM = "crc32"


class Damaged(ValueError):
    """A file does not hold what was written."""


# The largest file that is read whole, unless told otherwise; known annotation files have up to 0.7 GB.
MAX_BYTES = 1 << 33
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")
# What the disk, not the program, refuses.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_held: set[int] = set()


def _drop_locks() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


# Workers that outlive their parent for a moment must not keep its locks.
os.register_at_fork(after_in_child=_drop_locks)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary_path)` make a file, flush it to disk and give it its name in one move.

    A kill or a full disk leaves the old file, if any, untouched. The umask decides who may read the file, whatever
    `write` would have.

    Args:
        path: the final name.
        write: called with a path in the same folder.

    Raises:
        OSError: the disk is full, or refuses otherwise; with `path`.
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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; see `write_atomically`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def remove_partial(folder: Path) -> None:
    """Remove what killed writes of `write_atomically` left in a folder; nobody else may be writing there."""
    for leftover in folder.rglob(".*.partial"):
        if _PARTIAL.search(leftover.name):
            leftover.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let what the disk refuses name the file that was being written.

    Raises:
        OSError: what was raised inside, or what torch made a RuntimeError of.
    """
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
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock that ends with the process, however it ends.

    Args:
        path: an empty file that stays; its folder exists.
        refusal: what is said where another process holds it.

    Raises:
        ValueError: with the refusal.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            raise ValueError(refusal) from fault
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading bytes; never waits for a pipe, nor reads a device.

    Raises:
        io.UnsupportedOperation: it is something else (an `OSError` and a `ValueError`).
        OSError: it cannot be opened.
    """
    _check_regular(
        path, os.stat(path).st_mode
    )  # before it is opened: opening a device may already do something
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    )
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _check_regular(
            path, os.fstat(file.fileno()).st_mode
        )  # what was opened may be another than was looked at
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file, or a link to it.
        limit: most bytes that are read.

    Raises:
        OSError: as `open_regular`, and for a file that is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1) if size <= limit else b""  # memory is taken for as much as is asked for
        if len(data) > size:  # it grows, or tells no size, as those of /proc
            data += file.read(limit + 1 - len(data))
    if size > limit or len(data) > limit:
        raise io.UnsupportedOperation(f"{path} is larger than {limit:,} bytes")
    return data


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    raise io.UnsupportedOperation(f"{path} is no file but {kinds.get(stat.S_IFMT(mode), 'something else')}")


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a JSON object with a checksum of them, which `unsealed` looks at."""
    return {**values, CHECKSUM: _checksum(values)}


def unsealed(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object that a text holds, without its checksum; see `verified`.

    Raises:
        Damaged: it is no JSON object, or not the one that was sealed.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise Damaged(f"it is not JSON: {fault}") from fault
    if not isinstance(values, dict):
        raise Damaged(f"expected a JSON object, got {type(values).__name__}")
    return verified(values)


def verified(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of an object that was `sealed`, without the checksum.

    One that has none, because an older version or somebody else wrote it, is taken as it is.

    Raises:
        Damaged: they are not those that were sealed.
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
    """Write a JSON object with its checksum, in one move."""
    write_text(path, json.dumps(sealed(values), indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return what `write_json` wrote; see `unsealed`.

    Raises:
        Damaged: naming the file.
        OSError: it cannot be read at all.
    """
    try:
        return unsealed(read_regular(path))
    except Damaged as fault:
        raise Damaged(f"{path} is damaged: {fault}") from fault


def check_zip(path: Path) -> None:
    """Compare all that a zip archive holds (a checkpoint, arrays of NumPy) with the checksums in it.

    Raises:
        Damaged: it is not what was written.
        OSError: it cannot be read at all.
    """
    try:
        with ZipFile(path) as archive:
            bad = archive.testzip()
    # A flipped bit may also claim an encryption, a compression or a place that there is not.
    except (BadZipFile, zlib.error, struct.error, ValueError, EOFError, RuntimeError, LookupError) as fault:
        raise Damaged(f"{path} is damaged: {fault}") from fault
    if bad is not None:
        raise Damaged(f"{path} is damaged: the checksum of {bad} does not fit")


def _nearly(name: str) -> bool:
    """Whether a name is that of the checksum but for one character."""
    return len(name) == len(CHECKSUM) and sum(map(str.__ne__, name, CHECKSUM)) == 1


def _checksum(values: Mapping[str, Any]) -> str:
    """Return the CRC-32 of values, whatever the order and the spacing they are written in."""
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"
