"""What a run needs at least: never more than it takes, and told before anything is built."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import pair_batch

import pixlex.run
from pixlex.batch import ImageBatch
from pixlex.config.run import read_run
from pixlex.models.cbvila import CBViLA
from pixlex.objectives.phase import Step
from pixlex.run import build_objective, run_training
from pixlex.training import memory
from pixlex.training.memory import check_memory, memory_of, needed
from pixlex.training.parallel import prepare_layers

GIB = 2**30


def _batch(model: Any, count: int) -> ImageBatch:
    size = model.config.image_size
    images = torch.rand(count, 3, size, size)
    if isinstance(model, CBViLA):
        pairs = pair_batch(model, ["a red square"] * count)
        return type(pairs)(**{**vars(pairs), "images": images})
    return ImageBatch(images, torch.zeros(count, dtype=torch.long), ("",) * count, torch.arange(count))


@pytest.mark.parametrize("computes_again", [False, True])
@pytest.mark.parametrize("recipe", ["lqae/tiny", "lqae/vqvae-tinyimages", "mae/tiny", "cbvila/tiny"])
def test_a_run_takes_no_less(recipe: str, computes_again: bool) -> None:
    """Parameters, and what a step keeps for its gradients, by counting them."""
    run = read_run(
        recipe,
        ["train.batch_size=4", "train.precision=fp32", f"train.checkpoint_activations={computes_again}"],
    )
    objective, least = build_objective(run).train(), needed(run)
    count = sum(one.numel() for one in objective.model.parameters())
    assert 0.2 * count < least.parameters <= count  # words and positions are left out
    assert least.state <= 16 * count
    own = {one.data_ptr() for one in objective.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    prepare_layers(objective.model, checkpoints=computes_again)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        objective(
            _batch(objective.model, 4), objective.phase_at(10**9), Step(1, torch.Generator().manual_seed(0))
        )
    assert 0 < least.activations <= sum(kept.values())


@pytest.mark.parametrize(
    "setting",
    [
        "model.encoder.depth=1000000000", "model.decoder.width=10000000", "train.batch_size=1000000000",
        "model.image_size=65536",
    ],
)  # fmt: skip
def test_what_cannot_fit_is_refused_before_it_is_built(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(pixlex.run, "build_objective")
    began = time.monotonic()
    with pytest.raises(
        ValueError, match=r"cannot fit: its [\d,.]+ million parameters .* and cpu has [\d,.]+ GiB"
    ):
        run_training(read_run("lqae/tiny", [setting, "train.device=cpu"]), tmp_path / "run")
    assert time.monotonic() - began < 5
    assert not (tmp_path / "run").exists()


def test_numbers_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    run = read_run("lqae/paper", ["train.device=cpu", "train.precision=bf16"])
    least = needed(run)
    monkeypatch.setattr(memory, "memory_of", lambda device: least.memory)
    check_memory(run)
    monkeypatch.setattr(memory, "num_on_this_machine", lambda: 2)
    with pytest.raises(ValueError, match=r"169\.9 million .* activations of .* images .* train\.batch_size"):
        check_memory(run)
    monkeypatch.setattr(memory, "memory_of", lambda device: None)
    check_memory(run)
    again = read_run("lqae/paper", ["train.checkpoint_activations=true"])
    assert needed(again).activations * 14 == pytest.approx(least.activations)
    assert str(least).startswith("at least 169.9 million parameters, ")
    assert str(replace(least, parameters=24_576)).startswith("at least 24,576 parameters, ")


def test_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container's limit counts where it is lower."""
    whole = memory_of(torch.device("cpu"))
    assert whole is not None
    assert 2**28 < whole < 2**50
    (tmp_path / "limit").write_text("1000000\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(memory, "_CGROUPS", (str(tmp_path / "none"), str(tmp_path / "limit")))
    limited = memory_of(torch.device("cpu"))
    assert limited is not None
    assert limited < whole
