"""Learning rate and weight decay."""

from __future__ import annotations

import math

import pytest
from torch import nn

from pixlex.config.fields import TrainConfig
from pixlex.train.parallel import build_optimizer, learning_rate


def test_warm_up_then_cosine() -> None:
    """Linear to the peak, half-way down in the middle of the rest, final rate at the end."""
    config = TrainConfig(steps=110, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.2)
    assert learning_rate(0, config) == pytest.approx(0.1)
    assert learning_rate(9, config) == pytest.approx(1.0)
    assert learning_rate(10, config) == pytest.approx(1.0)
    assert learning_rate(60, config) == pytest.approx(0.6)
    assert learning_rate(35, config) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(110, config) == pytest.approx(0.2)


def test_warm_up_from_a_rate_above_zero() -> None:
    """CB-ViLA: 1e-5 to 1e-4 in 1,000 steps, then a cosine to 1e-5."""
    config = TrainConfig(
        steps=3000,
        warmup_steps=1000,
        initial_learning_rate=1e-5,
        learning_rate=1e-4,
        final_learning_rate=1e-5,
    )
    assert learning_rate(0, config) == pytest.approx(1e-5, rel=0.01)
    assert learning_rate(499, config) == pytest.approx(5.5e-5)
    assert learning_rate(1000, config) == pytest.approx(1e-4)
    assert learning_rate(3000, config) == pytest.approx(1e-5)


def test_decay_spares_norms_biases_and_positions_unless_told() -> None:
    """`decay_all` is the accident of the released code."""
    module = nn.Module()
    module.linear = nn.Linear(3, 4)
    module.norm = nn.LayerNorm(4)
    module.positions = nn.Parameter(nn.Linear(4, 9).weight.detach()[None])
    spared = build_optimizer(module, TrainConfig(weight_decay=0.1)).param_groups
    assert [p.shape for p in spared[0]["params"]] == [(4, 3)]
    assert [group["weight_decay"] for group in spared] == [0.1, 0.0]
    everything = build_optimizer(module, TrainConfig(weight_decay=0.1, decay_all=True)).param_groups
    assert len(everything) == 1
    assert len(everything[0]["params"]) == 5
