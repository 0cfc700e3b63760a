"""No step adds gradients in an order that threads decide: what is taken several times is summed row after row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives.test_waiting import FAMILIES, TEXTS, _images
from tests.tiny import pair_batch, tiny_cbvila, tiny_frozen, tiny_lqae
from torch.utils._python_dispatch import TorchDispatchMode

from pixlex.batch import ImageBatch
from pixlex.config.cbvila import CBViLAObjectiveConfig
from pixlex.config.lqae import LQAEObjectiveConfig
from pixlex.models.cbvila import CBViLA
from pixlex.nn.transformer import take_rows
from pixlex.objectives.baselines import FrozenObjective
from pixlex.objectives.cbvila import CBViLAObjective
from pixlex.objectives.lqae import LQAEObjective
from pixlex.objectives.phase import Objective, Step

# What torch's CPU kernels add up by atomics: the backward pass of advanced indexing ends there.
_ATOMIC = ("aten::index_put", "aten::_index_put_impl", "aten::_unsafe_index_put", "aten::put")


class _Sums(TorchDispatchMode):
    """Collects operations that accumulate by atomics."""

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


def _of(model: CBViLA, **settings: object) -> tuple[Objective, ImageBatch]:
    config = CBViLAObjectiveConfig(burn_in_steps=2, **settings)  # type: ignore[arg-type]
    return CBViLAObjective(model, config, 10, 12), pair_batch(model, TEXTS)


MORE: dict[str, Callable[[Path], tuple[Objective, ImageBatch]]] = {
    "lqae, assigned search": lambda one: (
        LQAEObjective(tiny_lqae(one, search="assigned"), LQAEObjectiveConfig(), 10), _images(),
    ),
    "cbvila, class head": lambda one: _of(tiny_cbvila(one, masked_image_head="class")),
    "cbvila, tied head, latent": lambda one: _of(
        tiny_cbvila(one, masked_image_head="tied"), mask_stage="latent", image_text_contrastive_weight=0.0
    ),
    "cbvila, gumbel, alternating": lambda one: _of(tiny_cbvila(one, estimator="gumbel"), alternate_every=2),
}  # fmt: skip


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_the_order_of_every_sum_is_fixed(family: str, language: Path) -> None:
    """Forward and backward, in each phase."""
    _check(*(FAMILIES | MORE)[family](language))


def test_the_order_of_every_sum_is_fixed_in_frozen(causal_language: Path) -> None:
    """The language model is transformers' own."""
    model = tiny_frozen(causal_language)
    _check(FrozenObjective(model, 10), pair_batch(model, TEXTS))


def _check(objective: Objective, batch: ImageBatch) -> None:
    objective.train()
    for phase in objective.phases:
        number = phase.last_step - 1
        with _Sums() as sums:
            loss = objective(batch, phase, Step(number, torch.Generator().manual_seed(number)))
            loss.total.backward()
            objective.after_step(Step(number, torch.Generator().manual_seed(number)), loss)
        assert not sums.found


def test_atomics_would_be_noticed() -> None:
    """The test above can fail; `take_rows` gives the same rows and, to rounding, the same gradients."""
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
