"""Images with what is known of them, from whatever holds them, into one file; what is in a source."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median_low
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pixlex.batch import Skipped, TooManyBroken
from pixlex.data.decoding import ImageRecord, UnreadableImage, decode_record, stored_form
from pixlex.data.folders import FileSource
from pixlex.data.loader import prefetch
from pixlex.data.records import Records
from pixlex.data.sources import NO_FILE, ImageSource, PassedOver, place_of
from pixlex.files import write_atomically, write_text
from pixlex.progress import bar_or_lines

# Bytes of images that are collected before they are written as one row group.
ROW_GROUP_BYTES = 64 << 20
_QUALITY = 90
# Images that are read ahead, and held as they are stored: few, for files may be large.
_WINDOW = 8
# Columns of a table beside `image`.
_COLUMNS = {
    "image_id": pa.string(),
    "captions": pa.list_(pa.string()),
    "label": pa.int64(),
    "class_name": pa.string(),
}

# Images of each split of Karpathy and Fei-Fei 2015, "Deep Visual-Semantic Alignments".
EXPECTED_SPLITS: Mapping[str, Mapping[str, int]] = {
    "coco": {"train": 82_783, "restval": 30_504, "val": 5_000, "test": 5_000},
    "flickr30k": {"train": 29_000, "val": 1_014, "test": 1_000},
    "flickr8k": {"train": 6_000, "val": 1_000, "test": 1_000},
}
_TITLES = {"coco": "COCO", "flickr30k": "Flickr30k", "flickr8k": "Flickr8k"}
_MOST_REPEATED = 10


@dataclass(frozen=True)
class ConversionResult:
    """The file that `convert_images` wrote, what is in it, and images that cannot be read and are not."""

    path: Path
    num_images: int
    num_captions: int
    skipped: tuple[Skipped, ...]


class _Row(NamedTuple):
    """One image as it will lie in the file, what is known of it, and its path where it is a file of its own."""

    image: bytes
    extension: str
    known: dict[str, Any]
    path: Path | None


def convert_images(
    source: ImageSource | Records,
    out: Path,
    *,
    image_size: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> ConversionResult:
    """Write images, with captions and classes where there are some, to one file that is opened as a source again.

    `.parquet` has the columns image (bytes of an image file), image_id, captions, label and class_name, in row
    groups of about 64 MB; `.tar` is a shard as WebDataset writes them, with the same fields in a .json beside each
    image; `.jsonl` has an object a line with a path relative to the file. Captions and classes are left out where
    there are none. The file appears when it is complete. Images that cannot be read are listed in
    `OUT.skipped.jsonl` (key, reason).

    Args:
        out: The file; its folder is made if missing.
        image_size: If given, images are stored as JPEG of quality 90 whose short side has at most this many
            pixels; else their bytes are copied (pixels without a file as PNG).

    Raises:
        ValueError: It cannot be written so, or exists.
        TooManyBroken: No image can be read.
    """
    pairs = source if isinstance(source, Records) else Records(source.name, source, ((),) * len(source))
    _check(pairs.images, out, image_size, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    has_captions, names = any(pairs.texts), pairs.images.class_names
    skipped: dict[str, Skipped] = {}
    counts: Counter[str] = Counter()
    bar = bar_or_lines(total=len(pairs), unit=" images", desc="convert", disable=not progress, smoothing=0.05)

    def prepare(index: int, record: ImageRecord) -> _Row:
        image, extension = _stored(record, image_size)
        known: dict[str, Any] = {"image_id": pairs.image_id(index)}
        if has_captions:
            known["captions"] = list(pairs.texts[index])
        if names:
            is_known = record.label >= 0
            known["label"] = record.label if is_known else None
            known["class_name"] = names[record.label] if is_known else None
        return _Row(image, extension, known, _file_of(pairs.images, index))

    def rows() -> Iterator[_Row]:
        with bar:
            for batch in prefetch(pairs.images, range(len(pairs)), _WINDOW, prepare):
                bar.update(len(batch))
                skipped.update({row.key: row for row in batch if isinstance(row, Skipped)})
                for row in batch:
                    if isinstance(row, _Row):
                        counts.update(images=1, captions=len(row.known.get("captions", ())))
                        yield row
        if not counts["images"]:
            first = next(iter(skipped.values()))
            raise TooManyBroken(
                f"{pairs.name}: none of {len(skipped)} images can be read, the first is {first.key} "
                f"({first.reason})"
            )

    write = _WRITERS[out.suffix.lower()]
    try:
        write_atomically(out, lambda temporary: write(temporary, rows()))
    finally:
        listed = out.with_name(f"{out.name}.skipped.jsonl")
        if skipped:
            write_text(listed, "".join(f"{json.dumps(asdict(one))}\n" for one in skipped.values()))
        else:  # that of an earlier run
            listed.unlink(missing_ok=True)
    return ConversionResult(out, counts["images"], counts["captions"], tuple(skipped.values()))


def _check(source: ImageSource, out: Path, image_size: int | None, overwrite: bool) -> None:
    suffix = out.suffix.lower()
    if suffix not in _WRITERS:
        raise ValueError(f"the file must end in .parquet, .tar or .jsonl, got {out}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be 1 or more, got {image_size}")
    remedy = f"convert to {out.with_suffix('.parquet').name}, which holds the images"
    if suffix == ".jsonl" and image_size is not None:
        raise ValueError(f".jsonl names the images as they are, they cannot get another size: {remedy}")
    if suffix == ".jsonl" and _file_of(source, 0) is None:
        raise ValueError(
            f".jsonl names image files, those of {source.name} are no files of their own: {remedy}"
        )
    if out.is_dir() or (out.exists() and not overwrite):
        remedy = "" if out.is_dir() else ", or replace it with --overwrite"
        raise ValueError(f"{out} exists; choose another name{remedy}")


def _file_of(images: ImageSource, index: int) -> Path | None:
    """Return where an image lies, None if it is no file of its own."""
    source, row = place_of(images, index)
    return source.root / source.paths[row] if isinstance(source, FileSource) else None


def _stored(record: ImageRecord, image_size: int | None) -> tuple[bytes, str]:
    """Return the bytes to store and their format; decoding finds out whether they are an image at all."""
    # A JPEG may be decoded at a fraction of its size: two pixels for one are left to the filter.
    image = decode_record(record, minimum_side=1 if image_size is None else 2 * image_size)
    if image_size is None and isinstance(record.data, bytes):
        return record.data, stored_form(record).file_format.lower()
    buffer = io.BytesIO()
    if image_size is None:
        image.save(buffer, "PNG")
        return buffer.getvalue(), "png"
    scale = min(1.0, image_size / min(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue(), "jpeg"


def _write_parquet(path: Path, rows: Iterator[_Row]) -> None:
    writer: pq.ParquetWriter | None = None
    with ExitStack() as stack:
        for group in _row_groups(rows):
            schema = pa.schema([("image", pa.binary()), *((name, _COLUMNS[name]) for name in group[0].known)])
            columns = {name: [row.known[name] for row in group] for name in group[0].known}
            # Parquet's text is UTF-8; a file name that is not keeps its bytes as \udc80 and the like.
            names = (name.encode("utf-8", "backslashreplace").decode() for name in columns["image_id"])
            columns |= {"image": [row.image for row in group], "image_id": list(names)}
            writer = writer or stack.enter_context(pq.ParquetWriter(path, schema, write_page_checksum=True))
            writer.write_table(pa.table(columns, schema=schema), row_group_size=len(group))


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


def _write_tar(path: Path, rows: Iterator[_Row]) -> None:
    with tarfile.open(path, "w") as shard:
        for number, row in enumerate(rows):
            fields = {name: value for name, value in row.known.items() if value is not None}
            for extension, data in ((row.extension, row.image), ("json", json.dumps(fields).encode())):
                entry = tarfile.TarInfo(f"{number:08d}.{extension}")
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))


def _write_jsonl(path: Path, rows: Iterator[_Row]) -> None:
    folder = path.parent.absolute()
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            assert row.path is not None
            where = Path(os.path.relpath(row.path.absolute(), folder)).as_posix()
            fields = {"path": where, **row.known}
            del fields["image_id"]
            # A file name that is no UTF-8 is written in escapes, which JSON reads back as its bytes.
            escapes = any("\udc80" <= mark <= "\udcff" for mark in where)
            file.write(json.dumps(fields, ensure_ascii=escapes) + "\n")


_WRITERS: Mapping[str, Callable[[Path, Iterator[_Row]], None]] = {
    ".parquet": _write_parquet,
    ".tar": _write_tar,
    ".jsonl": _write_jsonl,
}


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of some numbers: lengths in pixels, counts."""

    smallest: int
    middle: int
    largest: int

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Spread | None:
        """Return that of some numbers; None if there are none."""
        return cls(min(numbers), median_low(numbers), max(numbers)) if numbers else None


