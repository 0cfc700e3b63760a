"""A run folder from start to finish: what is in it, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.tiny import tiny_run
from tests.training.running import on_two_processes

from pixlex import run as runs
from pixlex.config.run import Run, read_run
from pixlex.models import checkpoint
from pixlex.models.lqae import LQAE
from pixlex.training.logging import read_metrics


def _run(language: Path, pictures: Path, **train: object) -> Run:
    changes = {"data.train": str(pictures), "data.validation": str(pictures), "eval.word_folds": 2}
    changes |= {"eval.examples": 3, "train.steps": 4, "train.checkpoint_every": 2, "train.evaluate_every": 2}
    return tiny_run("lqae", language, changes | {f"train.{name}": value for name, value in train.items()})


@pytest.fixture(scope="module")
def finished(language: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on one process."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert runs.run_training(_run(language, pictures, precision="fp32"), folder) == folder / "model"
    return folder


def test_a_finished_run_folder_holds_everything(finished: Path) -> None:
    """Configuration, environment, numbers, curves, grids, checkpoints, model with card, page."""
    for name in ("config.yaml", "environment.json", "commands.txt", "metrics.jsonl", "report.html"):
        assert (finished / name).stat().st_size > 0, name
    for name in ("curves", "pictures/reconstruction-00000002", "pictures/reconstruction-00000004"):
        with Image.open(finished / f"{name}.png") as picture:
            assert picture.width > 100
    assert [line["step"] for line in read_metrics(finished / "metrics.jsonl") if "eval/psnr" in line] == [
        2,
        4,
    ]
    assert 0 < json.loads((finished / "results.json").read_text())["eval/codebook_usage"] <= 1
    loaded = checkpoint.load(str(finished))
    assert isinstance(loaded, LQAE)
    assert loaded.language.fingerprint in (finished / "model/README.md").read_text()
    assert sum(path.stat().st_size for path in (finished / "model").iterdir()) < 2e6


def _train_one_of_two(rank: int, folder: Path, language: Path, pictures: Path) -> None:
    runs.run_training(_run(language, pictures, precision="fp32"), folder / "run")


def test_two_processes_leave_the_folder_of_one(
    finished: Path, tmp_path: Path, language: Path, pictures: Path
) -> None:
    """Evaluations on the way are shared too: the same numbers but for rounding, and the same pictures."""
    on_two_processes(tmp_path, _train_one_of_two, tmp_path, language, pictures)
    expected, found = (
        {line["step"]: line for line in read_metrics(folder / "metrics.jsonl") if "eval/psnr" in line}
        for folder in (finished, tmp_path / "run")
    )
    assert list(found) == list(expected) == [2, 4]
    for step, line in expected.items():
        for name in ("eval/psnr", "eval/mse", "eval/codebook_usage"):
            assert found[step][name] == pytest.approx(line[name], rel=1e-3), (step, name)
    one, two = ({path.relative_to(at) for path in at.rglob("*.png")} for at in (finished, tmp_path / "run"))
    assert one == two


def test_a_folder_in_use_is_not_overwritten(
    finished: Path, tmp_path: Path, language: Path, pictures: Path
) -> None:
    """Without resume a second run is refused; with resume only the same run goes on."""
    folder = shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(ValueError, match="--resume"):
        runs.run_training(_run(language, pictures, precision="fp32"), folder)
    with pytest.raises(ValueError, match=r"train.seed: 0 -> 1"):
        runs.run_training(_run(language, pictures, precision="fp32", seed=1), folder, resume=True)
    free = _run(language, pictures, precision="fp32", log_every=2, shard_parameters=True)
    free = dataclasses.replace(free, data=dataclasses.replace(free.data, max_broken_fraction=0.5))
    assert runs.run_training(free, folder, resume=True) is not None


def test_precision_is_decided_once(
    tmp_path: Path, language: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands in the folder, and a run goes on with it on a machine that would decide otherwise."""
    run = _run(language, pictures, steps=1, evaluate_every=0)
    assert run.train.precision == "auto"
    for has_units in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has_units: {"avx512_bf16": has})
        assert runs.run_training(run, tmp_path, resume=not has_units) is not None
        assert read_run(tmp_path / "config.yaml").train.precision == "bf16"
    with pytest.raises(ValueError, match=r"train\.precision: 'bf16' -> 'fp32'"):
        runs.run_training(
            _run(language, pictures, steps=1, evaluate_every=0, precision="fp32"), tmp_path, resume=True
        )


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
