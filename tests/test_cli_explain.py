"""`explain` from a model directory to picture and numbers, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.tiny import tiny_cbvila, tiny_mae, tiny_reasoner, write_images

from pixlex.config.cbvila import ReasoningTask
from pixlex.models import checkpoint

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(language: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and an image."""
    folder = tmp_path_factory.mktemp("explain")
    checkpoint.save(tiny_cbvila(language), folder / "cbvila")
    checkpoint.save(tiny_mae(), folder / "mae")
    write_images(folder, ["a.png"])
    (folder / "text.png").write_text("no image")
    return folder


@pytest.mark.parametrize("score", ["matching", "masked_language"])
def test_explain(call: Call, folder: Path, tmp_path: Path, score: str) -> None:
    """A picture; words, maps and score as JSON: those of the function."""
    arguments = ("--model", folder / "cbvila", "--out", tmp_path / "why.png", "--score", score)
    code, out, err = call("explain", folder / "a.png", "About, all!", *arguments, "--json", "--layer", 2)
    assert (code, err != "") == (
        0,
        score == "matching",
    )  # in the last layer words have no heat, which is said
    code, out, err = call("explain", folder / "a.png", "About, all!", *arguments, "--json")
    values = json.loads(out)
    assert (code, err) == (0, "")
    assert values["words"] == ["about", "all"]
    assert (values["explained"], values["layer"], values["left_out"]) == (score, 1, [])
    maps = torch.tensor(values["maps"])
    assert maps.shape == (2, 4, 4)
    assert (maps.flatten(1).amax(1) > 0).all()
    assert torch.tensor(values["whole"]).shape == (4, 4)
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.width > 4 * 192
    _, _, err = call("explain", folder / "a.png", "and " * 14 + "also", *arguments)
    assert "longer than the model's 16 positions: cut behind 14 words, not read: also" in err
    code, out, _ = call("explain", folder / "a.png", "About, all!", *arguments, "--json", "--raw-text")
    assert len(json.loads(out)["words"]) == 4


def test_bad_input_of_explain(call: Call, folder: Path, tmp_path: Path) -> None:
    """Exit code 2, what was expected and what came, and no picture."""
    for image, text, model, extra, message in (
        ("a.png", " ?! ", "cbvila", (), "expected a text of one word or more, got ' ?! '"),
        ("text.png", "and", "cbvila", (), "not an image in a format that is read"),
        ("none.png", "and", "cbvila", (), "none.png: the file does not exist"),
        ("a.png", "and", "mae", (), "holds a model of family mae, expected one of cbvila"),
        ("a.png", "and", "cbvila", ("--answer", "red"), "gives no answers"),
        ("a.png", "and", "none", (), "none"),
        (
            "a.png",
            "and",
            "cbvila",
            ("--layer", 3),
            "layer must be one of the fusion encoder's, 1 to 2, got 3",
        ),
    ):
        code, _, err = call(
            "explain", folder / image, text, "--model", folder / model, "--out", tmp_path / "a.png", *extra
        )
        assert (code, message in err) == (2, True), err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["vqa", "nlvr2"])
def test_the_answer_of_a_fine_tuned_model_is_explained(
    call: Call, folder: Path, language: Path, tmp_path: Path, task: ReasoningTask
) -> None:
    """A picture for the answer that `ask` puts first, or for one that is named; as many images as it reads."""
    model = tiny_reasoner(language, task)
    checkpoint.save(model, tmp_path / "model")
    images = [folder / "a.png"] * model.config.num_images
    arguments = ("--model", tmp_path / "model", "--out", tmp_path / "why.png", "--json")
    code, out, err = call("explain", *images, "about all?", *arguments)
    values = json.loads(out)
    assert (code, err) == (0, "")
    asked = json.loads(call("ask", *images, "about all?", "--model", tmp_path / "model", "--json")[1])
    assert values["answer"] == asked["answers"][0]["answer"]
    assert (values["explained"], values["words"]) == ("answer", ["about", "all"])
    assert torch.tensor(values["maps"]).shape == (len(images), 2, 4, 4)
    assert torch.tensor(values["maps"]).max() > 0
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.width > 4 * 192
    other = model.config.answers[-1]
    again = json.loads(call("explain", *images, "about all?", *arguments, "--answer", other)[1])
    assert again["answer"] == other
    assert again["score"] <= values["score"] + 1e-6
    code, _, err = call("explain", *images, folder / "a.png", "about", *arguments)
    assert (code, f"{len(images)} images with the text, got {len(images) + 1}" in err) == (2, True), err
    for extra, message in (
        (("--score", "matching"), "was fine-tuned to answer"),
        (("--raw-text",), "--raw-text is for"),
        (("--answer", "" if task == "vqa" else "perhaps"), "answer"),
    ):
        code, _, err = call("explain", *images, "about", *arguments, *extra)
        assert (code, message in err) == (2, True), err
