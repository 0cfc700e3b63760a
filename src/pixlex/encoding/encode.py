"""Images into files of words or codes; a run that was interrupted goes on behind its last batch."""

from __future__ import annotations

import glob
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from pixlex import distributed
from pixlex.batch import BrokenImages, Skipped
from pixlex.data.decoding import ImageRecord, decode_record, evaluation_transform
from pixlex.data.loader import prefetch
from pixlex.data.sources import ImageSource, subset
from pixlex.encoding.files import PARTS, EncodedImage, Kind, check_kind, write_checksum, write_codes
from pixlex.files import Journal, read_json, sealed, write_atomically, write_json, write_text
from pixlex.models.checkpoint import fingerprint
from pixlex.nn.nearest import NotFinite
from pixlex.progress import bar_or_lines

if TYPE_CHECKING:
    from pixlex.api import ImageTokenizer


@dataclass(frozen=True)
class EncodedBatch:
    """The images of one batch, and those that could not be read."""

    images: tuple[EncodedImage, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class EncodingResult:
    """What `encode_source` or `encode_parts` did.

    Attributes:
        path: the file, or the folder of parts.
        num_resumed: how many of them an interrupted run had encoded already.
        num_parts: of the whole set; 0 for a file.
    """

    path: Path
    num_images: int
    num_resumed: int
    skipped: tuple[Skipped, ...]
    num_parts: int = 0


def encode_source(
    tokenizer: ImageTokenizer,
    source: ImageSource,
    out: Path,
    kind: Kind,
    *,
    batch_size: int = 64,
    progress: bool = True,
    overwrite: bool = False,
    max_broken_fraction: float = 0.05,
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
        out: the file; its folder is made if missing.
        batch_size: images at a time; it does not change their codes.
        overwrite: start anew where there is a file or a journal.
        max_broken_fraction: fraction of broken images, in [0, 1], above which the run stops.

    Raises:
        ValueError: the model has no words, the file exists, its journal belongs to another model, to other
            images or to a process at work, or a number is out of range.
        TooManyBroken: more images cannot be read than allowed.
    """
    check_kind(kind, tokenizer)
    path = out.with_name(f"{out.name}.journal")
    if out.is_dir() or (out.exists() and not overwrite and not path.exists()):
        remedy = "" if out.is_dir() else ", or replace it with --overwrite"
        raise ValueError(f"{out} exists; choose another name{remedy}")
    out.parent.mkdir(parents=True, exist_ok=True)
    broken = BrokenImages(None, source, max_broken_fraction)
    header = _header(tokenizer, source, kind)
    with _journal(path, header, overwrite=overwrite) as journal, _bar(len(source), progress) as bar:
        encoder = _Encoder(tokenizer, batch_size, broken, bar)
        return encoder.write(source, out, kind, journal, out.with_name(f"{out.name}.skipped.jsonl"))


def encode_parts(
    tokenizer: ImageTokenizer,
    source: ImageSource,
    folder: Path,
    *,
    part_size: int = 100_000,
    batch_size: int = 64,
    progress: bool = True,
    max_broken_fraction: float = 0.05,
) -> EncodingResult:
    """Write codes and words of a source as Parquet parts, `part-00000.parquet` and so on.

    Process r of torchrun's R writes the parts of the r-th of R slices, each whole or not at all; alone, all.
    What is finished is not touched, what was interrupted goes on from its journal.

    Args:
        source: the images; every process must see the same.
        folder: where parts go; made if missing.
        part_size: images of a part, the last one may have fewer.
        max_broken_fraction: as for `encode_source`, among the images that this process visits.

    Returns:
        The images of the parts that this process wrote; `_part-NNNNN.skipped.jsonl` lists those that it skipped.

    Raises:
        ValueError: a number out of range, a folder that holds parts of another model, of other images or of
            another size, or a part that another process is writing.
        TooManyBroken: more images cannot be read than allowed.
    """
    if part_size < 1:
        raise ValueError(f"part_size must be 1 or more, got {part_size}")
    folder.mkdir(parents=True, exist_ok=True)
    header = _header(tokenizer, source, "parquet")
    _agree(folder, {**header, "part_size": part_size})
    count, processes = -(-len(source) // part_size), distributed.num_announced()
    first, end = (count * (int(os.environ.get("RANK", "0")) + one) // processes for one in (0, 1))
    broken = BrokenImages(None, source, max_broken_fraction)  # of all parts: one may lie on a broken disk
    written = []
    with _bar(min(end * part_size, len(source)) - first * part_size, progress) as bar:
        encoder = _Encoder(tokenizer, batch_size, broken, bar)
        for number in range(first, end):
            part = subset(source, range(number * part_size, min((number + 1) * part_size, len(source))))
            out = folder / f"part-{number:05d}.parquet"
            beside = folder / f"_part-{number:05d}"  # readers of Parquet folders pass over such names
            own = {**header, "source": part.identity, "images": len(part)}
            with _journal(beside.with_suffix(".journal"), own) as journal:
                if out.exists():
                    journal.delete()
                    bar.update(len(part))
                    continue
                skipped_list = beside.with_suffix(".skipped.jsonl")
                written.append(encoder.write(part, out, "parquet", journal, skipped_list))
    images, resumed = (sum(getattr(one, name) for one in written) for name in ("num_images", "num_resumed"))
    return EncodingResult(folder, images, resumed, tuple(s for one in written for s in one.skipped), count)


def encode_images(
    tokenizer: ImageTokenizer,
    source: ImageSource,
    broken: BrokenImages,
    *,
    kind: Kind = "jsonl",
    indices: Sequence[int] | None = None,
    batch_size: int = 64,
) -> Iterator[EncodedBatch]:
    """Yield the codes of the images of a source, batch by batch; the words of a model that names images, too.

    Args:
        broken: counts the images that cannot be read; raises after the batch with which there were too many.
        kind: what is written; beside codes alone no words are looked for.
        indices: which images, in which order; None for all.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    size, resize_mode = tokenizer.image_size, tokenizer.model.config.resize_mode
    wanted = range(len(source)) if indices is None else indices

    def prepare(index: int, record: ImageRecord) -> tuple[EncodedImage, Tensor]:
        pixels = evaluation_transform(decode_record(record), size, resize_mode)
        return EncodedImage(index, record.key, record.label, ()), pixels

    for prepared in prefetch(source, wanted, batch_size, prepare):
        skipped = tuple(one for one in prepared if isinstance(one, Skipped))
        readable = [one for one in prepared if not isinstance(one, Skipped)]
        images = [image for image, _ in readable]
        if readable:
            try:
                pixels = torch.stack([pixels for _, pixels in readable])
                if tokenizer.model.has_codes:
                    codes = tokenizer.tokenize(pixels, batch_size=batch_size).tolist()
                    images = [replace(one, codes=tuple(row)) for one, row in zip(images, codes, strict=True)]
                if tokenizer.names_images and kind != "codes":
                    ranked = tokenizer.rank_words(pixels, batch_size=batch_size)
                    rows = (tuple(map(asdict, words)) for words in ranked)
                    images = [replace(one, ranked=row) for one, row in zip(images, rows, strict=True)]
            except NotFinite as fault:
                raise NotFinite(f"{readable[fault.row or 0][0].key}: {fault}", fault.row) from fault
        yield EncodedBatch(tuple(images), skipped)
        broken.record(skipped, len(images))


@dataclass(frozen=True)
class _Encoder:
    """How images are encoded, how many of them may be broken, and where progress is shown."""

    tokenizer: ImageTokenizer
    batch_size: int
    broken: BrokenImages
    bar: tqdm[Any]

    def write(
        self, source: ImageSource, out: Path, kind: Kind, journal: Journal, skipped_list: Path
    ) -> EncodingResult:
        """Encode what a journal lacks, make the file of it and delete it; with too many broken images it stays."""
        for leftover in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
            leftover.unlink(missing_ok=True)
        resumed = len(journal)
        self.bar.update(resumed)
        self.broken.record((), resumed)
        left = [index for index in range(len(source)) if index not in journal]
        skipped: list[Skipped] = []
        batches = encode_images(
            self.tokenizer, source, self.broken, kind=kind, indices=left, batch_size=self.batch_size
        )
        try:
            for batch in batches:
                journal.append([asdict(image) for image in batch.images])
                journal.sync()
                skipped += batch.skipped
                self.bar.update(len(batch.images) + len(batch.skipped))
        finally:
            skipped_list.unlink(missing_ok=True)  # that of an earlier run
            if skipped:
                write_text(skipped_list, "".join(f"{json.dumps(asdict(one))}\n" for one in skipped))
        entries = (journal[index] for index in journal)
        images = (EncodedImage(**{**entry, **_tuples(entry)}) for entry in entries)
        write_atomically(out, lambda temporary: write_codes(temporary, images, kind, self.tokenizer))
        write_checksum(out, kind)
        journal.delete()
        return EncodingResult(out, len(journal), resumed, tuple(skipped))


def _tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}


def _bar(total: int, progress: bool) -> tqdm[Any]:
    return bar_or_lines(total=total, unit=" images", desc="encode", disable=not progress, smoothing=0.05)


def _header(tokenizer: ImageTokenizer, source: ImageSource, kind: Kind) -> dict[str, Any]:
    """Return what codes belong to: the model that makes them and the listing of the images."""
    model = fingerprint(tokenizer.model, precision=tokenizer.precision)
    if tokenizer.names_images and kind != "codes":
        model += f", {tokenizer.top_k} of {tokenizer.words or ''}"
    return {"journal": 1, "model": model, "source": source.identity, "images": len(source)}


def _journal(path: Path, header: dict[str, Any], *, overwrite: bool = False) -> Journal:
    """Open a journal of codes; raise `ValueError` where it belongs to others."""
    journal = Journal(path, sealed(header), "index", _fits, overwrite=overwrite)
    if other := _other_work(journal.header, header):
        journal.close()
        raise ValueError(
            f"{path} is the unfinished work of {other}; delete it, choose another name for the output, or start "
            "anew with --overwrite"
        )
    return journal


def _fits(entry: dict[str, Any]) -> bool:
    codes = entry.get("codes") or (() if entry.get("ranked") else (None,))
    numbers = (entry.get("index"), entry.get("label"), *codes)
    return isinstance(entry.get("key"), str) and all(type(one) is int for one in numbers)


def _other_work(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Return what codes belong to that are not those expected, in words; None where they are."""
    if found.get("model") != expected["model"]:
        return "another model or precision"
    same = all(found.get(name) == expected[name] for name in ("source", "images"))
    return None if same else "other images"


def _agree(folder: Path, expected: Mapping[str, Any]) -> None:
    """Write down what the parts of a folder belong to, or see that it is the same."""
    path = folder / PARTS
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        write_json(temporary, expected)
        with suppress(FileExistsError):  # of several processes that begin at once, one names it
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    found = read_json(path)
    if other := _other_work(found, expected):
        raise ValueError(f"{folder} holds parts of {other}: choose another folder")
    if (size := found.get("part_size")) != expected["part_size"]:
        raise ValueError(f"{folder} holds parts of {size} images, got a part size of {expected['part_size']}")
