"""Learning rate and weight decay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pixlex.config.train import TrainConfig
from pixlex.train.optimizers import build_optimizer, learning_rate
from pixlex.train.sharding import load_optimizer


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


def test_moments_go_by_the_names_of_parameters() -> None:
    """Whatever their order and groups; other parameters and nameless ones are refused."""
    one = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(3, 1)})
    other = nn.ModuleDict({"b": nn.Linear(3, 1), "a": nn.Linear(2, 3)})
    first = build_optimizer(one, TrainConfig())
    one["b"](one["a"](torch.ones(1, 2))).sum().backward()
    first.step()
    second = build_optimizer(other, TrainConfig(decay_all=True))
    load_optimizer(second, first.state_dict())
    for name, parameter in one.named_parameters():
        for kind, value in first.state[parameter].items():
            assert torch.equal(second.state[other.get_parameter(name)][kind], value), (name, kind)
    third = build_optimizer(nn.ModuleDict({"a": nn.Linear(2, 3)}), TrainConfig())
    with pytest.raises(
        ValueError, match=r"2 parameters are in the checkpoint or the model alone, first b\.bias"
    ):
        load_optimizer(third, first.state_dict())
    nameless = torch.optim.AdamW(one.parameters()).state_dict()
    with pytest.raises(ValueError, match="without the names"):
        load_optimizer(first, nameless)
