"""Accuracy of answers: credits, what needs no image, consistency, kinds; a model against what it says itself."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_reasoner
from torch import Tensor

from pixlex.data.item_batches import evaluation_items
from pixlex.data.reasoning import ReasoningSource
from pixlex.data.scenes import ScenesSource
from pixlex.data.sources import subset
from pixlex.eval import reasoning
from pixlex.eval.reasoning import ReasoningResult, evaluate_reasoning, text_alone
from pixlex.models.reasoner import Reasoner

TEXTS = ("about the class", "and any other", "also about", "the class", "any", "above and")


def _source(answers: Sequence[tuple[str, ...]], **settings: tuple[str, ...]) -> ReasoningSource:
    return ReasoningSource(
        "items", ScenesSource("test", len(answers)), 1, TEXTS[: len(answers)], tuple(answers),
        tuple(map(str, range(len(answers)))), **settings,
    )  # fmt: skip


def _evaluate(model: Reasoner, source: ReasoningSource, **settings: object) -> ReasoningResult:
    batches = evaluation_items(
        source,
        encode=lambda texts: model.tokenize_texts(texts, 12),
        image_size=model.config.image_size,
        batch_size=4,
    )
    return evaluate_reasoning(model, source, batches, progress=False, **settings)  # type: ignore[arg-type]


def test_answers_that_the_words_tell_need_no_image() -> None:
    """The answer is a word of the question: the classifier finds it, the most frequent one in half the cases."""
    kinds = ("red", "blue")
    texts = tuple(f"is it {kinds[number % 2]}" for number in range(40))
    answers = tuple((kinds[number % 2],) for number in range(40))
    training = ReasoningSource(
        "training", ScenesSource("train", 40), 1, texts, answers, tuple(map(str, range(40)))
    )
    found = text_alone("vqa", training, training.take(range(10)))
    assert found.words == 1.0
    assert found.majority == 0.5
    same = ReasoningSource(
        "same", ScenesSource("train", 40), 1, ("is it so",) * 40, answers, tuple(map(str, range(40)))
    )
    assert text_alone("vqa", same, same).words == 0.5


def test_few_texts_with_many_answers_are_no_matter_for_warnings() -> None:
    one = tuple(map(str, range(6)))
    items = ReasoningSource("items", ScenesSource("train", 6), 1, one, tuple((name,) for name in one), one)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert text_alone("vqa", items, items).words is not None


def test_the_classifier_learns_from_some_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many items as many as are allowed, of many answers the frequent ones."""
    monkeypatch.setattr(reasoning, "_LEARNED", 6)
    monkeypatch.setattr(reasoning, "_CLASSES", 2)
    texts = (*tuple(f"{'a' if number % 2 else 'b'} c" for number in range(30)), "rare")
    answers = (*tuple(("a" if number % 2 else "b",) for number in range(30)), ("rare",))
    items = ReasoningSource("items", ScenesSource("train", 31), 1, texts, answers, tuple(map(str, range(31))))
    found = text_alone("entailment", items, items)
    assert found.words == pytest.approx(30 / 31)


def test_images_of_several_items_are_encoded_once(language_folder: Path) -> None:
    """Same answers, same examples, and no image twice in a batch."""
    model = tiny_reasoner(language_folder, "entailment")
    about = [2, 0, 2, 2, 1, 0]
    images = ScenesSource("test", 3)
    answers = (("entailment",),) * 6
    source = ReasoningSource("shared", subset(images, about), 1, TEXTS, answers, tuple(map(str, range(6))))
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
        alone = ReasoningSource(
            "alone", subset(images, [place]), 1, TEXTS[item : item + 1], answers[:1], ("0",)
        )
        (expected,) = _evaluate(model, alone).answered
        assert result.answered[item].answers == expected.answers
        assert result.answered[item].probabilities == pytest.approx(expected.probabilities, abs=1e-5)
        assert torch.equal(result.examples[item], _evaluate(model, alone).examples[0])


def test_accuracy_is_the_mean_credit_of_what_the_model_says(language_folder: Path) -> None:
    """The truth is set to what the model says for some items, to something else for the others."""
    model = tiny_reasoner(language_folder, "entailment")
    said = [one.answers[0] for one in _evaluate(model, _source([()] * 6)).answered]
    other = {"entailment": "neutral", "neutral": "contradiction", "contradiction": "entailment"}
    given = [(said[item],) if item < 4 else (other[said[item]],) for item in range(6)]
    source = _source(given, sentences=("a", "a", "b", "b", "b", "c"), kinds=("x", "x", "x", "y", "y", "y"))
    result = _evaluate(model, source)
    assert result.accuracy == pytest.approx(4 / 6)
    assert result.interval is not None
    assert result.interval[0] < 4 / 6 < result.interval[1]
    assert result.consistency == pytest.approx(1 / 3)  # of a, b and c, all items of a alone are right
    assert result.by_kind == {"x": 1.0, "y": pytest.approx(1 / 3)}
    assert [one.credit for one in result.answered] == [1, 1, 1, 1, 0, 0]
    assert result.examples.shape[:2] == (6, 1)


def test_items_without_an_answer_are_answered_and_not_counted(language_folder: Path) -> None:
    model = tiny_reasoner(language_folder, "vqa", ("about", "also", "any"))
    result = _evaluate(model, _source([()] * 3))
    assert result.accuracy is None
    assert result.interval is None
    assert len(result.answered) == 3
    assert "eval/accuracy" not in result.numbers
    mixed = _evaluate(model, _source([(), ("nothing like it",), ()]))
    assert mixed.accuracy == 0.0


def test_written_answers_are_scored_too(language_folder: Path) -> None:
    model = tiny_reasoner(language_folder, "vqa", ("about", "also", "any"))
    written = [one.answers[0] for one in _evaluate(model, _source([()] * 3), mode="generate").answered]
    source = _source([(written[0] or "x",) * 10, ("y",) * 10, (written[2] or "x",) * 10])
    result = _evaluate(model, source, mode="generate")
    expected = sum(bool(written[item]) for item in (0, 2)) / 3
    assert result.accuracy == pytest.approx(expected)
    assert "written freely" in result.protocol
    classes = tiny_reasoner(language_folder, "nlvr2", num_images=1)
    with pytest.raises(ValueError, match="for the task vqa alone, this model's is nlvr2"):
        _evaluate(classes, _source([("true",)] * 2), mode="generate")
