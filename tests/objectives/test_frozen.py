"""Frozen's loss: the caption's cross-entropy, of the encoder's parameters alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_frozen

from pixlex.batch import ImageTextBatch
from pixlex.objectives.baselines import FrozenObjective
from pixlex.objectives.phase import Step


def _batch(objective: FrozenObjective, texts: tuple[str, ...]) -> ImageTextBatch:
    words = objective.model.language.encode(texts, 16)
    count = len(texts)
    return ImageTextBatch(
        torch.rand(count, 3, 32, 32),
        torch.zeros(count, dtype=torch.long),
        texts,
        torch.arange(count),
        texts=texts,
        image_ids=torch.arange(count),
        word_ids=words.word_ids,
        key_padding=words.key_padding,
    )


def test_the_loss_is_the_mean_over_all_words_and_ends(causal_language: Path) -> None:
    """A long caption counts more than a short one; each is scored behind its own image."""
    objective = FrozenObjective(tiny_frozen(causal_language), 10)
    batch = _batch(objective, ("for the class statement", "a"))
    step = Step(0, torch.Generator())
    loss = objective(batch, objective.phases[0], step)
    model = objective.model
    prompt = model.prompt(model.prefix(batch.images))
    scores = model.score(prompt, batch.word_ids, batch.key_padding)
    expected = -float(scores.sum()) / int((~batch.key_padding).sum())
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5)
    assert set(loss.terms) == {"caption"}
    assert objective.after_step(step, loss) == {}


def test_an_untrained_language_model_is_near_the_log_of_its_vocabulary(causal_language: Path) -> None:
    """With its output weights made small it knows nothing: ln V."""
    model = tiny_frozen(causal_language)
    head = model.language.body.get_output_embeddings().weight
    with torch.no_grad():
        head.mul_(1e-3)
    objective = FrozenObjective(model, 10)
    loss = objective(_batch(objective, ("for", "the class")), objective.phases[0], Step(0, torch.Generator()))
    assert float(loss.total.detach()) == pytest.approx(math.log(len(head)), abs=0.01)


def test_every_parameter_gets_a_gradient_and_the_language_model_none(causal_language: Path) -> None:
    objective = FrozenObjective(tiny_frozen(causal_language), 10)
    objective(_batch(objective, ("for",)), objective.phases[0], Step(0, torch.Generator())).total.backward()
    assert [name for name, one in objective.named_parameters() if one.grad is None] == []
    assert not [name for name, _ in objective.named_parameters() if "language" in name]
