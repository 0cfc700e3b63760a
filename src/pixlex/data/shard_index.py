"""What tar shards hold, found by reading their headers once and kept for later starts."""

from __future__ import annotations

import hashlib
import json
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int32, Int64

from pixlex.data.addresses import FileState
from pixlex.data.fetched import FetchedFile, cache_folder
from pixlex.data.labels import MAX_CLASSES, RowLabel, row_label
from pixlex.data.text import decode_text, json_value, texts_in, whole_number
from pixlex.files import write_atomically

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
LABEL_EXTENSIONS = ("cls", "json", "txt")

# A label is short; a larger file of that name is something else, and is not read into memory.
_MAX_LABEL_BYTES = 1 << 20

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
        ignored: extension -> number of files that are neither image nor label.
    """

    files: pa.Array
    offsets: Int64[np.ndarray, " images"]
    sizes: Int64[np.ndarray, " images"]
    labels: tuple[RowLabel, ...]
    firsts: tuple[int, ...]
    codes: Int32[np.ndarray, " images"]
    captions: tuple[tuple[str, ...], ...]
    ignored: dict[str, int]


@dataclass(frozen=True)
class _Image:
    """Where the bytes of an image lie."""

    file: str
    offset: int
    size: int


@dataclass
class _Sample:
    """What has been found of one basename."""

    images: dict[str, _Image] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)


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
        ignored=_notes(table)["ignored"],
    )


def _notes(table: pa.Table) -> dict[str, Any]:
    notes: dict[str, Any] = json.loads((table.schema.metadata or {}).get(b"pixlex", b"{}"))
    return notes


def _told_of(ignored: Any, told: dict[str, Any]) -> dict[str, Any]:
    """Return what is written beside the pages, which have checksums of their own."""
    checksum = hashlib.sha256(json.dumps(ignored).encode()).hexdigest()
    return {**told, "ignored": ignored, "checksum": checksum}


def _kept(path: Path, told: dict[str, Any]) -> pa.Table | None:
    """Read an index; None if there is none, it is of another content, or damaged."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
            same = table.schema.equals(_SCHEMA) and _notes(table) == _told_of(
                _notes(table).get("ignored"), told
            )
            return table if same else None
    except (pa.ArrowException, OSError, ValueError):
        return None


def _keep(table: pa.Table, path: Path, told: dict[str, Any]) -> None:
    notes = _told_of(_notes(table)["ignored"], told)
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
    ignored: Counter[str] = Counter()
    columns: dict[str, list[Any]] = {column: [] for column in _SCHEMA.names}
    for sample in _samples(shard, ignored).values():
        if not sample.images:
            continue
        image = sample.images[min(sample.images, key=IMAGE_EXTENSIONS.index)]
        key = f"{name}/{image.file}"
        texts, fields = _decoded(sample.texts, key)
        captions: tuple[str, ...] = ()
        if captioned:
            text = texts.pop("txt", "") if _is_caption(texts) else ""
            captions = _sample_captions(fields, text, key)
        label = _sample_label(texts, fields, key)
        columns["file"].append(image.file.encode(errors="surrogateescape"))
        columns["offset"].append(image.offset)
        columns["size"].append(image.size)
        columns["label"].append(label.label)
        columns["class_name"].append(None if label.class_name is None else _encoded(label.class_name))
        columns["captions"].append([_encoded(caption) for caption in captions])
    return pa.table(columns, schema=_SCHEMA.with_metadata({"pixlex": json.dumps({"ignored": ignored})}))


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _decoded_text(text: bytes) -> str:
    return text.decode(errors="surrogatepass")


def _samples(shard: Path | FetchedFile, ignored: Counter[str]) -> dict[str, _Sample]:
    """Return the samples of a shard by basename, in the order of their first files."""
    samples: dict[str, _Sample] = {}
    try:
        # "r:" refuses compressed archives, in which no member could be reached without all before it.
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for entry, base, extension in _files(archive):
                sample = samples.setdefault(base, _Sample())
                if extension in IMAGE_EXTENSIONS and entry.sparse is None:
                    sample.images[extension] = _Image(entry.name, entry.offset_data, entry.size)
                elif extension in LABEL_EXTENSIONS and entry.size <= _MAX_LABEL_BYTES:
                    text = archive.extractfile(entry)
                    sample.texts[extension] = text.read() if text else b""
                else:
                    ignored[extension] += 1
    except (tarfile.TarError, OSError, EOFError) as fault:
        raise ValueError(f"{shard} cannot be read as an uncompressed tar file: {fault}") from fault
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
