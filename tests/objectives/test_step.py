"""What no step of any family does: read from the device, add gradients in an order that threads decide."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.objectives import built
from torch.utils._python_dispatch import TorchDispatchMode

from pixlex.batch import ImageBatch
from pixlex.nn.transformer import take_rows
from pixlex.objectives.phase import Objective, Step

META = torch.device("meta")
# Of the golden cases.
WAIT_FOR_NOTHING = (
    "lqae", "lqae raw cosine", "lqae entropy", "lqae assigned", "vqvae cosine", "mae", "cbvila burn-in",
    "cbvila dropout", "cbvila averages", "cbvila class head", "cbvila tied head", "cbvila latent",
    "cbvila equation 7", "vqa", "nlvr2",
)  # fmt: skip
# Frozen's language model, transformers' own, reads its padding mask; Gumbel draws on the device.
CASES = (*WAIT_FOR_NOTHING, "frozen", "cbvila gumbel in turn")


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
        step = Step(1, torch.Generator().manual_seed(0))  # behind k-means, which reads
        loss = objective(batch, phase, step)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_([one for one in objective.parameters() if one.grad is not None], 1.0)
        measures = objective.after_step(step, loss)
        there = batch.images.device
        assert loss.total.device == there
        assert all(isinstance(one, torch.Tensor) for one in loss.terms.values())
        assert not any(isinstance(one, torch.Tensor) and one.device != there for one in measures.values())


@pytest.mark.parametrize("case", WAIT_FOR_NOTHING)
def test_a_step_waits_for_nothing(case: str, language: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's device without values: whoever read one, or made a shape of one, would fail."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **settings: nullcontext())  # knows no such device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    objective, batch = built(case, language, language)
    there = batch.to(META)
    assert there.origin is batch
    _take_steps(objective.to(META), there)


@pytest.mark.parametrize("case", CASES)
def test_the_order_of_every_sum_is_fixed(case: str, language: Path, causal_language: Path) -> None:
    with _Sums() as sums:
        _take_steps(*built(case, language, causal_language))
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
