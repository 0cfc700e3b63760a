"""What a source of images is; sources made of image files: folders, list files, single images."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pixlex.data.addresses import Address, NoSuchFile, Place, Unreachable
from pixlex.data.class_names import SIDECAR, spoken_names
from pixlex.data.decoding import IMAGE_SUFFIXES, MAX_FILE_BYTES, ImageRecord, UnreadableImage, holds_image
from pixlex.data.labels import Labels, no_labels
from pixlex.files import open_regular, read_regular
from pixlex.messages import quoted

NO_FILE = "the file does not exist"

# Kind of what systems leave in folders; passed over without a remark.
HIDDEN = "hidden"
_LEFT_BY_SYSTEMS = frozenset(("__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini"))

# Labels and captions in files of their own are short; what is larger is something else, and is not read.
MAX_TEXT_BYTES = 1 << 20

# Kinds of files that a remark names.
_SHOWN_KINDS = 5


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


class PassedOverWarning(UserWarning):
    """Something that a source passes over."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Files of one kind that lie among the images of a source and are not read.

    Attributes:
        kind: ending or what they are, such as ".heic", "link" or "hidden".
        name: the first of them, and why it is not read where the kind does not say it.
        count: how many they are.
    """

    kind: str
    name: str
    count: int = 1

    def __str__(self) -> str:
        more = f" and {self.count - 1:,} more {self.kind}" if self.count > 1 else ""
        return f"{self.name}{more}"


def remark_passed_over(source: ImageSource) -> None:
    """Warn of files that a source passes over, unless they are hidden ones alone."""
    counts: Counter[str] = Counter()
    for one in getattr(source, "ignored", ()):
        if isinstance(one, PassedOver) and one.kind != HIDDEN:
            counts[one.kind] += one.count
    if not counts:
        return
    shown = [f"{count:,} {kind}" for kind, count in counts.most_common(_SHOWN_KINDS)]
    shown += ["..."] if len(counts) > _SHOWN_KINDS else []
    files = f"{counts.total():,} file{'' if counts.total() == 1 else 's'}"
    warnings.warn(
        f"{source.name}: {files} passed over ({', '.join(shown)}), `pixlex doctor` lists them",
        PassedOverWarning,
        stacklevel=3,
    )


def remark_left_out(name: str, left_out: Sequence[str], what: str) -> None:
    """Warn of images or items of a source that are passed over, naming the first."""
    if left_out:
        more = ", ..." if len(left_out) > 1 else ""
        warnings.warn(
            f"{name}: {len(left_out):,} {what} passed over ({left_out[0]}{more})",
            PassedOverWarning,
            stacklevel=3,
        )


def kind_of(name: str) -> str:
    """Return the kind of a file that is no image by its name."""
    parts = name.split("/")
    if any(part in _LEFT_BY_SYSTEMS or part.startswith("._") for part in parts):
        return HIDDEN
    ending = os.path.splitext(parts[-1])[1].lower()
    if not any(part.startswith(".") for part in parts):
        return ending or "without an ending"
    return f"{HIDDEN} {ending}" if ending in IMAGE_SUFFIXES else HIDDEN


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
        ignored: what else lies in the folder, each file.
        empty_folders: class folders without images, which make no class.
    """

    name: str
    root: Path
    paths: tuple[str, ...]
    labels: Labels
    ignored: tuple[PassedOver, ...] = ()
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
        return path.read_bytes() if isinstance(path, Address) else read_regular(path, MAX_FILE_BYTES)
    except Unreachable:
        raise
    except (FileNotFoundError, NoSuchFile) as fault:
        raise UnreadableImage(key, NO_FILE if str(path) == key else f"{NO_FILE}: {path}") from fault
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


def is_image_file(path: Path) -> bool:
    """Whether a file is an image by its content; False where it cannot be read."""
    try:
        with open_regular(path) as file:
            return holds_image(file)
    except OSError:
        return False


def open_folder(folder: Path) -> FileSource:
    """List the images below a folder, sorted by path: by their endings, without an ending by their content.

    If every image lies in a subfolder, the first level of folders gives the classes, numbered by sorted
    name. If an image lies in the folder itself, the whole is one flat collection without labels.
    Hidden files and folders are left out. Symbolic links are followed, each folder is read once.

    Raises:
        ValueError: if there is no image.
    """
    images, ignored = _listed(folder)
    if not images:
        raise ValueError(_nothing_found(folder, ignored))
    if any("/" not in path for path in images):
        return FileSource(str(folder), folder, images, no_labels(len(images)), ignored)
    names = sorted({path.split("/", 1)[0] for path in images})
    number = {name: index for index, name in enumerate(names)}
    indices = np.array([number[path.split("/", 1)[0]] for path in images], dtype=np.int64)
    present = {entry.name for entry in folder.iterdir() if entry.is_dir() and kind_of(entry.name) != HIDDEN}
    empty = tuple(sorted(present - set(names)))
    spoken = spoken_names(dict(enumerate(names)), str(folder), folder, numbered_here=True)
    labels = Labels(indices, tuple(spoken.values()))
    return FileSource(str(folder), folder, images, labels, ignored, empty)


def open_image_files(paths: Sequence[Path]) -> FileSource:
    """Make a source of single image files, in the order given, without labels."""
    if not paths:
        raise ValueError("expected at least one image file, got none")
    keys = tuple(path.as_posix() for path in paths)
    name = keys[0] if len(keys) == 1 else f"{len(keys)} image files"
    return FileSource(name, Path(), keys, no_labels(len(keys)))


def _listed(folder: Path) -> tuple[tuple[str, ...], tuple[PassedOver, ...]]:
    """Return the images below a folder and everything else there, each sorted by path."""
    images: list[str] = []
    ignored: list[PassedOver] = []
    for name in _walk(folder, ignored):
        kind = kind_of(name)
        if not kind.startswith(HIDDEN) and (
            kind in IMAGE_SUFFIXES or (not os.path.splitext(name)[1] and is_image_file(folder / name))
        ):
            images.append(name)
        elif name != SIDECAR:  # it names the classes
            ignored.append(PassedOver(kind, name))
    return tuple(sorted(images)), tuple(sorted(ignored, key=lambda one: one.name))


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
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    found = [one.name for one in ignored if not one.kind.startswith(HIDDEN)]
    if found:
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        return f"no image in {folder}: none of its {len(found)} files ({shown}) ends in {suffixes}"
    subfolders = any(entry.is_dir() for entry in folder.iterdir())
    return (
        f"no image in {folder}: it holds only folders without files" if subfolders else f"{folder} is empty"
    )
