"""`pixlex evaluate linear-probe`: from folders of pictures to a page, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.eval.classes import write_classes
from tests.tiny import tiny_language, tiny_lqae, tiny_vqvae

from pixlex.api import ImageTokenizer
from pixlex.cli import main

Outcome = tuple[int, str, str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Directories of a tiny LQAE and a tiny VQ-VAE."""
    folder = tmp_path_factory.mktemp("models")
    ImageTokenizer(tiny_lqae(tiny_language(folder / "language"), search="raw")).save(folder / "words")
    ImageTokenizer(tiny_vqvae()).save(folder / "codes")
    return str(folder / "words"), str(folder / "codes")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training and test images of three classes."""
    folder = tmp_path_factory.mktemp("images")
    return write_classes(folder / "train", 12), write_classes(folder / "test", 5, seed=1)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Outcome]:
    """`run(*arguments)` returns exit code, stdout and stderr of the command."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        given = [*arguments] if "--out" in arguments else [*arguments, "--out", tmp_path / "out"]
        code = main(["evaluate", "linear-probe", *(str(argument) for argument in given)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def refused(outcome: Outcome, code: int = 2) -> str:
    assert outcome[:2] == (code, ""), outcome[2]
    return outcome[2].splitlines()[-1].removeprefix("pixlex: error: ")


def test_a_table_of_models_and_features(
    run: Callable[..., Outcome],
    models: tuple[str, str],
    images: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pixlex.report.tables.draw_confusion", lambda row, names, path: path.touch())
    arguments: tuple[Any, ...] = (
        "--model", *models, "--data", images[0], "--test", images[1], "--features", "layers", "codes", "pixels",
        "--untrained", "--per-layer", "--cache", tmp_path / "cache",
    )  # fmt: skip
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    values = json.loads(out)
    rows = {row["name"]: row for row in values["rows"]}
    assert list(rows) == [
        "words, layers", "words, codes", "words, pixels", "words, layer 0", "words, layer 1",
        "words, untrained, layers", "words, untrained, codes", "words, untrained, layer 0",
        "words, untrained, layer 1", "codes, codes x 8", "codes, untrained, codes x 8",
    ]  # fmt: skip
    assert rows["words, layers"]["width"] == rows["codes, codes x 8"]["width"] == 64
    assert rows["words, layers"]["num_train"] == 36
    assert rows["words, pixels"]["top1"] == 1.0
    assert any("r copies act as one column" in note for note in values["notes"])
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert saved["rows"] == values["rows"]
    assert "pixlex evaluate linear-probe" in (tmp_path / "out" / "report.html").read_text()
    assert "words, training: 100%" in err
    again = ("--model", models[1], *arguments[3:7], "--cache", tmp_path / "cache", "--quiet")
    code, out, err = run(*again)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("codes, encoder ")
    assert "39.7 % (published, not comparable" in out


def test_a_validation_set_and_limits(
    run: Callable[..., Outcome], models: tuple[str, str], images: tuple[Path, Path], tmp_path: Path
) -> None:
    validation = write_classes(tmp_path / "validation", 4, seed=2)
    arguments = ("--model", models[0], "--data", images[0], "--test", images[1], "--validation", validation)
    (row,) = json.loads(run(*arguments, "--limit", 18, "--test-limit", 9, "--json")[1])["rows"]
    assert (row["num_train"], row["num_validation"], row["num_test"]) == (18, 9, 9)
    assert row["features"] == "layers"


def test_broken_images_are_skipped_counted_and_listed(
    run: Callable[..., Outcome], models: tuple[str, str], images: tuple[Path, Path], tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(images[0], tmp_path / "broken"))
    (broken / "red" / "3.png").write_bytes(b"no image")
    arguments = ("--model", models[1], "--data", broken, "--test", images[1], "--json")
    code, out, err = run(*arguments)
    row, codewords = json.loads(out)["rows"]
    assert (row["name"], codewords["name"]) == ("codes, encoder", "codes, codes")
    assert (code, row["num_train"]) == (0, 35)
    assert [one["key"] for one in row["skipped"]] == ["red/3.png"]
    assert "pixlex: skipped red/3.png: not an image" in err
    assert "red/3.png" in refused(run(*arguments, "--max-broken-share", 0.01), code=1)


def test_what_it_refuses(
    run: Callable[..., Outcome], models: tuple[str, str], images: tuple[Path, Path], tmp_path: Path
) -> None:
    train, test = images
    both = ("--data", train, "--test", test)
    flat = write_classes(tmp_path / "flat", 3) / "red"
    assert "expected labeled images" in refused(run("--model", models[0], "--data", flat, "--test", test))
    assert "expected labeled images" in refused(run("--model", models[0], "--data", train, "--test", flat))
    message = refused(run("--model", models[0], "--data", train, "--test", train))
    assert "36 of 36 images" in message
    assert "--allow-overlap" in message
    other = write_classes(tmp_path / "other", 3, names=("red", "mauve"))
    assert "'mauve'" in refused(run("--model", models[0], "--data", train, "--test", other))
    few = write_classes(tmp_path / "few", 1, seed=3)
    assert "at least 2 readable images" in refused(run("--model", models[0], "--data", few, "--test", test))
    message = refused(run("--model", models[1], *both, "--features", "layers"))
    assert message == "no model has the features 'layers': expected codes, encoder, pixels of a VQ-VAE"
    assert "invalid choice: 'beauty'" in refused(run("--model", models[1], *both, "--features", "beauty"))
    assert "expected different models" in refused(run("--model", models[0], models[0], *both))
    assert not (tmp_path / "out").exists()
