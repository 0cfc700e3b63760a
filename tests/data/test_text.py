"""Cleaning of texts, and what a cell may hold."""

from __future__ import annotations

import re
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixlex.data.text import (
    clean_caption,
    clean_question,
    decode_text,
    id_text,
    list_in,
    plain_text,
    texts_in,
    whole_number,
)


@pytest.mark.parametrize(
    ("text", "caption", "question"),
    [
        ("A man's dog, black-and-white!", "a mans dog black and white", None),
        ("<PERSON> at 1/2 past;  \t\n noon", "person at 1 2 past noon", "<person> at 1 2 past noon"),
        ('What\'s (this)? "x" * # : ~ .', "whats this x", None),
        ("\udce9A\0b\u200b!", "a b", None),
        ("\u200b.", "", None),
    ],
)
def test_the_rules(text: str, caption: str, question: str | None) -> None:
    assert clean_caption(text) == caption
    assert clean_question(text) == (caption if question is None else question)


def test_texts_are_cut_to_some_words() -> None:
    words = [f"w{number}" for number in range(40)]
    assert clean_caption(" ".join(words)) == " ".join(words[:30])
    assert clean_question(" ".join(words), 35) == " ".join(words[:35])
    assert clean_caption("one - two three", 2) == "one two"
    for clean in (clean_caption, clean_question):
        with pytest.raises(ValueError, match="max_words must be 1 or more, got 0"):
            clean("a", 0)


@given(st.text(st.characters(exclude_categories=())))
def test_as_regular_expressions_would(text: str) -> None:
    """A second way, rule by rule; cleaning twice changes nothing; plain texts are UTF-8 and stay."""
    kept = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower())
    kept = re.sub("[-/]", " ", kept).replace("<person>", "person")
    assert clean_caption(text) == " ".join(plain_text(kept).split()[:30])
    assert clean_caption(clean_caption(text)) == clean_caption(text).replace("<person>", "person")
    plain = plain_text(text)
    plain.encode()
    assert plain_text(plain) == plain
    assert "\0" not in plain


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        (" a ", ("a",)),
        (["a", None, "", " b"], ("a", "b")),
        (None, ()),
        (" ", ()),
        (float("nan"), ()),
        ([None], ()),
        ("['a', '\u200b', 'b ']", ("a", "b")),
        ('["a", null]', ("a",)),
        ("[1, 2]", ("[1, 2]",)),
        ("[stop] sign", ("[stop] sign",)),
        ("['a', 3]", ("['a', 3]",)),
    ],
)
def test_what_a_cell_may_hold(cell: object, texts: tuple[str, ...]) -> None:
    assert texts_in(cell, "row 1") == texts


@pytest.mark.parametrize("wrong", [3, [3], {"raw": "a"}, b"a"])
def test_what_a_cell_may_not_hold(wrong: object) -> None:
    with pytest.raises(ValueError, match="row 1: expected a caption or a list of captions, got"):
        texts_in(wrong, "row 1")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a\x00b\x7fc\x85d", "a b c\x85d"),  # NUL, delete; a next line is a blank already
        ("\ufeffone \ud83dtwo\udc80", "one two"),  # a byte order mark, halves of characters
        ("so\u00adft\u200b \u202eturned\u2069", "soft turned"),
        ("\u06cc\u200c\u06cc \U0001f469\u200d\U0001f680",) * 2,  # spelling
        ("\u200b\u200d\u2060", ""),
        ("\u200d \ufe0f\u0301\ue000\ufffd\u0378", ""),  # what BERT's tokenizer drops
        ("a\tb\nc", "a\tb\nc"),
    ],
)
def test_what_no_tokenizer_reads(text: str, plain: str) -> None:
    assert plain_text(text) == plain
    assert texts_in(text, "row 1") == ((plain,) if plain else ())


@pytest.mark.parametrize(
    ("encoding", "sentence"),
    [
        ("latin-1", r"got 0xe9 at byte 5 \(of Latin-1, perhaps\)"),
        ("utf-16", r"got the byte order mark of UTF-16 at byte 0"),
    ],
)
def test_other_encodings_are_named(encoding: str, sentence: str) -> None:
    assert decode_text(b"\xef\xbb\xbfcaf\xc3\xa9", "x.txt") == "café"
    with pytest.raises(ValueError, match=rf"x\.txt: expected UTF-8 text, {sentence}; save it as UTF-8"):
        decode_text("a café".encode(encoding), "x.txt")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("['a', \"b's\"]", ["a", "b's"]),
        ("['a' 'b'\n 'c, d']", ["a", "b", "c, d"]),  # NumPy's, which Python would join
        (r"['a\'b', 'c']", ["a'b", "c"]),
        ("[{'answer': 'x'}, None]", [{"answer": "x"}, None]),
        ("[]", []),
        ("a [b]", None),
        ("[a man]", None),
        ("[" * 10_000 + "]" * 10_000, None),
        ("['a" + " " * 10_000 + "]", None),
        ("[" + "'a' " * 2_000 + "x]", None),
    ],
)
def test_lists_inside_a_text(text: str, found: list[object] | None) -> None:
    assert list_in(text) == found


@pytest.mark.parametrize(
    ("value", "number", "name"),
    [
        (3, 3, "3"),
        (3.0, 3, "3"),
        (" 3.0 ", 3, "3"),
        (np.float32(3), 3, "3"),
        (np.int8(3), 3, "3"),
        (Decimal("3.00"), 3, "3"),
        (-1.0, -1, "-1"),
        ("007", 7, "007"),
        (2.5, None, "2.5"),
        (float("inf"), None, "inf"),
        (True, None, "True"),
        ("1e3", None, "1e3"),
        ("9" * 5000, None, "9" * 5000),
    ],
)
def test_whole_numbers_and_ids(value: object, number: int | None, name: str) -> None:
    assert (whole_number(value), id_text(value)) == (number, name)
