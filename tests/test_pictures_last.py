"""Numbers are printed and written before the first picture; what pictures and pages meet does not undo them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image
from tests.tiny import tiny_vqvae_config, write_images

from pixlex import run as runs
from pixlex.cli import main
from pixlex.config.fields import DataConfig, EvalConfig, TrainConfig
from pixlex.config.lqae import VQVAERun
from pixlex.files import read_json
from pixlex.models import checkpoint
from pixlex.report import figures

Call = Callable[..., tuple[int, str, str]]
# A name that is no UTF-8, one that colors a terminal, one with a line end.
NAMES = (b"caf\xe9.png", b"\x1b[31mred.png", b"two\nlines.png", b"plain.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """Models, labeled images, and a folder of pictures with hostile names in it."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("vqvae", "cbvila"):
        (folder / name).symlink_to(models / name)
    for name in ("a", "b"):
        write_images(folder / "labeled" / name, [f"{number}.png" for number in range(6)], seed=ord(name))
    hostile = folder / os.fsdecode(b"caf\xe9\x1b[31m")
    hostile.mkdir()
    for number, raw in enumerate(NAMES):
        Image.new("RGB", (40, 40), (50 * number, 90, 90)).save(hostile / os.fsdecode(raw))
    (hostile / os.fsdecode(b"torn\x1b[32m\xe9.png")).write_bytes(b"torn")
    return folder


def _commands(place: Path, out: Path) -> dict[str, Sequence[object]]:
    labeled, vqvae = place / "labeled", place / "vqvae"
    picture = labeled / "a" / "0.png"
    return {
        "reconstruction": ("evaluate", "reconstruction", "--model", vqvae, "--data", labeled, "--out", out),
        "linear probe": (
            "evaluate", "linear-probe", "--model", vqvae, "--data", labeled, "--test", labeled, "--allow-overlap",
            "--out", out,
        ),
        "few-shot": (
            "evaluate", "few-shot", "--data", labeled, "--episodes", 3, "--ways", 2, "--settings", "1/0",
            "--classifiers", "pixels", "chance", "--out", out,
        ),
        "gallery": ("gallery", "--model", vqvae, "--data", labeled, "--out", out / "g.png"),
        "explain": ("explain", "--model", place / "cbvila", picture, "a text", "--out", out / "e.png"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["reconstruction", "linear probe", "few-shot", "gallery", "explain"])
def test_numbers_come_first_and_stay(
    name: str,
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    printed: list[str] = []

    def full(path: Path, write: object) -> None:
        printed.append(capsys.readouterr().out)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures, "write_atomically", full)
    code = main([str(one) for one in _commands(place, out)[name]])
    remarks = capsys.readouterr().err
    assert code == 0
    assert len(printed[0].splitlines()) >= 1, "a picture came before the numbers"
    assert len(printed[0]) > 20
    assert "could not be made: OSError: [Errno 28] No space left on device" in remarks
    assert "page " not in remarks
    if name in ("reconstruction", "linear probe", "few-shot"):
        assert (out / "results.json").stat().st_size > 20


@pytest.fixture
def run(place: Path) -> VQVAERun:
    """Two steps on pictures with hostile names."""
    (hostile,) = (path for path in place.iterdir() if "\x1b" in path.name)
    data = DataConfig(train=str(hostile), validation=str(hostile), max_broken_fraction=0.5)
    train = TrainConfig(steps=2, batch_size=2, learning_rate=1e-3, warmup_steps=0, device="cpu", log_every=1)
    return VQVAERun(
        model=tiny_vqvae_config(), data=data, train=train, eval=EvalConfig(batch_size=4, examples=4)
    )


def test_a_training_ends_well_without_pictures(
    run: VQVAERun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, write: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures, "write_atomically", full)
    assert runs.run_training(run, tmp_path) == tmp_path / "model"
    assert checkpoint.load(str(tmp_path))
    assert 0 < read_json(tmp_path / "results.json")["eval/mse"] < 1
    remarks = capsys.readouterr().err
    for name in ("reconstruction-00000002.png", "curves.png", "README.md", "report.html"):
        assert f"{name} could not be made" in remarks
    assert not (tmp_path / "report.html").exists()


def test_names_of_files_end_no_training(run: VQVAERun, tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "run"
    assert runs.run_training(run, folder) == folder / "model"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert r"caf\xe9" in page
    assert "\x1b" not in page
    assert "\x1b" not in (folder / "model/README.md").read_text(encoding="utf-8")
    assert runs.read_run(folder / "config.yaml") == dataclasses.replace(run, train=_trained(folder))
    code, output, remarks = call(
        "evaluate", "reconstruction", "--model", folder, "--data", run.data.train, "--out", tmp_path / "e",
        "--max-broken-fraction", "0.5",
    )  # fmt: skip
    assert code == 0, remarks
    assert r"skipped torn\x1b[32m\xe9.png" in remarks
    assert "\x1b[3" not in output + remarks
    assert r"caf\xe9" in (tmp_path / "e/report.html").read_text(encoding="utf-8")


def _trained(folder: Path) -> TrainConfig:
    return runs.read_run(folder / "config.yaml").train


def test_a_folder_of_such_a_name_is_typed_as_it_is(run: VQVAERun, call: Call) -> None:
    """As an override, and in an error."""
    assert runs.read_run("lqae/tiny", [f"data.train={run.data.train}"]).data.train == run.data.train
    code, _, remarks = call("doctor", f"{run.data.train}/absent\x1b")
    assert code == 2
    assert r"caf\xe9\x1b[31m/absent\x1b" in remarks
    code, output, _ = call("doctor", run.data.train)
    assert code == 0
    assert "\x1b" not in output
    assert r"torn\x1b[32m\xe9.png" in output
