"""Cleaning of texts, and what a cell may hold."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixlex.data.text import clean_caption, clean_question, texts_in


@pytest.mark.parametrize(
    ("text", "caption", "question"),
    [
        ("A man's dog, black-and-white!", "a mans dog black and white", None),
        ("<PERSON> at 1/2 past;  \t\n noon", "person at 1 2 past noon", "<person> at 1 2 past noon"),
        ('What\'s (this)? "x" * # : ~ .', "whats this x", None),
        ("...", "", None),
        ("left -- right", "left right", None),
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


@given(st.text())
def test_as_regular_expressions_would(text: str) -> None:
    """A second way, rule by rule; cleaning twice changes nothing."""
    kept = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower())
    kept = re.sub("[-/]", " ", kept).replace("<person>", "person")
    assert clean_caption(text) == " ".join(kept.split()[:30])
    assert clean_caption(clean_caption(text)) == clean_caption(text).replace("<person>", "person")


def test_what_a_cell_may_hold() -> None:
    assert texts_in(" a ", "row 1") == ("a",)
    assert texts_in(["a", None, "", " b"], "row 1") == ("a", "b")
    for nothing in (None, "", " ", float("nan"), [], [None]):
        assert texts_in(nothing, "row 1") == ()
    for wrong in (3, [3], {"raw": "a"}, b"a"):
        with pytest.raises(ValueError, match="row 1: expected a caption or a list of captions, got"):
            texts_in(wrong, "row 1")
