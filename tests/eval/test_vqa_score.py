"""The soft accuracy of VQA v2, by hand, and the file to hand in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pixlex.eval.intervals import wilson_interval
from pixlex.eval.vqa_score import score_answers, soft_accuracy, vqa_submission, write_vqa_submission

TEN = ("cat", "cat", "Cat.", "dog", "dog", "the dog", "a dog", "bird", "none", "two")


@pytest.mark.parametrize(
    ("prediction", "accuracy"),
    [
        ("cat", 0.9),
        ("The CAT!", 0.9),
        ("dog", 1.0),
        ("bird", 0.3),
        ("none", 0.3),
        ("0", 0.3),
        ("zero", 0.3),
        ("2", 0.3),
        ("fish", 0.0),
        ("", 0.0),
    ],
)
def test_ten_that_differ_are_normalized(prediction: str, accuracy: float) -> None:
    """Three say cat, four dog, one each bird, 0 and 2; predictions and answers are written alike."""
    assert soft_accuracy(prediction, TEN) == pytest.approx(accuracy)


def test_ten_that_are_the_same_are_not_normalized() -> None:
    """What they wrote to the letter, up to blanks around it: they may have read it from the picture."""
    assert soft_accuracy("yes", ["yes"] * 10) == 1
    assert soft_accuracy(" yes\n", ["yes", "yes "] * 5) == 1
    assert soft_accuracy("Yes", ["yes"] * 10) == 0
    assert soft_accuracy("yes.", ["yes"] * 10) == 0
    assert soft_accuracy("none", ["none"] * 10) == 1
    assert soft_accuracy("0", ["none"] * 10) == 0
    assert soft_accuracy("The End", ["The End"] * 10) == 1
    assert soft_accuracy("Yes", ["yes"] * 9 + ["Yes"]) == 1


def test_answers_that_are_the_same_once_normalized_are_normalized() -> None:
    """Whether they are the same is asked before."""
    assert soft_accuracy("YES", ["yes"] * 9 + ["Yes"]) == 1
    assert soft_accuracy("0", ["none"] * 9 + ["None"]) == 1


def test_fewer_than_ten() -> None:
    """The same mean over as many sets as there are answers; a single one is right or wrong."""
    assert soft_accuracy("a cat", ["Cat"]) == 1
    assert soft_accuracy("dog", ["Cat"]) == 0
    assert soft_accuracy("cat", ["cat", "dog"]) == pytest.approx(1 / 6)
    assert soft_accuracy("cat", ["cat", "cat"]) == pytest.approx(1 / 3)
    assert soft_accuracy("cat", ["cat"] * 3) == pytest.approx(2 / 3)
    assert soft_accuracy("cat", ["cat"] * 4) == 1
    # Left out: one of three cats (2/3), or the dog (1).
    assert soft_accuracy("cat", ["cat"] * 3 + ["dog"]) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="expected an answer or more to judge by, got none"):
        soft_accuracy("cat", [])


def test_a_set_of_questions() -> None:
    """Questions without answers are counted, not scored; kinds have scores of their own."""
    score = score_answers(
        ["yes", "2", "dog", "cat"],
        [["yes"] * 10, ["3"] * 10, [], list(TEN)],
        ["yes/no", "number", "other", "yes/no"],
    )
    assert score.overall.accuracy == pytest.approx((1 + 0 + 0.9) / 3)
    assert score.overall.interval == wilson_interval(score.overall.accuracy, 3)
    assert (score.overall.num_questions, score.num_unknown) == (3, 1)
    assert {kind: one.accuracy for kind, one in score.by_kind.items()} == pytest.approx(
        {"yes/no": 0.95, "number": 0}
    )
    assert list(score.by_kind) == ["yes/no", "number"]
    assert score_answers(["x"], [["x"]]).by_kind == {}


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="expected answers for each of 2 predictions, got 1"):
        score_answers(["x", "y"], [["x"]])
    with pytest.raises(ValueError, match="expected kinds for each of 1 predictions, got 2"):
        score_answers(["x"], [["x"]], ["a", "b"])
    with pytest.raises(ValueError, match="none of 2 questions has an answer to judge by"):
        score_answers(["x", "y"], [[], []])
    with pytest.raises(ValueError, match="none of 0 questions"):
        score_answers([], [])


def test_submission(tmp_path: Path) -> None:
    """Ids that are whole numbers become integers, others stay; the file holds the same."""
    results = [("262148000", "yes"), ("image5_2", "ä"), ("007", "2"), ("0", "")]
    rows = vqa_submission(results)
    assert rows == [
        {"question_id": 262148000, "answer": "yes"},
        {"question_id": "image5_2", "answer": "ä"},
        {"question_id": "007", "answer": "2"},
        {"question_id": 0, "answer": ""},
    ]
    write_vqa_submission(tmp_path / "answers.json", iter(results))
    assert json.loads((tmp_path / "answers.json").read_text()) == rows
    assert [path.name for path in tmp_path.iterdir()] == ["answers.json"]
    with pytest.raises(ValueError, match="expected questions that occur once, got 1 again"):
        vqa_submission([("1", "a"), ("1", "b")])
