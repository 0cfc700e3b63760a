"""The masked autoencoder's loss: transformers' own number, gradients, masks from the step alone."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_mae

from pixlex.batch import ImageBatch
from pixlex.config.lqae import MAEObjectiveConfig
from pixlex.objectives.baselines import MAEObjective
from pixlex.objectives.phase import LossTerms, Step

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BATCH = ImageBatch(IMAGES, torch.zeros(4, dtype=torch.long), ("a", "b", "c", "d"), torch.arange(4))


def _loss(objective: MAEObjective, number: int = 0) -> LossTerms:
    step = Step(number, torch.Generator().manual_seed(number))
    loss: LossTerms = objective(BATCH, objective.phases[0], step)
    return loss


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_is_that_of_transformers(normalize: bool) -> None:
    """With the same noise, normalized targets or pixels."""
    objective = MAEObjective(tiny_mae(), MAEObjectiveConfig(normalize_targets=normalize), 10)
    loss = _loss(objective)
    network = objective.model.network
    network.config.norm_pix_loss = normalize
    noise = torch.rand(4, 16, generator=torch.Generator().manual_seed(0))
    expected = network((IMAGES - objective.model.mean) / objective.model.std, noise=noise).loss
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.terms["masked_patches"], expected)


def test_untrained_the_loss_of_normalized_targets_is_near_their_variance() -> None:
    """Small predictions explain nothing: about 1."""
    objective = MAEObjective(tiny_mae(), MAEObjectiveConfig(), 10)
    assert float(_loss(objective).total.detach()) == pytest.approx(1.0, abs=0.15)


def test_masks_follow_the_step_and_nothing_else() -> None:
    """Not the global generator."""
    objective = MAEObjective(tiny_mae(), MAEObjectiveConfig(), 10)
    torch.manual_seed(1)
    one = _loss(objective, 3).total
    torch.manual_seed(2)
    assert torch.equal(_loss(objective, 3).total, one)
    assert not torch.equal(_loss(objective, 4).total, one)


def test_every_parameter_gets_a_gradient() -> None:
    """Two processes could not average gradients that one of them lacks."""
    objective = MAEObjective(tiny_mae(), MAEObjectiveConfig(), 10)
    _loss(objective).total.backward()
    without = [name for name, one in objective.named_parameters() if one.grad is None]
    assert without == []
