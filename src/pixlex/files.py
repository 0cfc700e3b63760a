"""Files that are written whole or not at all, and opened only where they are files."""

from __future__ import annotations

import errno
import io
import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path

# The largest file that is read whole, unless told otherwise; known annotation files have up to 0.7 GB.
MAX_BYTES = 1 << 33


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary_path)` make a file, flush it to disk and give it its name in one move.

    A kill or a full disk leaves the old file, if any, untouched. The umask decides who may read the file, whatever
    `write` would have.

    Args:
        path: the final name.
        write: called with a path in the same folder.
    """
    # Unique: processes in containers often share a number.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
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
        data = file.read(limit + 1) if size <= limit else b""
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
