"""Ablations: every row fits, finished rows stay, a diverging row stops no other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from tests.eval.few_shot.fakes import labeled
from tests.tiny import tiny_run

from pixlex import ablations
from pixlex.ablations import Measure, Measured, plan
from pixlex.cli import main
from pixlex.config.ablation import AblationRow, ablation_of, select_rows
from pixlex.config.lqae import LQAERun, VQVAERun
from pixlex.config.run import write_run
from pixlex.eval.few_shot.episodes import sample_episodes
from pixlex.eval.few_shot.prompts import setting_of
from pixlex.files import write_json
from pixlex.models import checkpoint
from pixlex.nn.language_model import load_language_model
from pixlex.report.tables import ablation_table
from pixlex.run import run_training, sole_writer, with_precision
from pixlex.training.loop import LossNotFinite

run_ablations = partial(ablations.run_ablations, train=run_training)
pytestmark = pytest.mark.usefixtures("without_curves")


@pytest.fixture
def recipe(tmp_path: Path, language: Path, pictures: Path) -> str:
    """An LQAE recipe of two steps."""
    data = {"data.train": str(pictures), "data.validation": str(pictures)}
    write_run(
        tiny_run("lqae", language, {**data, "eval.limit": 8, "eval.examples": 2}), tmp_path / "recipe.yaml"
    )
    return str(tmp_path / "recipe.yaml")


def left(run: LQAERun, folder: Path, *, resume: bool = False) -> Path:
    """Leave what a finished run leaves, without training."""
    (folder / "model").mkdir(parents=True)
    write_run(with_precision(run, folder), folder / "config.yaml")
    write_json(folder / "results.json", {"eval/psnr": 20.0})
    return folder / "model"


class Counted:
    """A measure that counts how often it is taken."""

    def __init__(self, identity: str = "one") -> None:
        self.rows: list[str] = []
        self.measure = Measure(name="few_shot", identity=identity, of=self.take)

    def take(self, model: Path, row: AblationRow) -> Mapping[str, Measured]:
        assert checkpoint.load(str(model)) is not None
        self.rows.append(row.name)
        return {"2-way": Measured(value=row.keep_fraction, low=0.0, high=1.0)}


def test_every_row_is_a_valid_run(recipe: str) -> None:
    """All rows build a run; each differs from the base in what it names and in nothing else."""
    rows = ablation_of("lqae").rows
    runs = plan(recipe, [], rows)
    assert set(runs) == {row.name for row in rows if row.trains}
    assert len({row.name for row in rows}) == len(rows)
    base = runs["base"]
    assert runs["A"].model.quantizer.metric == "euclidean"
    assert runs["B"].model.language.random_weights
    assert runs["F"].model.decoder_input == "predicted"
    assert isinstance(runs["I"], VQVAERun)
    assert (runs["I"].model.encoder, runs["I"].model.codebook_dim) == (base.model.encoder, 4)
    assert runs["I-joint"].model.quantizer.search == "assigned"
    assert runs["I-joint"].objective.raw_commitment_weight == base.objective.commitment_weight
    assert runs["D"].objective.entropy_weight > 0 == base.objective.entropy_weight
    assert {runs[f"mask-{ratio:g}"].objective.mask_ratio_max for ratio in (0, 0.3, 0.85)} == {0, 0.3, 0.85}
    for name, run in runs.items():
        assert run.train == base.train, name
        assert run.data == base.data, name


def test_rows_are_trained_once_and_measured_once(tmp_path: Path, recipe: str) -> None:
    """A second call trains and measures nothing; another identity measures again and trains nothing."""
    rows, out, counted = select_rows(["B", "G", "E-0.001"]), tmp_path / "out", Counted()
    results = run_ablations(recipe, [], rows, out, [counted.measure])
    assert results is not None
    assert [one.row.name for one in results] == ["base", "B", "E-0.001", "G-0.75", "G-0.5", "G-0.25"]
    # 0.001 is the recipe's own weight: no second model, no second measure.
    assert counted.rows == [row.name for row in rows if row.name != "E-0.001"]
    assert sorted(path.name for path in out.glob("rows/*/model")) == ["model"] * 2
    times = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    again = run_ablations(recipe, [], rows, out, [Counted().measure])
    assert again == results
    other = Counted("two")
    run_ablations(recipe, [], rows, out, [other.measure])
    assert other.rows == counted.rows
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    with pytest.raises(ValueError, match="other settings"):
        run_ablations(recipe, ["train.steps=3"], rows, out)
    table = ablation_table([one.values() for one in results])
    assert "| G-0.25 | first 25% of the words in the prompt | few-shot lower |" in table


def test_a_diverging_row_is_reported_and_stops_no_other(tmp_path: Path, recipe: str) -> None:
    def diverging(run: LQAERun, folder: Path, *, resume: bool = False) -> Path | None:
        if run.model.language.random_weights:
            raise LossNotFinite("step 1: reconstruction is nan")
        return left(run, folder)

    results = run_ablations(recipe, [], select_rows(["B", "E-0"]), tmp_path / "out", train=diverging)
    assert results is not None
    assert [(one.row.name, one.failure) for one in results] == [
        ("base", ""),
        ("B", "step 1: reconstruction is nan"),
        ("E-0", ""),
    ]


def test_row_i_assigns_the_codes_of_a_trained_vqvae(
    tmp_path: Path, recipe: str, language: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code k is the k-th word of the recipe's vocabulary; the words are few-shot's, the probe has no layers."""
    monkeypatch.setattr(ablations, "CODES_ASSIGNED", 64)
    monkeypatch.setattr(ablations, "embedded_encoder", lambda: load_language_model(str(language)))
    images = labeled(tmp_path / "images", per_class=4)
    episodes = [sample_episodes(images, setting_of("1/0", 2), count=4, seed=0)]
    few_shot = ablations.few_shot_measure(images, episodes, tmp_path / "few-shot", device="cpu")
    rows = [row for row in select_rows(["I"]) if row.name != "I-joint"]
    results = run_ablations(recipe, [], rows, tmp_path / "out", [few_shot])
    assert results is not None
    assert set(results[1].measured["few_shot"]) == set(results[0].measured["few_shot"])
    model = checkpoint.load(str(tmp_path / "out/rows/I/model"))
    assert (type(model).__name__, model.num_codewords) == ("VQVAE", 64)
    words = checkpoint.load(str(tmp_path / "out/rows/base/model")).vocabulary.words[:64]  # type: ignore[union-attr]
    written = "\n".join(path.read_text() for path in (tmp_path / "few-shot/words").glob("*.jsonl"))
    texts = [json.loads(line)["text"].split() for line in written.splitlines() if line]
    assert any(set(text) <= set(words) for text in texts)


