"""Images in WebDataset shards: .tar files in which files with one basename make one sample."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pixlex.data.decoding import ImageRecord, UnreadableImage
from pixlex.data.labels import MAX_CLASSES, Labels, RowLabel, resolve_labels, row_label
from pixlex.data.sources import fingerprint, names_within
from pixlex.data.text import texts_in

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
LABEL_EXTENSIONS = ("cls", "json", "txt")

# A label is short; a larger file of that name is something else, and is not read into memory.
_MAX_LABEL_BYTES = 1 << 20


@dataclass(frozen=True)
class _Member:
    """Where the bytes of an image lie."""

    shard: int
    offset: int
    size: int
    key: str


@dataclass
class _Sample:
    """What has been found of one basename."""

    images: dict[str, _Member] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class TarSource:
    """Images inside uncompressed tar files, read by their position.

    Args:
        name: what to call the source.
        shards: the tar files, in order.
        members: where each image lies.
        labels: class index of each image and the class names.
        ignored: extensions that are neither image nor label, with the number of such files.
        captions: the texts of each image, where the shards were opened for them; else empty.
    """

    name: str
    shards: tuple[Path, ...]
    members: tuple[_Member, ...]
    labels: Labels
    ignored: tuple[str, ...] = ()
    captions: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.members)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index; empty without labels."""
        return self.labels.class_names

    @cached_property
    def identity(self) -> str:
        """A fingerprint of the keys, the sizes of the images, labels and class names."""
        return fingerprint("tar", (f"{member.key}:{member.size}" for member in self.members), self.labels)

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """The number of images in each shard that has some."""
        counted = Counter(member.shard for member in self.members)
        return tuple(counted.values())

    def key(self, index: int) -> str:
        """Return shard and file name of an image, such as "shard-000.tar/0017.jpg"."""
        return self.members[index].key

    def read(self, index: int) -> ImageRecord:
        """Read a member; raises `UnreadableImage` if the shard is gone or shorter than it was."""
        member = self.members[index]
        try:
            # Opened for each image: a file kept open would share its position with forked processes.
            with self.shards[member.shard].open("rb") as file:
                file.seek(member.offset)
                data = file.read(member.size)
        except OSError as fault:
            raise UnreadableImage(
                member.key, f"the shard cannot be read: {fault.strerror or fault}"
            ) from fault
        if len(data) < member.size:
            raise UnreadableImage(
                member.key, f"the shard is cut off: {member.size} bytes expected, {len(data)} found"
            )
        return ImageRecord(data, int(self.labels.indices[index]), member.key)


def open_shards(name: str, paths: Sequence[Path], *, captioned: bool = False) -> TarSource:
    """Index tar shards by scanning their headers.

    As in WebDataset, the basename of a file ends at the first dot of its name, and the files of one
    basename within a shard make one sample: an image (.jpg, .jpeg, .png or .webp) and its class. The class
    index is in .cls, in `label` of .json or in .txt (if that is an integer); its name in .cls, in
    `class_name` of .json or in .txt beside an index (a .txt alone is a caption, not a class). Nothing else
    is read, and nothing is ever unpickled.

    Captions are `captions`, `caption` or `text` of .json, or else a .txt that is no class.

    Args:
        name: what to call the source.
        paths: the shards, in order.
        captioned: keep the captions, and call classes without a name by their number.

    Raises:
        ValueError: if a shard is not an uncompressed tar file, none holds an image, or labels and names do
            not fit.
    """
    members: list[_Member] = []
    rows: list[RowLabel] = []
    captions: list[tuple[str, ...]] = []
    ignored: Counter[str] = Counter()
    names = names_within(paths)
    for number, path in enumerate(paths):
        for sample in _scan(path, number, names[number], ignored).values():
            if not sample.images:
                continue
            extension = min(sample.images, key=IMAGE_EXTENSIONS.index)
            members.append(sample.images[extension])
            texts, fields = _decoded(sample.texts, members[-1].key)
            if captioned:
                text = texts.pop("txt", "") if _is_caption(texts) else ""
                captions.append(_sample_captions(fields, text, members[-1].key))
            rows.append(_sample_label(texts, fields, members[-1].key))
    if not members:
        found = ", ".join(sorted(ignored)) or "nothing else"
        raise ValueError(
            f"no image in the {len(paths)} shards of {name}: expected files ending in "
            f"{', '.join('.' + extension for extension in IMAGE_EXTENSIONS)}, found {found}"
        )
    labels = resolve_labels(rows, name, paths[0].parent, numbered=captioned)
    counted = tuple(f".{extension} ({count} files)" for extension, count in sorted(ignored.items()))
    return TarSource(name, tuple(paths), tuple(members), labels, counted, tuple(captions))


