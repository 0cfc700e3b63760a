"""A run folder from start to finish: what is in it, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.train.running import on_two_processes

from pixlex import run as runs
from pixlex.config.run import Run, read_run, run_from
from pixlex.models import checkpoint
from pixlex.models.lqae import LQAE
from pixlex.train.logging import read_metrics


def _run(language: Path, pictures: Path, **train: object) -> Run:
    vision = {"width": 32, "depth": 1, "heads": 2}
    return run_from(
        {
            "family": "lqae",
            "model": {
                "image_size": 32, "patch_size": 8, "encoder": vision, "decoder": vision,
                "language": {"name": str(language)}, "quantizer": {"search_dim": 4},
            },
            "data": {"train": str(pictures), "validation": str(pictures)},
            "train": {
                "steps": 4, "batch_size": 4, "warmup_steps": 1, "device": "cpu", "checkpoint_every": 2,
                "evaluate_every": 2, "log_every": 1, **train,
            },
            "eval": {"word_folds": 2, "examples": 3},
        },
        "test",
    )  # fmt: skip


def test_a_finished_run_folder_holds_everything(tmp_path: Path, language: Path, pictures: Path) -> None:
    """Configuration, environment, numbers, curves, grids, checkpoints, model with card, page."""
    model_folder = runs.run_training(_run(language, pictures), tmp_path / "run")
    assert model_folder == tmp_path / "run/model"
    for name in ("config.yaml", "environment.json", "commands.txt", "metrics.jsonl", "report.html"):
        assert (tmp_path / "run" / name).stat().st_size > 0, name
    for name in ("curves", "pictures/reconstruction-00000002", "pictures/reconstruction-00000004"):
        with Image.open(tmp_path / "run" / f"{name}.png") as picture:
            assert picture.width > 100
    lines = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [line["step"] for line in lines if "eval/psnr" in line] == [2, 4]
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert 0 < results["eval/codebook_usage"] <= 1
    loaded = checkpoint.load(str(tmp_path / "run"))
    assert isinstance(loaded, LQAE)
    assert loaded.language.fingerprint in (model_folder / "README.md").read_text()
    assert sum(path.stat().st_size for path in model_folder.iterdir()) < 2e6


def _train_one_of_two(rank: int, folder: Path, language: Path, pictures: Path) -> None:
    runs.run_training(_run(language, pictures, precision="fp32"), folder / "run")


def test_two_processes_leave_the_folder_of_one(tmp_path: Path, language: Path, pictures: Path) -> None:
    """Evaluations on the way are shared too: the same numbers but for rounding, and the same pictures."""
    runs.run_training(_run(language, pictures, precision="fp32"), tmp_path / "run of one")
    on_two_processes(tmp_path, _train_one_of_two, tmp_path, language, pictures)
    expected, found = (
        {line["step"]: line for line in read_metrics(folder / "metrics.jsonl") if "eval/psnr" in line}
        for folder in (tmp_path / "run of one", tmp_path / "run")
    )
    assert list(found) == list(expected) == [2, 4]
    for step, line in expected.items():
        for name in ("eval/psnr", "eval/mse", "eval/codebook_usage"):
            assert found[step][name] == pytest.approx(line[name], rel=1e-3), (step, name)
    names = {path.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("*.p*ng")}
    assert names == {
        path.relative_to(tmp_path / "run of one") for path in (tmp_path / "run of one").rglob("*.p*ng")
    }


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path, language: Path, pictures: Path) -> None:
    """Without resume a second run is refused; with resume only the same run goes on."""
    runs.run_training(_run(language, pictures), tmp_path)
    with pytest.raises(ValueError, match="--resume"):
        runs.run_training(_run(language, pictures), tmp_path)
    with pytest.raises(ValueError, match=r"train.seed: 0 -> 1"):
        runs.run_training(_run(language, pictures, seed=1), tmp_path, resume=True)
    free = _run(language, pictures, log_every=2, shard_parameters=True)
    free = dataclasses.replace(free, data=dataclasses.replace(free.data, max_broken_share=0.5))
    assert runs.run_training(free, tmp_path, resume=True) is not None


@pytest.mark.parametrize("has_units", [True, False])
def test_precision_is_decided_once(
    has_units: bool, tmp_path: Path, language: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands in the folder, and a run goes on with it on a machine that would decide otherwise."""
    run = _run(language, pictures)
    assert run.train.precision == "auto"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_units})
    runs.run_training(run, tmp_path)
    expected = "bf16" if has_units else "fp32"
    assert read_run(tmp_path / "config.yaml").train.precision == expected
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not has_units})
    assert runs.run_training(run, tmp_path, resume=True) is not None
    assert read_run(tmp_path / "config.yaml").train.precision == expected
    other = "fp32" if has_units else "bf16"
    with pytest.raises(ValueError, match=f"train.precision: '{expected}' -> '{other}'"):
        runs.run_training(_run(language, pictures, precision=other), tmp_path, resume=True)


def test_a_configuration_alone_decides_nothing(tmp_path: Path, language: Path, pictures: Path) -> None:
    """What a kill left of a run that had not begun is written over."""
    (tmp_path / "config.yaml").write_text("")
    assert runs.with_precision(_run(language, pictures), tmp_path).train.precision in ("bf16", "fp32")


def test_a_batch_that_does_not_divide_is_named(
    tmp_path: Path, language: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes, four images."""
    monkeypatch.setattr(runs.distributed, "world_size", lambda: 3)
    with pytest.raises(ValueError, match="multiple of the 3 processes, got 4"):
        runs.run_training(_run(language, pictures), tmp_path)


def test_a_run_folder_has_one_writer(tmp_path: Path, language: Path, pictures: Path) -> None:
    """A second one is refused meanwhile; what a killed write left goes at the next start."""
    folder, run = tmp_path / "run", _run(language, pictures, steps=2)
    with runs.sole_writer(folder), pytest.raises(ValueError, match="being written by another process"):
        runs.run_training(run, folder, resume=True)
    assert [path.name for path in folder.iterdir()] == ["lock"]
    leftover = folder / "checkpoints" / f".step-00000002.pt.{'0' * 32}.partial"
    leftover.parent.mkdir()
    leftover.touch()
    assert runs.run_training(run, folder, resume=True) is not None
    assert not leftover.exists()
