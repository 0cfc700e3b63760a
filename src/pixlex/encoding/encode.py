"""Images into a file of words or codes."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from pixlex.api import ImageTokenizer
from pixlex.batch import NotFinite, Skipped
from pixlex.data.decoding import ImageRecord, decode_record
from pixlex.data.loader import prefetch
from pixlex.data.sources import BrokenImages, ImageSource
from pixlex.data.transforms import evaluation_transform
from pixlex.encoding.files import EncodedImage, Kind, check_kind, write_checksum, write_codes
from pixlex.encoding.journal import Journal, journal_header
from pixlex.files import write_atomically
from pixlex.progress import bar_or_lines


@dataclass(frozen=True)
class EncodedBatch:
    """The images of one batch, and those that could not be read."""

    images: tuple[EncodedImage, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class EncodingResult:
    """What `encode_source` did.

    Attributes:
        path: the file.
        num_images: images in it.
        num_resumed: how many of them an interrupted run had encoded already.
        skipped: images that could not be read; they are listed in OUT.skipped.jsonl.
    """

    path: Path
    num_images: int
    num_resumed: int
    skipped: tuple[Skipped, ...]


def encode_source(
    tokenizer: ImageTokenizer,
    source: ImageSource,
    out: Path,
    kind: Kind,
    *,
    batch_size: int = 64,
    progress: bool = True,
    overwrite: bool = False,
    max_broken_share: float = 0.05,
) -> EncodingResult:
    r"""Write the words or codes of every readable image of a source to a file, each image once.

    Codes are appended to a journal, `OUT.journal`, a batch at a time. A run that finds one goes on from
    there, whatever ended the run before; when all images are done, the file is made from it in one move and
    the journal is deleted. Images that cannot be read are tried again by the run that goes on, and are
    listed in `OUT.skipped.jsonl` (key, reason).

    The kinds, with one line or row for each image in the order of the source: words `key<TAB>words`; codes
    `key<TAB>integers`; jsonl `{"key", "label"?, "codes", "words"?}`; parquet with the columns key, label
    (null if unknown), codes, words (null without words). Tabs, line ends and backslashes in the keys of the
    first two are written as in Python (`\t`). Damage is found when a file is read back: by the field or column
    `crc32` of each image, and by the checksum in OUT.sha256 of words and codes.

    Args:
        tokenizer: the model.
        source: the images.
        out: the file; its folder is made if missing.
        kind: what to write.
        batch_size: images at a time; it does not change their codes.
        progress: show a bar with rate and time left.
        overwrite: start anew where there is a file or a journal.
        max_broken_share: share of broken images, in [0, 1], above which the run stops.

    Raises:
        ValueError: the model has no words, the file exists, its journal belongs to another model, to other
            images or to a process at work, or a number is out of range.
        TooManyBroken: more images cannot be read than allowed.
    """
    check_kind(kind, tokenizer)
    journal_path = out.with_name(f"{out.name}.journal")
    if out.is_dir() or (out.exists() and not overwrite and not journal_path.exists()):
        raise ValueError(f"{out} exists; choose another name, or replace it with --overwrite")
    out.parent.mkdir(parents=True, exist_ok=True)
    with Journal(journal_path, journal_header(tokenizer, source), overwrite=overwrite) as journal:
        bar = bar_or_lines(
            total=len(source), initial=len(journal), unit=" images", desc="encode", disable=not progress,
            smoothing=0.05,
        )  # fmt: skip
        with bar:
            return encode_into(
                journal, tokenizer, source, out, kind, bar=bar, batch_size=batch_size,
                broken=BrokenImages(None, source, max_broken_share),
                skipped_list=out.with_name(f"{out.name}.skipped.jsonl"),
            )  # fmt: skip


def encode_into(
    journal: Journal,
    tokenizer: ImageTokenizer,
    source: ImageSource,
    out: Path,
    kind: Kind,
    *,
    bar: tqdm[Any],
    batch_size: int,
    broken: BrokenImages,
    skipped_list: Path,
) -> EncodingResult:
    """Encode what a journal lacks, make the file of it and delete it; the rest as `encode_source`.

    Images that cannot be read are judged by `broken`; where there are too many the journal stays, and no file is
    made.
    """
    for leftover in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        leftover.unlink(missing_ok=True)
    resumed = len(journal)
    remaining = [index for index in range(len(source)) if index not in journal]
    broken.record((), resumed)
    batches = _encoded(tokenizer, source, remaining, batch_size, broken)
    skipped = _fill(journal, batches, skipped_list, bar)
    write_atomically(out, lambda temporary: write_codes(temporary, journal, kind, tokenizer))
    write_checksum(out, kind)
    journal.delete()
    return EncodingResult(out, len(journal), resumed, tuple(skipped))


def encode_images(
    tokenizer: ImageTokenizer,
    source: ImageSource,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int = 64,
    max_broken_share: float = 0.05,
) -> Iterator[EncodedBatch]:
    """Yield the codes of the images of a source.

    Args:
        tokenizer: the model.
        source: the images.
        indices: which of them, in which order; None for all.
        batch_size: images at a time.
        max_broken_share: share of broken images, in [0, 1], of the whole source.

    Raises:
        ValueError: a number out of range.
        TooManyBroken: after the batch in which the share was passed.
    """
    wanted = range(len(source)) if indices is None else indices
    broken = BrokenImages(None, source, max_broken_share)
    broken.record((), len(source) - len(wanted))
    return _encoded(tokenizer, source, wanted, batch_size, broken)


def _encoded(
    tokenizer: ImageTokenizer,
    source: ImageSource,
    wanted: Sequence[int],
    batch_size: int,
    broken: BrokenImages,
) -> Iterator[EncodedBatch]:
    """Yield the codes of some images, batch by batch, as long as not too many are broken."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    size, cut = tokenizer.image_size, tokenizer.model.config.cut

    def prepare(index: int, record: ImageRecord) -> _Prepared:
        pixels = evaluation_transform(decode_record(record), size, cut)
        return _Prepared(index, record.key, record.label, pixels)

    for prepared in prefetch(source, wanted, batch_size, prepare):
        readable = [one for one in prepared if isinstance(one, _Prepared)]
        skipped = tuple(one for one in prepared if isinstance(one, Skipped))
        rows: list[list[int]] = []
        if readable:
            pixels = torch.stack([one.pixels for one in readable])
            try:
                rows = tokenizer.tokenize(pixels, batch_size=batch_size).tolist()
            except NotFinite as fault:
                raise NotFinite(f"{readable[fault.row or 0].key}: {fault}", fault.row) from fault
        images = tuple(
            EncodedImage(one.index, one.key, one.label, tuple(row))
            for one, row in zip(readable, rows, strict=True)
        )
        yield EncodedBatch(images, skipped)
        broken.record(skipped, len(images))


def _fill(
    journal: Journal, batches: Iterator[EncodedBatch], skipped_list: Path, bar: tqdm[Any]
) -> list[Skipped]:
    """Write batches into the journal; list what could not be read, however it ends."""
    skipped: list[Skipped] = []
    try:
        for batch in batches:
            journal.append(batch.images)
            skipped += batch.skipped
            bar.update(len(batch.images) + len(batch.skipped))
    finally:
        _list_skipped(skipped_list, skipped)
    return skipped


def _list_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    """Write the list of images that could not be read; remove that of an earlier run if there are none."""
    if skipped:
        text = "".join(f"{json.dumps(asdict(one))}\n" for one in skipped)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Prepared:
    """One image ready for the model."""

    index: int
    key: str
    label: int
    pixels: Float[Tensor, "3 H W"]
