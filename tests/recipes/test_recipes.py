"""The command on top of every recipe runs as printed, on small official files, up to its first evaluation."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.nn.test_vision import published
from tests.tiny import tiny_cbvila, write_images

from pixlex.config.run import find_recipe, read_run, recipe_names
from pixlex.models import checkpoint
from pixlex.training.logging import read_metrics
from pixlex.training.parallel import learning_rate

Call = Callable[..., tuple[int, str, str]]
SHORT = (
    "train.steps=1", "train.batch_size=8", "train.warmup_steps=0", "train.evaluate_every=1", "train.log_every=1",
    "train.device=cpu", "eval.limit=4", "eval.examples=1", "eval.word_folds=0",
)  # fmt: skip
SMALL = ("width=32", "depth=1", "heads=2")
COUNT = 4


def command_of(recipe: str) -> list[str]:
    """Return what its header says to type, the last of several ways, without `pixlex`."""
    lines = find_recipe(recipe).read_text().splitlines()
    (command,) = (line.removeprefix("# Command: ") for line in lines if line.startswith("# Command: "))
    program, *arguments = shlex.split(command.rpartition(", or ")[2].replace("/images/imagenet/", ""))
    assert program == "pixlex"
    return arguments


def _tiny(recipe: str, language: Path, causal_language: Path) -> Sequence[str]:
    """Return the overrides that cut a recipe to what a test can hold; a model to start from has its shape."""
    family = read_run(recipe).family
    scenes = ["data.train=embedded:scenes:train:9", "data.validation=embedded:scenes:test:4"]
    more = list(scenes) if "embedded:scenes" in find_recipe(recipe).read_text() else []
    if recipe.startswith("finetune/"):
        body = "model" if family == "cbvila" else "model.body"
        together = ["data.texts_per_image=2"] if "scenes-" in recipe and "assignment" not in recipe else []
        fewest = ["data.min_answer_count=1"] if family == "reasoning" else []
        # Twice the size of the model that it starts from.
        return [*more, *together, *fewest, f"{body}.image_size=64", "data.max_words=12"]
    more += ["model.image_size=32", "model.patch_size=8"]
    sides = {"frozen": ("encoder",), "cbvila": ("image", "text")}.get(family, ("encoder", "decoder"))
    more += [f"model.{side}.{size}" for side in sides for size in SMALL]
    if "meaning" in recipe:
        more += ["model.words=2", "model.quantizer.num_concepts=2", "model.quantizer.search_dim=2"]
    if recipe == "lqae/meaning":
        more += ["model.teacher=TEACHER"]
    elif "meaning" in recipe or recipe == "cbvila/drawings":  # two phases
        more += ["train.steps=2", "objective.teacher.steps=1", "objective.teacher.view_size=16"]
    match family:
        case "lqae":
            more.append(f"model.language.name={language}")
        case "vqvae":
            more += ["model.num_codewords=64", "model.codebook_dim=16"]
        case "frozen":
            more.append(f"model.language.name={causal_language}")
        case "cbvila":
            more += [f"model.{side}.pretrained=" for side in ("image", "text", "fusion")]
            more += [f"model.text.tokenizer={language}", "model.text.positions=60", "model.fusion.depth=1"]
            more += ["model.codebook.num_codewords=16", "data.max_words=12"]
    return more


@pytest.fixture(scope="module")
def workplace(language: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything that the commands name lies under just that name."""
    folder = tmp_path_factory.mktemp("workplace")
    checkpoint.save(tiny_cbvila(language), folder / "MODEL", trained_on=["pairs"])
    published("dinov2", folder / "TEACHER")
    numbers = range(COUNT)
    for name in ("TRAIN", "VALIDATION", "train", "val", "PAIRS", "OTHER_PAIRS"):
        write_images(folder / name, [f"{number}.png" for number in numbers])
        if "PAIRS" in name:
            for number in numbers:
                (folder / name / f"{number}.txt").write_text(f"about the class and {number}")
    _official_images(folder / "DIR")
    for dataset, splits in (("coco", ("train", "restval", "val")), ("flickr30k", ("train", "val"))):
        said = [{"raw": "About the class."}, {"raw": "any, also all"}]
        images = [
            {"split": split, "sentences": said, **_place(dataset, split, number)}
            for split in splits
            for number in numbers
        ]
        content = {"dataset": dataset, "images": images}
        (folder / f"dataset_{dataset}.json").write_text(json.dumps(content))
    for name, split in (("", "train2014"), ("OTHER_", "val2014")):
        asked = [{"question_id": n, "image_id": n, "question": f"What is {n}?"} for n in numbers]
        replies = [
            {"question_id": n, "image_id": n, "answers": [{"answer": "class" if n % 2 else "other"}] * 10}
            for n in numbers
        ]
        head = {"data_type": "mscoco", "data_subtype": split}
        (folder / f"{name}QUESTIONS.json").write_text(json.dumps({**head, "questions": asked}))
        (folder / f"{name}ANSWERS.json").write_text(json.dumps({**head, "annotations": replies}))
    for split in ("train", "dev"):
        judged = [
            {"identifier": f"{split}-{n}-0-0", "sentence": "it is", "label": str(bool(n % 2))}
            for n in numbers
        ]
        entailed = [
            {"Flickr30K_ID": str(n), "pairID": f"{n}.jpg#0r1n", "sentence2": "it is", "gold_label": "neutral"}
            for n in numbers
        ]
        (folder / f"{split}.json").write_text("\n".join(map(json.dumps, judged)))
        (folder / f"snli_ve_{split}.jsonl").write_text("\n".join(map(json.dumps, entailed)))
    stored = [(folder / f"TRAIN/{number}.png").read_bytes() for number in numbers]
    for name in ("CAPTIONS", "OTHER_CAPTIONS"):
        captions = [f"about the class {number}" for number in numbers]
        pq.write_table(pa.table({"image": stored, "caption": captions}), folder / f"{name}.parquet")
    return folder


