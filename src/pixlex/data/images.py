"""Open a source of images by its description; sets that need no download: handwritten digits, photographs."""

from __future__ import annotations

import glob
import importlib.util
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pixlex.data.decoding import IMAGE_SUFFIXES, ImageRecord
from pixlex.data.folders import (
    is_image_file,
    is_image_name,
    open_folder,
    open_image_files,
    open_list,
    with_metadata_labels,
)
from pixlex.data.given import IN_MEMORY, Dataset, GivenSource
from pixlex.data.labels import CLASSES_FILE, Labels
from pixlex.data.remote import AnyPath, RemotePath, as_local, is_url
from pixlex.data.shards import TarSource, open_shards
from pixlex.data.sources import (
    ImageSource,
    PassedOver,
    count_in,
    fingerprint,
    kind_of,
    read_descriptions,
    remark_passed_over,
)
from pixlex.data.synthetic import NUM_SCENES, ScenesSource, Split
from pixlex.data.tables import DatasetSource, ParquetSource, dataset_source, open_hub, open_saved
from pixlex.messages import not_installed, quoted

_EXPECTED = (
    "expected a folder of images, .parquet or .tar files; a .parquet, .csv, .tsv, .jsonl, .tar or image file; a "
    "pattern of .parquet or .tar files such as shards/{000..009}.tar, also at an address such as s3://BUCKET/...; "
    "hf:NAME[:SPLIT]; or "
    "embedded:digits|photographs:train|test or embedded:scenes:train|test[:COUNT]"
)

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")

# The color photographs that lie inside the installed package scikit-image: class name -> file.
PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "galaxies": "hubble_deep_field.jpg",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
}

# Wider photographs are halved first, or a crop of them would show no more than a texture.
_MAX_WIDTH = 800

# Fraction of the width, from the left, that the training crops lie in; the test crops lie right of it.
_TRAIN_FRACTION = 0.75
_CROPS_PER_PHOTOGRAPH = {"train": 500, "test": 40}
_CROP_SIDES = (96, 160)

_FIRST_TEST_DIGIT = 1437


def open_source(description: str | Dataset, *, captioned: bool = False) -> ImageSource:
    """Open a source of images.

    A data set of Python (see `pixlex.data.given.Dataset`) is taken as it is; all else is a description.

    A folder is one of images (see `open_folder`), of .parquet files, of .tar shards, or one written by
    `datasets.Dataset.save_to_disk`. Files of a folder or a pattern are taken in sorted order; a pattern
    with braces, such as `{000..009}` or `{a,b}`, names each file, and all must exist.

    Shards and .parquet files may lie at a URL that fsspec reads (s3://, gs://, https://, hf://, ...): a file,
    a folder or a pattern, as far as files are listed there; braces need no listing. They make the same source as
    the same files on a disk.

    Behind a table or list of images (.parquet, .csv, .tsv, .jsonl, hf:NAME, a saved data set) `?label=COLUMN`
    names the column whose texts are the classes, numbered in sorted order, in place of `label` and `class_name`.

    Images in .parquet files are bytes of any type, structs of them, lists of uint8, or texts in base64. Labels of
    a folder are those of its metadata.jsonl or .csv where that has some. Class names become names that can be
    answers (see `pixlex.data.labels.spoken_names`).

    Args:
        description: A path or a URL, a pattern of such, "hf:NAME[:SPLIT]" or "embedded:SET:SPLIT"; perhaps
            ?label=COLUMN.
        captioned: The images are opened for their captions: classes without a name are called by their
            number instead of refused, and shards keep their texts.

    Raises:
        ValueError: There is nothing of the kind, no image in it, or it is malformed.
        ModuleNotFoundError: The kind of source needs a package that is not installed.
        Unreachable: A URL does not answer.

    Warns of files among the images that are passed over (where captioned, `open_pairs` does).
    """
    if not isinstance(description, str):
        if hasattr(description, "features") and hasattr(description, "cast_column"):
            return dataset_source("data set", description, None, captioned, None)
        return GivenSource(description)
    if description.startswith(IN_MEMORY):
        raise ValueError(
            f"{quoted(description)} was a data set of a Python program: go on there, with the same data and "
            "pixlex.train(..., resume=True)"
        )
    path, label = _label_column(description.strip())
    source = _opened(as_local(path), captioned, label)
    if not captioned:
        remark_passed_over(source)
    return source


def _label_column(text: str) -> tuple[str, str | None]:
    """Return a description without the column of labels that it names, and that."""
    options = r"[?&]label=" if is_url(text) else r"\?[A-Za-z_]+="  # a URL may have a query of its own
    if not re.search(options, text) or os.path.exists(os.path.expanduser(text)):
        return text, None
    described, *others = read_descriptions(text)
    if others or described.weight != 1:
        raise ValueError(f"expected one source of images, got a mixture: {quoted(text)}")
    described.only(("label",), "images that are opened for their classes")
    return described.path, described.options.get("label")


