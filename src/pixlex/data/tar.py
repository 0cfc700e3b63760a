"""What tar shards hold: their files, also where they are damaged, and their samples as rows of a table."""

from __future__ import annotations

import io
import json
import os
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any, NamedTuple

import pyarrow as pa

from pixlex.data.decoding import IMAGE_EXTENSIONS, holds_image
from pixlex.data.labels import MAX_CLASSES, RowLabel, row_label
from pixlex.data.sources import HIDDEN, MAX_TEXT_BYTES, PassedOver, kind_of
from pixlex.data.text import captions_in, decode_text, json_value, whole_number

# A row for each image; names and texts are bytes: file names need not be UTF-8, and JSON may hold halves of
# characters. The metadata `ignored` are JSON with what was passed over.
SCHEMA = pa.schema(
    {
        "file": pa.binary(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "label": pa.int64(),
        "class_name": pa.binary(),
        "captions": pa.list_(pa.binary()),
    }
)

# What every header of a tar file holds since 1988, and where.
_MAGIC, _MAGIC_OFFSET, _BLOCK = b"ustar", 257, 512
_CHUNK_BYTES = 1 << 20
# Links to links are followed so far.
_MOST_LINKS = 16
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# What the reader of headers raises where they are damaged.
_FAULTS = (tarfile.TarError, ValueError, LookupError, ArithmeticError, EOFError)

# Called with the kind and the name of what cannot be read.
Note = Callable[[str, str], None]


class Member(NamedTuple):
    """A file in a tar file: its name, and where its content lies in bytes from the beginning of the tar file."""

    name: str
    offset: int
    size: int


def scan_shard(file: io.BufferedIOBase, shard: object, name: str, *, captioned: bool) -> pa.Table:
    """Read the headers of a shard, its labels and captions into a table with a row for each image, see `SCHEMA`.

    Errors call it `shard`; its keys begin with the name.
    """
    ignored: dict[str, PassedOver] = {}

    def note(kind: str, what: str) -> None:
        before = ignored.get(kind, PassedOver(kind, f"{name}/{what}", 0))
        ignored[kind] = replace(before, count=before.count + 1)

    try:
        found = members(file, note)
    except (tarfile.TarError, OSError, ValueError) as fault:
        raise ValueError(f"{shard} cannot be read as an uncompressed tar file: {fault}") from fault
    rows = []
    for image, texts in (one for sample in _samples(file, found, note) for one in _images_of(sample, note)):
        label, captions = _described(file, texts, f"{name}/{image.name}", captioned)
        rows.append(
            {
                "file": image.name.encode(errors="surrogateescape"),
                "offset": image.offset,
                "size": image.size,
                "label": label.label,
                "class_name": _encoded(label.class_name),
                "captions": list(map(_encoded, captions)),
            }
        )
    notes = json.dumps([astuple(one) for one in ignored.values()])
    return pa.Table.from_pylist(rows, SCHEMA.with_metadata({"ignored": notes}))


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode(errors="surrogatepass")


def _samples(file: io.BufferedIOBase, found: Sequence[Member], note: Note) -> list[dict[str, Member]]:
    """Return the files of each sample by their extensions, in the order of the samples' first files.

    A name that occurs again begins another sample: tar files may be joined.
    """
    samples: list[dict[str, Member]] = []
    latest: dict[str, dict[str, Member]] = {}
    for member in found:
        # The extension ends the name from its first dot on, as in WebDataset.
        folder, slash, file_name = member.name.rpartition("/")
        stem, _, extension = file_name.partition(".")
        base, extension, kind = folder + slash + stem, extension.lower(), kind_of(member.name)
        if kind.startswith(HIDDEN) or not (extension or _is_image(file, member)):
            note(kind, member.name)
        elif not extension:
            samples.append({IMAGE_EXTENSIONS[0]: member})  # stands alone
        else:
            if base not in latest or extension in latest[base]:
                latest[base] = {}
                samples.append(latest[base])
            latest[base][extension] = member
    return samples


def _is_image(file: io.BufferedIOBase, member: Member) -> bool:
    file.seek(member.offset)
    return holds_image(file)


def _images_of(sample: Mapping[str, Member], note: Note) -> Iterator[tuple[Member, dict[str, Member]]]:
    """Yield the images of a sample, each with its .cls, .json and .txt files.

    That is its file with a plain image extension, the first of `IMAGE_EXTENSIONS` if it has several; where it has
    none, all whose extension ends in one, such as .input.jpg.
    """
    last = {extension: extension.rpartition(".")[2] for extension in sample}
    images = [extension for extension in sample if last[extension] in IMAGE_EXTENSIONS]
    plain = [extension for extension in images if extension in IMAGE_EXTENSIONS]
    used = set()
    for extension in [min(plain, key=IMAGE_EXTENSIONS.index)] if plain else images:
        front = extension.removesuffix(last[extension])
        texts = {}
        for kind in ("cls", "json", "txt"):
            own = next((one for one in (front + kind, kind) if one in sample), None)
            if own is not None and sample[own].size <= MAX_TEXT_BYTES:
                texts[kind] = sample[own]
                used.add(own)
        used.add(extension)
        yield sample[extension], texts
    for extension, member in sample.items():
        if extension not in used:
            note("further picture" if extension in images else f".{last[extension]}", member.name)


def _described(
    file: io.BufferedIOBase, files: Mapping[str, Member], key: str, captioned: bool
) -> tuple[RowLabel, tuple[str, ...]]:
    """Return label and captions of an image, from its .cls, .json and .txt files."""
    texts: dict[str, str] = {}
    for extension, member in files.items():
        file.seek(member.offset)
        texts[extension] = decode_text(file.read(member.size), f"the .{extension} file of {key}").strip()
    found = json_value(texts["json"], f"the .json file of {key}") if "json" in texts else {}
    fields: dict[str, Any] = found if isinstance(found, dict) else {}
    captions: tuple[str, ...] = ()
    if captioned:
        # A .txt is a caption that is no index, nor the name of a class beside one.
        number = whole_number(texts.get("txt", ""))
        is_class = "cls" in texts or (number is not None and 0 <= number < MAX_CLASSES)
        text = "" if is_class else texts.pop("txt", "")
        captions = captions_in(fields, text, key)
    label, name = row_label(texts.get("cls", fields.get("label")), fields.get("class_name"), key)
    of_text = row_label(texts.get("txt"), None, key)
    if label is None:
        label = of_text.label
    if label is not None and name is None:
        name = of_text.class_name
    return RowLabel(label, name), captions


def members(file: io.BufferedIOBase, note: Note) -> list[Member]:
    """Return the files of a tar file, in order; links to such files have the bytes of those.

    It is read on behind the end mark, for tar files may be joined, and behind damage from the next header on.
    Noted is what is passed over: a part that is damaged or cut off, or may be cut off for want of an end mark;
    links to elsewhere; sparse files. `ValueError` where it does not begin as an uncompressed tar file does.
    """
    found: list[tuple[str, Member | str]] = []
    targets: dict[str, Member | str] = {}
    for entry in _entries(file, note):
        name = posixpath.normpath(entry.name)
        if entry.sparse is not None:
            note("sparse file", entry.name)
        elif entry.isreg():
            targets[name] = member = Member(entry.name, entry.offset_data, entry.size)
            found.append((entry.name, member))
        elif entry.issym() or entry.islnk():
            # Hard links name files from the top, symbolic ones from where they lie.
            folder = posixpath.dirname(name) if entry.issym() else ""
            target = posixpath.normpath(posixpath.join(folder, entry.linkname))
            targets.setdefault(name, target)
            found.append((entry.name, target))
        elif not entry.isdir():
            note("no regular file", entry.name)
    read = []
    for name, leads_to in found:
        last: Member | str | None = leads_to
        for _ in range(_MOST_LINKS):
            last = targets.get(last) if isinstance(last, str) else last
        if isinstance(last, Member):
            read.append(last._replace(name=name))
        else:
            note("link", f"{name}: leads to {leads_to}, which is no file here")
    return read


def _entries(file: io.BufferedIOBase, note: Note) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a tar file, those behind damage and end marks too."""
    size = file.seek(0, os.SEEK_END)
    start: int | None = 0
    while start is not None:
        file.seek(start)
        end, cut = start, False
        try:
            # "r:" refuses compressed archives, in which no file could be reached without all before it.
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
            for entry in archive:
                if archive.offset <= end:
                    raise tarfile.ReadError("a size below zero")
                end = archive.offset
                if entry.isreg() and entry.sparse is None and entry.offset_data + entry.size > size:
                    note("cut off", entry.name)
                    end, cut = entry.offset_data, True  # its size may be what is wrong
                    break
                yield entry
        except _FAULTS as fault:
            if not start and not end:
                raise ValueError(_compression(file) or f"{fault}") from fault
            end = min(end + _BLOCK, size)
        start = _next_header(file, end, None if cut else note)


def _next_header(file: io.BufferedIOBase, start: int, note: Note | None) -> int | None:
    """Return where the next header begins; what lies before it is noted, unless it is as between joined files."""
    file.seek(start)
    offset, buffer, damaged = start, b"", False
    found = None
    while found is None and (piece := file.read(_CHUNK_BYTES)):
        buffer += piece
        found = _header_in(buffer)
        # A header may lie across two pieces.
        passed = max(0, len(buffer) - _BLOCK + 1) if found is None else found
        damaged |= any(buffer[:passed].strip(b"\0"))
        offset, buffer = offset + passed, buffer[passed:]
    if found is None:
        damaged |= any(buffer.strip(b"\0"))
        offset += len(buffer)
    # Full files have full blocks.
    damaged |= found is not None and (offset - start) % _BLOCK != 0
    if note is not None and damaged:
        note("damaged part", f"bytes {start:,} to {offset:,}")
    elif note is not None and found is None and (offset == start or (offset - start) % _BLOCK):
        note("missing end mark", "the end, before which something may have been cut off")
    return None if found is None else offset


def _header_in(buffer: bytes) -> int | None:
    """Return where the first header in some bytes begins; in joined files they need not lie on full blocks."""
    at = buffer.find(_MAGIC, _MAGIC_OFFSET)
    while at >= 0:
        block = buffer[at - _MAGIC_OFFSET :][:_BLOCK]
        try:
            tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except _FAULTS:
            at = buffer.find(_MAGIC, at + 1)
        else:
            return at - _MAGIC_OFFSET
    return None


def _compression(file: io.BufferedIOBase) -> str:
    file.seek(0)
    head = file.read(_BLOCK)
    found = next((name for mark, name in _COMPRESSED.items() if head.startswith(mark)), None)
    return f"it is compressed ({found}), and images are read by their position: unpack it" if found else ""
