"""Sources of image files: folders, lists (.csv, .tsv, .jsonl), single files; labels and captions beside them."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np

from pixlex.data.decoding import IMAGE_SUFFIXES, ImageRecord, holds_image
from pixlex.data.labels import (
    CLASSES_FILE,
    Labeled,
    Labels,
    named_class,
    no_labels,
    resolve_labels,
    row_label,
    spoken_names,
)
from pixlex.data.sources import HIDDEN, MAX_TEXT_BYTES, PassedOver, fingerprint, kind_of, read_file
from pixlex.data.tables import columns_without_images, table_rows
from pixlex.data.text import (
    CAPTION_COLUMNS,
    captions_in,
    csv_rows,
    decode_text,
    json_lines,
    json_value,
    list_rows,
    texts_in,
)
from pixlex.files import open_regular, read_regular
from pixlex.messages import quoted

# Metadata of Hugging Face's imagefolder; path of an image -> where its row in such a file stands, and the row.
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_MetadataRows = dict[str, tuple[str, Mapping[str, Any]]]

# Files of one folder that are looked for before the folder is given up.
_TRIES = 16
# Of any system that we know; longer ones are something else.
_LONGEST_PATH = 4096
_ABSOLUTE = re.compile(r"/|[A-Za-z]:/")
_HALVES = re.compile("[\\0\ud800-\udc7f\udd00-\udfff]")


@dataclass(frozen=True)
class FileSource(Labeled):
    """Images that are files of their own, at paths (which are their keys) with forward slashes below a root.

    `ignored` is what else lies in the folder, `empty_folders` are folders without images, which make no class.
    """

    name: str
    root: Path
    paths: tuple[str, ...]
    labels: Labels
    ignored: tuple[PassedOver, ...] = ()
    empty_folders: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def identity(self) -> str:
        """A fingerprint of paths, labels and class names."""
        return fingerprint("files", self.paths, self.labels)

    def key(self, index: int) -> str:
        """Return the path of an image."""
        return self.paths[index]

    def read(self, index: int) -> ImageRecord:
        """Read a file; raises `UnreadableImage` if it is missing or cannot be read."""
        key = self.paths[index]
        return ImageRecord(read_file(self.root / key, key), int(self.labels.indices[index]), key)


def open_folder(folder: Path) -> FileSource:
    """List the images below a folder, sorted by path: by their endings, without an ending by their content.

    If every image lies in a subfolder, the first level of folders gives the classes, numbered by sorted
    name. If an image lies in the folder itself, the whole is one flat collection without labels.
    Hidden files and folders are left out. Symbolic links are followed, each folder is read once.
    """
    images: list[str] = []
    ignored: list[PassedOver] = []
    for name in _walk(folder, ignored):
        kind = kind_of(name)
        by_content = not os.path.splitext(name)[1] and not kind.startswith(HIDDEN)
        if kind in IMAGE_SUFFIXES or (by_content and is_image_file(folder / name)):
            images.append(name)
        elif name != CLASSES_FILE:
            ignored.append(PassedOver(kind, name))
    ignored.sort(key=lambda one: one.name)
    if not images:
        raise ValueError(_nothing_found(folder, ignored))
    source = FileSource(str(folder), folder, tuple(sorted(images)), no_labels(len(images)), tuple(ignored))
    if any("/" not in path for path in images):
        return source
    classes = [path.split("/", 1)[0] for path in source.paths]
    numbers = {name: number for number, name in enumerate(sorted(set(classes)))}
    indices = np.array([numbers[name] for name in classes], dtype=np.int64)
    spoken = spoken_names(dict(enumerate(numbers)), str(folder), folder, folders=True)
    present = {entry.name for entry in folder.iterdir() if entry.is_dir() and kind_of(entry.name) != HIDDEN}
    return replace(
        source,
        labels=Labels(indices, tuple(spoken.values())),
        empty_folders=tuple(sorted(present - numbers.keys())),
    )


def open_image_files(paths: Sequence[Path]) -> FileSource:
    """Make a source of single image files, in the order given, without labels."""
    if not paths:
        raise ValueError("expected at least one image file, got none")
    keys = tuple(path.as_posix() for path in paths)
    name = keys[0] if len(keys) == 1 else f"{len(keys)} image files"
    return FileSource(name, Path(), keys, no_labels(len(keys)))


def open_list(path: Path, label: str | None = None) -> FileSource:
    """Read a list of images: .csv or .tsv with a header line, or .jsonl with one object a line.

    Columns: `path` (relative to the list file, or absolute), optionally `label` (integer) with
    `class_name`, or the column that `label` names in their place; other columns are not looked at.
    """
    paths, pairs = [], []
    for line, row in list_rows(path):
        where = f"{path} line {line}"
        if "path" not in row:
            found = f"{', '.join(map(quoted, row)) or 'no column':.200}"
            raise ValueError(f"{where}: expected a column 'path', found {found}")
        paths.append(image_path(row["path"], where, path.parent))
        if label is not None and label not in row:
            raise ValueError(f"{where}: expected a column {label}, found {', '.join(map(quoted, row)):.200}")
        pairs.append(row_label(*named_class(row, label), where))
    labels = resolve_labels(pairs, str(path), path.parent, numbered=label is not None)
    return FileSource(str(path), path.parent, tuple(paths), labels)


def is_image_name(name: str) -> bool:
    """Whether a file name ends like an image of a format that is read."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_image_file(path: Path) -> bool:
    """Whether a file is an image by its content; False where it cannot be read."""
    try:
        with open_regular(path) as file:
            return holds_image(file)
    except OSError:
        return False