def _opened(description: str, captioned: bool, label: str | None) -> ImageSource:
    source = _opened_as(description, captioned, label)
    is_list = Path(description).suffix.lower() in (".csv", ".tsv", ".jsonl")
    if label is not None and not (is_list or isinstance(source, ParquetSource | DatasetSource)):
        raise ValueError(
            f"{description} has no columns: ?label=COLUMN is for .parquet, .csv, .tsv and .jsonl files, hf:NAME "
            "and saved data sets"
        )
    return source


def _opened_as(description: str, captioned: bool, label: str | None) -> ImageSource:
    if description.startswith("embedded:"):
        return open_embedded(description.removeprefix("embedded:"))
    if is_url(description):
        files, others = _remote_files(description)
        return _open_files(description, files, captioned, others, label)
    if description.startswith("hf:"):
        return open_hub(description.removeprefix("hf:"), numbered=captioned, label=label)
    if not description:
        raise ValueError(f"the description of the images is empty; {_EXPECTED}")
    path = Path(description).expanduser()
    suffix = path.suffix.lower()
    if os.path.isdir(path):  # unlike Path.is_dir, false for names that are too long
        return _open_directory(path, captioned, label)
    if os.path.isfile(path):
        if suffix in (".parquet", ".tar"):
            return _open_files(str(path), [path], captioned, label=label)
        if suffix in (".csv", ".tsv", ".jsonl"):
            return open_list(path, label)
        if suffix in IMAGE_SUFFIXES or is_image_file(path):
            return open_image_files([path])
        raise ValueError(f"{path} ends in {suffix or 'no suffix'}; {_EXPECTED}")
    if re.search(r"[*?\[{]", description):
        found = {part: glob.glob(part, recursive=True) for part in _expand_braces(str(path))}
        if missing := [part for part, names in found.items() if not names]:
            raise ValueError(f"no file matches {missing[0]}")
        together = {Path(name) for names in found.values() for name in names}
        return _open_files(str(path), sorted(together), captioned, label=label)
    if os.path.lexists(path):
        raise ValueError(
            f"{path} is neither a file nor a folder (a pipe, a device or a dead link); {_EXPECTED}"
        )
    slashes = "; paths are written with /, not with backslashes" if "\\" in description else ""
    raise ValueError(f"{path} does not exist (looked for {path.absolute()}){slashes}; {_EXPECTED}")


def _open_directory(folder: Path, captioned: bool, label: str | None) -> ImageSource:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return open_saved(folder, numbered=captioned, label=label)
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
    return _open_files(str(folder), stored, captioned, others, label)


def _open_files(
    pattern: str,
    files: Sequence[AnyPath],
    captioned: bool,
    others: Sequence[str] = (),
    label: str | None = None,
) -> ParquetSource | TarSource:
    """Open tables or shards; `others` are the names of what lies beside them."""
    beside = tuple(PassedOver("folder" if name.endswith("/") else kind_of(name), name) for name in others)
    match sorted({path.suffix.lower() for path in files}):
        case [".parquet"]:
            return ParquetSource(pattern, files, numbered=captioned, ignored=beside, label=label)
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


class Region(NamedTuple):
    """A square of a photograph: class name, first column, first row and side (96..160), in pixels."""

    name: str
    left: int
    top: int
    side: int


@dataclass(frozen=True)
class DigitsSource:
    """Scikit-learn's 8x8 handwritten digits, grey 0..16 scaled to 0..255.

    The last fifth of the set (360 of 1797), in its own order, is the test split: most of its writers are not among
    those of the training split.
    """

    split: Split

    def __len__(self) -> int:
        return len(self._stored[1])

    @property
    def name(self) -> str:
        """The description that opens the source."""
        return f"embedded:digits:{self.split}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The ten digits."""
        return tuple("0123456789")

    @cached_property
    def identity(self) -> str:
        """A fingerprint of keys and labels."""
        keys = map(self.key, range(len(self)))
        return fingerprint("digits", keys, Labels(self._stored[1], self.class_names))

    @property
    def _stored(self) -> tuple[UInt8[np.ndarray, "images 8 8"], np.ndarray]:
        pixels, labels = _digits()
        rows = slice(_FIRST_TEST_DIGIT) if self.split == "train" else slice(_FIRST_TEST_DIGIT, None)
        return pixels[rows], labels[rows]

    def key(self, index: int) -> str:
        """Return the row of an image in the whole set, such as "digits/0017"."""
        return f"digits/{index + (0 if self.split == 'train' else _FIRST_TEST_DIGIT):04d}"

    def read(self, index: int) -> ImageRecord:
        """Return the pixels of a digit."""
        pixels, labels = self._stored
        return ImageRecord(np.stack([pixels[index]] * 3, axis=-1), int(labels[index]), self.key(index))


