"""Files at addresses (s3://, gs://, https://, ...): read through fsspec, tried again where that can help."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec

T = TypeVar("T")

# A part of a chain such as zip://a.tar::s3://bucket/x.zip, with what stands before and behind it.
_PART = re.compile(
    r"(?P<before>(?:[\w+.-]+(?:://)?::)*)(?P<part>[\w+.-]+://.*?)(?P<after>(?:::.*)?)", re.DOTALL
)

# Seconds before a second, third, ... try.
_WAITS = (1.0, 2.0, 4.0, 8.0)

# What is asked for at a time when a file is read from beginning to end.
_PIECE_BYTES = 1 << 24

# What says that a file is another than before, by the names that file systems give it.
_VERSIONS = (
    "ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest", "generation", "blob_id", "sha256",
    "LastModified", "last_modified", "Last-Modified", "updated", "mtime", "created",
)  # fmt: skip

# What the packages behind fsspec raise that is no OSError; looked up in those alone that are loaded.
_FOREIGN = (
    ("aiohttp", "ClientError"),
    ("httpx", "HTTPError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)


class Unreachable(ValueError):
    """A file at an address that cannot be had, where trying again helps after several tries."""


class NotWritten(Exception):
    """What came cannot be written down on this machine: trying again does not help."""


class NoSuchFile(ValueError):
    """Nothing is at an address."""


@dataclass(frozen=True)
class FileState:
    """What tells one content of a file from another.

    Attributes:
        size: in bytes; None where a server does not say.
        version: time of change, or what a server calls the content; empty where it does not say.
    """

    size: int | None
    version: str


@dataclass(frozen=True)
class Address:
    """A file at a URL; answers as `Path` does, as far as sources ask.

    It holds no connection: those of fsspec do not survive the fork of a worker process.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def place(self) -> PurePosixPath:
        """Bucket or host and path, without protocol and without what follows a question mark."""
        part = _split(self.url)[1].partition("://")[2]
        return PurePosixPath((part.partition("?")[0] if _is_web(self.url) else part).lstrip("/"))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.place.name

    @property
    def suffix(self) -> str:
        """The ending of the name, such as ".tar"."""
        return self.place.suffix

    @property
    def parent(self) -> Address:
        """The folder."""
        before, part, after = _split(self.url)
        protocol, _, path = part.partition("?")[0].partition("://")
        return Address(f"{before}{protocol}://{path.rpartition('/')[0]}{after}")

    def __truediv__(self, name: str) -> Address:
        before, part, after = _split(self.url)
        protocol, _, path = part.partition("://")
        return Address(f"{before}{protocol}://{path.rstrip('/')}{'/' if path else ''}{name}{after}")

    def state(self) -> FileState:
        """Ask what is there.

        Raises:
            NoSuchFile: nothing is there.
            ValueError: a folder is there, or the protocol is unknown.
            Unreachable: there is no answer.
            ModuleNotFoundError: a package is missing.
        """
        info = self._tried(lambda files, path: files.info(path))
        if info.get("type") == "directory":
            raise ValueError(f"{self.url} is a folder, expected a file")
        said = [f"{name}={info[name]}" for name in _VERSIONS if info.get(name) is not None]
        size = info.get("size")
        return FileState(None if size is None else int(size), " ".join(said))

    def is_file(self) -> bool:
        """Whether a file is there and may be read; raises `Unreachable` where there is no answer."""
        try:
            self.state()
        except Unreachable as fault:
            if fault.__cause__ is None or not _is_final(fault.__cause__):
                raise
            return False
        except NoSuchFile:
            return False
        return True

    def read_bytes(self) -> bytes:
        """Return the content; raises as `state` does."""
        return bytes(self._tried(lambda files, path: files.cat_file(path)))

    def read_range(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to `end`, which must lie in the file.

        Raises:
            NoSuchFile: nothing is there.
            Unreachable: there is no answer, or the server sends whole files alone.
        """

        def read(files: Any, path: str) -> bytes:
            data = bytes(files.cat_file(path, start=start, end=end))
            if len(data) > end - start:
                raise Unreachable(
                    f"{self.url} cannot be read in parts: its server sends whole files alone; download it, or "
                    "take tar shards, which are fetched whole"
                )
            if len(data) < end - start:
                raise OSError(f"expected {end - start} bytes from {start} on, got {len(data)}")
            return data

        return self._tried(read)

    def copy_into(self, file: io.BufferedRandom, state: FileState) -> None:
        """Append what a file lacks of the content; a try goes on where the one before it ended.

        Args:
            file: holds the beginning, or nothing.
            state: what is at the address.

        Raises:
            NotWritten: the file cannot be written.
            Unreachable: the content does not come.
        """

        def go_on(files: Any, path: str) -> None:
            start = file.seek(0, os.SEEK_END)
            try:
                self._copy(files, path, start, file)
            except ValueError:  # a server that begins at the beginning alone
                if not start:
                    raise
                file.truncate(0)
                self._copy(files, path, file.seek(0), file)
            if state.size is not None and file.tell() != state.size:
                found = file.tell()
                if found > state.size:
                    file.truncate(0)
                raise OSError(f"expected {state.size} bytes, got {found}")

        self._tried(go_on)

    def listing(self) -> list[Address]:
        """Return the files of a pattern with *, [...] or (but for web servers) ?, or else those of a folder."""
        if "::" in self.url:
            raise ValueError(
                f"{self.url}: files of a chain are not listed, name them, such as a-{{00..09}}.tar"
            )

        def read(files: Any, path: str) -> list[str]:
            if self.is_pattern:
                found = [
                    name for name, info in files.glob(path, detail=True).items() if info["type"] == "file"
                ]
            else:
                found = [info["name"] for info in files.ls(path, detail=True) if info["type"] == "file"]
            return [files.unstrip_protocol(name) for name in found]

        return [Address(url) for url in self._tried(read)]

    @property
    def is_pattern(self) -> bool:
        """Whether the address stands for several."""
        return bool(re.search(r"[*\[]" if _is_web(self.url) else r"[*?\[]", self.url))

    def _copy(self, files: Any, path: str, start: int, file: io.BufferedRandom) -> None:
        # A web server sends all in one answer; others are asked for piece after piece.
        block = 0 if _is_web(self.url) and not start else _PIECE_BYTES
        with files.open(path, "rb", block_size=block) as remote:
            if start:
                remote.seek(start)
            while piece := remote.read(_PIECE_BYTES):
                try:
                    file.write(piece)
                    file.flush()
                except OSError as fault:
                    raise NotWritten(fault.strerror) from fault

    def _tried(self, work: Callable[[Any, str], T]) -> T:
        for wait in (*_WAITS, None):
            try:
                return work(*self._file_system())
            except _faults() as found:
                fault = _cause(found)
                if isinstance(fault, FileNotFoundError):
                    raise NoSuchFile(f"{self.url} does not exist") from fault
                if wait is None or _is_final(fault):
                    tries = "" if wait is not None else f" after {len(_WAITS) + 1} tries"
                    cause = f"{type(fault).__name__}: {fault}" if str(fault) else type(fault).__name__
                    raise Unreachable(f"{self.url} cannot be read{tries}: {cause}") from fault
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _file_system(self) -> tuple[Any, str]:
        """Return fsspec's file system of this process and thread, and the path in it."""
        try:
            files, path = fsspec.core.url_to_fs(self.url)
            return files, str(path)
        except ImportError as fault:
            raise ModuleNotFoundError(
                f"{self.url} needs a package that is not installed: {fault}", name=fault.name
            ) from fault
        except ValueError as fault:
            raise ValueError(f"{self.url} cannot be read: {fault}") from fault


Place = Path | Address


class RangeFile(io.RawIOBase):
    """A file at an address read from any position, by one request a read; holds nothing open.

    Args:
        address: where it is.

    Raises:
        ValueError: as `Address.state`, or the server does not say how large the file is.
    """

    def __init__(self, address: Address) -> None:
        size = address.state().size
        if size is None:
            raise ValueError(f"{address} cannot be read in parts: the server does not say how large it is")
        self._address = address
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Return the position, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position; returns it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes, or fewer at the end; raises as `Address.state`."""
        end = self._size if size is None or size < 0 else min(self._size, self._position + size)
        if end <= self._position:
            return b""
        data = self._address.read_range(self._position, end)
        self._position = end
        return data


def is_address(description: str) -> bool:
    """Whether a description names a file at an address."""
    return "://" in description


def as_local(description: str) -> str:
    """Return the path that an address of this machine's own files means; others as they are."""
    for protocol in ("file://", "local://"):
        if description.startswith(protocol):
            return description.removeprefix(protocol)
    return description


def _split(url: str) -> tuple[str, str, str]:
    match = _PART.fullmatch(url)
    return (match["before"], match["part"], match["after"]) if match else ("", url, "")


def _is_web(url: str) -> bool:
    return _split(url)[1].startswith(("http://", "https://"))


def _cause(fault: BaseException) -> BaseException:
    """Return why a file was not found, if that is no answer of a web server, or another than "not found"."""
    cause = fault.__cause__
    if not isinstance(fault, FileNotFoundError) or getattr(cause, "status", None) in (404, 410):
        return fault
    web = getattr(sys.modules.get("aiohttp"), "ClientError", OSError)
    return cause if isinstance(cause, OSError | web) else fault


def _faults() -> tuple[type[BaseException], ...]:
    """Return what a file system may raise: OSError, and what the packages that are loaded add."""
    return (OSError, *_foreign())


def _foreign() -> Iterator[type[BaseException]]:
    for module, name in _FOREIGN:
        if fault := getattr(sys.modules.get(module), name, None):
            yield fault


def _is_final(fault: BaseException) -> bool:
    """Whether trying again is of no use: what is asked for is refused."""
    if isinstance(fault, PermissionError | IsADirectoryError | NotADirectoryError):
        return True
    status = getattr(fault, "status", getattr(fault, "code", None))
    return isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)
