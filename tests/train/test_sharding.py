"""Weights in parts: how they lie, how they come together, and that a run in parts goes on where it stopped."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.tiny import tiny_lqae, tiny_reasoner
from tests.train.running import STEPS, interrupted_before, run, settings, write_pictures
from torch import nn
from torch.distributed.tensor import DTensor

from pixlex.config.finetune import ReasoningObjectiveConfig
from pixlex.config.lqae import LQAEObjectiveConfig
from pixlex.nn.bert import BertLayer
from pixlex.objectives.finetune import ReasoningObjective
from pixlex.objectives.lqae import LQAEObjective
from pixlex.objectives.phase import Objective
from pixlex.train import parallel as module
from pixlex.train.checkpoint import checkpoints
from pixlex.train.parallel import Parallel, transformer_layers

SERVER = multiprocessing.get_context("forkserver")
# What moves all patch vectors alike, and their running mean.
SHIFTS = ("model.encoder.trunk.norm.bias", "model.projector.bias", "model.quantizer.whitening.mean")


def _sharded(layer: nn.Module) -> set[str]:
    return {name for name, parameter in layer.named_parameters() if isinstance(parameter, DTensor)}


def _look(objective: Objective) -> Parallel:
    """Halves of what layers hold, all of the rest; gathered they are what they were."""
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    parallel = Parallel(objective, settings(shard_parameters=True))
    for name, parameter in objective.named_parameters():
        other = parallel.objective.get_parameter(name)
        assert not isinstance(parameter, DTensor)
        if isinstance(other, DTensor):
            assert 2 * other.to_local().numel() in (parameter.numel(), parameter.numel() + other[0].numel())
    own = set(parallel.objective.modules())
    for layer in own.intersection(transformer_layers(parallel.objective.model)):
        replicated = {name for name, _ in layer.named_parameters()} - _sharded(layer)
        attends = isinstance(layer, BertLayer) and layer.cross_attention is not None
        expected = (
            {"cross_attention.key_value.weight", "cross_attention.key_value.bias"} if attends else set()
        )
        assert replicated == expected
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.zero_()
    with parallel.gathered():
        for name, value in objective.state_dict().items():
            assert torch.equal(before[name], value), name
    return parallel


def _clip(objective: Objective, sharded: Objective) -> None:
    """The norm over all parameters, and the same scale for all."""
    for one, other in zip(objective.parameters(), sharded.parameters(), strict=True):
        one.grad = torch.full_like(one, 0.5)
        other.grad = torch.full_like(other, 0.5)
    expected = nn.utils.clip_grad_norm_(list(objective.parameters()), 1.0)
    torch.testing.assert_close(module._clip(list(sharded.parameters()), 1.0), expected)
    for one, other in zip(objective.parameters(), sharded.parameters(), strict=True):
        gradient = other.grad.full_tensor() if isinstance(other.grad, DTensor) else other.grad
        torch.testing.assert_close(gradient, one.grad)


def _one_of_two(rank: int, folder: Path, language: Path, pictures: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    lqae = tiny_lqae(language)
    objective = LQAEObjective(lqae, LQAEObjectiveConfig(), 10)
    sharded = _look(objective).objective
    _look(ReasoningObjective(tiny_reasoner(language), ReasoningObjectiveConfig(), 10))
    _clip(objective, sharded)
    assert sharded.model.language is lqae.language  # frozen: not stored twice
    config = settings(shard_parameters=True)
    run(folder / "whole", pictures, language, config)
    # One of them is told to stop, both do.
    run(folder / "cut", pictures, language, config, interrupted_before(5) if rank else None)
    dist.barrier()
    assert checkpoints(folder / "cut" / "checkpoints")[-1].name == "step-00000005.pt"
    if rank == 0:
        shutil.copytree(folder / "cut", folder / "to one")
    dist.barrier()
    run(folder / "from one", pictures, language, config)  # begun on one process
    run(folder / "cut", pictures, language, config)
    dist.destroy_process_group()


@pytest.mark.timeout(300)
def test_on_two_processes(tmp_path: Path, language: Path) -> None:
    """A run that is stopped goes on to the bits of one left alone; begun or ended on one process, to rounding."""
    pictures = write_pictures(tmp_path / "pictures.parquet")
    run(tmp_path / "from one", pictures, language, settings(), interrupted_before(5))
    children = [
        SERVER.Process(target=_one_of_two, args=(rank, tmp_path, language, pictures)) for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(250)
    assert [child.exitcode for child in children] == [0, 0]
    run(tmp_path / "to one", pictures, language, settings())
    whole, cut, from_one, to_one = (
        torch.load(checkpoints(tmp_path / name / "checkpoints")[-1], weights_only=True)
        for name in ("whole", "cut", "from one", "to one")
    )
    assert whole["step"] == cut["step"] == from_one["step"] == to_one["step"] == STEPS
    for name, value in whole["objective"].items():
        for other in (from_one, to_one):
            # Whitening takes shifts away: their true gradient is 0, and Adam divides noise by noise.
            apart = settings().learning_rate * STEPS if name in SHIFTS else 1e-5
            torch.testing.assert_close(other["objective"][name], value, rtol=1e-4, atol=apart)
    for name, value in whole["objective"].items():
        assert torch.equal(value, cut["objective"][name]), name
    for number, moments in whole["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, cut["optimizer"]["state"][number][name])