@dataclass(frozen=True)
class DataReport:
    """What a source of images holds.

    Attributes:
        num_images: Images listed, readable or not; all other numbers are of the readable ones.
        width: Of upright images; None if none is readable; height as well.
        formats: Format -> images; "array" for pixels without a file.
        modes: Pixel layout as stored, such as "RGB" or "CMYK" -> images.
        duplicate_keys: Keys that occur more than once -> how often.
        ignored: Files beside the images that are not looked at.
    """

    name: str
    identity: str
    num_images: int
    width: Spread | None
    height: Spread | None
    formats: dict[str, int]
    modes: dict[str, int]
    broken: tuple[Skipped, ...]
    images_per_class: dict[str, int]
    unlabeled: int
    duplicate_keys: dict[str, int]
    ignored: tuple[PassedOver, ...]
    empty_folders: tuple[str, ...]

    @property
    def num_missing(self) -> int:
        """How many of the broken images are files that do not exist."""
        return sum(image.reason.startswith(NO_FILE) for image in self.broken)

    @property
    def broken_fraction(self) -> float:
        """The fraction of images that cannot be read, in [0, 1]."""
        return len(self.broken) / self.num_images


def inspect_source(source: ImageSource, progress: Callable[[int, int], object] | None = None) -> DataReport:
    """Decode every image once and report what was found; `progress` is called with images done and all images."""
    sizes: list[tuple[int, int]] = []
    formats, modes, keys = Counter[str](), Counter[str](), Counter[str]()
    classes: Counter[int] = Counter()
    broken: list[Skipped] = []
    for index in range(len(source)):
        keys[source.key(index)] += 1
        try:
            record = source.read(index)
            form = stored_form(record)
            sizes.append(decode_record(record).size)
        except UnreadableImage as fault:
            broken.append(Skipped(fault.key, fault.reason))
        else:
            formats[form.file_format] += 1
            modes[form.mode] += 1
            classes[record.label] += 1
        if progress is not None:
            progress(index + 1, len(source))
    unlabeled, names = classes.pop(-1, 0), source.class_names
    named = Counter(names)  # a name that several classes have gets their numbers
    return DataReport(
        name=source.name,
        identity=source.identity,
        num_images=len(source),
        width=Spread.of([width for width, _ in sizes]),
        height=Spread.of([height for _, height in sizes]),
        formats=dict(formats.most_common()),
        modes=dict(modes.most_common()),
        broken=tuple(broken),
        images_per_class={
            f"{name} ({label})" if named[name] > 1 else name: classes[label]
            for label, name in enumerate(names)
            if name
        },
        unlabeled=unlabeled,
        duplicate_keys={key: count for key, count in keys.items() if count > 1},
        ignored=tuple(one for one in getattr(source, "ignored", ()) if isinstance(one, PassedOver)),
        empty_folders=source.empty_folders if isinstance(source, FileSource) else (),
    )


