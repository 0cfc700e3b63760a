"""Losses of the masked autoencoder and of Frozen: other libraries' numbers, gradients, draws of the step alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_frozen, tiny_mae

from pixlex.batch import ImageBatch, ImageTextBatch
from pixlex.config.lqae import MAEObjectiveConfig
from pixlex.objectives.lqae import FrozenObjective, MAEObjective
from pixlex.objectives.phase import LossTerms, Objective, Step

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PARTS = (IMAGES, torch.zeros(4, dtype=torch.long), ("a", "b", "c", "d"), torch.arange(4))


def _loss(objective: Objective, batch: ImageBatch | None = None, number: int = 0) -> LossTerms:
    step = Step(number, torch.Generator().manual_seed(number))
    loss: LossTerms = objective(batch or ImageBatch(*PARTS), objective.phases[0], step)
    assert objective.after_step(step, loss) == {}
    return loss


def _captions(objective: FrozenObjective, *texts: str) -> ImageTextBatch:
    words, count = objective.model.language.encode(texts, 16), len(texts)
    return ImageTextBatch(
        *(part[:count] for part in PARTS), texts=texts, image_ids=torch.arange(count),
        word_ids=words.word_ids, key_padding=words.key_padding,
    )  # fmt: skip


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_of_mae_is_that_of_transformers(normalize: bool) -> None:
    """With the same noise, normalized targets, which small predictions explain nothing of, or pixels."""
    objective = MAEObjective(tiny_mae(), MAEObjectiveConfig(normalize_targets=normalize), 10)
    loss = _loss(objective)
    network = objective.model.network
    network.config.norm_pix_loss = normalize
    noise = torch.rand(4, 16, generator=torch.Generator().manual_seed(0))
    expected = network((IMAGES - objective.model.mean) / objective.model.std, noise=noise).loss
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.terms["masked_patches"], expected)
    assert not normalize or float(expected.detach()) == pytest.approx(1.0, abs=0.15)


def test_masks_of_mae_follow_the_step_and_nothing_else() -> None:
    """Not the global generator."""
    objective = MAEObjective(tiny_mae(), MAEObjectiveConfig(), 10)
    torch.manual_seed(1)
    one = _loss(objective, number=3).total
    torch.manual_seed(2)
    assert torch.equal(_loss(objective, number=3).total, one)
    assert not torch.equal(_loss(objective, number=4).total, one)


def test_the_loss_of_frozen_is_the_mean_over_all_words_and_ends(causal_language: Path) -> None:
    """A long caption counts more than a short one; each is scored behind its own image."""
    objective = FrozenObjective(tiny_frozen(causal_language), 10)
    batch, model = _captions(objective, "for the class statement", "a"), objective.model
    scores = model.score(model.prompt(model.prefix(batch.images)), batch.word_ids, batch.key_padding)
    expected = -float(scores.sum()) / int((~batch.key_padding).sum())
    loss = _loss(objective, batch)
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5)
    assert set(loss.terms) == {"caption"}


def test_an_untrained_language_model_is_near_the_log_of_its_vocabulary(causal_language: Path) -> None:
    """With its output weights made small it knows nothing: ln V."""
    objective = FrozenObjective(tiny_frozen(causal_language), 10)
    head = objective.model.language.body.get_output_embeddings().weight
    with torch.no_grad():
        head.mul_(1e-3)
    loss = _loss(objective, _captions(objective, "for", "the class"))
    assert float(loss.total.detach()) == pytest.approx(math.log(len(head)), abs=0.01)


@pytest.mark.parametrize("family", ["mae", "frozen"])
def test_every_parameter_gets_a_gradient_and_a_frozen_one_none(family: str, causal_language: Path) -> None:
    """Two processes could not average gradients that one of them lacks."""
    if family == "mae":
        mae = MAEObjective(tiny_mae(), MAEObjectiveConfig(), 10)
        objective, loss = mae, _loss(mae)
    else:
        frozen = FrozenObjective(tiny_frozen(causal_language), 10)
        objective, loss = frozen, _loss(frozen, _captions(frozen, "for"))
    loss.total.backward()
    assert [name for name, one in objective.named_parameters() if one.grad is None] == []
    assert not [name for name, _ in objective.named_parameters() if "language" in name]
