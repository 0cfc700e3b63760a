"""Fine-tuning from the command line to the answer: tasks, retrieval, another image size, bad input."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.tiny import tiny_cbvila, tiny_mae, tiny_reasoner
from tests.training.running import signaled_before

import pixlex
from pixlex.cli import main
from pixlex.models import checkpoint
from pixlex.models.cbvila import CBViLA
from pixlex.models.finetuned import Reasoner

Call = Callable[..., tuple[int, str, str]]
SHORT = (
    "train.steps=3", "train.batch_size=4", "train.device=cpu", "train.warmup_steps=0", "train.evaluate_every=0",
    "train.log_every=1", "data.max_words=16", "data.train=embedded:scenes:train:20",
    "data.validation=embedded:scenes:test:6", "eval.examples=2", "eval.batch_size=4",
)  # fmt: skip
# Two texts an image, where a recipe of scenes has eight.
SHARED = {"assignment": (), **dict.fromkeys(("vqa", "nlvr2"), ("data.texts_per_image=2",))}
# Each with the number of its items in six scenes, which have five captions each.
ITEMS = {"vqa": 6, "nlvr2": 6, "assignment": 30}
TASKS = tuple(ITEMS)
pytestmark = pytest.mark.usefixtures("without_curves")


@pytest.fixture(scope="module")
def start(language: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory to start from."""
    folder = tmp_path_factory.mktemp("start")
    checkpoint.save(tiny_cbvila(language, seed=5), folder, trained_on=["the beginning"])
    return folder


