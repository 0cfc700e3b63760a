"""Layers that compute again: the same numbers for every family, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.tiny import IMAGE_SIZE, pair_batch, tiny_cbvila, tiny_lqae, tiny_mae, tiny_vqvae
from tests.train.running import digest, run, settings
from torch import Tensor

from pixlex.batch import ImageBatch
from pixlex.config.cbvila import CBViLAObjectiveConfig
from pixlex.config.lqae import LQAEObjectiveConfig, VQVAEObjectiveConfig
from pixlex.config.mae import MAEObjectiveConfig
from pixlex.objectives.cbvila import CBViLAObjective
from pixlex.objectives.lqae import LQAEObjective, VQVAEObjective
from pixlex.objectives.mae import MAEObjective
from pixlex.objectives.phase import Objective, Step
from pixlex.train.memory import checkpoint_layers

TEXTS = ("about the class", "and all", "class and any other", "also")

# Family -> its objective, and its transformer layers: encoder, decoder or fusion, language model.
FAMILIES: dict[str, tuple[Callable[[Path], Objective], int]] = {
    "lqae": (lambda language: LQAEObjective(tiny_lqae(language), LQAEObjectiveConfig(), 10), 3),
    "vqvae": (lambda language: VQVAEObjective(tiny_vqvae(), VQVAEObjectiveConfig(), 10), 2),
    "mae": (lambda language: MAEObjective(tiny_mae(), MAEObjectiveConfig(), 10), 2),
    "cbvila": (
        lambda language: CBViLAObjective(
            tiny_cbvila(language, dropout_rate=0.3), CBViLAObjectiveConfig(burn_in_steps=0), 10, 12
        ),
        3,
    ),
}


def _batch(objective: Objective) -> ImageBatch:
    if isinstance(objective, CBViLAObjective):
        return pair_batch(objective.model, TEXTS)
    images = torch.rand(4, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    return ImageBatch(images, torch.zeros(4, dtype=torch.long), tuple("abcd"), torch.arange(4))


def _step(objective: Objective) -> tuple[dict[str, Tensor], int]:
    """Return loss and gradients of a step, and the bytes that the forward pass kept for it."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(0)  # dropout
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step = Step(0, torch.Generator().manual_seed(0))
        loss = objective.train()(_batch(objective), objective.phases[-1], step).total
    loss.backward()
    gradients = {name: one.grad for name, one in objective.named_parameters() if one.grad is not None}
    return {"loss": loss.detach(), **gradients}, kept


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_gradients_in_less_memory(family: str, language: Path) -> None:
    """To the bit, dropout included."""
    build, num_layers = FAMILIES[family]
    torch.manual_seed(0)
    plain, changed = build(language), build(language)
    changed.load_state_dict(plain.state_dict())
    assert checkpoint_layers(changed.model) >= num_layers
    assert checkpoint_layers(changed.model) >= num_layers  # once more changes nothing
    assert changed.state_dict().keys() == plain.state_dict().keys()
    expected, before = _step(plain)
    found, after = _step(changed)
    assert found.keys() == expected.keys()
    assert len(found) > 10
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert after < 0.6 * before


@pytest.mark.parametrize("family", ["lqae", "vqvae"])
def test_a_training_ends_with_the_same_bits(
    family: str, tmp_path: Path, pictures: Path, language: Path
) -> None:
    """Optimizer, restarts of codewords and the frozen language model included."""
    model = language if family == "lqae" else None
    plain = run(tmp_path / "plain", pictures, model, settings(steps=4))
    changed = run(tmp_path / "changed", pictures, model, settings(steps=4, checkpoint_activations=True))
    assert digest(changed) == digest(plain)
