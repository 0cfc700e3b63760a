"""Texts of users: decoded, freed of what no tokenizer reads, taken from cells, cleaned as ALBEF does."""

from __future__ import annotations

import ast
import codecs
import csv
import io
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from pixlex.data.addresses import Place
from pixlex.files import open_regular
from pixlex.messages import quoted

_CLEANED = str.maketrans({**dict.fromkeys(",.'!?\"()*#:;~", ""), "-": " ", "/": " "})

# Control characters but for those that are blanks themselves; NUL among them.
_CONTROLS = (code for code in (*range(0x20), *range(0x7F, 0xA0)) if not chr(code).isspace())
# Halves of characters, byte order marks, soft hyphens, and what has no width or only turns the direction of
# writing. The joiners U+200C and U+200D stay: Persian and emoji are spelled with them.
_INVISIBLE = (0xFEFF, 0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x206A))
_PLAIN = {
    **dict.fromkeys(_CONTROLS, " "),
    **dict.fromkeys(_INVISIBLE, ""),
    **dict.fromkeys(range(0xD800, 0xE000), ""),
}

# What csv lets a cell hold is 128 KiB unless told otherwise; a list of captions may be longer.
_MOST_LETTERS = (1 << 31) - 1

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
# Strings in brackets, as Python prints a list (with commas) and NumPy an array (without).
_STRINGS = re.compile(rf"\[\s*+(?:{_STRING}(?:\s*+,)?+\s*+)*+\]", re.DOTALL)
_WHOLE = re.compile(r"\s*(-?\d{1,18})(?:\.0*)?\s*")


def decode_text(data: bytes, where: object, offset: int = 0) -> str:
    """Return UTF-8 text without its byte order mark.

    Args:
        data: the bytes of a file or a line.
        where: the file, for the error.
        offset: how many bytes of the file come before them.

    Raises:
        ValueError: naming the first byte that is no UTF-8.
    """
    try:
        return data.decode("utf-8" if offset else "utf-8-sig")
    except UnicodeDecodeError as fault:
        raise ValueError(f"{where}: {_not_utf8(data, fault.start, offset)}") from fault


def json_value(
    text: str | bytes, where: object, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """Return what a JSON text holds.

    Args:
        text: it, or the bytes of its file.
        where: the file, for the error.
        object_hook: called with each object, returns what is kept of it.

    Raises:
        ValueError: it is no UTF-8, no JSON, or nested too deeply.
    """
    if isinstance(text, bytes):
        text = decode_text(text, where)
    try:
        return json.loads(text, object_hook=object_hook)
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"{where}: not JSON: {fault}") from fault


def first_fault(path: Place) -> str:
    """Say where a file is no UTF-8; nothing if it is."""
    offset = 0
    with open_regular(path) if isinstance(path, Path) else io.BytesIO(path.read_bytes()) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as fault:
                return f"line {number}: {_not_utf8(line, fault.start, offset)}"
            offset += len(line)
    return ""


