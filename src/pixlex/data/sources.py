"""What a source of images is; sources made of image files: folders, list files, single images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pixlex.data.addresses import Address, NoSuchFile, Place, Unreachable
from pixlex.data.class_names import spoken_names
from pixlex.data.decoding import IMAGE_SUFFIXES, ImageRecord, UnreadableImage
from pixlex.data.labels import Labels, no_labels
from pixlex.messages import quoted

NO_FILE = "the file does not exist"


@runtime_checkable
class ImageSource(Protocol):
    """A finite, ordered collection of stored images; pickleable, for it is read in worker processes."""

    def __len__(self) -> int: ...

    @property
    def name(self) -> str:
        """What to call the source in messages and tables."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index; empty if the source has no labels."""

    @property
    def identity(self) -> str:
        """A fingerprint of the listing (keys, order, labels, class names), independent of where it lies."""

    def key(self, index: int) -> str:
        """Return the stable name of an image inside the source, without reading the image."""

    def read(self, index: int) -> ImageRecord:
        """Return a stored image; raises `UnreadableImage` if it cannot be fetched."""


def fingerprint(kind: str, keys: Iterable[str], labels: Labels) -> str:
    """Return a hash of a listing: its kind, its keys in their order, its labels and class names."""
    digest = hashlib.sha256(kind.encode())
    for text in (*labels.class_names, "\n", *keys):
        encoded = text.encode(errors="surrogateescape")  # file names may be bytes that are no UTF-8
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    digest.update(labels.indices.astype("<i8").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class FileSource:
    """Images that are files of their own.

    Args:
        name: what to call the source.
        root: folder that the paths are relative to.
        paths: path of each image, with forward slashes; also its key.
        labels: class index of each image and the class names.
        ignored: files found beside the images that are no images by their extension.
        empty_folders: class folders without images, which make no class.
    """

    name: str
    root: Path
    paths: tuple[str, ...]
    labels: Labels
    ignored: tuple[str, ...] = ()
    empty_folders: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index; empty without labels."""
        return self.labels.class_names

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


def read_file(path: Place, key: str) -> bytes:
    """Return the bytes of an image file, or raise `UnreadableImage` saying what the system said."""
    try:
        return path.read_bytes()
    except Unreachable:
        raise
    except (FileNotFoundError, NoSuchFile) as fault:
        raise UnreadableImage(key, f"{NO_FILE}: {path}") from fault
    except OSError as fault:
        raise UnreadableImage(key, f"the file cannot be read: {fault.strerror or fault}") from fault
    except ValueError as fault:  # a zero byte in a path
        raise UnreadableImage(key, f"not a path: {fault}") from fault


def stored_bytes(cell: Any, folder: Place, key: str) -> bytes:
    """Return the bytes of a table's cell: bytes themselves, or {"bytes", "path"} as `datasets` stores images.

    Args:
        cell: what the cell holds.
        folder: folder that a path without bytes is relative to.
        key: name of the image, for the error.

    Raises:
        UnreadableImage: if the cell holds neither, or the file at the path cannot be read.
    """
    path = None
    if isinstance(cell, dict):
        path, cell = cell.get("path"), cell.get("bytes")
    if cell is None and path:
        return read_file(folder / path, key)
    if cell is None:
        raise UnreadableImage(key, "the row holds no image (null)")
    try:
        return bytes(cell)
    except (TypeError, ValueError) as fault:  # a list with a gap
        raise UnreadableImage(key, f"expected bytes, got {quoted(cell)}") from fault


def names_within(paths: Sequence[Place]) -> tuple[str, ...]:
    """Return the paths of files relative to the folder that holds them all, with forward slashes."""
    places = [path.place if isinstance(path, Address) else path.absolute() for path in paths]
    folder = os.path.commonpath([place.parent for place in places])
    return tuple(place.relative_to(folder).as_posix() for place in places)


def is_image_name(name: str) -> bool:
    """Whether a file name ends like an image of a format that is read."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def open_folder(folder: Path) -> FileSource:
    """List the images below a folder, sorted by path.

    If every image lies in a subfolder, the first level of folders gives the classes, numbered by sorted
    name. If an image lies in the folder itself, the whole is one flat collection without labels.
    Hidden files and folders are left out; symbolic links are followed.

    Raises:
        ValueError: if there is no image.
    """
    found = sorted(_walk(folder))
    images = [path for path in found if is_image_name(path)]
    if not images:
        raise ValueError(_nothing_found(folder, found))
    ignored = tuple(path for path in found if not is_image_name(path))
    if any("/" not in path for path in images):
        return FileSource(str(folder), folder, tuple(images), no_labels(len(images)), ignored)
    names = sorted({path.split("/", 1)[0] for path in images})
    number = {name: index for index, name in enumerate(names)}
    indices = np.array([number[path.split("/", 1)[0]] for path in images], dtype=np.int64)
    present = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    empty = tuple(sorted(present - set(names)))
    spoken = spoken_names(dict(enumerate(names)), str(folder), folder, numbered_here=True)
    labels = Labels(indices, tuple(spoken.values()))
    return FileSource(str(folder), folder, tuple(images), labels, ignored, empty)


def open_image_files(paths: Sequence[Path]) -> FileSource:
    """Make a source of single image files, in the order given, without labels."""
    if not paths:
        raise ValueError("expected at least one image file, got none")
    keys = tuple(path.as_posix() for path in paths)
    name = keys[0] if len(keys) == 1 else f"{len(keys)} image files"
    return FileSource(name, Path(), keys, no_labels(len(keys)))


def _walk(folder: Path, prefix: str = "", above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield the relative paths, with forward slashes, of all files below a folder that are not hidden."""
    real = os.path.realpath(folder)
    if real in above:  # a link that leads back up would be walked forever
        return
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in visible:
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", above | {real})
        elif entry.is_file() or entry.is_symlink():  # no pipes or devices; a dead link is an unreadable image
            yield prefix + entry.name


def _nothing_found(folder: Path, found: Sequence[str]) -> str:
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    if found:
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        return f"no image in {folder}: none of its {len(found)} files ({shown}) ends in {suffixes}"
    subfolders = any(entry.is_dir() for entry in folder.iterdir())
    return (
        f"no image in {folder}: it holds only folders without files" if subfolders else f"{folder} is empty"
    )
