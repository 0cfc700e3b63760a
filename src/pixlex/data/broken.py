"""The account of images that could not be read: written down once each, and a stop when they are too many."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from pixlex.batch import ImageBatch, Skipped
from pixlex.data.decoding import UnreadableImage
from pixlex.data.sources import ImageSource
from pixlex.files import Damaged, sealed, unsealed

FILE_NAME = "skipped.jsonl"

# Before this many images were visited, their broken share says little about the source.
_MIN_VISITED = 100
# Images that are read before a run begins, until one can be.
_TRIED = 16

# Standard errors that the broken share of visits must lie above the limit: a source just below the limit
# would else be stopped by the chance of which images come first.
_MARGIN = 3.0


class TooManyBroken(ValueError):
    """More images cannot be read than the configuration allows."""


class BrokenImages:
    """Collects the images of a source that could not be read and lists them in a file.

    The file holds one JSON object a line (source, key, reason), each image once, also over resumed runs.

    Args:
        folder: the folder of the run, in which skipped.jsonl lists the images; None keeps no list. Several
            sources may share it.
        source: the source that the images belong to.
        max_broken_share: share of broken images, in [0, 1], that is put up with.
    """

    def __init__(self, folder: Path | None, source: ImageSource, max_broken_share: float) -> None:
        if not 0 <= max_broken_share <= 1:
            raise ValueError(f"max_broken_share must lie in [0, 1], got {max_broken_share}")
        self.path = None if folder is None else folder / FILE_NAME
        self.visited = 0
        self.broken: dict[str, str] = {}
        self._source_name = source.name
        self._num_images = len(source)
        self._limit = max_broken_share
        self._broken_visits = 0
        # Only for not writing them twice: a run that is resumed after its images were repaired starts anew.
        self._listed = set() if self.path is None else _listed_keys(self.path, source.name)

    def add(self, batch: ImageBatch) -> None:
        """Record a batch; see `record`."""
        self.record(batch.skipped, len(batch.keys))

    def record(self, skipped: Sequence[Skipped], num_readable: int) -> None:
        """Record images that could not be read and the number of those that could.

        Args:
            skipped: the images that could not be read.
            num_readable: how many others were read.

        Raises:
            TooManyBroken: if the distinct broken images are more than max_broken_share of the source, or
                if after 100 visits the broken share of all visits lies above it by three standard errors.
        """
        self.visited += num_readable + len(skipped)
        self._broken_visits += len(skipped)
        new = {image.key: image.reason for image in skipped if image.key not in self.broken}
        self.broken.update(new)
        self._write({key: reason for key, reason in new.items() if key not in self._listed})
        if new or skipped:
            self._stop_if_too_many()

    def _stop_if_too_many(self) -> None:
        margin = _MARGIN * math.sqrt(self._limit * (1 - self._limit) * self.visited)
        of_source = len(self.broken) > self._limit * self._num_images
        of_visits = self.visited >= _MIN_VISITED and self._broken_visits > self._limit * self.visited + margin
        if not (of_source or of_visits):
            return
        shown = "; ".join(f"{key} ({reason})" for key, reason in list(self.broken.items())[:3])
        listed = "" if self.path is None else f"; all that were met are listed in {self.path}"
        raise TooManyBroken(
            f"{self._source_name}: {len(self.broken)} different images of {self._num_images} cannot be read "
            f"({self._broken_visits} of {self.visited} visits, {self._broken_visits / self.visited:.1%}), "
            f"the limit max_broken_share is {self._limit:.1%}: {shown}{listed}"
        )

    def _write(self, images: dict[str, str]) -> None:
        self._listed.update(images)
        if self.path is None or not images:
            return
        lines = [
            json.dumps(sealed({"source": self._source_name, "key": key, "reason": reason})) + "\n"
            for key, reason in images.items()
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            # A run that was killed may have left half a line: the next one must not continue it.
            if file.tell() and not _ends_with_newline(self.path):
                file.write(b"\n")
            file.write("".join(lines).encode())


def require_readable(source: ImageSource) -> None:
    """Read images here and there: a wrong folder must be found before hours of training, not at their end.

    Raises:
        TooManyBroken: none of them can be read.
    """
    count = min(len(source), _TRIED)
    fault = None
    for number in range(count):
        try:
            source.read(number * len(source) // count)
        except UnreadableImage as one:
            fault = fault or one
        else:
            return
    if fault is not None:
        raise TooManyBroken(
            f"{source.name}: none of {count} images tried can be read, the first {fault.key}: {fault.reason}; say "
            "where they lie, such as ?images=FOLDER behind a file that lists them"
        )


def _listed_keys(path: Path, source: str) -> set[str]:
    """Return the keys of a source that a file lists already, leaving out lines cut off by a kill, or damaged."""
    if not path.is_file():
        return set()
    keys = set()
    for line in path.read_bytes().splitlines():
        try:
            entry = unsealed(line)
        except Damaged:
            continue
        if entry.get("source") == source:
            keys.add(str(entry.get("key")))
    return keys


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"