@pytest.fixture(scope="module")
def tuned(start: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder for each task."""
    folder = tmp_path_factory.mktemp("tuned")
    for task in TASKS:
        command = ["finetune", f"finetune/scenes-{task}", "--from", str(start), "--out", str(folder / task)]
        assert main([*command, "--quiet", *SHORT, *SHARED[task]]) == 0
    return {task: folder / task for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_a_run_trains_what_is_part_of_the_task(task: str, tuned: dict[str, Path], start: Path) -> None:
    folder = tuned[task]
    assert str(start) in (folder / "config.yaml").read_text()
    model = checkpoint.load_any(str(folder))
    assert isinstance(model, Reasoner)
    assert model.config.num_images == (2 if task in ("nlvr2", "assignment") else 1)
    begun = checkpoint.load_cbvila(str(start))
    assert torch.equal(model.body.codebook.weight, begun.codebook.weight)  # not part of the task
    assert not torch.equal(model.body.fusion.layers[0].expand.weight, begun.fusion.layers[0].expand.weight)


@pytest.mark.parametrize("task", ["vqa", "assignment"])
def test_evaluate_writes_answers(task: str, tuned: dict[str, Path], tmp_path: Path, call: Call) -> None:
    code, out, _ = call("evaluate", task, "--model", tuned[task], "--data", "embedded:scenes:test:6", "--out",
                        tmp_path, "--json", "--quiet")  # fmt: skip
    assert code == 0
    values = json.loads(out)
    assert values["protocol"].startswith(f"{ITEMS[task]} items")
    assert values["accuracy"] == json.loads((tuned[task] / "results.json").read_text())["eval/accuracy"]
    low, high = values["interval"]
    assert low - 1e-9 <= values["accuracy"] <= high + 1e-9
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == ITEMS[task]
    assert sum(line["credit"] for line in lines) / len(lines) == pytest.approx(values["accuracy"])
    assert (tmp_path / "submission.json").is_file() == (task == "vqa")
    assert (tmp_path / "report.html").is_file()


def test_the_same_from_python_in_batches(tuned: dict[str, Path], tmp_path: Path, call: Call) -> None:
    """Several at a time give what each gives alone, and what the command line gives."""
    paths = []
    for number, color in enumerate(("red", "blue", "green")):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (40, 36), color).save(paths[-1])
    texts = ["what color is it", "How many are there?", "is it red"]
    reasoner = pixlex.load_reasoner(tuned["vqa"])
    together = reasoner.answer(paths, texts, batch_size=2)
    assert [len(row) for row in together] == [5, 5, 5]
    for path, text, row in zip(paths, texts, together, strict=True):
        (alone,) = reasoner.answer(path, text)
        assert [one.text for one in alone] == [one.text for one in row]
        assert [one.probability for one in alone] == pytest.approx([one.probability for one in row], abs=1e-5)
        shown = json.loads(call("ask", path, text, "--model", tuned["vqa"], "--json")[1])["answers"]
        assert [one["answer"] for one in shown] == [one.text for one in alone]
    assert len(reasoner.write(paths, texts)) == 3
    pairs = pixlex.load_reasoner(tuned["nlvr2"])
    assert len(pairs.answer([*paths, paths[0]], ["both are red", "there is a circle"])) == 2
    with pytest.raises(ValueError, match="2 images for each of 2 texts, or 2 for all, got 3 images"):
        pairs.answer(paths, ["both are red", "there is a circle"])
    with pytest.raises(ValueError, match="top_k must be 1 or more, got 0"):
        reasoner.answer(paths, texts, top_k=0)


def test_several_questions_about_one_image(tuned: dict[str, Path], tmp_path: Path) -> None:
    """They are answered as if each came with a copy of it; from files and from pixels."""
    path = tmp_path / "image.png"
    Image.new("RGB", (32, 32), "red").save(path)
    texts = ["what color is it", "How many are there?", "is it red"]
    for task in ("vqa", "nlvr2"):
        reasoner = pixlex.load_reasoner(tuned[task])
        each = reasoner.num_images
        copies = reasoner.answer([path] * each * 3, texts)
        for images in ([path] * each, torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(each, 3, 32, 32)):
            once = reasoner.answer(images, texts, batch_size=2)
            for one, other in zip(once, copies, strict=True):
                assert [found.text for found in one] == [found.text for found in other]
                assert [found.probability for found in one] == pytest.approx(
                    [found.probability for found in other], abs=1e-5
                )
    assert len(pixlex.load_reasoner(tuned["vqa"]).write(path, texts)) == 3


def test_bad_questions_are_refused(tuned: dict[str, Path], start: Path, tmp_path: Path, call: Call) -> None:
    image, broken = tmp_path / "image.png", tmp_path / "broken.png"
    Image.new("RGB", (40, 36), "red").save(image)
    broken.write_bytes(b"no image")
    for arguments, message in (
        (
            (image, "both", "--model", tuned["nlvr2"]),
            "expected 2 images for each of 1 texts, or 2 for all, got 1",
        ),
        (
            (image, "?!", "--model", tuned["vqa"]),
            "expected a question or a sentence with a word in it, got '?!'",
        ),
        ((tmp_path / "none.png", "what is it", "--model", tuned["vqa"]), "none.png"),
        ((image, "what is it", "--model", start), "family cbvila, which answers nothing"),
        (
            (image, image, "is it red", "--model", tuned["nlvr2"], "--generate"),
            "written freely for the task vqa",
        ),
    ):
        code, _, error = call("ask", *arguments)
        assert code == 2, error
        assert message in error
    code, _, error = call("evaluate", "vqa", "--model", tuned["nlvr2"], "--data", "embedded:scenes:test:6")
    assert code == 2
    assert "was fine-tuned to nlvr2, not to vqa" in error


def test_without_pretraining_the_weights_are_fresh(start: Path, tmp_path: Path, call: Call) -> None:
    """The shape is that of the model, its weights are not; the configuration says so."""
    settings = [one for one in SHORT if not one.startswith("train.steps")]
    for name, more in (("with", ()), ("without", ("--untrained",))):
        code, _, error = call("finetune", "finetune/scenes-vqa", "--from", start, *more, "--out", tmp_path / name,
                              "--quiet", "train.steps=1", "train.learning_rate=1e-9", *settings,
                              *SHARED["vqa"])  # fmt: skip
        assert code == 0, error
    begun = checkpoint.load_cbvila(str(start)).text_encoder.words.weight
    models = {name: checkpoint.load_any(str(tmp_path / name)) for name in ("with", "without")}
    torch.testing.assert_close(models["with"].body.text_encoder.words.weight, begun, rtol=0, atol=1e-6)
    assert (models["without"].body.text_encoder.words.weight - begun).abs().mean() > 1e-3
    assert "start: ''" in (tmp_path / "without/config.yaml").read_text()


@pytest.mark.parametrize(("before", "task"), [("vqa", "vqa"), ("assignment", "nlvr2")])
def test_a_fine_tuned_model_goes_on(
    before: str, task: str, tuned: dict[str, Path], tmp_path: Path, call: Call
) -> None:
    """Its body starts the body, its head the head of the same task; another task's head is begun anew."""
    settings = [one for one in SHORT if not one.startswith("train.steps")]
    code, _, error = call("finetune", f"finetune/scenes-{task}", "--from", tuned[before], "--out", tmp_path,
                          "--quiet", "train.steps=1", "train.learning_rate=1e-9", *settings,
                          *SHARED[task])  # fmt: skip
    assert code == 0, error
    old, new = (checkpoint.load_any(str(folder)).state_dict() for folder in (tuned[before], tmp_path))
    alike = {name for name in new if name in old and old[name].shape == new[name].shape}
    still = {name for name in alike if torch.allclose(old[name], new[name], rtol=0, atol=1e-6)}
    bodies = {name for name in new if name.startswith("body.")}
    assert still >= bodies
    heads = set(new) - bodies
    assert heads
    assert still >= heads if before == task else not still & heads
    assert json.loads((tmp_path / "trained-on.json").read_text())["trained_on"][0] == "the beginning"


def test_retrieval_is_tuned_at_a_larger_size_and_resumed(start: Path, tmp_path: Path, call: Call) -> None:
    """Images of 64 px for a model of 32: positions resampled; a second call with --resume needs no start."""
    arguments = ("finetune", "finetune/retrieval", "--from", start, "--out", tmp_path / "run", "--quiet",
                 "model.image_size=64", "data.augment=resize", *SHORT)  # fmt: skip
    assert call(*arguments)[0] == 0
    model = checkpoint.load_any(str(tmp_path / "run"))
    assert isinstance(model, CBViLA)
    assert model.config.image_size == 64
    numbers = json.loads((tmp_path / "run/results.json").read_text())
    assert "eval/text_recall_at_1" in numbers
    assert "eval/masked_image" not in numbers
    said = json.loads((tmp_path / "run/model/config.json").read_text())["trained_on"]
    assert said == ["the beginning", "embedded:scenes:train:20"]


def test_a_run_goes_on_without_what_it_started_from(start: Path, tmp_path: Path, call: Call) -> None:
    """Weights lie in the checkpoint: the start may be gone; the end is that of a run in one go, to the bit."""
    copied = shutil.copytree(start, tmp_path / "start")
    settings = ("train.checkpoint_every=1", *SHORT, *SHARED["vqa"])
    assert (
        call("finetune", "finetune/scenes-vqa", "--from", copied, "--out", tmp_path / "one", *settings)[0]
        == 0
    )
    arguments = ("train", tmp_path / "one/config.yaml", "--out", tmp_path / "two")
    with signaled_before(2, signal.SIGTERM):
        assert call(*arguments)[0] == 130
    shutil.rmtree(copied)
    code, _, error = call(*arguments, "--resume")
    assert code == 0, error
    one, two = (checkpoint.load_any(str(tmp_path / name)).state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_bad_starts_are_refused(start: Path, tuned: dict[str, Path], tmp_path: Path, call: Call) -> None:
    other = tmp_path / "mae"
    checkpoint.save(tiny_mae(), other)
    for arguments, message in (
        (("finetune/scenes-vqa", "--from", other), "family mae: fine-tuning starts from one of cbvila"),
        (("lqae/tiny", "--from", start), "is a recipe of family lqae"),
        (("finetune/retrieval", "--from", tuned["vqa"]), "ranks images and texts no longer"),
        (("finetune/scenes-vqa", "--from", tmp_path / "nothing"), "nothing"),
        (
            ("finetune/scenes-vqa", "--from", start, "model.body.fusion.depth=3", *SHORT, *SHARED["vqa"]),
            "of another shape: fusion",
        ),
        (("finetune/scenes-vqa", "--from", start, "data.max_words=100"), "must have max_words of at most 16"),
        (("finetune/scenes-vqa", "--from", start, "model.task=chess"), "task"),
    ):
        code, _, error = call("finetune", *arguments, "--out", tmp_path / "out", "--quiet")
        assert code == 2, error
        assert message in error


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_free_answers_are_written_in_the_asked_precision(
    language: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    checkpoint.save(tiny_reasoner(language), tmp_path / "model")
    path = tmp_path / "image.png"
    Image.new("RGB", (32, 32), "red").save(path)
    mixed, compute = [], Reasoner.word_logits
    monkeypatch.setattr(
        Reasoner,
        "word_logits",
        lambda *given: (mixed.append(torch.is_autocast_enabled("cpu")), compute(*given))[1],
    )
    asked = ("ask", path, "is it red", "--model", tmp_path / "model", "--generate", "--precision", precision)
    assert call(*asked, "--device", "cpu")[0] == 0
    assert set(mixed) == {precision == "bf16"}
