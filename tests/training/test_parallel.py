"""Devices, precision, rates and decay; checkpoints of this version and of others."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.running import FAMILIES, run, settings
from torch import nn

from pixlex.config.fields import TrainConfig
from pixlex.distributed import Processes, pick_device
from pixlex.objectives.phase import LossTerms
from pixlex.training.checkpoint import checkpoints
from pixlex.training.parallel import Parallel, build_optimizer, learning_rate, mixed_precision, pick_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("units", "expected"), [({}, "fp32"), ({"avx512_bf16": True}, "bf16"),
                                                 ({"amx_bf16": True}, "bf16")])  # fmt: skip
def test_auto_is_bf16_where_the_processor_has_units_for_it(
    units: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert pick_precision("auto", CPU) == expected
    assert [pick_precision(name, CPU) for name in ("bf16", "fp16", "fp32")] == ["bf16", "fp16", "fp32"]
    with mixed_precision(CPU, "auto"):
        assert torch.is_autocast_enabled("cpu") == (expected == "bf16")


def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated bfloat16, of older GPUs, does not count: they take fp16."""
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert pick_precision("auto", torch.device("cuda")) == ("bf16" if has else "fp16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_devices_that_are_not_there() -> None:
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(ValueError, match="device 'cuda' is not there: torch sees 0 GPUs"):
        pick_device("cuda")
    with pytest.raises(ValueError, match=r"device must be auto, cpu, cuda, cuda:N or mps, got 'tpu\?'"):
        pick_device("tpu?")


def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert pick_device("auto") == torch.device("cuda", 0)
    for rank, expected in (("3", 3), ("5", 1)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert pick_device("auto") == torch.device("cuda", expected)
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setenv("RANK", "6")  # a launcher that numbers all processes alone
    assert pick_device("auto") == torch.device("cuda", 2)
    assert pick_device("cuda:2") == torch.device("cuda", 2)
    with pytest.raises(ValueError, match="device 'cuda:4' is not there: torch sees 4 GPUs"):
        pick_device("cuda:4")


def test_what_overflows_at_any_scale_is_no_matter_of_the_scale(
    language: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skipped and counted while the scale is 1 or more; below, the norm says that it is not finite."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0))
    parallel = Parallel(FAMILIES["vqvae"](language, 2), settings(precision="fp16"))
    before = {name: one.clone() for name, one in parallel.objective.named_parameters()}
    found = []
    for _ in range(3):
        total = sum(one.sum() for one in parallel.objective.parameters()) * torch.inf
        values = parallel.update(LossTerms(torch.as_tensor(total), {}))
        found.append([float(values[name]) for name in ("loss_scale", "skipped_steps", "gradient_norm")])
    assert found[:2] == [[2, 1, 0], [1, 2, 0]]
    assert found[2][:2] == [0.5, 2]
    assert not math.isfinite(found[2][2])
    assert all(torch.equal(one, before[name]) for name, one in parallel.objective.named_parameters())


def test_fp16_is_not_for_sharded_parameters(language: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixlex.distributed.all_processes", lambda: Processes(0, 2))
    with pytest.raises(ValueError, match=r"train\.precision=fp16: expected bf16 or fp32 with train\.shard_p"):
        Parallel(FAMILIES["vqvae"](language, 2), settings(precision="fp16", shard_parameters=True))


def test_a_checkpoint_without_a_scale_is_read(tmp_path: Path, pairs: Path, language: Path) -> None:
    run(tmp_path, pairs, "vqvae", language, settings(steps=1))
    assert "scaler" not in torch.load(checkpoints(tmp_path / "checkpoints")[-1], weights_only=True)
    config = settings(precision="fp16")
    assert Parallel(FAMILIES["vqvae"](language, 2), config).resume(tmp_path / "checkpoints") == 1


def _renamed(state: dict[str, Any]) -> None:
    state["objective"]["model.other"] = state["objective"].pop("model.codebook.weight")


def _reshaped(state: dict[str, Any]) -> None:
    state["objective"]["model.codebook.weight"] = torch.zeros(3, 8)


def _nameless(state: dict[str, Any]) -> None:
    state["optimizer"]["state"] = dict(enumerate(state["optimizer"]["state"].values()))
    for group in state["optimizer"]["param_groups"]:
        del group["param_names"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_renamed, "2 tensors are in the checkpoint or the model alone: model.codebook.weight"),
        (_reshaped, r"expected model.codebook.weight of \(64, 8\), got \(3, 8\)"),
        (_nameless, "without the names of their parameters"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    change: Any, message: str, tmp_path: Path, pairs: Path, language: Path
) -> None:
    run(tmp_path, pairs, "vqvae", language, settings(steps=1))
    path = checkpoints(tmp_path / "checkpoints")[-1]
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises(ValueError, match=f"does not fit this configuration or version: .*{message}"):
        Parallel(FAMILIES["vqvae"](language, 2), settings()).resume(path.parent)


def test_numbered_moments_are_read_by_their_names(tmp_path: Path, pairs: Path, language: Path) -> None:
    """As older versions wrote them, whatever their order and groups; what has none gets none."""
    run(tmp_path, pairs, "vqvae", language, settings(steps=1))
    path = checkpoints(tmp_path / "checkpoints")[-1]
    state = torch.load(path, weights_only=True)
    moments = state["optimizer"]["state"]
    names = sorted(moments, reverse=True)
    numbered = {number: moments[name] for number, name in enumerate(names) if number}
    groups = [{"params": list(range(len(names))), "param_names": names}]
    torch.save({**state, "optimizer": {"state": numbered, "param_groups": groups}}, path)
    parallel = Parallel(FAMILIES["vqvae"](language, 2), settings(decay_all=True))
    assert parallel.resume(path.parent) == 1
    own = parallel.objective.named_parameters()
    found = {name: parallel.optimizer.state[one] for name, one in own if one in parallel.optimizer.state}
    assert found.keys() == set(names[1:])
    for name, values in found.items():
        assert values.keys() == moments[name].keys()
        assert all(torch.equal(values[kind], one) for kind, one in moments[name].items())
    assert parallel.optimizer.param_groups[0]["weight_decay"] == settings().weight_decay


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
