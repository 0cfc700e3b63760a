"""Texts of users: decoded, freed of what no tokenizer reads, taken from cells; captions and answers cleaned."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pixlex.files import open_regular
from pixlex.messages import quoted

if TYPE_CHECKING:
    from pixlex.data.records import Records
    from pixlex.data.remote import AnyPath

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

# Columns and fields of captions, the first that is there.
CAPTION_COLUMNS = ("captions", "caption", "title", "text")

# csv lets a cell hold 128 KiB unless told otherwise; a list of captions may be longer.
_MOST_LETTERS = (1 << 31) - 1

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
# Strings in brackets, as Python prints a list (with commas) and NumPy an array (without).
_STRINGS = re.compile(rf"\[\s*+(?:{_STRING}(?:\s*+,)?+\s*+)*+\]", re.DOTALL)
_WHOLE = re.compile(r"\s*(-?\d{1,18})(?:\.0*)?\s*")


def decode_text(data: bytes, where: object, offset: int = 0) -> str:
    """Return UTF-8 text without its byte order mark; `ValueError` names the first byte that is none.

    `where` is the file, for the error, of which so many bytes (`offset`) come before these.
    """
    try:
        return data.decode("utf-8" if offset else "utf-8-sig")
    except UnicodeDecodeError as fault:
        found = f"got 0x{data[fault.start]:02x} at byte {offset + fault.start} (of Latin-1, perhaps)"
        if offset == 0 and data.startswith(_UTF_16):
            found = "got the byte order mark of UTF-16 at byte 0"
        raise ValueError(f"{where}: expected UTF-8 text, {found}; save it as UTF-8") from fault


def json_value(
    text: str | bytes, where: object, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """Return what a JSON text holds; `ValueError` if it is no UTF-8, no JSON, or nested too deeply."""
    if isinstance(text, bytes):
        text = decode_text(text, where)
    try:
        return json.loads(text, object_hook=object_hook)
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"{where}: not JSON: {fault}") from fault


def _lines(path: AnyPath) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line; raises `ValueError` naming the line that is no UTF-8."""
    offset = 0
    with open_regular(path) if isinstance(path, Path) else io.BytesIO(path.read_bytes()) as file:
        for number, line in enumerate(file, start=1):
            yield number, decode_text(line, f"{path} line {number}", offset)
            offset += len(line)


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file that has one a line, each with its line; raises `ValueError` for others."""
    for number, text in _lines(path):
        if text.strip():
            row = json_value(text, f"{path} line {number}")
            if not isinstance(row, dict):
                raise ValueError(f"{path} line {number}: expected an object, got {quoted(row)}")
            yield number, row


def csv_rows(path: AnyPath, **form: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a .csv file with a header line, each with the number of its line; cells have any length.

    Raises `ValueError` if two columns share a name, a row has more cells than the header, or it is no UTF-8.
    """
    csv.field_size_limit(_MOST_LETTERS)
    lines = (part for _, line in _lines(path) for part in io.StringIO(line, newline=""))
    reader = csv.DictReader(lines, strict=True, **form)
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
    except csv.Error as fault:
        raise ValueError(
            f"{path} after line {reader.line_num}: not a readable {path.suffix[1:]} file: {fault}"
        ) from fault


