"""What an interrupted run leaves behind: the codes of the images that are done."""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from pixlex.api import ImageTokenizer
from pixlex.data.sources import ImageSource
from pixlex.encoding.files import EncodedImage
from pixlex.files import Damaged, open_regular, sealed, unsealed
from pixlex.models.pretrained import fingerprint

_FORMAT = 1


class JournalHeld(ValueError):
    """Another process is writing the journal."""


class Journal:
    """The codes of the images that are done, appended a batch at a time and never changed.

    The first line says what the codes belong to. A line that a kill cut off is dropped at the next opening, and so
    is one that is not what was written: its image is encoded again.

    Args:
        path: the file; it is locked while open.
        header: what the codes belong to, from `journal_header`.
        overwrite: forget what is there.

    Raises:
        ValueError: `JournalHeld` where another process holds it; it is no journal, or one of other codes.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        self._places: dict[int, int] = {}  # index of an image -> where its line begins
        if path.exists():  # what is no file has no end, or cannot be read again
            open_regular(path).close()
        self._file = path.open("a+b")
        try:
            self._lock()
            if overwrite:
                self._file.truncate(0)
            self._open(header)
        except ValueError:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            raise JournalHeld(f"{self.path} is being written by another process") from fault

    def _open(self, header: Mapping[str, Any]) -> None:
        """Read what is there, cut off what a kill left unfinished, begin where there is nothing."""
        self._file.seek(0)
        first = self._file.readline()
        begun = f"{json.dumps(sealed(header))}\n".encode()
        if first != begun and begun.startswith(first):  # nothing yet, or not even the whole first line
            self._file.truncate(0)
            self._write(begun)
            return
        _check(first, header, self.path)
        end, damaged = len(first), 0
        for line in iter(self._file.readline, b""):
            if not line.endswith(b"\n"):
                break
            image = _image(line)
            if image is None:
                damaged += 1
            else:
                self._places[image.index] = end
            end += len(line)
        self._file.truncate(end)
        if damaged:
            warnings.warn(
                f"{self.path}: {damaged} damaged lines are passed over, their images are encoded again",
                stacklevel=2,
            )

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())

    def append(self, images: Sequence[EncodedImage]) -> None:
        """Write down images that are done; on return they are on the disk."""
        place = self._file.seek(0, os.SEEK_END)
        lines = [f"{json.dumps(sealed(asdict(image)))}\n".encode() for image in images]
        self._write(b"".join(lines))
        for image, line in zip(images, lines, strict=True):
            self._places[image.index] = place
            place += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, index: int) -> bool:
        return index in self._places

    def __iter__(self) -> Iterator[EncodedImage]:
        """Yield the images in the order of the source."""
        for index in sorted(self._places):
            self._file.seek(self._places[index])
            image = _image(self._file.readline())
            if image is None:
                raise Damaged(f"{self.path} is damaged: the line of image {index} is not what was written")
            yield image

    def delete(self) -> None:
        """Remove the file: the work is finished."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def journal_header(tokenizer: ImageTokenizer, source: ImageSource) -> dict[str, Any]:
    """Return what codes belong to: the model that makes them and the listing of the images."""
    return {
        "journal": _FORMAT,
        "model": fingerprint(tokenizer.model, precision=tokenizer.precision),
        "source": source.identity,
        "images": len(source),
    }


def _image(line: bytes) -> EncodedImage | None:
    """Return the image of a whole line, None where it is not what was written."""
    try:
        entry = unsealed(line)
        image = EncodedImage(entry["index"], entry["key"], entry["label"], tuple(entry["codes"]))
    except (ValueError, KeyError, TypeError):
        return None
    numbers = (image.index, image.label, *image.codes)
    return image if isinstance(image.key, str) and all(type(one) is int for one in numbers) else None


def _check(first: bytes, expected: Mapping[str, Any], path: Path) -> None:
    """Raise `ValueError` where a journal belongs to other codes, or its first line is damaged."""
    try:
        found = unsealed(first)
    except Damaged as fault:
        raise ValueError(
            f"{path} is not a journal that this version of pixlex reads, or damaged ({fault}); move it away"
        ) from fault
    if found.get("journal") != _FORMAT:
        raise ValueError(f"{path} is not a journal that this version of pixlex reads; move it away")
    if other := other_work(found, expected):
        raise ValueError(
            f"{path} is the unfinished work of {other}; delete it, choose another name for the output, or start "
            "anew with --overwrite"
        )


def other_work(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Return what codes belong to that are not those expected, in words; None where they are."""
    for part, other in (
        ("model", "another model or precision"), ("source", "other images"), ("images", "other images"),
    ):  # fmt: skip
        if found.get(part) != expected[part]:
            return other
    return None
