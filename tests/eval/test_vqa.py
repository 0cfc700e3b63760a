"""Accuracy of answers: credits, what needs no image, consistency, kinds; a model against what it says itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_reasoner
from torch import Tensor

from pixlex.data.loader import Loader, LoaderConfig
from pixlex.data.records import Questions, Records
from pixlex.data.sources import ImageSource, subset
from pixlex.data.synthetic import ScenesSource
from pixlex.eval.evaluate import Pass
from pixlex.eval.vqa import (
    ReasoningResult,
    evaluate_reasoning,
    soft_accuracy,
    text_alone,
    write_vqa_submission,
)
from pixlex.models.finetuned import Reasoner

TEXTS = ("about the class", "and any other", "also about", "the class", "any", "above and")


def _items(
    images: ImageSource, texts: Sequence[str], answers: Sequence[tuple[str, ...]], **more: Any
) -> Records:
    ids = tuple(map(str, range(len(texts))))
    return Records("items", images, tuple((text,) for text in texts), answers=tuple(answers), ids=ids, **more)


def _source(answers: Sequence[tuple[str, ...]], **settings: tuple[str, ...]) -> Records:
    return _items(ScenesSource("test", len(answers)), TEXTS[: len(answers)], answers, **settings)


def _evaluate(model: Reasoner, source: Records, **settings: object) -> ReasoningResult:
    batches = Loader(
        Questions(source, lambda texts: model.tokenize_texts(texts, 12)),
        LoaderConfig(image_size=model.config.image_size, batch_size=4),
    ).evaluation()
    return evaluate_reasoning(model, source, batches, Pass(progress=False), **settings)  # type: ignore[arg-type]


def test_answers_that_the_words_tell_need_no_image() -> None:
    """The answer is a word of the question: the classifier finds it, the most frequent one in half the cases."""
    kinds = ("red", "blue")
    texts = tuple(f"is it {kinds[number % 2]}" for number in range(40))
    answers = tuple((kinds[number % 2],) for number in range(40))
    training = _items(ScenesSource("train", 40), texts, answers)
    found = text_alone("vqa", training, training.take(range(10)))
    assert found == ({"majority_accuracy": 0.5, "text_alone_accuracy": 1.0}, "red")
    same = _items(ScenesSource("train", 40), ("is it so",) * 40, answers)
    assert text_alone("vqa", same, same)[0]["text_alone_accuracy"] == 0.5


def test_images_of_several_items_are_encoded_once(language: Path) -> None:
    """Same answers, same examples, and no image twice in a batch."""
    model = tiny_reasoner(language, "entailment")
    about = [2, 0, 2, 2, 1, 0]
    images = ScenesSource("test", 3)
    answers = (("entailment",),) * 6
    source = _items(subset(images, about), TEXTS, answers)
    seen: list[int] = []
    original = model.body.encode_image

    def encode_image(images: Tensor, visible: Tensor | None = None) -> Tensor:
        seen.append(len(images))
        return original(images, visible)

    model.body.encode_image = encode_image  # type: ignore[method-assign]
    result = _evaluate(model, source)
    assert seen == [2, 2]  # scenes 2 and 0 in the first four items, 1 and 0 in the others
    assert [one.item for one in result.answered] == list(range(6))
    for item, place in enumerate(about):
        alone = _items(subset(images, [place]), TEXTS[item : item + 1], answers[:1])
        (expected,) = _evaluate(model, alone).answered
        assert result.answered[item].answers == expected.answers
        assert result.answered[item].probabilities == pytest.approx(expected.probabilities, abs=1e-5)
        assert torch.equal(result.examples["images"][item], _evaluate(model, alone).examples["images"][0])


def test_accuracy_is_the_mean_credit_of_what_the_model_says(language: Path) -> None:
    """The truth is set to what the model says for some items, to something else for the others."""
    model = tiny_reasoner(language, "entailment")
    said = [one.answers[0] for one in _evaluate(model, _source([()] * 6)).answered]
    other = {"entailment": "neutral", "neutral": "contradiction", "contradiction": "entailment"}
    given = [(said[item],) if item < 4 else (other[said[item]],) for item in range(6)]
    source = _source(given, sentences=("a", "a", "b", "b", "b", "c"), kinds=("x", "x", "x", "y", "y", "y"))
    result = _evaluate(model, source)
    assert result.values["accuracy"] == pytest.approx(4 / 6)
    assert result.interval is not None
    assert result.interval[0] < 4 / 6 < result.interval[1]
    assert result.values["consistency"] == pytest.approx(
        1 / 3
    )  # of a, b and c, all items of a alone are right
    assert result.by_kind == {"x": 1.0, "y": pytest.approx(1 / 3)}
    assert [one.credit for one in result.answered] == [1, 1, 1, 1, 0, 0]
    assert result.examples["images"].shape[:2] == (6, 1)


def test_items_without_an_answer_are_answered_and_not_counted(language: Path) -> None:
    model = tiny_reasoner(language, "vqa", ("about", "also", "any"))
    result = _evaluate(model, _source([()] * 3))
    assert result.interval is None
    assert len(result.answered) == 3
    assert "accuracy" not in result.values
    mixed = _evaluate(model, _source([(), ("nothing like it",), ()]))
    assert mixed.values["accuracy"] == 0.0


def test_written_answers_are_scored_too(language: Path) -> None:
    model = tiny_reasoner(language, "vqa", ("about", "also", "any"))
    written = [one.answers[0] for one in _evaluate(model, _source([()] * 3), mode="generate").answered]
    source = _source([(written[0] or "x",) * 10, ("y",) * 10, (written[2] or "x",) * 10])
    result = _evaluate(model, source, mode="generate")
    expected = sum(bool(written[item]) for item in (0, 2)) / 3
    assert result.values["accuracy"] == pytest.approx(expected)
    assert "written freely" in result.protocol
    classes = tiny_reasoner(language, "nlvr2", num_images=1)
    with pytest.raises(ValueError, match="for the task vqa alone, this model's is nlvr2"):
        _evaluate(classes, _source([("true",)] * 2), mode="generate")


TEN = ("cat", "cat", "Cat.", "dog", "dog", "the dog", "a dog", "bird", "none", "two")


@pytest.mark.parametrize(
    ("predictions", "answers", "credit"),
    [
        # Three say cat, four dog, one each bird, 0 and 2; predictions and answers are written alike.
        (("cat", "The CAT!"), TEN, 0.9),
        (("dog",), TEN, 1.0),
        (("bird", "none", "0", "zero", "2"), TEN, 0.3),
        (("fish", ""), TEN, 0.0),
        # All the same: to the letter, up to blanks around it; they may have read it from the picture.
        (("yes", " yes\n"), ("yes", "yes ") * 5, 1),
        (("Yes", "yes."), ("yes",) * 10, 0),
        (("none",), ("none",) * 10, 1),
        (("0",), ("none",) * 10, 0),
        # Whether they are the same is asked before normalizing.
        (("Yes", "YES"), ("yes",) * 9 + ("Yes",), 1),
        (("0",), ("none",) * 9 + ("None",), 1),
        # Fewer than ten: the same mean over as many sets; a single one is right or wrong.
        (("a cat",), ("Cat",), 1),
        (("dog",), ("Cat",), 0),
        (("cat",), ("cat", "dog"), 1 / 6),
        (("cat",), ("cat",) * 2, 1 / 3),
        (("cat",), ("cat",) * 3, 2 / 3),
        (("cat",), ("cat",) * 4, 1),
        (("cat",), ("cat", "cat", "cat", "dog"), 0.75),  # left out: a cat (2/3), or the dog (1)
    ],
)
def test_soft_accuracy(predictions: tuple[str, ...], answers: tuple[str, ...], credit: float) -> None:
    for prediction in predictions:
        assert soft_accuracy(prediction, answers) == pytest.approx(credit)


def test_submission(tmp_path: Path) -> None:
    """Ids that are whole numbers become integers, others stay."""
    results = [("262148000", "yes"), ("image5_2", "ä"), ("007", "2"), ("0", "")]
    write_vqa_submission(tmp_path / "answers.json", iter(results))
    assert json.loads((tmp_path / "answers.json").read_text()) == [
        {"question_id": 262148000, "answer": "yes"}, {"question_id": "image5_2", "answer": "ä"},
        {"question_id": "007", "answer": "2"}, {"question_id": 0, "answer": ""},
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["answers.json"]
    with pytest.raises(ValueError, match="expected questions that occur once, got 1 again"):
        write_vqa_submission(tmp_path / "answers.json", [("1", "a"), ("1", "b")])
