"""Fine-tuning: untrained losses, the weights of answers, what is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.tiny import IMAGE_SIZE, tiny_cbvila

from pixlex.batch import ReasoningBatch
from pixlex.config.cbvila import ReasonerConfig, ReasoningObjectiveConfig
from pixlex.models.finetuned import Reasoner
from pixlex.nn.bert import Words
from pixlex.objectives.finetune import ReasoningObjective
from pixlex.objectives.phase import Step

QUESTIONS = ("about the class", "and any other class", "also")
GIVEN = (("about", "about", "about", "also"), ("class and",), ("other", "about class", "other"))


def _objective(
    language: Path, task: str = "vqa", weights: str = "count", **settings: Any
) -> ReasoningObjective:
    torch.manual_seed(0)
    body = tiny_cbvila(language)
    answers = ("about", "also", "any") if task == "vqa" else ("false", "true")
    config = ReasonerConfig(task=task, body=body.config, answers=answers, **settings)
    return ReasoningObjective(
        Reasoner.start(config, body), ReasoningObjectiveConfig(answer_weights=weights), 10
    ).train()


def _batch(model: Reasoner, given: Sequence[tuple[str, ...]]) -> ReasoningBatch:
    words = model.tokenize_texts(QUESTIONS, 12)
    count = len(QUESTIONS) * model.config.num_images
    return ReasoningBatch(
        torch.rand(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0)),
        torch.zeros(count, dtype=torch.long),
        ("",) * count,
        torch.arange(count),
        items=torch.arange(len(QUESTIONS)),
        texts=QUESTIONS,
        word_ids=words.word_ids,
        key_padding=words.key_padding,
        answers=tuple(given),
        targets=tuple({text: one.count(text) / len(one) for text in one} for one in given),
    )


def _loss(objective: ReasoningObjective, batch: ReasoningBatch) -> torch.Tensor:
    return objective(batch, objective.phases[0], Step(0, torch.Generator().manual_seed(0))).total


def test_untrained_classes_cost_their_logarithm(language: Path) -> None:
    objective = _objective(language, "nlvr2", num_images=2)
    with torch.no_grad():
        objective.model.class_head[-1].weight.zero_()
    loss = _loss(objective, _batch(objective.model, (("true",), ("false",), ("true",))))
    assert float(loss.detach()) == pytest.approx(math.log(2))


@pytest.mark.parametrize(("weights", "two", "one"), [("count", 2 / 3, 1 / 3), ("soft", 4 / 9, 2 / 9)])
def test_answers_weigh_what_people_gave(weights: str, two: float, one: float, language: Path) -> None:
    """Against the sum written out, word by word with its end: by counts, or by the score (see `agreement`)."""
    objective = _objective(language, weights=weights).eval()
    batch = _batch(objective.model, GIVEN)
    answers = [{"about": 0.75, "also": 0.25}, {"class and": 1.0}, {"other": two, "about class": one}]
    expected = _written_out(objective.model, batch, answers)
    assert float(_loss(objective, batch).detach()) == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def _written_out(model: Reasoner, batch: ReasoningBatch, weights: Sequence[dict[str, float]]) -> float:
    total = 0.0
    for row, answers in enumerate(weights):
        one = slice(row, row + 1)
        context = model.look_at_question(
            batch.images[one], Words(batch.word_ids[one], batch.key_padding[one])
        )
        for text, weight in answers.items():
            ids = model.tokenize_texts([text], 10).word_ids[0]
            logits = model.word_logits(model.write(ids[None, :-1], context)[0])
            total += weight * float(F.cross_entropy(logits, ids[1:], reduction="sum"))
    return total / len(weights)


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "entailment"])
def test_everything_named_is_trained_and_nothing_else(task: str, language: Path) -> None:
    """Each parameter of the phase receives a gradient, as several processes need; the others none."""
    settings = {"num_images": 2} if task == "nlvr2" else {}
    objective = _objective(language, task, **settings)
    given = GIVEN if task == "vqa" else (("true",), ("false",), ("true",))
    phase = objective.phases[0]
    for name, parameter in objective.named_parameters():
        parameter.requires_grad_(name.startswith(phase.trains))
    _loss(objective, _batch(objective.model, given)).backward()  # type: ignore[no-untyped-call]
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == name.startswith(phase.trains), name
    assert not any("codebook" in name for name in phase.trains)


@pytest.mark.parametrize("task", ["vqa", "nlvr2"])
def test_images_that_are_shared_change_nothing(task: str, language: Path) -> None:
    """One copy of images for several texts: loss and gradients of a copy for each text."""
    given = GIVEN if task == "vqa" else (("true",), ("false",), ("true",))
    objective = _objective(language, task, **({"num_images": 2} if task == "nlvr2" else {})).eval()
    batch, together = _batch(objective.model, given), objective.model.config.num_images
    image_index = torch.tensor([1, 0, 1])
    rows = (image_index.unsqueeze(1) * together + torch.arange(together)).flatten()
    shared = _of_images(batch, torch.arange(2 * together), image_index)
    copied = _of_images(batch, rows, None)
    gradients = []
    for one in (shared, copied):
        objective.zero_grad()
        loss = _loss(objective, one)
        loss.backward()  # type: ignore[no-untyped-call]
        found = {name: each.grad for name, each in objective.named_parameters() if each.grad is not None}
        gradients.append({"loss": loss.detach(), **{name: each.clone() for name, each in found.items()}})
    assert float(gradients[0]["model.body.image_encoder.positions"].abs().max()) > 0
    for name, value in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], value, rtol=1e-4, atol=1e-6, msg=name)


def _of_images(batch: ReasoningBatch, rows: torch.Tensor, image_index: torch.Tensor | None) -> ReasoningBatch:
    keys = tuple(batch.keys[row] for row in rows.tolist())
    images, labels, indices = batch.images[rows], batch.labels[rows], batch.indices[rows]
    return replace(batch, images=images, labels=labels, keys=keys, indices=indices, image_index=image_index)


def test_answers_that_cannot_be_learned_from_are_refused(language: Path) -> None:
    objective = _objective(language, "nlvr2")
    with pytest.raises(ValueError, match="expected one of false, true as the answer, got"):
        _loss(objective, _batch(objective.model, (("perhaps",), ("false",), ("true",))))
    writing = _objective(language)
    with pytest.raises(ValueError, match="got a question without any"):
        _loss(writing, _batch(writing.model, (("about",), (), ("true",))))


def test_a_few_steps_learn_an_answer_by_heart(language: Path) -> None:
    """The likeliest answers become those that were given."""
    objective = _objective(language)
    given = (("about",), ("also",), ("any",))
    batch = _batch(objective.model, given)
    optimizer = torch.optim.Adam(objective.parameters(), lr=4e-3)
    for _ in range(40):
        loss = _loss(objective, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model = objective.model.eval()
    ranked = model.rank(batch.images, model.tokenize_texts(QUESTIONS, 12))
    assert [model.config.answers[number] for number in ranked.numbers[:, 0]] == [one for (one,) in given]
    assert model.generate(batch.images, model.tokenize_texts(QUESTIONS, 12)) == [one for (one,) in given]