def image_path(value: object, where: str, folder: Path) -> str:
    """Return the path of an image as a cell names it, relative to a folder; of a file:// URL what it stands for.

    `ValueError`, naming the row, for no path, a web address, or one written with backslashes.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: expected a path, got {quoted(value)}")
    path = value.strip()
    if path.isascii() and path.isprintable() and len(path) < 256 and ":" not in path and "\\" not in path:
        return path  # nearly all
    if path.startswith("file:"):
        path = unquote(re.sub("^file:(//(localhost)?)?(?=/)", "", path))
    if "://" in path:
        raise ValueError(
            f"{where}: the image is a web address ({quoted(path, 60)}): download the pictures first, for example "
            "with img2dataset, and name what it wrote"
        )
    if _HALVES.search(path) or len(path) > _LONGEST_PATH:
        raise ValueError(f"{where}: expected a path, got {quoted(path)}, which no file can have")
    if "\\" in path and os.sep == "/" and not os.path.exists(folder / path):
        raise ValueError(
            f"{where}: the path {quoted(path)} is written with backslashes, as Windows does, and there is no such "
            "file; write it with /"
        )
    return path


def below(paths: Sequence[str], folder: Path) -> list[str]:
    """Return paths with those that are absolute, but not of this machine, replaced by their tails below a folder.

    ALBEF's lists name images of the machine that they were written on: of `/export/coco/train2014/1.jpg` the
    longest tail that exists below the folder is taken, such as `train2014/1.jpg`. Where there is none it stays.
    """
    known: dict[str, str] = {}
    tries: Counter[str] = Counter()
    found = []
    for path in paths:
        above, _, name = path.rpartition("/")
        if _ABSOLUTE.match(path) and above not in known and tries[above] < _TRIES:
            tries[above] += 1
            parts = PurePosixPath(above).parts
            tails = [above, *(str(PurePosixPath(*parts[drop:])) for drop in range(1, len(parts) + 1))]
            here = (tail for tail in tails if os.path.isfile(folder / tail / name))
            if (tail := next(here, None)) is not None:
                known[above] = tail
        found.append(str(PurePosixPath(known[above], name)) if above in known else path)
    return found


def _walk(folder: Path, ignored: list[PassedOver]) -> Iterator[str]:
    """Yield the paths of all files below a folder, relative to it; folders that are not read go to `ignored`."""
    # A link that leads back up, to `/` as well, would be walked for ever.
    seen = {os.path.realpath(folder), *map(str, Path(os.path.realpath(folder)).parents)}
    waiting, links = [""], list[str]()
    while waiting or links:
        prefix = waiting.pop() if waiting else links.pop(0)
        real = os.path.realpath(folder / prefix)
        if prefix and real in seen:
            ignored.append(PassedOver("link", f"{prefix[:-1]}: leads to a folder that is read already"))
            continue
        seen.add(real)
        try:
            with os.scandir(folder / prefix) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as fault:
            if not prefix:
                raise
            ignored.append(PassedOver("folder", f"{prefix[:-1]}: cannot be read: {fault.strerror}"))
            continue
        for entry in entries:
            name = prefix + entry.name
            if not _is_folder(entry):
                yield name
            elif kind_of(name) == HIDDEN:
                ignored.append(PassedOver(HIDDEN, f"{name}/"))
            else:
                # Behind all folders that are none: which of several ways to a folder is taken never changes.
                (links if entry.is_symlink() else waiting).append(f"{name}/")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle: a file that cannot be read
        return False


def _nothing_found(folder: Path, ignored: Sequence[PassedOver]) -> str:
    found = [one.name for one in ignored if not one.kind.startswith(HIDDEN)]
    if found:
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        return f"no image in {folder}: none of its {len(found)} files ({shown}) ends in {suffixes}"
    if any(entry.is_dir() for entry in folder.iterdir()):
        return f"no image in {folder}: it holds only folders without files"
    return f"{folder} is empty"


def with_metadata_labels(images: FileSource) -> FileSource:
    """Return the images with the labels of their metadata files where those have some, else of their folders."""
    files, found = _read_metadata(images)
    rows = [found.get(path, ("", {})) for path in images.paths]
    if not any(row.keys() & {"label", "class_name"} for _, row in rows):
        return images
    pairs = [row_label(row.get("label"), row.get("class_name"), where) for where, row in rows]
    labels = resolve_labels(pairs, images.name, images.root, numbered=True)
    return replace(images, labels=labels, ignored=_without(images.ignored, files), empty_folders=())


def captions_beside(images: FileSource, column: str | None) -> tuple[FileSource, tuple[tuple[str, ...], ...]]:
    """Return the images, the files of their captions no longer among those that are ignored, and their captions.

    Captions are `captions`, `caption`, `title` or `text` (or the column that is named) of an image's row in a
    metadata file, or else `captions`, `caption` or `text` of NAME.json, or else NAME.txt.
    """
    files, rows = _read_metadata(images)
    if column is not None and not any(column in row for _, row in rows.values()):
        raise ValueError(f"{images.name}: expected a column {column} in a metadata file, found none")
    names = CAPTION_COLUMNS if column is None else (column,)
    present = {one.name for one in images.ignored}
    captions = []
    for path in images.paths:
        where, row = rows.get(path, ("", {}))
        texts = next((texts_in(row[name], where) for name in names if name in row), ())
        own = [str(PurePosixPath(path).with_suffix(ending)) for ending in (".json", ".txt")]
        beside = (_captions_of_file(images.root / name, name) for name in own if name in present)
        captions.append(texts or next(filter(None, beside), ()))
        files.update(own)
    return replace(images, ignored=_without(images.ignored, files)), tuple(captions)


def _captions_of_file(path: Path, name: str) -> tuple[str, ...]:
    """Return the captions in an image's own .json or .txt file."""
    try:
        content = read_regular(path, MAX_TEXT_BYTES)
    except OSError as fault:
        raise ValueError(f"{path} cannot be read: {fault.strerror or fault}") from fault
    if path.suffix == ".txt":
        return captions_in({}, decode_text(content, path), name)
    return captions_in(json_value(content, path), "", name)


