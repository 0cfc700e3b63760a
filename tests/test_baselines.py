"""Runs of the families that are no tokenizers: from start to finish, cut off and resumed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tests.tiny import tiny_run
from tests.training.running import signaled_before

from pixlex import run as runs
from pixlex.config.run import Run
from pixlex.files import read_json
from pixlex.models import checkpoint
from pixlex.training.checkpoint import checkpoints
from pixlex.training.logging import read_metrics

RUN = {
    "train.steps": 6, "train.checkpoint_every": 2, "train.evaluate_every": 3, "eval.examples": 3, "eval.limit": 10,
    "eval.batch_size": 4,
}  # fmt: skip


def _mae_run(pictures: Path, validation: str) -> Run:
    return tiny_run("mae", None, {**RUN, "data.train": str(pictures), "data.validation": validation})


@pytest.fixture(scope="module")
def captions(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures with two captions each, one of them longer than the limit."""
    images = pq.read_table(pictures)
    texts = [[f"the class {number}", "for " * 20 + "all"] for number in range(len(images))]
    path = tmp_path_factory.mktemp("captions") / "captions.parquet"
    pq.write_table(images.append_column("captions", pa.array(texts)), path)
    return path


def _frozen_run(captions: Path, language: Path) -> Run:
    data = {"data.train": str(captions), "data.validation": str(captions), "data.max_words": 8}
    return tiny_run("frozen", language, {**RUN, **data, "train.weight_decay": 0.1, "train.decay_all": True})


@pytest.fixture(scope="module")
def folders(
    pictures: Path, captions: Path, causal_language: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Run, Path]]:
    """A finished run of each family, with its folder."""
    made = {"mae": _mae_run(pictures, str(pictures)), "frozen": _frozen_run(captions, causal_language)}
    place = tmp_path_factory.mktemp("runs")
    for name, run in made.items():
        assert runs.run_training(run, place / name) == place / name / "model"
    return {name: (run, place / name) for name, run in made.items()}


@pytest.mark.parametrize(
    ("name", "kind", "measures", "card", "said"),
    [
        ("mae", "masked", {"masked_patches", "flat_patches"}, "masked-autoencoder", "saw 25% of the 4 x 4"),
        ("frozen", "captions", {"caption", "other_image_caption"}, "image-captioning", "caption: the class 0"),
    ],
)  # fmt: skip
def test_a_run_folder_holds_everything(
    name: str, kind: str, measures: set[str], card: str, said: str, folders: dict[str, tuple[Run, Path]]
) -> None:
    """Numbers, pictures, page, and a model directory with a card; of Frozen only the vision encoder is stored."""
    _, folder = folders[name]
    for picture in (f"pictures/{kind}-00000003.png", f"pictures/{kind}-00000006.png", "curves.png"):
        with Image.open(folder / picture) as opened:
            assert opened.width > 100
    results = read_json(folder / "results.json")
    assert set(results) == {"eval/num_images", *(f"eval/{one}" for one in measures)}
    assert results["eval/num_images"] == 10
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if "eval/num_images" in line] == [3, 6]
    assert card in (folder / "model/README.md").read_text()
    assert said in (folder / "report.html").read_text()
    assert checkpoint.load_any(str(folder)).family == name
    state = torch.load(checkpoints(folder / "checkpoints")[-1], weights_only=True)["objective"]
    parts = {"mae": {"network"}, "frozen": {"encoder", "projector"}}[name]
    assert {key.split(".")[1] for key in state} == parts


@pytest.mark.parametrize("name", ["mae", "frozen"])
def test_resumed_equals_left_alone(name: str, folders: dict[str, tuple[Run, Path]], tmp_path: Path) -> None:
    """The weights are equal to the bit, and so are the numbers: the same captions are drawn."""
    run, folder = folders[name]
    with signaled_before(4):
        assert runs.run_training(run, tmp_path) is None
    assert not (tmp_path / "model").exists()
    assert runs.run_training(run, tmp_path, resume=True) is not None
    for one in ("model/model.safetensors", "results.json"):
        assert (tmp_path / one).read_bytes() == (folder / one).read_bytes()


def test_without_validation_images_there_is_a_model_and_no_number(tmp_path: Path, pictures: Path) -> None:
    assert runs.run_training(_mae_run(pictures, ""), tmp_path) == tmp_path / "model"
    assert read_json(tmp_path / "results.json") == {}
    assert not (tmp_path / "report.html").exists()


def test_without_captions_columns_are_named(tmp_path: Path, pictures: Path, causal_language: Path) -> None:
    with pytest.raises(ValueError, match="expected a column captions, caption, title or text, found image"):
        runs.run_training(_frozen_run(pictures, causal_language), tmp_path)
