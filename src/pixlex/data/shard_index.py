"""What tar shards hold, found by reading their headers once and kept for later starts."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int32, Int64

from pixlex.data.addresses import FileState
from pixlex.data.decoding import IMAGE_EXTENSIONS, holds_image
from pixlex.data.fetched import FetchedFile, cache_folder
from pixlex.data.labels import MAX_CLASSES, RowLabel, row_label
from pixlex.data.sources import HIDDEN, MAX_TEXT_BYTES, PassedOver, kind_of
from pixlex.data.tar import Member, Note, members
from pixlex.data.text import decode_text, json_value, texts_in, whole_number
from pixlex.files import open_regular, write_atomically

LABEL_EXTENSIONS = ("cls", "json", "txt")

# A file that was written so recently may be written again without a later time of change.
_SETTLED_SECONDS = 2.0

# Goes up where an index of before would be read wrongly.
_FORM = 2

# Names and texts are bytes: file names need not be UTF-8, and JSON may hold halves of characters.
_SCHEMA = pa.schema(
    {
        "file": pa.binary(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "label": pa.int64(),
        "class_name": pa.binary(),
        "captions": pa.list_(pa.binary()),
    }
)


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The images of a shard.

    Attributes:
        files: the file of each image in the shard, as bytes.
        offsets: where its content begins, in bytes from the beginning of the shard.
        sizes: how many bytes it has.
        labels: the different labels, in the order of their first images.
        firsts: the first image of each label.
        codes: which of the labels each image has.
        captions: the texts of each image, where they were asked for; else empty.
        ignored: files that are neither image nor label, one entry for each kind.
    """

    files: pa.Array
    offsets: Int64[np.ndarray, " images"]
    sizes: Int64[np.ndarray, " images"]
    labels: tuple[RowLabel, ...]
    firsts: tuple[int, ...]
    codes: Int32[np.ndarray, " images"]
    captions: tuple[tuple[str, ...], ...]
    ignored: tuple[PassedOver, ...]


@dataclass
class _Sample:
    """The files of one basename, by extension."""

    files: dict[str, Member] = field(default_factory=dict)


@dataclass(frozen=True)
class _Picture:
    """An image of a sample, and its texts by the last part of their extension."""

    file: Member
    texts: dict[str, Member]


def shard_index(shard: Path | FetchedFile, name: str, *, captioned: bool) -> ShardIndex:
    """Return what a shard holds, as it was kept or by reading its headers.

    What is found is kept in the folder of `pixlex.data.fetched.cache_folder`, where that can be written, until the
    shard changes.

    Args:
        shard: the tar file.
        name: what its keys begin with.
        captioned: see `pixlex.data.shards.open_shards`.

    Raises:
        ValueError: it is not an uncompressed tar file, or holds a malformed label or caption.
        Unreachable: it cannot be fetched.
    """
    state = _state_of(shard)
    if state is None:
        return _compact(_scan(shard, name, captioned), captioned)
    where = str(shard) if isinstance(shard, FetchedFile) else str(shard.absolute())
    told = {
        "form": _FORM,
        "shard": where,
        "size": state.size,
        "version": state.version,
        "captioned": captioned,
    }
    named = hashlib.sha256(f"{where}\n{captioned}".encode(errors="surrogateescape")).hexdigest()[:32]
    path = cache_folder() / "indexes" / f"{named}.parquet"
    table = _kept(path, told)
    if table is None:
        table = _scan(shard, name, captioned)
        _keep(table, path, told)
    return _compact(table, captioned)


def _state_of(shard: Path | FetchedFile) -> FileState | None:
    """Return what tells the content of a shard from another; None where nothing does."""
    if isinstance(shard, FetchedFile):
        return shard.state if shard.state.version else None
    try:
        found = shard.stat()
    except OSError:
        return None
    settled = time.time() - found.st_mtime > _SETTLED_SECONDS
    return FileState(found.st_size, str(found.st_mtime_ns)) if settled else None


