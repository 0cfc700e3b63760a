"""Open a source of images by its description; data sets of the `datasets` library."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from pixlex.data.decoding import IMAGE_SUFFIXES, ImageRecord, UnreadableImage, load_image
from pixlex.data.embedded import open_embedded
from pixlex.data.folders import (
    is_image_file,
    is_image_name,
    open_folder,
    open_image_files,
    open_list,
    with_metadata_labels,
)
from pixlex.data.labels import CLASSES_FILE, Labels, labels_of_known_classes, resolve_labels, row_label
from pixlex.data.remote import AnyPath, RemotePath, as_local, is_url
from pixlex.data.shards import TarSource, open_shards
from pixlex.data.sources import (
    ImageSource,
    PassedOver,
    fingerprint,
    kind_of,
    remark_passed_over,
    stored_bytes,
)
from pixlex.data.tables import ParquetSource, unreadable_column
from pixlex.data.text import json_value
from pixlex.files import read_regular
from pixlex.messages import not_installed, quoted

__all__ = [
    "DatasetSource", "ImageRecord", "ImageSource", "UnreadableImage", "load_image",
    "open_image_files", "open_source", "remote_tables",
]  # fmt: skip

_EXPECTED = (
    "expected a folder of images, .parquet or .tar files; a .parquet, .csv, .tsv, .jsonl, .tar or image file; a "
    "pattern of .parquet or .tar files such as shards/{000..009}.tar, also at an address such as s3://BUCKET/...; "
    "hf:NAME[:SPLIT]; or "
    "embedded:digits|photographs:train|test or embedded:scenes:train|test[:COUNT]"
)

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def open_source(description: str, *, captioned: bool = False) -> ImageSource:
    """Open a source of images.

    A folder is one of images (see `open_folder`), of .parquet files, of .tar shards, or one written by
    `datasets.Dataset.save_to_disk`. Files of a folder or a pattern are taken in sorted order; a pattern
    with braces, such as `{000..009}` or `{a,b}`, names each file, and all must exist.

    Shards and .parquet files may lie at a URL that fsspec reads (s3://, gs://, https://, hf://, ...): a file,
    a folder or a pattern, as far as files are listed there; braces need no listing. They make the same source as
    the same files on a disk.

    Images in .parquet files are bytes of any type, structs of them, lists of uint8, or texts in base64. Labels of
    a folder are those of its metadata.jsonl or .csv where that has some. Class names become names that can be
    answers (see `pixlex.data.labels.spoken_names`).

    Args:
        description: A path or a URL, a pattern of such, "hf:NAME[:SPLIT]" or "embedded:SET:SPLIT".
        captioned: The images are opened for their captions: classes without a name are called by their
            number instead of refused, and shards keep their texts.

    Raises:
        ValueError: There is nothing of the kind, no image in it, or it is malformed.
        ModuleNotFoundError: The kind of source needs a package that is not installed.
        Unreachable: A URL does not answer.

    Warns of files among the images that are passed over (where captioned, `open_pairs` does).
    """
    source = _opened(as_local(description.strip()), captioned)
    if not captioned:
        remark_passed_over(source)
    return source


def _opened(description: str, captioned: bool) -> ImageSource:
    if description.startswith("embedded:"):
        return open_embedded(description.removeprefix("embedded:"))
    if is_url(description):
        files, others = _remote_files(description)
        return _open_files(description, files, captioned, others)
    if description.startswith("hf:"):
        return open_hub(description.removeprefix("hf:"), numbered=captioned)
    if not description:
        raise ValueError(f"the description of the images is empty; {_EXPECTED}")
    path = Path(description).expanduser()
    suffix = path.suffix.lower()
    if os.path.isdir(path):  # unlike Path.is_dir, false for names that are too long
        return _open_directory(path, captioned)
    if os.path.isfile(path):
        if suffix in (".parquet", ".tar"):
            return _open_files(str(path), [path], captioned)
        if suffix in (".csv", ".tsv", ".jsonl"):
            return open_list(path)
        if suffix in IMAGE_SUFFIXES or is_image_file(path):
            return open_image_files([path])
        raise ValueError(f"{path} ends in {suffix or 'no suffix'}; {_EXPECTED}")
    if re.search(r"[*?\[{]", description):
        found = {Path(name) for part in _expand_braces(str(path)) for name in _matching(part)}
        return _open_files(str(path), sorted(found), captioned)
    if os.path.lexists(path):
        raise ValueError(
            f"{path} is neither a file nor a folder (a pipe, a device or a dead link); {_EXPECTED}"
        )
    slashes = "; paths are written with /, not with backslashes" if "\\" in description else ""
    raise ValueError(f"{path} does not exist (looked for {path.absolute()}){slashes}; {_EXPECTED}")


def _matching(pattern: str) -> list[str]:
    found = glob.glob(pattern, recursive=True)
    if not found:
        raise ValueError(f"no file matches {pattern}")
    return found


def _open_directory(folder: Path, captioned: bool) -> ImageSource:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return open_saved(folder, numbered=captioned)
    entries = sorted(folder.iterdir())
    files = [path for path in entries if path.is_file() and not path.name.startswith(".")]
    stored = [path for path in files if _is_stored_set(path)]
    kinds = ["images"] if any(is_image_name(path.name) for path in files) else []
    kinds += sorted({path.suffix.lower() for path in stored})
    if len(kinds) > 1:
        raise ValueError(
            f"{folder} holds {' and '.join(kinds)} files, and it is not clear which are meant: "
            f"name them with a pattern such as {folder}/*{kinds[-1]}, or put them into folders of their own"
        )
    if not stored:
        return with_metadata_labels(open_folder(folder))
    used = {*stored, folder / CLASSES_FILE}
    others = [f"{path.name}/" if path.is_dir() else path.name for path in entries if path not in used]
    return _open_files(str(folder), stored, captioned, others)


def _open_files(
    pattern: str, files: Sequence[AnyPath], captioned: bool, others: Sequence[str] = ()
) -> ParquetSource | TarSource:
    """Open tables or shards; `others` are the names of what lies beside them."""
    beside = tuple(PassedOver("folder" if name.endswith("/") else kind_of(name), name) for name in others)
    match sorted({path.suffix.lower() for path in files}):
        case [".parquet"]:
            return ParquetSource(pattern, files, numbered=captioned, ignored=beside)
        case [".tar"]:
            shards = open_shards(pattern, files, captioned=captioned)
            return replace(shards, ignored=shards.ignored + beside)
        case suffixes:
            raise ValueError(
                f"a pattern must name .parquet or .tar files alone, {pattern} names {', '.join(suffixes)}"
            )


def remote_tables(description: str) -> list[RemotePath]:
    """Return the .parquet files that a URL means; none if it means others, or is none."""
    files, _ = _remote_files(description) if is_url(description) else ([], [])
    return files if all(file.suffix.lower() == ".parquet" for file in files) else []


def _remote_files(description: str) -> tuple[list[RemotePath], list[str]]:
    """Return the files that a URL means, in the order of a disk, and the names of others in their folders."""
    found, others = set[RemotePath](), list[str]()
    for part in map(RemotePath, _expand_braces(description)):
        if part.is_pattern:
            files = part.list_files()
        elif part.suffix.lower() in (".tar", ".parquet"):
            files = [part]
        else:
            listing = part.list_files()
            files = list(filter(_is_stored_set, listing))
            others += [file.name for file in listing if file not in files]
        if not files:
            nothing = "no file matches" if part.is_pattern else "expected a .tar or .parquet file, or some in"
            raise ValueError(f"{nothing} {part}")
        found.update(files)
    return sorted(found, key=lambda file: file.path), others


def _is_stored_set(file: AnyPath) -> bool:
    """Whether a file of a folder is a shard or a table; some folders hold a metadata.parquet beside."""
    name = file.name.lower()
    return not name.startswith(".") and name.endswith((".tar", ".parquet")) and name != "metadata.parquet"


def _expand_braces(pattern: str) -> Iterator[str]:
    """Yield the patterns that {000..009} and {a,b} stand for, in order."""
    options = []
    for position, piece in enumerate(_BRACES.split(pattern)):  # text and content of braces in turn
        if position % 2 == 0:
            options.append([piece])
        elif span := _RANGE.fullmatch(piece):
            first, last = span.groups()
            if int(first) > int(last):
                raise ValueError(f"the range {{{piece}}} in {pattern} runs backwards")
            width = len(first) if first.startswith("0") else 0
            options.append([f"{number:0{width}d}" for number in range(int(first), int(last) + 1)])
        else:
            options.append(piece.split(","))
    return map("".join, itertools.product(*options))


@dataclass(frozen=True)
class DatasetSource:
    """Images of a data set of the `datasets` library: its image column, undecoded; `table` is all but images."""

    name: str
    column: str
    images: Any
    labels: Labels
    table: Any

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index; empty without labels."""
        return self.labels.class_names

    @cached_property
    def identity(self) -> str:
        """A fingerprint of the number of rows, labels and class names."""
        return fingerprint("datasets", [str(len(self))], self.labels)

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns beside the images."""
        return tuple(self.table.column_names)

    def values(self, name: str) -> list[Any]:
        """Return the values of a column; raises `ValueError` if they cannot be read."""
        try:
            return list(self.table[name])
        except (pa.ArrowException, OSError, ValueError) as fault:
            raise unreadable_column(self.name, name, fault) from fault

    def key(self, index: int) -> str:
        """Return the row of an image, such as "#17"."""
        return f"#{index}"

    def read(self, index: int) -> ImageRecord:
        """Return the bytes in a row; raises `UnreadableImage` if there are none."""
        key = self.key(index)
        try:
            cell = self.images[index][self.column]
        except (pa.ArrowException, OSError, ValueError) as fault:
            raise UnreadableImage(key, f"its row cannot be read: {fault}") from fault
        return ImageRecord(stored_bytes(cell, Path(), key), int(self.labels.indices[index]), key)


def open_hub(description: str, *, numbered: bool = False) -> DatasetSource:
    """Open NAME[:SPLIT] of the Hugging Face Hub through `datasets`; the split is "train" by default.

    For `numbered` see `pixlex.data.labels.resolve_labels`.
    """
    name, _, split = description.partition(":")
    try:
        dataset = _datasets().load_dataset(name, split=split or "train")
    except (OSError, ValueError, RuntimeError) as fault:
        raise ValueError(f"hf:{description} cannot be loaded: {fault}") from fault
    return _dataset_source(f"hf:{name}:{split or 'train'}", dataset, None, numbered)


def open_saved(folder: Path, *, numbered: bool = False) -> DatasetSource:
    """Open a folder written by `Dataset.save_to_disk`."""
    if (path := folder / "dataset_dict.json").is_file():
        found = json_value(read_regular(path), path)
        splits = found.get("splits") if isinstance(found, dict) else None
        if not isinstance(splits, list):
            raise ValueError(f"{path}: expected a list of splits, got {quoted(found)}")
        named = ", ".join(str(folder / split) for split in splits)
        raise ValueError(f"{folder} holds several splits, name one of them: {named}")
    try:
        dataset = _datasets().load_from_disk(str(folder))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException) as fault:
        raise ValueError(f"{folder} cannot be loaded as a saved data set: {fault}") from fault
    return _dataset_source(str(folder), dataset, folder, numbered)


def _datasets() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as fault:
        raise not_installed("a Hugging Face data set", "datasets", "datasets") from fault
    return datasets


def _dataset_source(name: str, dataset: Any, folder: Path | None, numbered: bool) -> DatasetSource:
    datasets, features = _datasets(), dataset.features
    columns = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    columns = columns or [
        column
        for column, kind in features.items()
        if getattr(kind, "dtype", "") in ("binary", "large_binary")
    ]
    column = "image" if "image" in columns else columns[0] if len(columns) == 1 else None
    if column is None:
        found = ", ".join(f"{column}: {feature}" for column, feature in features.items())
        raise ValueError(f"{name}: expected one image column or one named 'image', found {found:.400}")
    if not len(dataset):
        raise ValueError(f"{name} has no rows")
    labels = _dataset_labels(name, dataset, folder, numbered)
    images = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return DatasetSource(name, column, images, labels, dataset.remove_columns(columns))


def _dataset_labels(name: str, dataset: Any, folder: Path | None, numbered: bool) -> Labels:
    features, nothing = dataset.features, [None] * len(dataset)
    classes = [column for column, one in features.items() if isinstance(one, _datasets().ClassLabel)]
    label = "label" if "label" in features else classes[0] if len(classes) == 1 else None
    values = nothing if label is None else list(dataset[label])
    if label in classes:
        return labels_of_known_classes(values, features[label].names, f"{name}, column {label}", folder)
    names = list(dataset["class_name"]) if "class_name" in features else nothing
    pairs = enumerate(zip(values, names, strict=True))
    rows = [row_label(*pair, f"{name} row {row}") for row, pair in pairs]
    return resolve_labels(rows, name, folder, numbered=numbered)
