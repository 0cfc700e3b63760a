"""Shards at addresses, fetched whole into a folder of this machine, from which the least recently used go first.

Any number of processes may share the folder: one fetches a shard while the others that want it wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from pixlex.data.addresses import Address, FileState, NotWritten
from pixlex.messages import quoted

FOLDER_VARIABLE = "PIXLEX_CACHE"
SIZE_VARIABLE = "PIXLEX_CACHE_GB"
_DEFAULT_GB = 50.0


def cache_folder() -> Path:
    """Return the folder of what can be made or fetched again: of the environment, or the system's for caches."""
    if named := os.environ.get(FOLDER_VARIABLE, "").strip():
        return Path(named).expanduser()
    return user_cache_path("pixlex", appauthor=False)


def cache_bytes() -> int:
    """Return how much the fetched shards may take up together.

    Raises:
        ValueError: the environment says something else than a number above 0.
    """
    text = os.environ.get(SIZE_VARIABLE, "").strip() or str(_DEFAULT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise ValueError(f"{SIZE_VARIABLE} must be a number of gigabytes above 0, got {quoted(text)}")
    return int(gigabytes * 1e9)


@dataclass(frozen=True)
class FetchedFile:
    """A file at an address, in the state that it was found in, read from a copy on this machine."""

    address: Address
    state: FileState

    def __str__(self) -> str:
        return str(self.address)

    def open(self, mode: str = "rb") -> io.BufferedReader | io.BufferedRandom:
        """Open the copy for reading; fetch it if it is not there.

        Raises:
            ValueError: the folder of copies cannot be written.
            Unreachable: the file cannot be had.
        """
        assert mode == "rb"
        path = self._path
        try:
            while True:
                with suppress(FileNotFoundError):  # another process may remove it at any time
                    os.utime(path)  # the time of its last use
                    return path.open("rb")
                path.parent.mkdir(parents=True, exist_ok=True)
                if (file := _locked(path.with_suffix(".partial"), path)) is not None:
                    return self._complete(file, path)
        except (OSError, NotWritten) as fault:
            reason = (fault.strerror if isinstance(fault, OSError) else None) or fault
            raise ValueError(
                f"{self.address} cannot be kept in {path.parent}: {reason}; {FOLDER_VARIABLE} "
                f"names another folder, {SIZE_VARIABLE} how much is kept"
            ) from fault

    def _complete(self, file: io.BufferedRandom, path: Path) -> io.BufferedRandom:
        """Fetch what a locked beginning lacks, and put it in its place."""
        partial = path.with_suffix(".partial")
        done = False
        try:
            _make_room(path.parent, self.state.size or 0, partial)
            self.address.copy_into(file, self.state)
            os.fsync(file.fileno())
            partial.replace(path)
            file.seek(0)
            done = True
        finally:
            # Said, not left to closing: a process forked meanwhile holds the file open too.
            fcntl.flock(file, fcntl.LOCK_UN)
            if not done:
                file.close()
        return file

    @property
    def _path(self) -> Path:
        """Where the copy lies; another content has another name."""
        told = f"{self.address.url}\n{self.state.size}\n{self.state.version}"
        return cache_folder() / "shards" / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.tar"


def _locked(partial: Path, path: Path) -> io.BufferedRandom | None:
    """Open and lock the beginning of a file; None where another process completed it meanwhile, or removed it."""
    file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "rb+")
    fcntl.flock(file, fcntl.LOCK_EX)
    if _is_at(file, partial):
        if not path.exists():
            return file
        partial.unlink()  # completed between the look for it and the lock
    fcntl.flock(file, fcntl.LOCK_UN)
    file.close()
    return None


def _is_at(file: io.BufferedReader | io.BufferedRandom, path: Path) -> bool:
    """Whether an open file still has a name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _make_room(folder: Path, needed: int, spared: Path) -> None:
    """Remove the least recently used files until so many bytes more keep to the bound."""
    found: list[tuple[float, int, Path]] = []
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            found.append((entry.stat().st_mtime, entry.stat().st_size, Path(entry.path)))
    total, limit = needed + sum(size for _, size, _ in found), cache_bytes()
    for _, size, path in sorted(found):
        if total <= limit:
            return
        if path != spared and _remove(path):
            total -= size


def _remove(path: Path) -> bool:
    """Remove a file unless a process is fetching it."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True
