"""Remote files (s3://, gs://, https://, ...) through fsspec: retried, read by ranges, or cached here."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec
from filelock import FileLock, Timeout

from pixlex.files import FOLDER_VARIABLE, cache_folder
from pixlex.messages import quoted

T = TypeVar("T")

# How many gigabytes of shards are kept in the folder of what can be downloaded again.
SIZE_VARIABLE = "PIXLEX_CACHE_GB"
_DEFAULT_GB = 50.0

# A link of a chain such as zip://a.tar::s3://bucket/x.zip, with what stands before and behind it.
_LINK = re.compile(
    r"(?P<before>(?:[\w+.-]+(?:://)?::)*)(?P<link>[\w+.-]+://.*?)(?P<after>(?:::.*)?)", re.DOTALL
)

# Seconds before a second, third, ... try.
_WAITS = (1.0, 2.0, 4.0, 8.0)
# Requested at a time when a file is read from beginning to end.
_PIECE_BYTES = 1 << 24

# What tells one content of a file from another, by the names that file systems give it.
_VERSIONS = (
    "ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest", "generation", "blob_id", "sha256",
    "LastModified", "last_modified", "Last-Modified", "updated", "mtime", "created",
)  # fmt: skip

# Faults of the packages behind fsspec that are no OSError; looked up in the packages that are loaded.
_FOREIGN = (
    "aiohttp.ClientError", "httpx.HTTPError", "botocore.exceptions.BotoCoreError",
    "botocore.exceptions.ClientError", "gcsfs.retry.HttpError", "google.auth.exceptions.GoogleAuthError",
    "azure.core.exceptions.AzureError",
)  # fmt: skip


class Unreachable(ValueError):
    """A remote file that cannot be had, after several tries where trying again may help."""


class NoSuchFile(ValueError):
    """Nothing is at a URL."""


class _NotWritten(Exception):
    """What came cannot be written down on this machine: trying again does not help."""


@dataclass(frozen=True)
class FileState:
    """Size in bytes, and time of change or name of the content; None and "" where a server does not say."""

    size: int | None
    version: str


@dataclass(frozen=True)
class RemotePath:
    """A file at a URL, with the methods of `Path` that sources use.

    It holds no connection: those of fsspec do not survive a fork. Each method raises `NoSuchFile` where nothing is
    there, `Unreachable` where there is no answer, `ValueError` for an unknown protocol and `ModuleNotFoundError`
    where a package is missing.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def path(self) -> PurePosixPath:
        """Bucket or host and path, without protocol and query."""
        part = _split(self.url)[1].partition("://")[2]
        return PurePosixPath((part.partition("?")[0] if self._is_web else part).lstrip("/"))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name

    @property
    def suffix(self) -> str:
        """The ending of the name, such as ".tar"."""
        return self.path.suffix

    @property
    def parent(self) -> RemotePath:
        """The folder."""
        before, link, after = _split(self.url)
        protocol, _, path = link.partition("?")[0].partition("://")
        return RemotePath(f"{before}{protocol}://{path.rpartition('/')[0]}{after}")

    def __truediv__(self, name: str) -> RemotePath:
        before, link, after = _split(self.url)
        protocol, _, path = link.partition("://")
        return RemotePath(f"{before}{protocol}://{path.rstrip('/')}{'/' if path else ''}{name}{after}")

    def state(self) -> FileState:
        """Return size and version; a folder is a `ValueError`."""
        info = self._retried(lambda files, path: files.info(path))
        if info.get("type") == "directory":
            raise ValueError(f"{self.url} is a folder, expected a file")
        versions = [f"{name}={info[name]}" for name in _VERSIONS if info.get(name) is not None]
        size = info.get("size")
        return FileState(None if size is None else int(size), " ".join(versions))

    def is_file(self) -> bool:
        """Whether a file is there and may be read."""
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
        """Return the content."""
        return bytes(self._retried(lambda files, path: files.cat_file(path)))

    def read_range(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to `end`, which must lie in the file."""

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

        return self._retried(read)

    def copy_into(self, file: io.BufferedRandom, state: FileState) -> None:
        """Append what a file lacks of the content; each try resumes where the one before it ended."""

        def resume(files: Any, path: str) -> None:
            start = file.seek(0, os.SEEK_END)
            try:
                self._copy(files, path, start, file)
            except ValueError:  # a server that begins at the beginning alone
                if not start:
                    raise
                file.truncate(0)
                self._copy(files, path, file.seek(0), file)
            if state.size is not None and (found := file.tell()) != state.size:
                if found > state.size:
                    file.truncate(0)
                raise OSError(f"expected {state.size} bytes, got {found}")

        self._retried(resume)

    def list_files(self) -> list[RemotePath]:
        """Return the files of a pattern with *, [...] or (but for web servers) ?, or else those of a folder."""
        if "::" in self.url:
            raise ValueError(
                f"{self.url}: files of a chain are not listed, name them, such as a-{{00..09}}.tar"
            )

        def read(files: Any, path: str) -> list[str]:
            found = files.glob(path, detail=True).values() if self.is_pattern else files.ls(path, detail=True)
            return [files.unstrip_protocol(info["name"]) for info in found if info["type"] == "file"]

        return [RemotePath(url) for url in self._retried(read)]

    @property
    def is_pattern(self) -> bool:
        """Whether the URL stands for several."""
        return bool(re.search(r"[*\[]" if self._is_web else r"[*?\[]", self.url))

    @property
    def _is_web(self) -> bool:
        return _split(self.url)[1].startswith(("http://", "https://"))

    def _copy(self, files: Any, path: str, start: int, file: io.BufferedRandom) -> None:
        # A web server sends all in one answer; others are asked for piece after piece.
        block = 0 if self._is_web and not start else _PIECE_BYTES
        with files.open(path, "rb", block_size=block) as remote:
            if start:
                remote.seek(start)
            while piece := remote.read(_PIECE_BYTES):
                try:
                    file.write(piece)
                    file.flush()
                except OSError as fault:
                    raise _NotWritten(fault.strerror) from fault

    def _retried(self, work: Callable[[Any, str], T]) -> T:
        """Return what `work` makes of fsspec's file system (of this process and thread) and the path in it."""
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
        try:
            files, path = fsspec.core.url_to_fs(self.url)
            return files, str(path)
        except ImportError as fault:
            raise ModuleNotFoundError(
                f"{self.url} needs a package that is not installed: {fault}", name=fault.name
            ) from fault
        except ValueError as fault:
            raise ValueError(f"{self.url} cannot be read: {fault}") from fault


AnyPath = Path | RemotePath


class RangeFile(io.RawIOBase):
    """A remote file read from any position, by one request a read, for pyarrow; it holds nothing open."""

    def __init__(self, remote: RemotePath) -> None:
        size = remote.state().size
        if size is None:
            raise ValueError(f"{remote} cannot be read in parts: the server does not say how large it is")
        self._remote, self._size, self._position = remote, size, 0

    def readable(self) -> bool:  # noqa: D102
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:  # noqa: D102
        self._position = (0, self._position, self._size)[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes, or fewer at the end."""
        end = self._size if size is None or size < 0 else min(self._size, self._position + size)
        if end <= self._position:
            return b""
        data = self._remote.read_range(self._position, end)
        self._position = end
        return data


@dataclass(frozen=True)
class CachedFile:
    """A remote file in the state in which it was found, read from a copy on this machine.

    Any number of processes may share the cache: one downloads a file while the others that want it wait.
    """

    remote: RemotePath
    state: FileState

    def __str__(self) -> str:
        return str(self.remote)

    def open(self) -> io.BufferedReader:
        """Open the copy for reading; download it if it is not there.

        Raises `ValueError` where the cache cannot be written, `Unreachable` where the file cannot be had.
        """
        identity = f"{self.remote.url}\n{self.state.size}\n{self.state.version}"
        name = hashlib.sha256(identity.encode()).hexdigest()[:32]
        path = cache_folder() / "shards" / f"{name}.tar"
        try:
            with suppress(FileNotFoundError):  # another process may remove it at any time
                os.utime(path)  # the time of its last use
                return path.open("rb")
            path.parent.mkdir(parents=True, exist_ok=True)
            with _lock(path):
                if not path.exists():
                    self._download(path)
                return path.open("rb")
        except (OSError, _NotWritten) as fault:
            reason = (fault.strerror if isinstance(fault, OSError) else None) or fault
            raise ValueError(
                f"{self.remote} cannot be kept in {path.parent}: {reason}; {FOLDER_VARIABLE} "
                f"names another folder, {SIZE_VARIABLE} how much is kept"
            ) from fault

    def _download(self, path: Path) -> None:
        """Download what a killed process left to do, and give the file its name."""
        partial = path.with_suffix(".partial")
        _evict(path.parent, self.state.size or 0, partial)
        partial.touch()
        with partial.open("rb+") as file:
            self.remote.copy_into(file, self.state)
            os.fsync(file.fileno())
        partial.replace(path)


def _lock(path: Path) -> FileLock:
    """Return the lock of a cached file; it ends with the process, however that ends."""
    folder = cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{path.stem}.lock")


def _evict(folder: Path, needed: int, spared: Path) -> None:
    """Remove the least recently used files, but those being downloaded, until so many bytes more fit."""
    found: list[tuple[float, int, Path]] = []
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            found.append((entry.stat().st_mtime, entry.stat().st_size, Path(entry.path)))
    excess = needed + sum(size for _, size, _ in found) - cache_bytes()
    for _, size, path in sorted(found):
        if excess > 0 and path != spared:
            with suppress(Timeout), _lock(path).acquire(timeout=0):
                path.unlink(missing_ok=True)
                excess -= size


def cache_bytes() -> int:
    """Return how much the downloaded shards may take up together; raises `ValueError` for no number above 0."""
    text = os.environ.get(SIZE_VARIABLE, "").strip() or str(_DEFAULT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise ValueError(f"{SIZE_VARIABLE} must be a number of gigabytes above 0, got {quoted(text)}")
    return int(gigabytes * 1e9)


def is_url(description: str) -> bool:
    """Whether a description names a file at a URL."""
    return "://" in description


def as_local(description: str) -> str:
    """Return the path that a URL of this machine's own files means; others as they are."""
    return re.sub("^(file|local)://", "", description)


def _split(url: str) -> tuple[str, str, str]:
    match = _LINK.fullmatch(url)
    return (match["before"], match["link"], match["after"]) if match else ("", url, "")


def _cause(fault: BaseException) -> BaseException:
    """Return why a file was not found, if that is no answer of a web server, or another than "not found"."""
    cause = fault.__cause__
    if not isinstance(fault, FileNotFoundError) or getattr(cause, "status", None) in (404, 410):
        return fault
    web = getattr(sys.modules.get("aiohttp"), "ClientError", OSError)
    return cause if isinstance(cause, OSError | web) else fault


def _faults() -> tuple[type[BaseException], ...]:
    """Return what a file system may raise: OSError, and what the packages that are loaded add."""
    named = (name.rpartition(".") for name in _FOREIGN)
    return (
        OSError,
        *filter(None, (getattr(sys.modules.get(module), name, None) for module, _, name in named)),
    )


def _is_final(fault: BaseException) -> bool:
    """Whether trying again is of no use: the request is refused."""
    if isinstance(fault, PermissionError | IsADirectoryError | NotADirectoryError):
        return True
    status = getattr(fault, "status", getattr(fault, "code", None))
    return isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)
