"""No step reads a number from the device: it runs through on torch's device that has no values, `meta`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tests.tiny import (
    IMAGE_SIZE,
    pair_batch,
    tiny_cbvila,
    tiny_lqae,
    tiny_mae,
    tiny_reasoner,
    tiny_vqvae,
)

from pixlex.batch import ImageBatch, ReasoningBatch
from pixlex.config.cbvila import CBViLAObjectiveConfig
from pixlex.config.finetune import ReasoningObjectiveConfig
from pixlex.config.lqae import LQAEObjectiveConfig, MAEObjectiveConfig, VQVAEObjectiveConfig
from pixlex.nn.codebook import count_codes
from pixlex.objectives.baselines import MAEObjective
from pixlex.objectives.cbvila import CBViLAObjective
from pixlex.objectives.finetune import ReasoningObjective
from pixlex.objectives.lqae import LQAEObjective, VQVAEObjective
from pixlex.objectives.phase import Objective, Step

TEXTS = ("about the class", "and all", "class and any other", "also")
META = torch.device("meta")


def _images(count: int = 4) -> ImageBatch:
    return ImageBatch(
        torch.rand(count, 3, IMAGE_SIZE, IMAGE_SIZE),
        torch.zeros(count, dtype=torch.long),
        ("",) * count,
        torch.arange(count),
    )


def _items(objective: ReasoningObjective) -> ReasoningBatch:
    model = objective.model
    words = model.tokenize_texts(TEXTS, 12)
    given = ("about", "about class") if model.decoder is not None else ("true",)
    return ReasoningBatch(
        **vars(_images(4 * model.config.num_images)), items=torch.arange(4), texts=TEXTS,
        word_ids=words.word_ids, key_padding=words.key_padding, answers=(given,) * 4,
        targets=(dict.fromkeys(given, 1 / len(given)),) * 4,
    )  # fmt: skip


def _reasoning(language: Path, task: str) -> tuple[Objective, ImageBatch]:
    model = tiny_reasoner(language, task=task)
    objective = ReasoningObjective(model, ReasoningObjectiveConfig(), 10)
    return objective, _items(objective)


def _cbvila(language: Path, **settings: object) -> tuple[Objective, ImageBatch]:
    model = tiny_cbvila(language)
    config = CBViLAObjectiveConfig(burn_in_steps=0, restart_after=3, **settings)
    return CBViLAObjective(model, config, 10, 12), pair_batch(model, TEXTS)


# All but Frozen, whose language model looks into its mask of padding before it chooses its attention.
FAMILIES: dict[str, Callable[[Path], tuple[Objective, ImageBatch]]] = {
    "lqae": lambda one: (LQAEObjective(tiny_lqae(one), LQAEObjectiveConfig(), 10), _images()),
    "lqae, raw search": lambda one: (
        LQAEObjective(tiny_lqae(one, search="raw"), LQAEObjectiveConfig(entropy_weight=0.1), 10), _images(),
    ),
    "vqvae": lambda one: (
        VQVAEObjective(tiny_vqvae(), VQVAEObjectiveConfig(restart_after=3), 10), _images()
    ),
    "mae": lambda one: (MAEObjective(tiny_mae(), MAEObjectiveConfig(), 10), _images()),
    "cbvila": lambda one: _cbvila(one),
    "cbvila, moving averages": lambda one: _cbvila(one, codebook_update="ema"),
    "vqa": lambda one: _reasoning(one, "vqa"),
    "nlvr2": lambda one: _reasoning(one, "nlvr2"),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_waits_for_nothing(family: str, language: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever read a value, or made a shape of one, would fail: there is none."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **settings: nullcontext())  # knows no such device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    objective, batch = FAMILIES[family](language)
    objective.to(META).train()
    step = Step(1, torch.Generator().manual_seed(0))
    there = batch.to(META)
    assert there.on_host is batch
    phase = objective.phase_at(1)
    loss = objective(there, phase, step)
    loss.total.backward()
    trained = [one for one in objective.parameters() if one.grad is not None]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    shown = objective.after_step(step, loss)
    assert loss.total.device == META
    assert all(isinstance(one, torch.Tensor) for one in loss.terms.values())
    assert not any(isinstance(one, torch.Tensor) and one.device != META for one in shown.values())


def test_reading_would_be_noticed() -> None:
    """The test above can fail: what a step must not do fails on the device without values."""
    codes = torch.zeros(4, dtype=torch.long, device=META)
    count_codes(codes, 3)
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.bincount(codes, minlength=3)
    with pytest.raises((NotImplementedError, RuntimeError)):
        float(codes.sum())
    with pytest.raises((NotImplementedError, RuntimeError)):
        codes[codes > 0]