def list_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the rows of a .csv, .tsv or .jsonl list, each with the number of its line; `ValueError` for none."""
    suffix = path.suffix.lower()
    if suffix == ".tsv":
        try:  # quotes as spreadsheets and pandas write them, else as plain letters
            rows = list(csv_rows(path, delimiter="\t"))
        except ValueError:
            rows = list(csv_rows(path, delimiter="\t", quoting=csv.QUOTE_NONE))
    else:
        rows = list(csv_rows(path) if suffix == ".csv" else json_lines(path))
    if not rows:
        raise ValueError(f"{path} lists no image")
    return rows


def check_columns(columns: Sequence[str], path: object) -> None:
    """Raise `ValueError` if two columns of a table share a name."""
    twice = [name for name, count in Counter(columns).items() if count > 1 and name]
    if twice:
        raise ValueError(
            f"{path}: expected columns with names of their own, got {quoted(twice[0])} twice or more"
        )


def plain_text(text: str) -> str:
    """Return a text without what no tokenizer reads; empty where nothing of it can be seen.

    Control characters become blanks (line breaks and tabs stay); halves of characters, byte order marks, soft
    hyphens and characters without width are dropped. What is left is empty if it holds blanks, marks that stand on
    other characters, private and unassigned characters alone: BERT's tokenizer drops them.
    """
    if text.isascii() and text.isprintable():
        return text
    text = text.translate(_PLAIN)
    kinds = ("C" if mark == "\ufffd" else unicodedata.category(mark) for mark in text)
    return text if text.isascii() or any(kind[0] not in "CZ" and kind != "Mn" for kind in kinds) else ""


def texts_in(value: object, where: str) -> tuple[str, ...]:
    """Return the captions in a cell: a text, a list of texts (also written as a text), or nothing (None, "", NaN).

    Raises `ValueError` for something else; `where` names the row.
    """
    if is_nothing(value):
        return ()
    texts = [value] if isinstance(value, str) else value
    if isinstance(value, str):
        several = list_in(value)
        if several is not None and all(one is None or isinstance(one, str) for one in several):
            texts = several
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts if text is not None):
        raise ValueError(f"{where}: expected a caption or a list of captions, got {quoted(value)}")
    return tuple(plain for text in texts if text and (plain := plain_text(text).strip()))


def captions_in(fields: Any, text: str, where: str) -> tuple[str, ...]:
    """Return an image's captions: `captions`, `caption` or `text` of its .json file, else its .txt file."""
    found = fields if isinstance(fields, dict) else {}
    named = (texts_in(found.get(name), where) for name in ("captions", "caption", "text"))
    return next(filter(None, named), ()) or texts_in(text, where)