def _without(ignored: Sequence[PassedOver], files: set[str]) -> tuple[PassedOver, ...]:
    return tuple(one for one in ignored if one.name not in files)


def _read_metadata(images: FileSource) -> tuple[set[str], _MetadataRows]:
    """Return the metadata files among the images of a folder, and their rows, as Hugging Face's imagefolder.

    A file in a folder has a row for each of the images in it and below, with `file_name` relative to it. Rows of
    images that are not there are passed over with a warning. A file of such a name without the column `file_name`
    is something else, and stays among the ignored files. `ValueError` for a malformed file, or an image that has
    two rows in a folder.
    """
    folders = {above for path in images.paths for above in PurePosixPath(path).parents}
    present, files = set(images.paths), set[str]()
    rows: _MetadataRows = {}
    for inside in sorted(folders, key=lambda folder: len(folder.parts)):  # the nearest wins
        of_folder: _MetadataRows = {}
        for name in _METADATA:
            path = images.root / inside / name
            if path.is_file() and _names_files(path):
                files.add(str(inside / name))
                _add_rows(path, inside, present, of_folder)
        rows |= of_folder
    return files, rows


def _names_files(path: Path) -> bool:
    """Whether a file has the column of imagefolder's metadata."""
    if path.suffix == ".parquet":
        return "file_name" in columns_without_images(path)
    rows = json_lines(path) if path.suffix == ".jsonl" else csv_rows(path)
    return "file_name" in next(rows, (0, {}))[1]


def _add_rows(path: Path, inside: PurePosixPath, present: set[str], rows: _MetadataRows) -> None:
    """Add the rows of one file that belong to images that are there."""
    is_table = path.suffix == ".parquet"
    missing = []
    for number, row in enumerate(table_rows(path)) if is_table else list_rows(path):
        where = f"{path} {'row' if is_table else 'line'} {number}"
        named = image_path(row.get("file_name"), f"{where}, column file_name", path.parent)
        image = str(inside / named)
        if image not in present:
            missing.append(named)
        elif rows.setdefault(image, (where, row))[1] is not row:
            raise ValueError(f"{where}: expected one row for each image, got {quoted(named)} again")
    if missing:
        warnings.warn(
            f"{path}: {len(missing)} rows name images that are not in the folder, such as {quoted(missing[0])}",
            stacklevel=4,
        )