@dataclass(frozen=True)
class CaptionReport:
    """What the captions of a source are like.

    Attributes:
        num_duplicates: Captions whose text, but for case and blanks, is that of an earlier one.
        most_repeated: The texts that occur most often, at most ten -> how often.
        without_captions: Keys of images that have none and are left out.
        splits: Images in each split of the annotation file; empty without splits.
        expected_splits: Images that the split should have; empty where that is not known.
        remarks: A sentence for each split that has other images than expected.
    """

    num_captions: int
    captions_per_image: Spread
    words_per_caption: Spread
    num_duplicates: int
    most_repeated: dict[str, int]
    without_captions: tuple[str, ...]
    splits: dict[str, int]
    expected_splits: dict[str, int]
    remarks: tuple[str, ...]


def inspect_captions(source: Records) -> CaptionReport:
    """Count the captions of a source; rows that repeat an image with the same captions count once."""
    rows_of: dict[int, dict[tuple[str, ...], None]] = {}
    for row, texts in enumerate(source.texts):
        rows_of.setdefault(source.image_of(row), {})[texts] = None
    captions = [text for rows in rows_of.values() for texts in rows for text in texts]
    words = Spread.of([len(text.split()) for text in captions])
    per_image = Spread.of([sum(map(len, rows)) for rows in rows_of.values()])
    assert words is not None  # a source of pairs has captions
    assert per_image is not None
    counts = Counter(" ".join(text.lower().split()) for text in captions)
    sizes = {} if source.splits is None else dict(source.splits.sizes)
    dataset = "" if source.splits is None else source.splits.dataset
    expected = dict(EXPECTED_SPLITS.get(dataset, {}))
    remarks = []
    for split in [*expected, *sorted(sizes.keys() - expected.keys())] if expected else ():
        found, wanted = sizes.get(split, 0), expected.get(split, 0)
        if found != wanted:
            remarks.append(
                f"Karpathy's split of {_TITLES[dataset]} has {wanted:,} images in {split}, this file {found:,}."
            )
    return CaptionReport(
        num_captions=len(captions),
        captions_per_image=per_image,
        words_per_caption=words,
        num_duplicates=len(captions) - len(counts),
        most_repeated={text: count for text, count in counts.most_common(_MOST_REPEATED) if count > 1},
        without_captions=source.ignored,
        splits=sizes,
        expected_splits=expected,
        remarks=tuple(remarks),
    )