def is_nothing(value: object) -> bool:
    """Whether a cell says nothing: None, NaN or a blank text."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


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
    """Return a caption in lower case, without punctuation, cut to some words; may be empty.

    The marks ,.'!?"()*#:;~ are dropped, - and / become blanks, <person> (as Conceptual Captions hides names)
    becomes person, and blanks are collapsed (Li et al. 2021, ALBEF); the rest as `plain_text`. Raises `ValueError`
    for max_words below 1.
    """
    return _first_words(text.lower().translate(_CLEANED).replace("<person>", "person"), max_words)


def clean_question(text: str, max_words: int = 30) -> str:
    """Return a question as `clean_caption` would, but for <person>, which stays.

    ALBEF keeps 30 words in training and 50 in testing.
    """
    return _first_words(text.lower().translate(_CLEANED), max_words)


def _first_words(text: str, max_words: int) -> str:
    if max_words < 1:
        raise ValueError(f"max_words must be 1 or more, got {max_words}")
    return " ".join(plain_text(text).split()[:max_words])


# The classes of the tasks that have some.
CLASSES: Mapping[str, tuple[str, ...]] = {
    "nlvr2": ("false", "true"),
    "entailment": ("entailment", "neutral", "contradiction"),
    "assignment": ("first", "second", "neither"),
}
# Agreement of so many others makes an answer wholly right.
_ENOUGH = 3
# In this order: each mark is looked for in the answer as it was, and taken from what is left of it.
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))

# What stands before an ending that lost its apostrophe.
_ENDINGS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "'ve": "could might must not should they we what where who would you",
    "'d": "he how it someone something there they where who you",
    "'ll": "how it somebody someone something they what who why you",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
}
# What stands before two endings, one of which lost its apostrophe.
_TWO_ENDINGS = {
    "n't've": "could had might should would",
    "'d've": "he it she somebody someone something there they we who you",
}
_SINGLE = {
    "maam": "ma'am",
    "oclock": "o'clock",
    "twas": "'twas",
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "yall": "y'all",
    "yall'll": "y'all'll",
    "y'allll": "y'all'll",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
    "somebody'd": "somebodyd",  # the official table has these two the wrong way round
}


def _contractions() -> Iterator[tuple[str, str]]:
    """Yield words that lost an apostrophe, with it put back."""
    yield from _SINGLE.items()
    for ending, stems in (_ENDINGS | _TWO_ENDINGS).items():
        for stem in stems.split():
            whole = stem + ending
            first, second = whole.find("'"), whole.rfind("'")
            yield whole[:first] + whole[first + 1 :], whole
            yield whole[:second] + whole[second + 1 :], whole


CONTRACTIONS: Mapping[str, str] = dict(_contractions())


@lru_cache(maxsize=1 << 18)
def normalize_answer(text: str) -> str:
    r"""Return an answer as the official script of VQA v2 writes it before it compares.

    1. Line breaks and tabs become blanks; blanks around the whole are dropped.
    2. Marks `; / [ ] " { } ( ) = + \ _ - > < @ backtick , ? !` become blanks, so "yes/no" is "yes no". A mark
       that stands beside a blank anywhere in the answer is dropped instead, wherever it stands; all marks are,
       if there is a comma between digits: "1,000" is "1000", and "1,000-2,000" is "10002000".
    3. Periods that no digit follows are dropped: "3." is "3", "3.5" stays. Apostrophes and colons stay.
    4. Lower case; "zero" to "ten" become digits, and "none" 0; "a", "an" and "the" are dropped; contractions get
       their apostrophe: "dont" is "don't".

    Source: the script of Agrawal et al. 2015 for VQA v2 (GT-Vision-Lab/VQA). We differ where an answer has more
    than 32 periods, of which it drops the first 32. An answer may become empty ("the").
    """
    given = text.replace("\n", " ").replace("\t", " ").strip()
    all_dropped = _COMMA_IN_NUMBER.search(given) is not None
    left = given
    for mark in _MARKS:
        dropped = all_dropped or f"{mark} " in given or f" {mark}" in given
        left = left.replace(mark, "" if dropped else " ")
    words = (_DIGITS.get(word, word) for word in _PERIOD.sub("", left).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def agreement(agreeing: int, given: int) -> float:
    """Return how right an answer is, in [0, 1], that `agreeing` of `given` people gave: each in turn is left out.

    The mean of min(1, a / 3) over the sets of all answers but one, of which a agree: with ten answers 0, 0.3, 0.6,
    0.9 and 1 for none, one, two, three, and four or more that agree (Agrawal et al. 2015). With fewer the same
    formula, so that two that agree are 1/3 right and three 2/3; a single answer is right or wrong.
    """
    assert 0 <= agreeing <= given, (agreeing, given)
    if given == 1:
        return float(agreeing)
    with_it = min(_ENOUGH, agreeing)
    without_it = min(_ENOUGH, agreeing - 1)
    return (agreeing * without_it + (given - agreeing) * with_it) / (_ENOUGH * given)


def agreement_targets(answers: Sequence[str]) -> dict[str, float]:
    """Return distinct answers, normalized, each with how right it is: weights for training.

    Those of ten people weigh 0.3, 0.6, 0.9 and 1 if one, two, three, or four or more gave them (Anderson et al.
    2018). `Records.targets` counts instead (ALBEF): its weights add up to its scale, these need not. Answers with
    nothing left after normalization are not learned, but their people have answered.
    """
    counts = Counter(map(normalize_answer, answers))
    return {answer: agreement(count, len(answers)) for answer, count in counts.items() if answer}


def build_answers(source: Records, min_count: int = 9) -> tuple[str, ...]:
    """Return the answers to choose from: those that are the most frequent answer of enough items (ViLT).

    Answers are normalized before they are counted; among an item's equally frequent ones the first given is its
    answer. On VQA v2's train and val this is the rule behind the 3,129 answers of ViLT, and the 3,128 of ALBEF's
    answer_list.json, which lack the empty one. Neither list can be made again exactly: which of equally frequent
    answers a question was counted for is not written down, nor is the normalization of ALBEF's list, whose
    files also leave out 7 questions (salesforce/ALBEF #40, #135).

    Args:
        min_count: fewest items of an answer, 1 or more; 9 for VQA v2, 1 for all answers of a small set.

    Returns:
        Normalized answers, the most frequent first, equally frequent ones in the order in which they occur.

    Raises:
        ValueError: no answer is frequent enough.
    """
    if min_count < 1:
        raise ValueError(f"min_count must be 1 or more, got {min_count}")
    counts: Counter[str] = Counter()
    for given in source.answers:
        normalized = Counter(answer for answer in map(normalize_answer, given) if answer)
        counts.update(answer for answer, _ in normalized.most_common(1))
    # most_common keeps the order of first occurrence among equals.
    chosen = tuple(answer for answer, count in counts.most_common() if count >= min_count)
    if not chosen:
        most = max(counts.values(), default=0)
        raise ValueError(
            f"{source.name}: expected an answer of {min_count} items or more, the most frequent one has {most}"
        )
    return chosen
