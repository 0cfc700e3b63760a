"""Open a source of images by its description."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pixlex.data.addresses import Address, Place, as_local, is_address
from pixlex.data.broken import TooManyBroken
from pixlex.data.decoding import (
    IMAGE_SUFFIXES,
    ImageRecord,
    UnreadableImage,
    load_image,
)
from pixlex.data.embedded import open_embedded
from pixlex.data.hub import open_hub, open_saved
from pixlex.data.lists import open_list
from pixlex.data.shards import open_shards
from pixlex.data.side_files import with_metadata_labels
from pixlex.data.sources import (
    ImageSource,
    is_image_name,
    open_folder,
    open_image_files,
)
from pixlex.data.tables import ParquetSource

__all__ = [
    "ImageRecord",
    "ImageSource",
    "TooManyBroken",
    "UnreadableImage",
    "load_image",
    "open_image_files",
    "open_source",
]

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

    Shards and .parquet files may lie at an address that fsspec reads (s3://, gs://, https://, hf://, ...): a file,
    a folder or a pattern, as far as files are listed there; braces need no listing. They make the same source as
    the same files on a disk.

    Images in .parquet files are bytes of any type, structs of them, lists of uint8, or texts in base64. Labels of
    a folder are those of its metadata.jsonl or .csv where that has some. Class names become names that can be
    answers (see `pixlex.data.class_names.spoken_names`).

    Args:
        description: a path or an address, a pattern of such, "hf:NAME[:SPLIT]" or "embedded:SET:SPLIT".
        captioned: the images are opened for their captions: classes without a name are called by their
            number instead of refused, and shards keep their texts (see `pixlex.data.pairs.open_pairs`).

    Raises:
        ValueError: if there is nothing of the kind, no image in it, or it is malformed.
        ModuleNotFoundError: if the kind of source needs a package that is not installed.
        Unreachable: if an address does not answer.
    """
    description = as_local(description.strip())
    if description.startswith("embedded:"):
        return open_embedded(description.removeprefix("embedded:"))
    if is_address(description):
        return _open_files(description, _addresses(description), captioned)
    if description.startswith("hf:"):
        return open_hub(description.removeprefix("hf:"), numbered=captioned)
    if not description:
        raise ValueError(f"the description of the images is empty; {_EXPECTED}")
    path = Path(description).expanduser()
    if path.is_dir():
        return _open_directory(path, captioned)
    if path.is_file():
        return _open_file(path, captioned)
    if re.search(r"[*?\[{]", description):
        return _open_pattern(str(path), captioned)
    raise ValueError(f"{path} does not exist (looked for {path.absolute()}); {_EXPECTED}")


def _open_file(path: Path, captioned: bool) -> ImageSource:
    match path.suffix.lower():
        case ".parquet":
            return ParquetSource(str(path), [path], numbered=captioned)
        case ".tar":
            return open_shards(str(path), [path], captioned=captioned)
        case ".csv" | ".tsv" | ".jsonl":
            return open_list(path)
        case suffix if suffix in IMAGE_SUFFIXES:
            return open_image_files([path])
        case suffix:
            raise ValueError(f"{path} ends in {suffix or 'no suffix'}; {_EXPECTED}")


def _open_directory(folder: Path, captioned: bool) -> ImageSource:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return open_saved(folder, numbered=captioned)
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    # Folders of images may hold a metadata.parquet, by a custom of the Hugging Face Hub.
    tables = [path for path in files if path.suffix.lower() == ".parquet" and path.stem != "metadata"]
    shards = [path for path in files if path.suffix.lower() == ".tar"]
    kinds = {"images": any(is_image_name(path.name) for path in files), ".parquet": tables, ".tar": shards}
    present = [kind for kind, found in kinds.items() if found]
    if len(present) > 1:
        raise ValueError(
            f"{folder} holds {' and '.join(present)} files, and it is not clear which are meant: "
            f"name them with a pattern such as {folder}/*{present[-1]}, or put them into folders of their own"
        )
    if tables:
        return ParquetSource(str(folder), tables, numbered=captioned)
    if shards:
        return open_shards(str(folder), shards, captioned=captioned)
    return with_metadata_labels(open_folder(folder))


def _open_pattern(pattern: str, captioned: bool) -> ImageSource:
    paths = []
    for part in _expand_braces(pattern):
        found = [Path(name) for name in glob.glob(part, recursive=True)]
        if not found:
            raise ValueError(f"no file matches {part}")
        paths += found
    return _open_files(pattern, sorted(set(paths)), captioned)


def _open_files(pattern: str, files: Sequence[Place], captioned: bool) -> ImageSource:
    match sorted({path.suffix.lower() for path in files}):
        case [".parquet"]:
            return ParquetSource(pattern, files, numbered=captioned)
        case [".tar"]:
            return open_shards(pattern, files, captioned=captioned)
        case suffixes:
            raise ValueError(
                f"a pattern must name .parquet or .tar files alone, {pattern} names {', '.join(suffixes)}"
            )


def parquet_addresses(description: str) -> list[Address]:
    """Return the .parquet files that a description of files at addresses means; none if it means others.

    Raises:
        ValueError: it means no file.
        Unreachable: the address does not answer.
    """
    if not is_address(description):
        return []
    files = _addresses(description)
    return files if all(file.suffix.lower() == ".parquet" for file in files) else []


def _addresses(description: str) -> list[Address]:
    """Return the files of a description with a protocol, in the order in which files of a disk would be taken."""
    found: set[Address] = set()
    for part in map(Address, _expand_braces(description)):
        if part.is_pattern:
            files = part.listing()
        elif part.suffix.lower() in (".tar", ".parquet"):
            files = [part]
        else:
            files = [file for file in part.listing() if _is_stored_set(file)]
        if not files:
            nothing = "no file matches" if part.is_pattern else "expected a .tar or .parquet file, or some in"
            raise ValueError(f"{nothing} {part}")
        found.update(files)
    return sorted(found, key=lambda file: file.place)


def _is_stored_set(file: Place) -> bool:
    """Whether a file of a folder is a shard or a table; some folders hold a metadata.parquet beside."""
    suffix = file.suffix.lower()
    return not file.name.startswith(".") and (
        suffix == ".tar" or (suffix == ".parquet" and file.name.lower() != "metadata.parquet")
    )


def _expand_braces(pattern: str) -> Iterator[str]:
    """Yield the patterns that {000..009} and {a,b} stand for, in order."""
    pieces = _BRACES.split(pattern)  # text and content of braces in turn
    options = []
    for position, piece in enumerate(pieces):
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
    for combination in itertools.product(*options):
        yield "".join(combination)