def _place(dataset: str, split: str, number: int) -> dict[str, str]:
    """Return where Karpathy's files say that an image lies."""
    if dataset == "flickr30k":
        return {"filename": f"{number}.jpg"}
    year = "train2014" if split == "train" else "val2014"
    return {"filepath": year, "filename": f"COCO_{year}_{number:012d}.jpg"}


def _official_images(folder: Path) -> None:
    """Write images under the names of COCO, Flickr30k and NLVR2."""
    for number in range(COUNT):
        names = [f"{year}/COCO_{year}_{number:012d}.jpg" for year in ("train2014", "val2014")]
        names += [f"{split}-{number}-0-img{side}.png" for split in ("train", "dev") for side in (0, 1)]
        write_images(folder, [*names, f"{number}.jpg"], seed=number)


def _first_batch(objective: Any, batches: Callable[[int], Iterator[Any]], *_: Any, **__: Any) -> int:
    assert len(next(batches(0)).images) > 0
    return 0


# What the commands of the README, the golden runs and the tests of fine-tuning train: here up to its first batch.
TRAINED_ELSEWHERE = (
    "lqae/tiny", "lqae/tinyimages", "lqae/vqvae", "mae/tiny", "frozen/tiny", "cbvila/tiny", "cbvila/captions",
    "finetune/vqa", "finetune/retrieval", "finetune/scenes-vqa", "finetune/scenes-nlvr2",
    "finetune/scenes-entailment", "finetune/scenes-assignment",
)  # fmt: skip


@pytest.mark.parametrize("recipe", recipe_names())
def test_the_command_on_top_runs_to_its_first_evaluation(
    recipe: str,
    workplace: Path,
    language: Path,
    causal_language: Path,
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As printed, with sizes and steps behind it that a test can hold; curves, model and page aside."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("pixlex.run.curves", lambda *_: None)
    monkeypatch.setattr("pixlex.run._finish", lambda run, objective, folder, progress: folder)
    arguments = [*command_of(recipe), *SHORT, *_tiny(recipe, language, causal_language)]
    if recipe in TRAINED_ELSEWHERE:
        monkeypatch.setattr("pixlex.run.fit", _first_batch)
        assert call(*arguments, "--out", tmp_path / "run", "--quiet")[0] == 130
        return
    code, _, error = call(*arguments, "--out", tmp_path / "run", "--quiet")
    assert code == 0, error
    said = {
        key: value for line in read_metrics(tmp_path / "run/metrics.jsonl") for key, value in line.items()
    }
    for kind in ("eval/", "gradient_norm", "learning_rate"):
        values = [value for key, value in said.items() if kind in key]
        assert values
        assert all(math.isfinite(value) for value in values)


@pytest.mark.parametrize(
    ("recipe", "change", "message"),
    [
        (
            "finetune/coco",
            "data.validation=dataset_coco.json?split=val&images=PAIRS",
            "none of 4 images tried",
        ),
        ("finetune/coco", "data.validation=dataset_coco.json?split=val&images=NOWHERE", "NOWHERE"),
        ("finetune/flickr30k", "data.validation=nothing.json", "nothing.json"),
        ("finetune/nlvr2", "data.validation=dev.json?images=PAIRS", "none of 8 images exists"),
        ("cbvila/captions", "data.validation=TRAIN", "has no captions"),
        ("lqae/tinyimages", "data.validation=NOWHERE", "NOWHERE"),
    ],
)
def test_what_a_run_needs_later_is_opened_before_its_first_step(
    recipe: str, change: str, message: str, workplace: Path, language: Path, causal_language: Path,
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(workplace)
    arguments = [*command_of(recipe), *SHORT, *_tiny(recipe, language, causal_language), change]
    code, _, error = call(*arguments, "--out", tmp_path / "run", "--quiet")
    assert code in (1, 2)
    assert message in error
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "first", "peak", "last", "warmup"),
    [
        ("coco", 1e-5, 1e-5, 1e-6, 0),
        ("flickr30k", 1e-5, 1e-5, 1e-6, 0),
        ("vqa", 1e-5, 2e-5, 1e-6, 400),
        ("nlvr2", 1e-5, 2e-5, 1e-6, 100),
        ("entailment", 1e-5, 2e-5, 1e-6, 100),
        ("assignment", 1e-5, 1e-5, 1e-5, 0),
    ],
)
def test_fine_tuning_at_albefs_rates(name: str, first: float, peak: float, last: float, warmup: int) -> None:
    """Its configurations say warmup_lr, lr, min_lr; 100 steps for each epoch of warm-up; nothing is clipped."""
    run = read_run(f"finetune/{name}")
    rates = [learning_rate(step, run.train) for step in (0, warmup, run.train.steps - 1)]
    assert rates == pytest.approx([first, peak, last], rel=0.02)
    assert run.train.warmup_steps == warmup
    assert run.train.clip_norm == 0
    assert (run.model.body if run.family == "reasoning" else run.model).dropout_rate == 0.1