@dataclass(frozen=True)
class PhotographsSource:
    """Square crops of scikit-image's photographs; the class is the photograph.

    Training crops lie in the left 75 % of the width, test crops in the right 25 %: no pixel is in both.
    Sizes and places are fixed and cover a region evenly: crop k takes the k-th point of an additive
    recurrence with the generalized golden ratio (M. Roberts, "The Unreasonable Effectiveness of
    Quasirandom Sequences", 2018), which needs no random generator and so is the same in every version.
    """

    split: Split

    def __len__(self) -> int:
        return _CROPS_PER_PHOTOGRAPH[self.split] * len(PHOTOGRAPHS)

    @property
    def name(self) -> str:
        """The description that opens the source."""
        return f"embedded:photographs:{self.split}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the photographs."""
        return tuple(PHOTOGRAPHS)

    @cached_property
    def identity(self) -> str:
        """A fingerprint of keys, places and labels."""
        places = [f"{self.key(index)} {self.region(index)}" for index in range(len(self))]
        labels = np.arange(len(self), dtype=np.int64) % len(PHOTOGRAPHS)
        return fingerprint("photographs", places, Labels(labels, self.class_names))

    def region(self, index: int) -> Region:
        """Return the place of a crop in its photograph."""
        number, label = divmod(index, len(PHOTOGRAPHS))
        height, width, _ = photograph(name := self.class_names[label]).shape
        border = int(width * _TRAIN_FRACTION)
        first, end = (0, border) if self.split == "train" else (border, width)
        smallest, largest = _CROP_SIDES
        largest = min(largest, end - first, height)
        ratio = 1.2207440846057596  # the real root of x^4 = x + 1
        across, down, size = ((0.5 + (number + 1) * ratio**-power) % 1.0 for power in (1, 2, 3))
        side = smallest + int(size * (largest - smallest + 1))
        left = first + int(across * (end - first - side + 1))
        return Region(name, left, int(down * (height - side + 1)), side)

    def key(self, index: int) -> str:
        """Return class, split and number of a crop, such as "cat/train-0017"."""
        number, label = divmod(index, len(PHOTOGRAPHS))
        return f"{self.class_names[label]}/{self.split}-{number:04d}"

    def read(self, index: int) -> ImageRecord:
        """Return the pixels of a crop."""
        crop = self.region(index)
        rows, columns = slice(crop.top, crop.top + crop.side), slice(crop.left, crop.left + crop.side)
        pixels = np.ascontiguousarray(photograph(crop.name)[rows, columns])
        return ImageRecord(pixels, index % len(PHOTOGRAPHS), self.key(index))


def open_embedded(description: str) -> DigitsSource | PhotographsSource | ScenesSource:
    """Open digits, photographs or scenes by set and split, such as "digits:train" or "scenes:train:5000"."""
    match description.split(":"):
        case ["digits", "train" | "test" as split]:
            _digits()
            return DigitsSource(split)
        case ["photographs", "train" | "test" as split]:
            photograph("cat")
            return PhotographsSource(split)
        case ["scenes", "train" | "test" as split]:
            return ScenesSource(split, NUM_SCENES[split])
        case ["scenes", "train" | "test" as split, count]:
            return ScenesSource(split, count_in(count, f"embedded:scenes:{split}:COUNT expects", "COUNT"))
    raise ValueError(
        "expected embedded:digits:train, embedded:digits:test, embedded:photographs:train, "
        "embedded:photographs:test, embedded:scenes:train[:COUNT] or embedded:scenes:test[:COUNT], "
        f"got 'embedded:{description}'"
    )


@cache
def photograph(name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Return one of the bundled `PHOTOGRAPHS`, halved if it is wider than 800 pixels."""
    # The files are opened where they lie: skimage.data would download what it does not find.
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise not_installed("embedded:photographs", "scikit-image", "words")
    path = Path(package.origin).parent / "data" / PHOTOGRAPHS[name]
    if not path.is_file():
        raise ValueError(f"the installed scikit-image does not bundle the photograph {path.name}")
    with Image.open(path) as image:
        pixels = image.convert("RGB")
    return np.asarray(pixels.reduce(2) if pixels.width > _MAX_WIDTH else pixels)


@cache
def _digits() -> tuple[UInt8[np.ndarray, "images 8 8"], np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as fault:
        raise not_installed("embedded:digits", "scikit-learn", "words") from fault
    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target.astype(np.int64)