def _scan(path: Path, number: int, name: str, ignored: Counter[str]) -> dict[str, _Sample]:
    """Return the samples of a shard by basename, in the order of their first files."""
    samples: dict[str, _Sample] = {}
    try:
        # "r:" refuses compressed archives, in which no member could be reached without all before it.
        with tarfile.open(path, "r:") as shard:
            for entry, base, extension in _files(shard):
                sample = samples.setdefault(base, _Sample())
                if extension in IMAGE_EXTENSIONS and entry.sparse is None:
                    key = f"{name}/{entry.name}"
                    sample.images[extension] = _Member(number, entry.offset_data, entry.size, key)
                elif extension in LABEL_EXTENSIONS and entry.size <= _MAX_LABEL_BYTES:
                    file = shard.extractfile(entry)
                    sample.texts[extension] = file.read() if file else b""
                else:
                    ignored[extension] += 1
    except (tarfile.TarError, OSError, EOFError) as fault:
        raise ValueError(f"{path} cannot be read as an uncompressed tar file: {fault}") from fault
    return samples


def _files(shard: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Yield the visible regular files of a shard with basename and extension, split at the first dot."""
    for entry in shard:
        folder, slash, file_name = entry.name.rpartition("/")
        stem, dot, extension = file_name.partition(".")
        if entry.isreg() and stem and dot:
            yield entry, folder + slash + stem, extension.lower()


def _decoded(texts: dict[str, bytes], key: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the texts of a sample by extension, and the fields of its .json file."""
    decoded = {}
    for extension, data in texts.items():
        try:
            decoded[extension] = data.decode().strip()
        except UnicodeDecodeError as fault:
            raise ValueError(f"the .{extension} file of {key} is not UTF-8 text: {fault}") from fault
    if "json" not in decoded:
        return decoded, {}
    try:
        fields = json.loads(decoded["json"])
    except ValueError as fault:
        raise ValueError(f"the .json file of {key} is not JSON: {fault}") from fault
    return decoded, fields if isinstance(fields, dict) else {}


def _sample_label(texts: dict[str, str], fields: dict[str, Any], key: str) -> RowLabel:
    """Return the class of a sample from its .cls, .json and .txt files."""
    row = row_label(texts.get("cls", fields.get("label")), fields.get("class_name"), key)
    text = row_label(texts.get("txt"), None, key) if "txt" in texts else RowLabel(None, None)
    if row.label is None:
        row = RowLabel(text.label, row.class_name)
    if row.label is not None and row.class_name is None:
        row = RowLabel(row.label, text.class_name)
    return row


def _is_caption(texts: dict[str, str]) -> bool:
    """Whether the .txt file of a sample is a caption: not an index, nor the name of a class beside one."""
    text = texts.get("txt", "")
    return not ("cls" in texts or (text.isdecimal() and int(text) < MAX_CLASSES))


def _sample_captions(fields: dict[str, Any], text: str, key: str) -> tuple[str, ...]:
    """Return the captions in the .json file of a sample, or else the text of its .txt file."""
    for name in ("captions", "caption", "text"):
        if found := texts_in(fields.get(name), key):
            return found
    return texts_in(text, key)
