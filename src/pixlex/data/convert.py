"""Images with captions, from whatever holds them, into one file of our own layout."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pixlex.batch import Skipped
from pixlex.data.ahead import prepared_batches
from pixlex.data.broken import TooManyBroken
from pixlex.data.captioned import PairSource
from pixlex.data.chosen import ChosenImages
from pixlex.data.decoding import ImageRecord, decode_record
from pixlex.data.sources import FileSource, ImageSource
from pixlex.files import write_atomically
from pixlex.progress import bar_or_lines

# Bytes of images that are collected before they are written as one row group.
ROW_GROUP_BYTES = 64 << 20
_QUALITY = 90
# Read ahead, and held as they are stored: few, for files may be large.
_WINDOW = 8
_SCHEMA = pa.schema([("image", pa.binary()), ("image_id", pa.string()), ("captions", pa.list_(pa.string()))])


@dataclass(frozen=True)
class ConversionResult:
    """What `convert_pairs` did.

    Attributes:
        path: the file.
        num_images: images in it.
        num_captions: captions in it.
        skipped: images that cannot be read and are not in it.
    """

    path: Path
    num_images: int
    num_captions: int
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class _Row:
    """One image with its captions, as it will lie in the file; the path where it is a file of its own."""

    image: bytes
    image_id: str
    captions: tuple[str, ...]
    path: Path | None


def convert_pairs(
    source: PairSource,
    out: Path,
    *,
    image_size: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> ConversionResult:
    """Write images with captions to one file that `open_pairs` reads; images that cannot be read are left out.

    `.parquet` has the columns image (bytes of an image file), image_id and captions, in row groups of about
    64 MB; `.jsonl` has one object {path, captions} a line, with paths relative to the file. The file appears
    when it is complete. Images that cannot be read are listed in `OUT.skipped.jsonl` (key, reason).

    Args:
        source: images and captions.
        out: the file; its folder is made if missing.
        image_size: if given, images are stored as JPEG of quality 90 whose short side has at most this many
            pixels; else their bytes are copied (pixels without a file as PNG).
        overwrite: replace the file.
        progress: show a bar with rate and time left.

    Raises:
        ValueError: the name ends otherwise, the file exists, image_size is below 1, or `.jsonl` is asked for
            where images are no files of their own or are to be stored anew.
        TooManyBroken: no image can be read.
    """
    _check(source, out, image_size, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    skipped: dict[str, Skipped] = {}
    counts: Counter[str] = Counter()
    rows = _counted(_readable_rows(source, image_size, skipped, progress), counts, source.name, skipped)
    try:
        if out.suffix.lower() == ".parquet":
            write_atomically(out, lambda temporary: _write_parquet(temporary, rows))
        else:
            write_atomically(out, lambda temporary: _write_jsonl(temporary, rows))
    finally:
        _list_skipped(out.with_name(f"{out.name}.skipped.jsonl"), list(skipped.values()))
    return ConversionResult(out, counts["images"], counts["captions"], tuple(skipped.values()))


def _check(source: PairSource, out: Path, image_size: int | None, overwrite: bool) -> None:
    """Raise `ValueError` for what cannot be done."""
    suffix = out.suffix.lower()
    if suffix not in (".parquet", ".jsonl"):
        raise ValueError(f"the file must end in .parquet or .jsonl, got {out}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be 1 or more, got {image_size}")
    if suffix == ".jsonl":
        remedy = f"convert to {out.with_suffix('.parquet').name}, which holds the images"
        if image_size is not None:
            raise ValueError(f".jsonl names the images as they are, they cannot get another size: {remedy}")
        if _file_of(source.images, 0) is None:
            raise ValueError(
                f".jsonl names image files, those of {source.name} are no files of their own: {remedy}"
            )
    if out.is_dir() or (out.exists() and not overwrite):
        raise ValueError(f"{out} exists; choose another name, or replace it with --overwrite")


def _file_of(images: ImageSource, index: int) -> Path | None:
    """Return where an image lies, None if it is no file of its own."""
    if isinstance(images, ChosenImages):
        part, row = images.place(index)
        return _file_of(part, row)
    return images.root / images.paths[index] if isinstance(images, FileSource) else None


def _readable_rows(
    source: PairSource, image_size: int | None, skipped: dict[str, Skipped], progress: bool
) -> Iterator[_Row]:
    """Yield the rows whose image can be read; the others are put into `skipped`."""
    bar = bar_or_lines(
        total=len(source), unit=" images", desc="convert", disable=not progress, smoothing=0.05
    )

    def prepare(index: int, record: ImageRecord) -> _Row:
        image = _stored(record, image_size)
        return _Row(image, source.image_id(index), source.captions[index], _file_of(source.images, index))

    with bar:
        for batch in prepared_batches(source, range(len(source)), _WINDOW, prepare):
            bar.update(len(batch))
            for row in batch:
                if isinstance(row, Skipped):
                    skipped[row.key] = row
                else:
                    yield row


def _stored(record: ImageRecord, image_size: int | None) -> bytes:
    """Return the bytes to store; decoding finds out whether they are an image at all."""
    # A JPEG may be decoded at a fraction of its size: two pixels for one are left to the filter.
    image = decode_record(record, minimum_side=1 if image_size is None else 2 * image_size)
    if image_size is None and isinstance(record.data, bytes):
        return record.data
    buffer = io.BytesIO()
    if image_size is None:
        image.save(buffer, "PNG")
    else:
        scale = min(1.0, image_size / min(image.size))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _counted(
    rows: Iterator[_Row], counts: Counter[str], name: str, skipped: dict[str, Skipped]
) -> Iterator[_Row]:
    """Count rows on their way; raise `TooManyBroken` if there were none."""
    for row in rows:
        counts.update(images=1, captions=len(row.captions))
        yield row
    if not counts["images"]:
        first = next(iter(skipped.values()))
        raise TooManyBroken(
            f"{name}: none of {len(skipped)} images can be read, the first is {first.key} ({first.reason})"
        )


def _write_parquet(path: Path, rows: Iterator[_Row]) -> None:
    with pq.ParquetWriter(path, _SCHEMA, write_page_checksum=True) as writer:
        for group in _row_groups(rows):
            columns = {
                "image": [row.image for row in group],
                # Parquet's text is UTF-8; a file name that is not keeps its bytes as \udc80 and the like.
                "image_id": [row.image_id.encode("utf-8", "backslashreplace").decode() for row in group],
                "captions": [list(row.captions) for row in group],
            }
            writer.write_table(pa.table(columns, schema=_SCHEMA), row_group_size=len(group))


def _row_groups(rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    """Collect rows until another would make their images more than a row group holds."""
    group: list[_Row] = []
    size = 0
    for row in rows:
        if group and size + len(row.image) > ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(row)
        size += len(row.image)
    if group:
        yield group


def _write_jsonl(path: Path, rows: Iterator[_Row]) -> None:
    folder = path.parent.absolute()
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            assert row.path is not None
            where = Path(os.path.relpath(row.path.absolute(), folder)).as_posix()
            # A file name that is no UTF-8 is written in escapes, which JSON reads back as its bytes.
            escapes = any("\udc80" <= mark <= "\udcff" for mark in where)
            file.write(json.dumps({"path": where, "captions": row.captions}, ensure_ascii=escapes) + "\n")


def _list_skipped(path: Path, skipped: list[Skipped]) -> None:
    """Write the list of images that could not be read; remove that of an earlier run if there are none."""
    if skipped:
        text = "".join(f"{json.dumps(asdict(one))}\n" for one in skipped)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    else:
        path.unlink(missing_ok=True)
