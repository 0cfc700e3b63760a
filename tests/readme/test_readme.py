"""Every command and program of the README runs, in its order, on small pictures and a small model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.tiny import tiny_language

from pixlex.cli import main
from pixlex.config.run import Run, recipe_names, write_run
from pixlex.run import with_precision

SMALLER = (
    "model.image_size=32", "model.encoder.width=32", "model.encoder.depth=1", "model.encoder.heads=2",
    "model.decoder.width=32", "model.decoder.depth=1", "model.decoder.heads=2", "train.steps=2",
    "train.batch_size=4", "eval.word_folds=2",
)  # fmt: skip
SMALLER_WORDS = (
    "model.words=2", "model.quantizer.num_concepts=2", "model.quantizer.search_dim=2", "objective.teacher.steps=1",
    "objective.teacher.view_size=16",
)  # fmt: skip
SMALLER_PAIRS = (
    "model.image_size=32", "model.patch_size=8", "model.image.width=32", "model.image.depth=1",
    "model.image.heads=2", "model.text.width=32", "model.text.depth=1", "model.text.heads=2",
    "model.text.pretrained=",
    "model.fusion.pretrained=", "model.fusion.depth=1", "model.codebook.num_codewords=16", "train.steps=2",
    "train.batch_size=4", "objective.burn_in_steps=1",
)  # fmt: skip


def _blocks(checkout: Path) -> list[str]:
    return re.findall(r"```(?:\w*)\n(.*?)```", (checkout / "README.md").read_text(), re.DOTALL)


def _trained_before(run: Run, folder: Path, *, resume: bool) -> Path:
    """Take the model of the README's first run for that of a row."""
    shutil.copytree("runs/mine", folder)
    write_run(with_precision(run, folder), folder / "config.yaml")
    return folder / "model"


def test_commands_and_program_run(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """doctor, train, encode, decode, reconstruct, evaluate; then the same from Python."""
    language = tiny_language(tmp_path / "language")

    def picture(path: str, *color: int) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 36), color).save(tmp_path / path)

    for number in range(6):
        for name in ("PICTURES", "OTHER_PICTURES"):
            picture(f"{name}/{number}.png", 40 * number, 200 - 30 * number, 90)
        for place, name in enumerate(("LABELED", "OTHER_LABELED", "NEW_CLASSES")):
            for shade, kind in ((60, "dark"), (180, "light")):
                picture(f"{name}/{kind}/{number}.png", shade + number, shade - place, shade + 2 * number)
        for name in ("PAIRS", "OTHER_PAIRS"):
            picture(f"{name}/{number}.png", 30 * number, 90, 200)
            (tmp_path / name / f"{number}.txt").write_text(f"the class and {number} others")
    for name in ("QUESTIONS", "OTHER_QUESTIONS"):
        rows = [
            {"path": f"PAIRS/{number}.png", "question": "what is it", "answer": f"class {number % 2}"}
            for number in range(6)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    Image.new("RGB", (40, 36), (9, 99, 199)).save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    commands = [
        shlex.split(line.replace("QUESTIONS", "QUESTIONS.jsonl"), comments=True)
        for block in _blocks(checkout)
        for line in block.splitlines()
        if line.startswith("pixlex ")
    ]
    assert [command[1] for command in commands] == [
        "doctor", "train", "encode", "decode", "reconstruct", "evaluate", "train", "evaluate", "evaluate",
        "ablate", "doctor", "convert", "train", "evaluate", "evaluate", "reconstruct", "gallery", "encode",
        "explain", "finetune", "evaluate", "ask", "explain", "index", "search", "search", "encode",
    ]  # fmt: skip
    small_model = [f"model.language.name={language}", *SMALLER]
    extras = {
        "train": small_model,
        "lqae/meaning-tinyimages": [*small_model, *SMALLER_WORDS],
        "ablate": [*small_model, "--rows", "mask-0.3"],
        "cbvila/captions": [f"model.text.tokenizer={language}", *SMALLER_PAIRS],
        "finetune": [
            "model.body.image_size=32",
            "train.steps=2",
            "train.batch_size=4",
            "data.max_words=20",
            "data.min_answer_count=1",
        ],
        "few-shot": ["--encoder", str(language), "--ways", "2", "--settings", "1/0", "--episodes", "4"],
    }
    for command in commands:
        named = command[2] if command[2] in extras or command[1] == "evaluate" else command[1]
        extra = extras.get(named, [])
        with monkeypatch.context() as patch:
            if command[1] == "ablate":  # its rows need no training of their own here
                patch.setattr("pixlex.run.run_training", _trained_before)
            assert main([*command[1:], *extra]) == 0, f"{command}: {capsys.readouterr().err}"
    assert (tmp_path / "words.txt").read_text().count("\n") == 6
    assert len(list((tmp_path / "rebuilt").glob("*.png"))) == 6
    for name in (
        "runs/probe/report.html", "runs/few-shot/report.html", "runs/ablation/table.md", "grid.png",
        "pairs.parquet", "runs/pairs/report.html", "codewords.png", "masked.png", "why.png",
        "runs/vqa/report.html", "found.png", "codes/part-00000.parquet",
    ):  # fmt: skip
        assert (tmp_path / name).is_file(), name

    (program,) = [block for block in _blocks(checkout) if block.startswith("import pixlex")]
    names: dict[str, object] = {}
    exec(program, names)
    assert isinstance(names["images"], torch.Tensor)
    assert names["images"].shape == (1, 3, 32, 32)
    (line,) = re.findall(r"`(pixlex\.search\.[^`]+)`", (checkout / "README.md").read_text())
    monkeypatch.delattr("pixlex.search")  # as before its first import
    assert eval(line, names)


def test_named_recipes_and_documents_exist(checkout: Path) -> None:
    """What the README points to is there."""
    text = (checkout / "README.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} == set(recipe_names())
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        assert (checkout / link).is_file(), link
    makefile = (checkout / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile
