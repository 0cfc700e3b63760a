"""What no step of any family does: read from the device, add gradients in an order that threads decide."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import (
    IMAGE_SIZE,
    pair_batch,
    tiny_cbvila,
    tiny_frozen,
    tiny_lqae,
    tiny_mae,
    tiny_reasoner,
    tiny_vqvae,
)
from torch.utils._python_dispatch import TorchDispatchMode

from pixlex.batch import ImageBatch, ReasoningBatch
from pixlex.config.cbvila import CBViLAObjectiveConfig, ReasoningObjectiveConfig
from pixlex.config.lqae import LQAEObjectiveConfig, MAEObjectiveConfig, VQVAEObjectiveConfig
from pixlex.nn.transformer import take_rows
from pixlex.objectives.cbvila import CBViLAObjective
from pixlex.objectives.finetune import ReasoningObjective
from pixlex.objectives.lqae import FrozenObjective, LQAEObjective, MAEObjective, VQVAEObjective
from pixlex.objectives.phase import Objective, Step

TEXTS = ("about the class", "and all", "class and any other", "also")
META = torch.device("meta")
Case = tuple[Objective, ImageBatch]


def _images(count: int = 4) -> ImageBatch:
    images = torch.rand(count, 3, IMAGE_SIZE, IMAGE_SIZE)
    return ImageBatch(images, torch.zeros(count, dtype=torch.long), ("",) * count, torch.arange(count))


def _lqae(language: Path, search: str, **weights: float) -> Case:
    return LQAEObjective(tiny_lqae(language, search=search), LQAEObjectiveConfig(**weights), 10), _images()


def _cbvila(language: Path, model: dict[str, Any] | None = None, **settings: Any) -> Case:
    network = tiny_cbvila(language, **(model or {}))
    config = CBViLAObjectiveConfig(**{"burn_in_steps": 0, "restart_after": 3, **settings})
    return CBViLAObjective(network, config, 10, 12), pair_batch(network, TEXTS)


def _reasoning(language: Path, task: Any) -> Case:
    model = tiny_reasoner(language, task=task)
    words = model.tokenize_texts(TEXTS, 12)
    given = ("about", "about class") if model.decoder is not None else ("true",)
    batch = ReasoningBatch(
        **vars(_images(4 * model.config.num_images)), items=torch.arange(4), texts=TEXTS,
        word_ids=words.word_ids, key_padding=words.key_padding, answers=(given,) * 4,
        targets=(dict.fromkeys(given, 1 / len(given)),) * 4,
    )  # fmt: skip
    return ReasoningObjective(model, ReasoningObjectiveConfig(), 10), batch


CASES: dict[str, Callable[[Path], Case]] = {
    "lqae": lambda one: _lqae(one, "whitened"),
    "lqae, raw search": lambda one: _lqae(one, "raw", entropy_weight=0.1),
    "lqae, assigned search": lambda one: _lqae(one, "assigned"),
    "vqvae": lambda one: (VQVAEObjective(tiny_vqvae(), VQVAEObjectiveConfig(restart_after=3), 10), _images()),
    "mae": lambda one: (MAEObjective(tiny_mae(), MAEObjectiveConfig(), 10), _images()),
    "cbvila": lambda one: _cbvila(one, burn_in_steps=2),
    "cbvila, dropout": lambda one: _cbvila(one, {"dropout_rate": 0.3}),
    "cbvila, moving averages": lambda one: _cbvila(one, codebook_update="ema"),
    "cbvila, class head": lambda one: _cbvila(one, {"masked_image_head": "class"}),
    "cbvila, tied head, latent": lambda one: _cbvila(
        one, {"masked_image_head": "tied"}, mask_stage="latent", image_text_contrastive_weight=0.0
    ),
    "cbvila, gumbel, alternating": lambda one: _cbvila(one, {"estimator": "gumbel"}, alternate_every=2),
    "vqa": lambda one: _reasoning(one, "vqa"),
    "nlvr2": lambda one: _reasoning(one, "nlvr2"),
}


_ATOMIC = ("aten::index_put", "aten::_index_put_impl", "aten::_unsafe_index_put", "aten::put")


class _Sums(TorchDispatchMode):
    """Collects operations that accumulate by atomics: the backward pass of advanced indexing ends there."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = (kwargs or {}).get("accumulate", args[3] if len(args) > 3 else False)
        if func.name().split(".")[0].rstrip("_") in _ATOMIC and given:
            self.found.append(f"{func.name()} of {tuple(args[0].shape)}")
        return func(*args, **(kwargs or {}))


def _take_steps(objective: Objective, batch: ImageBatch) -> None:
    """Forward, backward and housekeeping in each phase."""
    objective.train()
    for phase in objective.phases:
        step = Step(phase.last_step - 1, torch.Generator().manual_seed(0))
        loss = objective(batch, phase, step)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_([one for one in objective.parameters() if one.grad is not None], 1.0)
        measures = objective.after_step(step, loss)
        there = batch.images.device
        assert loss.total.device == there
        assert all(isinstance(one, torch.Tensor) for one in loss.terms.values())
        assert not any(isinstance(one, torch.Tensor) and one.device != there for one in measures.values())


@pytest.mark.parametrize("case", [name for name in CASES if "gumbel" not in name])
def test_a_step_waits_for_nothing(case: str, language: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's device without values: whoever read one, or made a shape of one, would fail."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **settings: nullcontext())  # knows no such device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    objective, batch = CASES[case](language)
    there = batch.to(META)
    assert there.origin is batch
    _take_steps(objective.to(META), there)


@pytest.mark.parametrize("case", CASES)
def test_the_order_of_every_sum_is_fixed(case: str, language: Path) -> None:
    with _Sums() as sums:
        _take_steps(*CASES[case](language))
    assert not sums.found


def test_the_order_of_every_sum_is_fixed_in_frozen(causal_language: Path) -> None:
    """Its language model, transformers' own, reads its padding mask: it alone waits."""
    model = tiny_frozen(causal_language)
    with _Sums() as sums:
        _take_steps(FrozenObjective(model, 10), pair_batch(model, TEXTS))
    assert not sums.found


def test_atomics_would_be_noticed() -> None:
    """The tests above can fail; `take_rows` gives the same rows and, to rounding, the same gradients."""
    numbers = torch.tensor([[2, 0], [2, 2]])
    rows = torch.randn(3, 5, requires_grad=True)
    with _Sums() as sums:
        (indexed,) = torch.autograd.grad(rows[numbers].square().sum(), rows)
    assert sums.found
    with _Sums() as sums:
        taken = take_rows(rows, numbers)
        (ours,) = torch.autograd.grad(taken.square().sum(), rows)
    assert not sums.found
    assert torch.equal(taken, rows[numbers])
    torch.testing.assert_close(ours, indexed)
