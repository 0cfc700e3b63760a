"""Cleaning of texts, and what a cell may hold."""

from __future__ import annotations

import re
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixlex.data.text import (
    agreement,
    agreement_targets,
    clean_caption,
    clean_question,
    id_text,
    list_in,
    normalize_answer,
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


CELLS = [
    (" a ", ("a",)), (["a", None, "", " b"], ("a", "b")), (None, ()), (" ", ()), (float("nan"), ()), ([None], ()),
    ("['a', '\u200b', 'b ']", ("a", "b")), ('["a", null]', ("a",)), ("[1, 2]", ("[1, 2]",)),
    ("[stop] sign", ("[stop] sign",)), ("['a', 3]", ("['a', 3]",)),
]  # fmt: skip


def test_what_a_cell_may_hold() -> None:
    assert [texts_in(cell, "row 1") for cell, _ in CELLS] == [texts for _, texts in CELLS]
    for wrong in (3, [3], {"raw": "a"}, b"a"):
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


NUMBERS = [
    (3, 3, "3"), (3.0, 3, "3"), (" 3.0 ", 3, "3"), (np.float32(3), 3, "3"), (np.int8(3), 3, "3"),
    (Decimal("3.00"), 3, "3"), (-1.0, -1, "-1"), ("007", 7, "007"), (2.5, None, "2.5"),
    (float("inf"), None, "inf"), (True, None, "True"), ("1e3", None, "1e3"), ("9" * 5000, None, "9" * 5000),
]  # fmt: skip


def test_whole_numbers_and_ids() -> None:
    assert [(whole_number(value), id_text(value)) for value, _, _ in NUMBERS] == [one[1:] for one in NUMBERS]


# Worked out by hand: a mark between letters is a blank, one beside a blank is dropped, the same mark
# elsewhere decides; a comma between digits drops every mark; periods stay before a digit.
NORMALIZED = {
    "Yes": "yes", " yes\n": "yes", "left\tside": "left side", "yes/no": "yes no", "t-shirt": "t shirt",
    "yes / no": "yes no", "red, blue": "red blue", "red ,blue": "red blue", "red,blue": "red blue",
    "(left)": "left", "what?!": "what", "a;b[c]d{e}f": "b c d e f",
    'x"y=z+w\\v_u>t<s@r`q': 'x y z w v u t s r q', "t-shirt - red": "tshirt red", "1,000": "1000",
    "1,000-2,000": "10002000", "1,000 t-shirts": "1000 tshirts", "1, 2": "1 2", "3.5": "3.5", "3.": "3",
    ".5": ".5", "u.s.a.": "usa", "st. john": "st john", "no. 5": "no 5", "10:30": "10:30", "dog's": "dog's",
    "5%": "5%", "#1": "#1", "None": "0", "zero": "0", "Two dogs": "2 dogs", "ten": "10", "eleven": "eleven",
    "someone": "someone", "The cat on a mat": "cat on mat", "an apple": "apple", "a": "", "the": "", "": "",
    "theory": "theory", "dont": "don't", "DONT know": "don't know", "cant": "can't", "wont": "won't",
    "shant": "shan't", "its": "its", "shes": "shes", "hes here": "he's here", "couldnt've": "couldn't've",
    "couldn'tve": "couldn't've", "wed": "wed", "wed've": "we'd've", "oclock": "o'clock", "twas": "'twas",
    "'ows'at": "'ow's'at", "yall'll": "y'all'll", "somebody'd": "somebodyd", "somebodyd": "somebodyd",
}  # fmt: skip


def test_answers_are_written_as_the_official_script_does() -> None:
    assert {text: normalize_answer(text) for text in NORMALIZED} == NORMALIZED


def test_agreement_of_ten_and_of_fewer() -> None:
    """Against the mean written out: each one left out, the others asked."""
    assert [agreement(count, 10) for count in range(6)] == pytest.approx([0, 0.3, 0.6, 0.9, 1, 1])
    for number in range(2, 12):
        for count in range(number + 1):
            agrees = [1] * count + [0] * (number - count)
            left_out = [agrees[:one] + agrees[one + 1 :] for one in range(number)]
            mean = sum(min(1, sum(others) / 3) for others in left_out) / number
            assert agreement(count, number) == pytest.approx(mean)
    assert [agreement(count, 1) for count in (0, 1)] == [0, 1]


def test_targets_by_agreement() -> None:
    """One, two, three, and four of ten; those that say nothing have answered."""
    answers = ["Cat"] * 3 + ["cat."] + ["dog"] * 3 + ["the"] + ["two", "2"]
    assert agreement_targets(answers) == pytest.approx({"cat": 1, "dog": 0.9, "2": 0.6})
    assert agreement_targets(["Yes."]) == {"yes": 1}
    assert agreement_targets([]) == {}
