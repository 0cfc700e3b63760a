"""What lies in a tar file, also where it is damaged: files with the places of their bytes."""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

BLOCK = 512

# What every header holds since 1988, and where.
_MAGIC, _MAGIC_PLACE = b"ustar", 257
_CHUNK_BYTES = 1 << 20

# Links to links are followed so far.
_MOST_LINKS = 16

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

# What the reader of headers raises where they are damaged.
_FAULTS = (tarfile.TarError, ValueError, LookupError, ArithmeticError, EOFError)

# Called with the kind and the name of what cannot be read.
Note = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar file.

    Attributes:
        name: its name.
        offset: where its content begins, in bytes from the beginning of the tar file.
        size: how many bytes it has.
    """

    name: str
    offset: int
    size: int


def members(file: io.BufferedIOBase, note: Note) -> list[Member]:
    """Return the files of a tar file, in order; links to such files have the bytes of those.

    It is read on behind the end mark, for tar files may be joined, and behind damage from the next header on.

    Args:
        file: an uncompressed tar file.
        note: called with what is passed over: a part that is damaged or cut off, or may be cut off for want of an
            end mark; links to elsewhere; sparse files.

    Raises:
        ValueError: it does not begin as a tar file does.
    """
    found: list[Member | tuple[str, str]] = []
    targets: dict[str, Member | str] = {}
    for entry in _entries(file, note):
        name = posixpath.normpath(entry.name)
        if entry.sparse is not None:
            note("sparse file", entry.name)
        elif entry.isreg():
            member = Member(entry.name, entry.offset_data, entry.size)
            targets[name] = member
            found.append(member)
        elif entry.issym() or entry.islnk():
            # Hard links name files from the top, symbolic ones from where they lie.
            folder = posixpath.dirname(name) if entry.issym() else ""
            target = posixpath.normpath(posixpath.join(folder, entry.linkname))
            targets.setdefault(name, target)
            found.append((entry.name, target))
        elif not entry.isdir():
            note("no regular file", entry.name)
    read = []
    for one in found:
        if isinstance(one, Member):
            read.append(one)
        elif (linked := _followed(one[1], targets)) is not None:
            read.append(Member(one[0], linked.offset, linked.size))
        else:
            note("link", f"{one[0]}: leads to {one[1]}, which is no file here")
    return read


def _followed(target: str, targets: dict[str, Member | str]) -> Member | None:
    for _ in range(_MOST_LINKS):
        found = targets.get(target)
        if not isinstance(found, str):
            return found
        target = found
    return None


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
            end = min(end + BLOCK, size)
        start = _next_header(file, end, None if cut else note)


def _next_header(file: io.BufferedIOBase, start: int, note: Note | None) -> int | None:
    """Return where the next header begins; what lies before it is noted, unless it is as between joined files."""
    file.seek(start)
    place, buffer, damaged = start, b"", False
    found = None
    while found is None and (piece := file.read(_CHUNK_BYTES)):
        buffer += piece
        found = _header_in(buffer)
        # A header may lie across two pieces.
        passed = max(0, len(buffer) - BLOCK + 1) if found is None else found
        damaged |= any(buffer[:passed].strip(b"\0"))
        place, buffer = place + passed, buffer[passed:]
    if found is None:
        damaged |= any(buffer.strip(b"\0"))
        place += len(buffer)
    # Whole files have whole blocks.
    damaged |= found is not None and (place - start) % BLOCK != 0
    if note is not None and damaged:
        note("damaged part", f"bytes {start:,} to {place:,}")
    elif note is not None and found is None and (place == start or (place - start) % BLOCK):
        note("missing end mark", "the end, before which something may have been cut off")
    return None if found is None else place


def _header_in(buffer: bytes) -> int | None:
    """Return where the first header in some bytes begins; in joined files they need not lie on whole blocks."""
    at = buffer.find(_MAGIC, _MAGIC_PLACE)
    while at >= 0:
        block = buffer[at - _MAGIC_PLACE :][:BLOCK]
        try:
            tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except _FAULTS:
            at = buffer.find(_MAGIC, at + 1)
        else:
            return at - _MAGIC_PLACE
    return None


def _compression(file: io.BufferedIOBase) -> str:
    file.seek(0)
    head = file.read(BLOCK)
    found = next((name for mark, name in _COMPRESSED.items() if head.startswith(mark)), None)
    return f"it is compressed ({found}), and images are read by their position: unpack it" if found else ""
