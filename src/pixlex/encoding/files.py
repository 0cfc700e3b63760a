"""The kinds of files that hold codes or words of images: written, and read back."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pixlex.data.text import decode_text
from pixlex.files import (
    CHECKSUM,
    Damaged,
    open_regular,
    read_json,
    sealed,
    sha256_of,
    unsealed,
    verified,
    write_text,
)
from pixlex.messages import printable, quoted
from pixlex.models import JointModel
from pixlex.nn.vocabulary import RankedWord, as_text

if TYPE_CHECKING:
    from pixlex.api import ImageTokenizer

Kind = Literal["words", "codes", "jsonl", "parquet"]
Codes = tuple[int, ...]

# What the parts of a folder belong to. Readers of Parquet folders pass over names that begin so.
PARTS = "_parts.json"

_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "label": pa.int64(),
        "codes": pa.list_(pa.int32()),
        "words": pa.string(),
        CHECKSUM: pa.string(),
    }
)
# Of words by which a model names images.
_RANKED = pa.field("ranked", pa.list_(pa.struct({"text": pa.string(), "similarity": pa.float64()})))
_ROWS_AT_ONCE = 4096
_AROUND = 12  # bytes of a Parquet file around pages and metadata
# The last is the byte order mark, which would be dropped where it begins a file.
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\ufeff": "\\f"}
_MARKS = {escape: mark for mark, escape in _ESCAPES.items()}


@dataclass(frozen=True)
class EncodedImage:
    """The codes of one image of a source, rows of the grid first; its label is -1 where it is unknown.

    Where the model names images, `ranked` words or phrases, each with its `text` and `similarity`.
    """

    index: int
    key: str
    label: int
    codes: Codes
    ranked: tuple[Mapping[str, Any], ...] = ()


def check_kind(kind: str, tokenizer: ImageTokenizer) -> None:
    """Raise `ValueError` for a kind that does not exist, or that the model cannot write."""
    if kind not in get_args(Kind):
        raise ValueError(f"expected one of {', '.join(get_args(Kind))}, got {quoted(kind)}")
    if kind == "words" and not (tokenizer.has_words or isinstance(tokenizer.model, JointModel)):
        raise ValueError(f"a {tokenizer.family} has no words: write codes, jsonl or parquet")
    if kind == "codes":
        tokenizer.coder  # noqa: B018 - raises where there are none
    elif (kind == "words" and not tokenizer.has_words) or not tokenizer.model.has_codes:
        tokenizer.namer  # noqa: B018


def format_line(image: EncodedImage, kind: Kind, tokenizer: ImageTokenizer) -> str:
    """Return the line of an image in a file of words, codes or jsonl, without its line end."""
    if kind == "codes":
        return f"{_escape(image.key)}\t{' '.join(map(str, image.codes))}"
    words = _words(image, tokenizer)
    if kind == "words":
        return f"{_escape(image.key)}\t{words}"
    entry: dict[str, Any] = {"key": image.key}
    if image.label >= 0:
        entry["label"] = image.label
    if image.codes:
        entry["codes"] = list(image.codes)
    if words is not None:
        entry["words"] = words
    if image.ranked:
        entry["ranked"] = list(image.ranked)
    return json.dumps(sealed(entry))


def write_codes(path: Path, images: Iterable[EncodedImage], kind: Kind, tokenizer: ImageTokenizer) -> None:
    """Write a whole file; memory does not depend on the number of images."""
    if kind == "parquet":
        rows = (sealed(_row(image, tokenizer)) for image in images)
        schema = _SCHEMA.append(_RANKED) if tokenizer.names_images else _SCHEMA
        # The checksums of pages say nothing of what stands around them, such as the names of columns.
        with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
            while chunk := list(islice(rows, _ROWS_AT_ONCE)):
                writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
        return
    # File names may be bytes that are no UTF-8; they come out as the same bytes.
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for image in images:
            file.write(f"{format_line(image, kind, tokenizer)}\n")


def read_codes(path: Path, tokenizer: ImageTokenizer) -> Iterator[tuple[str, Codes]]:
    """Yield key and codes of each image in a file of any kind that `encode_source` writes.

    Lines may also hold words or integers without a key, and take the number of the line for one.

    Args:
        path: parquet by its ending, a folder of Parquet parts, or text, in which a line that is an object is JSON.

    Raises:
        ValueError: naming file and line, for what is not what was written, or no codes or words of the model.
    """
    if path.is_dir():
        for part in _parts(path):
            yield from _read_parquet(part, tokenizer)
    elif path.suffix.lower() == ".parquet":
        yield from _read_parquet(path, tokenizer)
    else:
        _verify_text(path)
        with open_regular(path) as file:
            yield from read_lines(file, path.name, tokenizer)


def write_checksum(path: Path, kind: Kind) -> None:
    """Write the SHA-256 of a file of words or codes beside it, as `sha256sum --check` reads it."""
    beside = path.with_name(f"{path.name}.sha256")
    if kind not in ("words", "codes"):
        beside.unlink(missing_ok=True)  # of a file of another kind that was replaced
        return
    write_text(beside, f"{sha256_of(path)}  {printable(path.name)}\n")


def _verify_text(path: Path) -> None:
    """Raise `Damaged` where a file is not the one whose checksum lies beside it."""
    beside = path.with_name(f"{path.name}.sha256")
    if beside.is_file() and not beside.read_bytes().startswith(sha256_of(path).encode()):
        raise Damaged(
            f"{path} is not what was written, by the checksum in {beside.name}: delete that if it was changed on "
            "purpose"
        )


def _parts(folder: Path) -> list[Path]:
    """Return the parts of a folder in order; raises `ValueError` where there are none, or fewer than it says."""
    parts = sorted(folder.glob("part-*.parquet"), key=lambda path: (len(path.name), path.name))
    if not parts:
        raise ValueError(f"{folder}: expected parts of codes, part-00000.parquet and so on, found none")
    if (head := folder / PARTS).is_file():
        told = read_json(head)
        images, size = told.get("images"), told.get("part_size")
        if type(images) is not int or type(size) is not int or size < 1:
            raise Damaged(
                f"{head} is damaged: expected numbers of images, got {images!r:.40} and {size!r:.40}"
            )
        if len(parts) < (expected := -(-images // size)):
            raise ValueError(
                f"{folder}: expected {expected} parts, found {len(parts)}: encode has not finished"
            )
    return parts


def read_lines(lines: Iterable[bytes], name: str, tokenizer: ImageTokenizer) -> Iterator[tuple[str, Codes]]:
    """Yield key and codes of each line of text; `name` stands in errors. Otherwise as `read_codes`."""
    for number, raw in enumerate(lines, start=1):
        # Keys may be file names that are no UTF-8: a byte order mark alone tells another encoding.
        if number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" in raw:
            decode_text(raw, name)
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape").strip("\r\n")
        if not line.strip():
            continue
        try:
            key, codes = _read_line(line, tokenizer)
        except ValueError as fault:
            raise ValueError(f"{name} line {number}: {fault}") from fault
        yield str(number) if key is None else key, codes


def json_object(line: str) -> dict[str, Any] | None:
    """Return the JSON object that a line holds, None where it holds none."""
    if not line.startswith("{"):
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _read_line(line: str, tokenizer: ImageTokenizer) -> tuple[str | None, Codes]:
    entry = unsealed(line) if f'"{CHECKSUM}"' in line else json_object(line)
    if entry is not None:
        return str(entry["key"]) if "key" in entry else None, _codes_of(entry, tokenizer)
    key, tab, payload = line.rpartition("\t")
    return _unescape(key) if tab else None, _parse(payload, tokenizer)


def _parse(payload: str, tokenizer: ImageTokenizer) -> Codes:
    """Read words, or integers if all of them are."""
    words = payload.split()
    if all(word.isascii() and word.isdigit() for word in words):
        return _checked([int(word) for word in words], tokenizer)
    if not tokenizer.has_words:
        what = (
            "words are names, which nothing is drawn from" if tokenizer.names_images else "codes are no words"
        )
        raise ValueError(f"expected integers, for a {tokenizer.family}'s {what}, got {quoted(payload, 40)}")
    return tuple(tokenizer.from_words(payload)[0].tolist())


def _codes_of(entry: Mapping[str, Any], tokenizer: ImageTokenizer) -> Codes:
    """Return the codes of an object or a row, from its words where it has no codes."""
    codes, words = entry.get("codes"), entry.get("words")
    if codes is not None:
        if not isinstance(codes, list) or any(type(code) is not int for code in codes):
            raise ValueError(f"expected codes to be a list of integers, got {quoted(codes, 60)}")
        return _checked(codes, tokenizer)
    if not isinstance(words, str):
        raise ValueError("expected 'codes' or 'words', found neither")
    return _parse(words, tokenizer)


def _checked(codes: Sequence[int], tokenizer: ImageTokenizer) -> Codes:
    if len(codes) != tokenizer.num_words:
        raise ValueError(f"expected {tokenizer.num_words} codes{tokenizer.layout}, got {len(codes)}")
    for code in codes:
        if not 0 <= code < tokenizer.num_codewords:
            raise ValueError(f"expected codes in [0, {tokenizer.num_codewords}), got {code}")
    return tuple(codes)


def _words(image: EncodedImage, tokenizer: ImageTokenizer) -> str | None:
    if tokenizer.has_words:
        return tokenizer.to_words(torch.tensor([image.codes]))[0]
    return as_text([RankedWord(**one) for one in image.ranked]) if image.ranked else None


def _row(image: EncodedImage, tokenizer: ImageTokenizer) -> dict[str, Any]:
    row = {
        # Parquet's text is UTF-8; a file name that is not keeps its bytes as \udc80 and the like.
        "key": image.key.encode("utf-8", "backslashreplace").decode(),
        "label": image.label if image.label >= 0 else None,
        "codes": list(image.codes),
        "words": _words(image, tokenizer),
    }
    return row | ({_RANKED.name: list(image.ranked)} if tokenizer.names_images else {})


def _read_parquet(path: Path, tokenizer: ImageTokenizer) -> Iterator[tuple[str, Codes]]:
    try:
        with open_regular(path) as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
            about = file.metadata
            in_groups = sum(about.row_group(one).num_rows for one in range(about.num_row_groups))
            pages = path.stat().st_size - about.serialized_size - _AROUND
            if in_groups != about.num_rows or (pages and not in_groups):
                raise Damaged(f"{path} is damaged: its parts have not as many rows as the whole")
            known = (*_SCHEMA.names, _RANKED.name)
            columns = [name for name in known if name in file.schema_arrow.names]
            batches = file.iter_batches(_ROWS_AT_ONCE, columns=columns)
            read = 0
            for read, row in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
                try:
                    codes = _codes_of(verified(row), tokenizer)
                except ValueError as fault:
                    raise ValueError(f"{path.name} row {read - 1}: {fault}") from fault
                yield str(row.get("key", read - 1)), codes
            if read != about.num_rows:
                raise Damaged(f"{path} is damaged: {read} of {about.num_rows} rows can be read")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as fault:
        raise ValueError(f"{path} cannot be read as parquet: {fault!s:.200}") from fault


def _escape(key: str) -> str:
    return "".join(_ESCAPES.get(mark, mark) for mark in key)


def _unescape(text: str) -> str:
    """Undo `_escape`; a backslash before anything else stays."""
    return re.sub(r"\\[\\tnrf]", lambda pair: _MARKS[pair[0]], text)
