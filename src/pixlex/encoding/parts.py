"""An archive into a folder of Parquet parts, by as many processes as there are, each part once."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pixlex import distributed
from pixlex.api import ImageTokenizer
from pixlex.batch import Skipped
from pixlex.data.sources import BrokenImages, ImageSource, subset
from pixlex.encoding.encode import encode_into
from pixlex.encoding.files import PARTS
from pixlex.encoding.journal import Journal, JournalHeld, journal_header, other_work
from pixlex.files import read_json, sealed
from pixlex.progress import bar_or_lines

_NAME = "part-{:05d}.parquet"
# Seconds between two looks at parts that others hold.
_PATIENCE = 1.0


@dataclass(frozen=True)
class PartsResult:
    """What one process did.

    Attributes:
        folder: the parts, `part-00000.parquet` and so on.
        num_parts: of the whole archive.
        num_images: encoded by this process.
        num_resumed: how many more of the parts that it finished were there, from processes that had died.
        skipped: images of these parts that could not be read; OUT/_part-NNNNN.skipped.jsonl lists them.
    """

    folder: Path
    num_parts: int
    num_images: int
    num_resumed: int
    skipped: tuple[Skipped, ...]


def encode_parts(
    tokenizer: ImageTokenizer,
    source: ImageSource,
    folder: Path,
    *,
    part_size: int = 100_000,
    batch_size: int = 64,
    progress: bool = True,
    max_broken_share: float = 0.05,
) -> PartsResult:
    """Write codes and words of a source as Parquet parts of so many images, together with other processes.

    Any number of processes, on any machines that share the folder, are given the same arguments, by torchrun or
    by hand, at any time. Each takes the next part that is neither finished nor held by another, and returns when
    all are finished. A part is encoded under a lock, into a journal, batch by batch, and becomes a file in one
    move: it is there whole or not at all. When a process dies its lock goes with it, and another goes on behind
    the last batch that it wrote down. So no image is encoded twice but those of that batch, and none is missing.
    The folder's file system must have locks (flock; NFS has them from version 4 on).

    Args:
        tokenizer: the model.
        source: the images; every process must see the same.
        folder: where parts go; made if missing.
        part_size: images of a part, the last one may have fewer.
        batch_size: images at a time; it does not change their codes.
        progress: show a bar with rate and time left, of all processes together.
        max_broken_share: share of broken images, in [0, 1], among those that this process has visited, above which
            it stops.

    Raises:
        ValueError: a number out of range, or a folder that holds parts of another model, of other images or of
            another size.
        TooManyBroken: more images cannot be read than allowed.
    """
    if part_size < 1:
        raise ValueError(f"part_size must be 1 or more, got {part_size}")
    folder.mkdir(parents=True, exist_ok=True)
    num_parts = -(-len(source) // part_size)
    header = journal_header(tokenizer, source)
    _agree(folder, {**header, "part_size": part_size})
    # Over all parts: one that lies on a broken disk must not be the end of the others.
    broken = BrokenImages(None, source, max_broken_share)
    images, resumed = 0, 0
    skipped: list[Skipped] = []
    work = _Work(source, folder, part_size, num_parts)
    with bar_or_lines(
        total=len(source), unit=" images", desc="encode", disable=not progress, smoothing=0.05
    ) as bar:
        for number, out in work.turns(bar):
            part = subset(source, work.rows(number))
            own = {**header, "source": part.identity, "images": len(part)}
            try:
                with Journal(work.journal(number), own) as journal:
                    if out.exists():  # finished by another between our look and our lock
                        journal.delete()
                        continue
                    bar.update(len(journal))
                    result = encode_into(
                        journal, tokenizer, part, out, "parquet", bar=bar, batch_size=batch_size,
                        broken=broken, skipped_list=out.with_name(f"_{out.stem}.skipped.jsonl"),
                    )  # fmt: skip
            except JournalHeld:
                continue
            work.mine.add(number)
            images += result.num_images - result.num_resumed
            resumed += result.num_resumed
            skipped += result.skipped
    work.clear()
    return PartsResult(folder, num_parts, images, resumed, tuple(skipped))


@dataclass
class _Work:
    """Which parts there are, and which are finished."""

    source: ImageSource
    folder: Path
    part_size: int
    num_parts: int

    def __post_init__(self) -> None:
        self.mine: set[int] = set()
        self._counted: set[int] = set()

    def rows(self, number: int) -> range:
        """Return which images of the source a part holds."""
        first = number * self.part_size
        return range(first, min(first + self.part_size, len(self.source)))

    def journal(self, number: int) -> Path:
        """Return the journal of a part."""
        return self.folder / f"_part-{number:05d}.journal"

    def turns(self, bar: tqdm[Any]) -> Iterator[tuple[int, Path]]:
        """Yield parts that are not finished, again and again until all are; count those of others."""
        # Processes begin apart, so that they seldom meet at a part.
        shift = int(os.environ.get("RANK", "0")) * self.num_parts // distributed.num_announced()
        order = [(turn + shift) % self.num_parts for turn in range(self.num_parts)]
        while len(finished := self.finished(bar)) < self.num_parts:
            before = len(self.mine)
            for number in order:
                out = self.folder / _NAME.format(number)
                if number not in finished and not out.exists():
                    yield number, out
            if len(self.mine) == before:  # all that is left is held by others
                time.sleep(_PATIENCE)

    def finished(self, bar: tqdm[Any]) -> set[int]:
        """Return the parts that are there; those of others that are new count for the bar."""
        there = set(os.listdir(self.folder))
        found = {number for number in range(self.num_parts) if _NAME.format(number) in there}
        for number in found - self.mine - self._counted:
            self._counted.add(number)
            bar.update(len(self.rows(number)))
        return found

    def clear(self) -> None:
        """Remove journals of finished parts, whose owners died between the one and the other."""
        for number in range(self.num_parts):
            self.journal(number).unlink(missing_ok=True)


def _agree(folder: Path, expected: dict[str, Any]) -> None:
    """Write down what the parts of a folder belong to, or see that it is the same."""
    path = folder / PARTS
    if not path.exists():
        _write_first(path, json.dumps(sealed(expected), indent=2) + "\n")
    found = read_json(path)
    if other := other_work(found, expected):
        raise ValueError(f"{folder} holds parts of {other}: subset another folder")
    if found.get("part_size") != expected["part_size"]:
        raise ValueError(
            f"{folder} holds parts of {found.get('part_size')} images, got a part size of {expected['part_size']}"
        )


def _write_first(path: Path, content: str) -> None:
    """Write a file whole if none is there; of several processes that try, one does."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        temporary.write_text(content, encoding="utf-8")
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