def csv_rows(path: Place, **form: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a .csv file with a header line, each with the number of its line; cells have any length.

    Args:
        path: the file.
        form: what `csv.reader` takes, such as delimiter.

    Raises:
        ValueError: two columns share a name, a row has more cells than the header, or it is no UTF-8.
    """
    csv.field_size_limit(_MOST_LETTERS)
    opened = open_regular(path) if isinstance(path, Path) else io.BytesIO(path.read_bytes())
    with io.TextIOWrapper(opened, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True, **form)
        try:
            columns = [name.strip() for name in reader.fieldnames or ()]
            check_columns(columns, path)
            reader.fieldnames = columns
            for row in reader:
                if None in row:
                    raise ValueError(
                        f"{path} line {reader.line_num}: expected {len(columns)} columns, found more"
                    )
                yield reader.line_num, row
        except UnicodeDecodeError as fault:
            raise ValueError(f"{path} {first_fault(path)}") from fault
        except csv.Error as fault:
            raise ValueError(
                f"{path} after line {reader.line_num}: not a readable {path.suffix[1:]} file: {fault}"
            ) from fault


def check_columns(columns: Sequence[str], path: object) -> None:
    """Raise `ValueError` if two columns of a table share a name."""
    twice = [name for name, count in Counter(columns).items() if count > 1 and name]
    if twice:
        raise ValueError(
            f"{path}: expected columns with names of their own, got {quoted(twice[0])} twice or more"
        )


def _not_utf8(data: bytes, place: int, offset: int = 0) -> str:
    expected = "expected UTF-8 text"
    if offset == 0 and data.startswith(_UTF_16):
        return f"{expected}, got the byte order mark of UTF-16 at byte 0; save it as UTF-8"
    found = f"got 0x{data[place]:02x} at byte {offset + place}"
    return f"{expected}, {found} (of Latin-1, perhaps); save it as UTF-8"


def plain_text(text: str) -> str:
    """Return a text without what no tokenizer reads; empty where nothing of it can be seen.

    Control characters become blanks (line breaks and tabs stay); halves of characters, byte order marks, soft
    hyphens and characters without width are dropped. What is left is empty if it holds blanks, marks that stand on
    other characters, private and unassigned characters alone: BERT's tokenizer drops them.
    """
    if text.isascii() and text.isprintable():
        return text
    text = text.translate(_PLAIN)
    return text if text.isascii() or any(map(_visible, text)) else ""


def _visible(mark: str) -> bool:
    kind = unicodedata.category(mark)
    return kind[0] not in "CZ" and kind != "Mn" and mark != "\ufffd"


def texts_in(value: object, where: str) -> tuple[str, ...]:
    """Return the captions in a cell: a text, a list of texts (also written as a text), or nothing (None, "", NaN).

    Args:
        value: what the cell holds.
        where: the row, for the error.

    Raises:
        ValueError: if it is something else.
    """
    if value is None or value != value:
        return ()
    texts = [value] if isinstance(value, str) else value
    if isinstance(value, str):
        several = list_in(value)
        if several is not None and all(one is None or isinstance(one, str) for one in several):
            texts = several
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts if text is not None):
        raise ValueError(f"{where}: expected a caption or a list of captions, got {quoted(value)}")
    return tuple(plain for text in texts if text and (plain := plain_text(text).strip()))


def list_in(text: str) -> list[Any] | None:
    """Return the list that a text writes as JSON, Python or NumPy do ('["a", "b"]', "['a', 'b']"); else None."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list):
        return found
    try:
        if _STRINGS.fullmatch(text):  # one by one: Python would join what only a blank parts
            return [ast.literal_eval(one) for one in re.findall(_STRING, text, re.DOTALL)]
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return found if isinstance(found, list) else None


def whole_number(value: object) -> int | None:
    """Return a whole number, also if written as 1.0, "1" or "1.0", as pandas does beside gaps; else None."""
    if isinstance(value, str):
        match = _WHOLE.fullmatch(value)
        return int(match[1]) if match else None
    if type(value) is int:
        return value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    if not isinstance(value, float | np.floating | Decimal):
        return None
    return int(value) if math.isfinite(value) and value == int(value) else None


def id_text(value: object) -> str:
    """Return an id as a text: 1, 1.0, "1" and "1.0" are one id, "01" another."""
    if isinstance(value, str):
        match = _WHOLE.fullmatch(value)
        return match[1] if match else value.strip()
    number = whole_number(value)
    return str(value) if number is None else str(number)


def clean_caption(text: str, max_words: int = 30) -> str:
    """Return a caption in lower case, without punctuation, cut to some words.

    The marks ,.'!?"()*#:;~ are dropped, - and / become blanks, <person> (as Conceptual Captions hides names)
    becomes person, and blanks are collapsed (Li et al. 2021, ALBEF); the rest as `plain_text`. May be empty.

    Args:
        text: a caption.
        max_words: most words kept, 1 or more.

    Raises:
        ValueError: if max_words is below 1.
    """
    return _first_words(text.lower().translate(_CLEANED).replace("<person>", "person"), max_words)


def clean_question(text: str, max_words: int = 30) -> str:
    """Return a question in lower case, without punctuation, cut to some words.

    As `clean_caption`, but <person> stays as it is.

    Args:
        text: a question.
        max_words: most words kept, 1 or more; ALBEF keeps 30 in training, 50 in testing.

    Raises:
        ValueError: if max_words is below 1.
    """
    return _first_words(text.lower().translate(_CLEANED), max_words)


def _first_words(text: str, max_words: int) -> str:
    if max_words < 1:
        raise ValueError(f"max_words must be 1 or more, got {max_words}")
    return " ".join(plain_text(text).split()[:max_words])