def _compact(table: pa.Table, captioned: bool) -> ShardIndex:
    """Return what a table says in less memory than it takes."""
    labels, given = np.unique(table["label"].fill_null(-1).to_numpy(), return_inverse=True)
    named = table["class_name"].combine_chunks().dictionary_encode()
    names = [None, *(_decoded_text(text) for text in named.dictionary.to_pylist())]
    pairs = given * len(names) + named.indices.fill_null(-1).to_numpy() + 1
    distinct, firsts, inverse = np.unique(pairs, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    found = [(int(labels[pair // len(names)]), names[pair % len(names)]) for pair in distinct[order].tolist()]
    texts = table["captions"].to_pylist() if captioned else []
    return ShardIndex(
        # Put together with an empty array, and so copied: what a file is read into is larger than what it holds.
        files=pa.concat_arrays([*table["file"].chunks, pa.array([], pa.binary())]),
        offsets=table["offset"].to_numpy().copy(),
        sizes=table["size"].to_numpy().copy(),
        labels=tuple(RowLabel(None if label == -1 else label, class_name) for label, class_name in found),
        firsts=tuple(firsts[order].tolist()),
        codes=np.argsort(order)[inverse].astype(np.int32),
        captions=tuple(tuple(map(_decoded_text, captions)) for captions in texts),
        ignored=tuple(PassedOver(*one) for one in _notes(table)["ignored"]),
    )


def _notes(table: pa.Table) -> dict[str, Any]:
    notes: dict[str, Any] = json.loads((table.schema.metadata or {}).get(b"pixlex", b"{}"))
    return notes


def _told_of(table: pa.Table, told: dict[str, Any]) -> dict[str, Any]:
    """Return what is written beside the pages, which have checksums of their own."""
    ignored = _notes(table).get("ignored")
    checksum = hashlib.sha256(json.dumps(ignored).encode()).hexdigest()
    return {**told, "images": table.num_rows, "ignored": ignored, "checksum": checksum}


def _kept(path: Path, told: dict[str, Any]) -> pa.Table | None:
    """Read an index; None if there is none, it is of another content, or damaged."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
            same = table.schema.equals(_SCHEMA) and _notes(table) == _told_of(table, told)
            return table if same else None
    except (pa.ArrowException, OSError, ValueError, RecursionError):
        return None


def _keep(table: pa.Table, path: Path, told: dict[str, Any]) -> None:
    notes = _told_of(table, told)
    table = table.replace_schema_metadata({"pixlex": json.dumps(notes)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(
            path,
            lambda temporary: pq.write_table(table, temporary, compression="zstd", write_page_checksum=True),
        )
    except OSError:  # a folder that cannot be written, or is full: the next start reads the headers again
        return


def _scan(shard: Path | FetchedFile, name: str, captioned: bool) -> pa.Table:
    """Read the headers of a shard, its labels and captions into a table with a row for each image."""
    ignored: dict[str, PassedOver] = {}

    def note(kind: str, what: str) -> None:
        before = ignored.get(kind, PassedOver(kind, f"{name}/{what}", 0))
        ignored[kind] = replace(before, count=before.count + 1)

    columns: dict[str, list[Any]] = {column: [] for column in _SCHEMA.names}
    try:
        opened = open_shard(shard)
    except OSError as fault:
        raise ValueError(f"{shard} cannot be read: {fault.strerror or fault}") from fault
    with opened as file:
        for picture in _pictures(file, shard, note):
            image, key = picture.file, f"{name}/{picture.file.name}"
            texts, fields = _decoded(
                {kind: _content(file, text) for kind, text in picture.texts.items()}, key
            )
            captions: tuple[str, ...] = ()
            if captioned:
                text = texts.pop("txt", "") if _is_caption(texts) else ""
                captions = _sample_captions(fields, text, key)
            label = _sample_label(texts, fields, key)
            columns["file"].append(image.name.encode(errors="surrogateescape"))
            columns["offset"].append(image.offset)
            columns["size"].append(image.size)
            columns["label"].append(label.label)
            columns["class_name"].append(None if label.class_name is None else _encoded(label.class_name))
            columns["captions"].append([_encoded(caption) for caption in captions])
    told = [astuple(one) for one in ignored.values()]
    return pa.table(columns, schema=_SCHEMA.with_metadata({"pixlex": json.dumps({"ignored": told})}))


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _decoded_text(text: bytes) -> str:
    return text.decode(errors="surrogatepass")


def open_shard(shard: Path | FetchedFile) -> io.BufferedReader | io.BufferedRandom:
    """Open a shard for reading; raises `OSError` where it cannot be."""
    return shard.open() if isinstance(shard, FetchedFile) else open_regular(shard)


def _pictures(file: io.BufferedIOBase, shard: Path | FetchedFile, note: Note) -> Iterator[_Picture]:
    """Yield the images of a shard, in the order of their samples' first files.

    The image of a sample is its file with a plain image extension, the first of `IMAGE_EXTENSIONS` if it has
    several; where it has none, all whose extension ends in one, such as .input.jpg. A name that occurs again
    begins another sample: tar files may be joined.
    """
    try:
        found = members(file, note)
    except (tarfile.TarError, OSError, ValueError) as fault:
        raise ValueError(f"{shard} cannot be read as an uncompressed tar file: {fault}") from fault
    samples: list[_Sample] = []
    latest: dict[str, _Sample] = {}
    for member in found:
        base, extension = _split(member.name)
        kind = kind_of(member.name)
        if kind.startswith(HIDDEN) or not (extension or _is_image(file, member)):
            note(kind, member.name)
        elif not extension:
            samples.append(_Sample({IMAGE_EXTENSIONS[0]: member}))  # stands alone
        else:
            if base not in latest or extension in latest[base].files:
                latest[base] = _Sample()
                samples.append(latest[base])
            latest[base].files[extension] = member
    for sample in samples:
        yield from _pictures_of(sample, note)


def _pictures_of(sample: _Sample, note: Note) -> Iterator[_Picture]:
    images = [extension for extension in sample.files if _last(extension) in IMAGE_EXTENSIONS]
    plain = [extension for extension in images if extension in IMAGE_EXTENSIONS]
    used = set()
    for extension in [min(plain, key=IMAGE_EXTENSIONS.index)] if plain else images:
        front = extension.removesuffix(_last(extension))
        texts = {}
        for kind in LABEL_EXTENSIONS:
            own = next((one for one in (front + kind, kind) if one in sample.files), None)
            if own is not None and sample.files[own].size <= MAX_TEXT_BYTES:
                texts[kind] = sample.files[own]
                used.add(own)
        used.add(extension)
        yield _Picture(sample.files[extension], texts)
    for extension, member in sample.files.items():
        if extension not in used:
            note("further picture" if extension in images else f".{_last(extension)}", member.name)


def _split(name: str) -> tuple[str, str]:
    """Return basename and extension of a file, which ends the name from its first dot on, as in WebDataset."""
    folder, slash, file_name = name.rpartition("/")
    stem, _, extension = file_name.partition(".")
    return folder + slash + stem, extension.lower()


def _last(extension: str) -> str:
    return extension.rpartition(".")[2]


def _content(file: io.BufferedIOBase, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def _is_image(file: io.BufferedIOBase, member: Member) -> bool:
    """Whether a file is an image by its content."""
    file.seek(member.offset)
    return holds_image(file)


def _decoded(texts: dict[str, bytes], key: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the texts of a sample by extension, and the fields of its .json file."""
    decoded = {
        extension: decode_text(data, f"the .{extension} file of {key}").strip()
        for extension, data in texts.items()
    }
    if "json" not in decoded:
        return decoded, {}
    fields = json_value(decoded["json"], f"the .json file of {key}")
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
    number = whole_number(text)
    return not ("cls" in texts or (number is not None and 0 <= number < MAX_CLASSES))


def _sample_captions(fields: dict[str, Any], text: str, key: str) -> tuple[str, ...]:
    """Return the captions in the .json file of a sample, or else the text of its .txt file."""
    for name in ("captions", "caption", "text"):
        if found := texts_in(fields.get(name), key):
            return found
    return texts_in(text, key)
