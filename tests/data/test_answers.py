"""Answers are written as the official script of VQA v2 writes them; lists of answers to learn."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixlex.data.answers import (
    CONTRACTIONS,
    agreement,
    agreement_targets,
    build_answers,
    normalize_answer,
)
from pixlex.data.questions import open_items
from pixlex.data.records import ReasoningSource

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


def test_rules() -> None:
    assert {text: normalize_answer(text) for text in NORMALIZED} == NORMALIZED


def test_contractions_only_gain_an_apostrophe() -> None:
    """All but the one that the official table has the wrong way round."""
    for bare, whole in CONTRACTIONS.items():
        if bare != "somebody'd":
            assert bare.replace("'", "") == whole.replace("'", "")
            assert whole.count("'") >= bare.count("'")
    assert len(CONTRACTIONS) > 100


@given(st.text(st.sampled_from("aAnN tTheE012.,'-/?!\n"), max_size=20))
def test_no_mark_no_capital_no_article_is_left(text: str) -> None:
    left = normalize_answer(text)
    assert not set(left) & set('ANTE;/[]"{}()=+\\_-><@`,?!\n')
    assert not {"a", "an", "the"} & set(left.split())
    assert left == " ".join(left.split())
    assert not left.endswith(".")


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
    assert agreement_targets(answers, 0.5) == pytest.approx({"cat": 0.5, "dog": 0.45, "2": 0.3})
    assert agreement_targets(["Yes."]) == {"yes": 1}
    assert agreement_targets([]) == {}


@pytest.fixture
def source() -> ReasoningSource:
    """Items whose most frequent answers are red three times, blue and 2 two times, green once, nothing once."""
    answers = (
        ("blue", "Blue.", "red"),
        ("the red", "green", "red"),
        ("two",),
        ("red", "green"),
        ("green", "red", "green"),
        (),
        ("Red",),
        ("2",),
        ("a", "the", "blue"),
        ("a",),
    )
    scenes = open_items(f"embedded:scenes:train:{len(answers)}", "vqa")
    return replace(scenes, answers=answers)


def test_answers_to_choose_from(source: ReasoningSource) -> None:
    """The most frequent first, equally frequent ones as they occur; an item counts once."""
    assert build_answers(source, 1) == ("red", "blue", "2", "green")
    assert build_answers(source, 2) == ("red", "blue", "2")
    assert build_answers(source, 3) == ("red",)
    with pytest.raises(
        ValueError, match="expected an answer of 4 items or more, the most frequent one has 3"
    ):
        build_answers(source, 4)
    with pytest.raises(ValueError, match="min_count must be 1 or more, got 0"):
        build_answers(source, 0)


def test_answers_of_daquar(shared_data: Path) -> None:
    """Every answer of the training items, once each, by decreasing frequency."""
    path = shared_data / "vqa" / "train.parquet"
    if not path.is_file():
        pytest.skip("no vqa among the shared data")
    chosen = build_answers(open_items(str(path), "vqa"), 1)
    normalized = [normalize_answer(answer) for answer in pq.read_table(path)["answer"].to_pylist()]
    assert set(chosen) == set(normalized)
    assert len(set(chosen)) == len(chosen)
    assert all(normalized.count(one) >= normalized.count(other) for one, other in pairwise(chosen[:50]))