def test_an_interrupt_ends_it_and_the_next_call_goes_on(tmp_path: Path, recipe: str) -> None:
    calls: list[str] = []

    def interrupted(run: LQAERun, folder: Path, *, resume: bool = False) -> Path | None:
        calls.append(folder.name)
        return None if len(calls) == 2 else left(run, folder)

    rows = select_rows(["E-0", "E-0.1"])
    assert run_ablations(recipe, [], rows, tmp_path, train=interrupted) is None
    assert run_ablations(recipe, [], rows, tmp_path, train=interrupted) is not None
    assert calls == ["base", "E-0", "E-0", "E-0.1"]


def test_what_cannot_be_run(recipe: str) -> None:
    for rows, message in ((["C"], "does not describe"), (["H"], "each makes a column"), (["Z"], "got 'Z'")):
        with pytest.raises(ValueError, match=message):
            select_rows(rows)
    for name, settings, message in (
        ("lqae/vqvae", "data.train=x", "got vqvae"),
        (recipe, "data.validation=", "valida"),
    ):
        with pytest.raises(ValueError, match=message):
            plan(name, [settings], select_rows(["B"]))


def test_the_command_leaves_its_table(
    tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixlex.run.run_training", left)
    out = tmp_path / "out"
    assert (
        main(["ablate", recipe, "--out", str(out), "--rows", "mask-0", "mask-0.3", "--json", "--quiet"]) == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in answer["rows"]] == ["base", "mask-0", "mask-0.3"]
    table = (out / "table.md").read_text()
    assert "| mask-0.3 | 30% of the words hidden in training |" in table
    for name in ("rows.png", "mask-ratio.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200
    assert main(["ablate", recipe, "--out", str(out), "--rows", "mask-0.5", "--json", "--quiet"]) == 0
    rows = [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert rows == ["base", "mask-0", "mask-0.3", "mask-0.5"]  # what is there stays in the table
    with sole_writer(out):
        assert main(["ablate", recipe, "--out", str(out), "--quiet"]) == 2
    assert "being written by another process" in capsys.readouterr().err
    assert main(["ablate", recipe]) == 2
    assert "--out DIR" in capsys.readouterr().err
