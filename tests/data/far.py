"""A file system for tests: a folder at far://, which writes down what is asked of it and fails when told to."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Far(LocalFileSystem):  # type: ignore[misc]
    """The files below `root`.

    Attributes:
        root: the folder.
        log: a file with a line for each thing that was asked, of any process.
        faults: what the next requests raise.
        breaks_at: a stream ends with a fault in front of this byte.
        seeks: whether streams may begin behind their beginning.
    """

    protocol = "far"
    root: ClassVar[Path]
    log: ClassVar[Path]
    faults: ClassVar[list[Exception]] = []
    breaks_at: ClassVar[int | None] = None
    seeks: ClassVar[bool] = True

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        path = str(path).removeprefix("far://").rstrip("/")
        return path if path.startswith(str(cls.root)) else f"{cls.root}/{path.lstrip('/')}".rstrip("/")

    def unstrip_protocol(self, name: str) -> str:
        return f"far://{Path(self._strip_protocol(name)).relative_to(self.root)}"

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self._asked("info", path)
        found: dict[str, Any] = super().info(path, **options)
        return found

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self._asked(
            "range" if end is not None else "whole", path, f" {start} {end}" if end is not None else ""
        )
        return Path(self._strip_protocol(path)).read_bytes()[start:end]

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any
    ) -> io.BufferedIOBase:
        return _Stream(self, path)

    def _asked(self, what: str, path: str, more: str = "") -> None:
        with self.log.open("a") as file:
            file.write(f"{what} {Path(self._strip_protocol(path)).relative_to(self.root)}{more}\n")
        if self.faults:
            raise self.faults.pop(0)


class _Stream(io.BytesIO):
    def __init__(self, files: Far, path: str) -> None:
        super().__init__(Path(files._strip_protocol(path)).read_bytes())
        self._files, self._path, self._asked = files, path, False

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset and not self._files.seeks:
            raise ValueError("streams from the beginning alone")
        return super().seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        if not self._asked:
            self._asked = True
            self._files._asked("stream", self._path, f" {self.tell()}")
        limit = self._files.breaks_at
        if limit is not None and self.tell() >= limit:
            Far.breaks_at = None
            raise OSError("connection lost")
        return super().read(size if limit is None else limit - self.tell())


def far_folder(root: Path, log: Path) -> Iterator[Path]:
    """Serve a folder at far:// for the time of a test."""
    Far.root, Far.log, Far.faults, Far.breaks_at, Far.seeks = root, log, [], None, True
    fsspec.register_implementation("far", Far, clobber=True)
    log.touch()
    yield root
    Far.faults, Far.breaks_at = [], None


def asked(what: str) -> list[str]:
    """Return what followed each line of the log that begins so."""
    lines = Far.log.read_text().splitlines()
    return [line.removeprefix(f"{what} ") for line in lines if line.startswith(f"{what} ")]
