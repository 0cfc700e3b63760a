"""Two processes: collectives, sharded parameters, and trainings that give the numbers of one process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.tiny import tiny_lqae, tiny_reasoner
from tests.training.conftest import Alone
from tests.training.running import STEPS, on_two_processes, run, settings, signaled_before
from torch import nn
from torch.distributed.tensor import DTensor

from pixlex import distributed
from pixlex.config.cbvila import ReasoningObjectiveConfig
from pixlex.config.lqae import LQAEObjectiveConfig
from pixlex.nn.bert import BertLayer
from pixlex.objectives.finetune import ReasoningObjective
from pixlex.objectives.lqae import LQAEObjective
from pixlex.objectives.phase import Objective
from pixlex.training import parallel as module
from pixlex.training.checkpoint import checkpoints
from pixlex.training.logging import METRICS, read_metrics
from pixlex.training.parallel import Parallel, transformer_layers

pytestmark = pytest.mark.timeout(600)

ROWS = torch.arange(12.0).view(6, 2)
WORK = torch.arange(7)
SHARDED = {"shard_parameters": True}
# Name -> family, and what differs from a plain run on one process.
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "lqae": ("lqae", {}),
    "in turn": ("cbvila, in turn", {}),
    "averages": ("cbvila, averages", {}),
    "gumbel": ("cbvila, gumbel", {}),
    "words": ("words", {}),
    "contrast first": ("cbvila, contrast first", {}),
    "lqae, sharded": ("lqae", SHARDED),
    "vqvae, sharded, recomputed": ("vqvae", {**SHARDED, "checkpoint_activations": True}),
    "cbvila, sharded": ("cbvila, codebook first", SHARDED),
}
# Whitening takes the mean away: these shifts have no gradient but rounding, which Adam blows up to full steps; nor
# does a bias of keys move a softmax.
NOISE = (
    "model.encoder.trunk.norm.bias", "model.projector.bias", "model.quantizer.whitening.mean", "key_value.bias",
)  # fmt: skip


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, pairs: Path, language: Path) -> Path:
    """What two processes left, all started once."""
    folder = tmp_path_factory.mktemp("together")
    run(folder / "from one", pairs, "lqae", language, settings(), signaled_before(5))
    on_two_processes(folder, _work, folder, pairs, language)
    return folder


def _work(rank: int, folder: Path, pairs: Path, language: Path) -> None:
    torch.save(_collected(rank), folder / f"{rank}.pt")
    objective = LQAEObjective(tiny_lqae(language), LQAEObjectiveConfig(), 10)
    sharded = _shard(objective).objective
    _shard(ReasoningObjective(tiny_reasoner(language), ReasoningObjectiveConfig(), 10))
    _clip(objective, sharded)
    assert sharded.model.language is objective.model.language  # frozen: not stored twice
    for name, (family, changes) in TRAININGS.items():
        own = folder / name / f"rank{rank}" if rank else folder / name
        run(own, pairs, family, language, settings(**changes))
        dist.barrier()
    # One of them is told to stop, both do.
    cut, config = folder / "cut", settings(**SHARDED)
    run(cut, pairs, "lqae", language, config, signaled_before(5) if rank else None)
    dist.barrier()
    assert checkpoints(cut / "checkpoints")[-1].name == "step-00000005.pt"
    if rank == 0:
        shutil.copytree(cut, folder / "to one")
    dist.barrier()
    for name in ("from one", "cut"):
        run(folder / name, pairs, "lqae", language, config)


def _collected(rank: int) -> dict[str, Any]:
    everyone, mine = distributed.all_processes(), ROWS.chunk(2)[rank].clone().requires_grad_()
    gathered = everyone.gather_rows(mine)
    # Each process weighs the rows of all in its own way: the gradient is the sum of both.
    (gathered * torch.arange(1.0, 7.0).view(6, 1) * (rank + 1)).sum().backward()
    return {
        "gathered": gathered.detach(),
        "gradient": mine.grad,
        "mean": everyone.all_mean(mine).detach(),
        "picked": distributed.pick_rows(mine.detach(), torch.tensor([5, 0, 0, 3])),
        "sum": distributed.all_sum(mine.detach()),
        "anywhere": [distributed.anywhere(rank == number) for number in (1, 2)],
        "in turn": distributed.in_turn([(one, WORK[:one]) for one in distributed.my_turns(range(7))]),
        "uneven": distributed.in_turn(["only"] if rank == 0 else []),
        "objects": distributed.gather_objects({"rank": rank}),
        "from first": distributed.from_first(lambda: f"of {rank}"),
        "numbers": distributed.mean_numbers({"rank": float(rank)}),
    }


def test_collectives_on_two_processes(together: Path) -> None:
    """Rows in order of rank, gradients from both sides, rows by number, sums and means."""
    gradient = 3 * torch.arange(1.0, 7.0).view(6, 1).expand(6, 2)
    for rank in range(2):
        found = torch.load(together / f"{rank}.pt", weights_only=True)
        assert torch.equal(found["gathered"], ROWS)
        assert torch.equal(found["gradient"], gradient.chunk(2)[rank])
        assert torch.equal(found["picked"], ROWS[[5, 0, 0, 3]])
        assert torch.equal(found["sum"], ROWS[:3] + ROWS[3:])
        assert torch.equal(found["mean"], (ROWS[:3] + ROWS[3:]) / 2)
        assert found["anywhere"] == [True, False]
        assert [one for one, _ in found["in turn"]] == list(range(7))
        assert all(torch.equal(rows, WORK[:one]) for one, rows in found["in turn"])
        assert found["uneven"] == ["only"]
        assert found["objects"] == [{"rank": 0}, {"rank": 1}]
        assert found["from first"] == "of 0"
        assert found["numbers"] == {"rank": 0.5}


def test_alone_they_do_nothing() -> None:
    rows = ROWS.clone().requires_grad_()
    assert distributed.all_processes() == distributed.ALONE
    assert distributed.ALONE.gather_rows(rows) is distributed.ALONE.all_mean(rows) is rows
    assert distributed.all_sum(rows) is rows
    assert torch.equal(distributed.pick_rows(ROWS, torch.tensor([4, 1])), ROWS[[4, 1]])
    assert distributed.anywhere(True)
    assert distributed.in_turn([4, 1]) == distributed.my_turns([4, 1]) == [4, 1]
    assert distributed.gather_objects(7) == [7]
    assert distributed.from_first(lambda: 7) == 7
    assert distributed.is_first()


def _shard(objective: Objective) -> Parallel:
    """Halves of what layers hold, all of the rest; gathered they are what they were."""
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    parallel = Parallel(objective, settings(**SHARDED))
    for name, parameter in objective.named_parameters():
        other = parallel.objective.get_parameter(name)
        assert not isinstance(parameter, DTensor)
        if isinstance(other, DTensor):
            assert 2 * other.to_local().numel() in (parameter.numel(), parameter.numel() + other[0].numel())
    for layer in set(parallel.objective.modules()).intersection(transformer_layers(parallel.objective.model)):
        replicated = {name for name, one in layer.named_parameters() if not isinstance(one, DTensor)}
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


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_equal_one(name: str, together: Path, alone: Alone) -> None:
    """The same batch on one and two processes, replicated or sharded: equal but for rounding."""
    folder, objective = alone(TRAININGS[name][0])
    state = _newest(together / name)["objective"]
    for key, value in objective.state_dict().items():
        if not key.endswith(NOISE):
            torch.testing.assert_close(
                state[key], value, rtol=5e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
            )
    terms = ("total", "reconstruction", "distinct_codewords", "perplexity", "gradient_norm", "restarted")
    for one, two in zip(*(read_metrics(path / METRICS) for path in (folder, together / name)), strict=True):
        found = [key for key in one if key.rpartition("/")[2] in terms]
        assert len(found) > 1
        for key in found:
            assert one[key] == pytest.approx(two[key], rel=2e-3), key


def test_a_sharded_run_goes_on(together: Path, pairs: Path, language: Path) -> None:
    """Stopped, it goes on to the bits of one left alone; begun or ended on one process, to rounding."""
    run(together / "to one", pairs, "lqae", language, settings())
    names = ("lqae, sharded", "cut", "from one", "to one")
    whole, cut, *others = (_newest(together / name) for name in names)
    assert all(state["step"] == STEPS for state in (whole, cut, *others))
    for key, value in whole["objective"].items():
        assert torch.equal(value, cut["objective"][key]), key
        for other in others:
            apart = settings().learning_rate * STEPS if key.endswith(NOISE) else 1e-5
            torch.testing.assert_close(other["objective"][key], value, rtol=1e-4, atol=apart)
    for key, moments in whole["optimizer"]["state"].items():
        assert all(
            torch.equal(value, cut["optimizer"]["state"][key][kind]) for kind, value in moments.items()
        )


def _newest(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(checkpoints(folder / "checkpoints")[-1], weights_only=True)
    return state
