"""Images with captions, opened by description; texts to assign to images, made of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pixlex.data.annotations import (
    PATH_FIELDS,
    FileImages,
    Format,
    ListedImages,
    Opened,
    Row,
    RowImages,
    Table,
    genome_image,
    genome_paths,
    has_some,
    path_of,
    read_annotations,
)
from pixlex.data.folders import FileSource, below, captions_beside, image_path
from pixlex.data.given import Dataset, GivenSource
from pixlex.data.images import open_source
from pixlex.data.labels import RowLabel, no_labels, resolve_labels, row_label
from pixlex.data.records import AnnotatedSplits, NoCaptions, Record, Records, items_of, join
from pixlex.data.shards import TarSource
from pixlex.data.sources import (
    ImageSource,
    Options,
    SetDescription,
    read_descriptions,
    remark_left_out,
    remark_passed_over,
)
from pixlex.data.synthetic import ScenesSource, scene_captions
from pixlex.data.tables import columns_without_images, table_rows
from pixlex.data.text import CAPTION_COLUMNS, CLASSES, id_text, list_rows, texts_in
from pixlex.messages import quoted

_ADDRESS_COLUMNS = ("url", "image_url", "image_urls", "link")
_DOWNLOAD = "download the pictures first, for example with img2dataset, and name what it wrote"
# A set that is taken more often than this was given a weight by mistake.
_MAX_REPEATS = 1000
_SUBSET_SEED = 2208
# Sets the generator of an item's partners apart from others that are seeded with a number.
_PARTNERS = 1 << 61
# How often a partner is drawn before one is given up that does not have the caption itself.
_MOST_DRAWS = 100


def open_pairs(description: str | Dataset, *, every_split: bool = False) -> Records:
    """Open images with captions.

    A data set of Python (see `pixlex.data.given.Dataset`) is read once for its captions. A description is

    `[WEIGHT * ]PATH[?OPTION=VALUE&...]`, several such sets joined by ` + `. PATH is one of

    - .json: ALBEF's list of {image, caption or captions}; Karpathy's files of COCO, Flickr30k and Flickr8k
      (they need `split=train`, several joined by +, or `split=all`); COCO's captions; Visual Genome's region
      descriptions, each phrase a text of the whole image (`index=image_data.json`, where folder and file name
      cannot be told from the id). The content says which it is.
    - .csv, .tsv or .jsonl with `path`, `filepath`, `image` or `file_name` and `captions` (.jsonl: a text or a
      list of texts), `caption`, `title` or `text`; .parquet with the same columns.
    - .parquet files (one, a folder, a pattern) with image bytes, a data set of Hugging Face (hf:NAME[:SPLIT]
      or a saved one), with such a caption column.
    - .tar shards or a folder of images, with .txt or .json (`captions`, `caption` or `text`) beside each image;
      a folder also with a metadata.jsonl, .csv or .parquet, as Hugging Face's imagefolder reads it.
    - embedded:scenes:train|test[:COUNT].

    Paths of images are relative to the folder of the file, or to `images=FOLDER`; of an absolute path that does
    not exist here the longest tail that lies below that folder is taken. Rows with one path are one image with
    several captions. Texts are freed of what no tokenizer reads (see `plain_text`), and lists that a text writes
    down are lists. `captions=COLUMN` names another column. `rows=captions` gives a row for each caption. Images
    without a caption are left out and named in `ignored`; files that are missing are found out when they are read.

    Weights are divided by the smallest: a set of weight 1 comes once, one of weight 2.5 twice and then half of it,
    which half is drawn once and for all. Rows of one image share `image_of`.

    Args:
        every_split: take all images of a file with splits that names none.

    Raises:
        NoCaptions: the images have no captions.
        ValueError: the description, or a file that it names, does not fit.
        ModuleNotFoundError: if the kind of source needs a package that is not installed.
    """
    if isinstance(description, str):
        sets = read_descriptions(description)
        sources = [_open_set(one, every_split) for one in sets]
        weights = [one.weight for one in sets]
        mixed = sources[0] if len(sets) == 1 else _mix(description.strip(), sources, weights)
    else:
        mixed = _with_captions(open_source(description, captioned=True), SetDescription("", {}))
    remark_left_out(mixed.name, mixed.ignored, "images without a caption")
    return mixed


def assignment_items(pairs: Records) -> Records:
    """Return an item for each caption: two images, to the first of which it belongs, the second, or neither.

    The three are equally likely. Partners are drawn at random from all images but those that have the same
    caption; ALBEF draws them by similarity in a batch (Li et al. 2021, section 4.2, NLVR2). The draws hang on the
    number of the caption alone, so an item is the same in every epoch and process. Raises `ValueError` for fewer
    than three distinct images, or a caption that all of them share.
    """
    if len({pairs.image_of(row) for row in range(len(pairs))}) < 3:
        raise ValueError(f"{pairs.name}: expected three images or more to assign texts to, got fewer")
    classes = CLASSES["assignment"]
    records: list[Record] = []
    for row, captions in enumerate(pairs.texts):
        for place, text in enumerate(captions):
            generator = np.random.default_rng((len(records), _PARTNERS))
            label = int(generator.integers(len(classes)))
            one = _partner(pairs, text, [row], generator)
            other = _partner(pairs, text, [row, one], generator)
            images = ((row, one), (one, row), (one, other))[label]
            records.append(Record(images, (text,), (classes[label],), f"{pairs.image_id(row)}#{place}"))
    return items_of(pairs.name, records, RowImages(pairs.name, (pairs.images,)).find, pairs.ignored)


def _partner(pairs: Records, text: str, taken: list[int], generator: np.random.Generator) -> int:
    """Return the row of an image that is none of those taken and has another caption."""
    seen = {pairs.image_of(row) for row in taken}
    for _ in range(_MOST_DRAWS):
        row = int(generator.integers(len(pairs)))
        if pairs.image_of(row) not in seen and text not in pairs.texts[row]:
            return row
    raise ValueError(
        f"{pairs.name}: nearly every image has the caption {quoted(text, 60)}: it can be assigned to none"
    )


def _mix(name: str, sources: Sequence[Records], weights: Sequence[float]) -> Records:
    """Return the rows of all sets, each set as often as its weight says."""
    smallest, largest = min(weights), max(weights)
    if largest > _MAX_REPEATS * smallest:
        raise ValueError(
            f"the weights of sets may differ by a factor of {_MAX_REPEATS}, got {smallest:g} and {largest:g}"
        )
    parts = []
    for number, (source, weight) in enumerate(zip(sources, weights, strict=True)):
        size, repeats = len(source), int(weight / smallest)
        rest = round((weight / smallest - repeats) * size)
        some = np.random.default_rng((_SUBSET_SEED, number)).choice(size, rest, replace=False)
        parts.append(source.take(np.concatenate([np.tile(np.arange(size), repeats), np.sort(some)])))
    return join(name, parts)


def _open_set(described: SetDescription, every_split: bool) -> Records:
    path = Path(described.path).expanduser()
    suffix = path.suffix.lower() if os.path.isfile(path) else ""
    columns = columns_without_images(path) if suffix == ".parquet" else []
    if suffix == ".json":
        source = _open_annotations(path, described, every_split)
    elif suffix in (".csv", ".tsv", ".jsonl"):
        source = _open_rows(path, list_rows(path), described)
    elif columns:
        used = {_path_column(path, columns), _caption_column(str(path), columns, described)}
        rows = table_rows(path, [name for name in columns if name in used | {"label", "class_name"}])
        if not rows:
            raise ValueError(f"{path} lists no image")
        source = _open_rows(path, list(enumerate(rows)), described)
    else:
        source = _with_captions(open_source(described.path, captioned=True), described)
    rows_are = described.options.get("rows", "images")
    if rows_are not in ("images", "captions"):
        raise ValueError(f"{described.path}: rows must be images or captions, got {rows_are:.80}")
    return source.by_caption() if rows_are == "captions" else source


def _open_annotations(path: Path, described: SetDescription, every_split: bool) -> Records:
    folder = _image_folder(path, described)
    images = FileImages(str(path), folder)
    content, records = read_annotations(path, CAPTION_FORMATS, images, described.options)
    sizes = Counter(record.split for record in records if record.split)
    names = _wanted_splits(path, sizes, described.options.get("split", "all" if every_split else None))
    texts: dict[str, list[str]] = {}
    for record in records:
        if record.split in names:
            texts.setdefault(str(record.images[0]), []).extend(record.texts)
    splits = AnnotatedSplits(str(content.get("dataset", "")), dict(sizes)) if sizes else None
    return replace(_files_with_texts(path, folder, texts), splits=splits)


def _wanted_splits(path: Path, sizes: Mapping[str, int], wanted: str | None) -> set[str]:
    if not sizes and wanted not in (None, "all"):
        raise ValueError(f"{path} has no splits, got split={wanted}; only Karpathy's files have some")
    known = ", ".join(f"{name} ({size:,} images)" for name, size in sizes.items())
    if sizes and wanted is None:
        such = "train+restval" if "restval" in sizes else next(iter(sizes))
        raise ValueError(
            f"{path} holds the splits {known}: say which are meant, such as {path.name}?split={such}, or "
            "?split=all"
        )
    if not sizes or wanted == "all" or wanted is None:
        return set(sizes) or {""}
    names = set(wanted.split("+"))
    if unknown := names - set(sizes):
        raise ValueError(f"{path} has no split {', '.join(sorted(unknown))}; known: {known}, or all")
    return names


def _open_rows(path: Path, rows: list[tuple[int, dict[str, Any]]], described: SetDescription) -> Records:
    """Open rows with a path and a caption; rows of one image are put together."""
    described.only(("images", "captions", "rows"), "lists of image files")
    folder = _image_folder(path, described)
    where = _path_column(path, tuple(rows[0][1]))
    column = _caption_column(str(path), tuple(rows[0][1]), described)
    texts: dict[str, list[str]] = {}
    labels: dict[str, RowLabel] = {}
    for line, row in rows:
        place = f"{path} line {line}"
        name = image_path(row.get(where), f"{place}, column {where}", folder)
        texts.setdefault(name, []).extend(texts_in(row.get(column), place))
        labels.setdefault(name, row_label(row.get("label"), row.get("class_name"), place))
    return _files_with_texts(path, folder, texts, list(labels.values()))


def _files_with_texts(
    path: Path, folder: Path, texts: Mapping[str, Sequence[str]], labels: Sequence[RowLabel] = ()
) -> Records:
    classes = (
        resolve_labels(labels, str(path), path.parent, numbered=True) if labels else no_labels(len(texts))
    )
    images = FileSource(str(path), folder, tuple(below(list(texts), folder)), classes)
    return Records(images.name, images, tuple(map(tuple, texts.values()))).captioned()


def _with_captions(images: ImageSource, described: SetDescription) -> Records:
    """Give images their captions that are not named by a list: tables and shards that hold them, folders."""
    ids: tuple[str, ...] = ()
    texts: Sequence[tuple[str, ...]] = ()
    if isinstance(images, Table):
        described.only(("captions", "rows"), "tables of images")
        column = _caption_column(images.name, images.column_names, described)
        texts = [texts_in(cell, images.key(row)) for row, cell in enumerate(images.values(column))]
        given = images.values("image_id") if "image_id" in images.column_names else [None]
        ids = () if any(one is None for one in given) else tuple(map(id_text, given))
    elif isinstance(images, FileSource):
        described.only(("captions", "rows"), "folders")
        images, texts = captions_beside(images, described.options.get("captions"))
    else:
        described.only(("rows",), "shards and embedded sets")
        if isinstance(images, TarSource):
            texts = images.captions
        elif isinstance(images, GivenSource):
            texts = images.captions()
        elif isinstance(images, ScenesSource):
            texts = [scene_captions(images, index) for index in range(len(images))]
    if not any(texts) and isinstance(images, GivenSource):
        raise NoCaptions(
            f"{images.name} has no captions: expected items (image, caption), or with a field caption"
        )
    if not any(texts) and not isinstance(images, Table):
        raise NoCaptions(
            f"{images.name} has no captions: expected .parquet with image bytes or a data set of Hugging Face, "
            f"each with a column {_named(CAPTION_COLUMNS)}; .csv, .tsv or .jsonl with a path besides; "
            "an annotation file in .json; .txt or .json beside each image of a folder or of .tar shards; "
            "metadata.jsonl or .csv in a folder; or embedded:scenes:SPLIT"
        )
    pairs = Records(images.name, images, tuple(texts), ids=ids).captioned()
    remark_passed_over(images)
    return pairs


def _path_column(path: Path, columns: Sequence[str]) -> str:
    """Return the column of paths, or say that pictures must be downloaded."""
    column = next((name for name in PATH_FIELDS if name in columns), None)
    if column is not None:
        return column
    found = ", ".join(map(str, columns))
    if "://" in found:
        raise ValueError(
            f"{path} has no header line and lists web addresses, as the official Conceptual Captions do: "
            f"{_DOWNLOAD}"
        )
    if any(str(name).lower() in _ADDRESS_COLUMNS for name in columns):
        raise ValueError(f"{path} lists web addresses (columns {found:.200}): {_DOWNLOAD}")
    bytes_or = "of image bytes, or one called " if path.suffix.lower() == ".parquet" else ""
    raise ValueError(f"{path}: expected a column {bytes_or}{_named(PATH_FIELDS)}, found {found:.200}")


def _caption_column(name: str, columns: Sequence[str], described: SetDescription) -> str:
    """Return the column of captions: the one that was named, or the first of the usual ones."""
    wanted, found = described.options.get("captions"), f"{', '.join(map(str, columns)):.200}"
    if wanted is not None and wanted not in columns:
        raise ValueError(f"{name} has no column {wanted}, found {found}")
    column = wanted or next((usual for usual in CAPTION_COLUMNS if usual in columns), None)
    if column is None:
        raise NoCaptions(
            f"{name}: expected a column {_named(CAPTION_COLUMNS)}, found {found}; another can be named, such as "
            "?captions=sentence"
        )
    return column


def _image_folder(path: Path, described: SetDescription) -> Path:
    folder = Path(described.options.get("images", path.parent)).expanduser()
    if not os.path.isdir(folder):
        raise ValueError(f"{path}: the folder of images {folder} does not exist")
    return folder


def _named(columns: Sequence[str]) -> str:
    return f"{', '.join(columns[:-1])} or {columns[-1]}"


def _captions_of_albef(content: Any, images: ListedImages, options: Options) -> Opened:
    def read(number: int, row: Row) -> Iterable[Record]:
        path = path_of(row["image"], images)
        yield Record(
            (path,), texts_in(row["captions"] if "captions" in row else row["caption"], f"{path:.80}")
        )

    return "entry", content, read


def _karpathy(content: Any, images: ListedImages, options: Options) -> Opened:
    def read(number: int, row: Row) -> Iterable[Record]:
        path = path_of(str(PurePosixPath(row.get("filepath") or "", row["filename"])), images)
        texts = [text for one in row.get("sentences", ()) for text in texts_in(one["raw"], f"{path:.80}")]
        yield Record((path,), tuple(texts), split=str(row["split"]))

    return "image", content["images"], read


def _coco(content: Any, images: ListedImages, options: Options) -> Opened:
    known = {id_text(row["id"]) for row in content["images"] if isinstance(row, dict) and "id" in row}
    texts: dict[str, list[str]] = {}
    for place, row in enumerate(content["annotations"]):
        where = f"annotation {place}"
        if not isinstance(row, dict) or not {"image_id", "caption"} <= row.keys():
            raise ValueError(f"{where}: expected the fields image_id and caption, got {quoted(row)}")
        name = id_text(row["image_id"])
        if name not in known:
            raise ValueError(
                f"{where} belongs to image {quoted(row['image_id'])}, which is not among the images"
            )
        texts.setdefault(name, []).extend(texts_in(row["caption"], f"{where} (image {name:.80})"))

    def read(number: int, row: Row) -> Iterable[Record]:
        name = id_text(row["id"])
        yield Record((path_of(row["file_name"], images),), tuple(texts.get(name, ())), id=name)

    return "image", content["images"], read


def _genome_captions(content: Any, images: ListedImages, options: Options) -> Opened:
    """Read [{id or image_id, regions: [{phrase}]}]; the phrase of a region is a text of the whole image."""
    paths = genome_paths(images, options)

    def read(number: int, row: Row) -> Iterable[Record]:
        image, path = genome_image(row, paths)
        texts = [text for one in row["regions"] for text in texts_in(one["phrase"], f"image {image}")]
        yield Record((path,), tuple(texts))

    return "entry", content, read


CAPTION_FORMATS = (
    Format(
        "Karpathy's files", "{images: [{filename, split, sentences: [{raw}]}]}", ("split", "images", "rows"),
        lambda content: isinstance(content, dict) and has_some(content.get("images"), "sentences"), _karpathy,
    ),
    Format(
        "COCO's captions", "{images: [{id, file_name}], annotations: [{image_id, caption}]}",
        ("split", "images", "rows"),
        lambda content: isinstance(content, dict) and isinstance(content.get("images"), list)
        and has_some(content.get("annotations"), "image_id", "caption"), _coco,
    ),
    Format(
        "Visual Genome's region descriptions", "a list of {id, regions: [{phrase}]}",
        ("split", "images", "index", "rows"), lambda content: has_some(content, "regions"), _genome_captions,
    ),
    Format(
        "ALBEF's captions", "a list of {image, caption}", ("split", "images", "rows"),
        lambda content: has_some(content, "image", "caption") or has_some(content, "image", "captions"),
        _captions_of_albef,
    ),
)  # fmt: skip
