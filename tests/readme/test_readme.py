"""Every command and program of the README and of the site runs, on small pictures and small models.

Blocks marked `bash` and `python` are executed in the order of the page. Pages share one folder: the tutorials
that make the models which all others name come first.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from tests.eval.llm.tiny_causal import tiny_causal
from tests.tiny import tiny_language

from pixlex.cli import main
from pixlex.config.run import Run, read_run, write_run
from pixlex.run import with_precision

FIRST = ("tutorials/words.md", "tutorials/search.md", "tutorials/training.md")
# Written by its page, in addition to what every command prints.
WRITTEN = {
    "tutorials/words.md": ("words.txt", "rebuilt", "grid.png", "words.png", "runs/mine/report.html"),
    "tutorials/search.md": ("drawings.png", "found.png", "runs/pairs/report.html", "runs/index"),
    "tutorials/few-shot.md": (
        "runs/few-shot/report.html",
        "runs/local/report.html",
        "runs/names/report.html",
    ),
    "tutorials/training.md": (
        "small.tar",
        "pairs.parquet",
        "masked.png",
        "runs/vqa/report.html",
        "runs/python/report.html",
    ),
    "tutorials/many-machines.md": ("shard.tar", "results/results.json", "codes/part-00000.parquet"),
    "how-to/data.md": ("all.parquet", "copies.tar"),
    "how-to/codes.md": ("codes.jsonl", "again", "mine.onnx"),
    "how-to/names.md": ("why.png", "codewords.png"),
    "how-to/questions.md": ("answer.png",),
    "how-to/measure.md": ("runs/probe/report.html", "runs/ablation/table.md"),
    "how-to/runs.md": ("runs/resumed/model",),
}
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
SMALLER_TASKS = (
    "model.body.image_size=32", "train.steps=2", "train.batch_size=4", "data.max_words=20",
    "data.min_answer_count=1",
)  # fmt: skip


def site(checkout: Path) -> list[str]:
    """The pages below `docs` with something to execute, those that make the models first."""
    pages = [path.relative_to(checkout / "docs").as_posix() for path in (checkout / "docs").rglob("*.md")]
    pages = [
        page for page in pages if re.search(r"^```(?:bash|python)$", text_of(checkout, page), re.MULTILINE)
    ]
    return [*FIRST, *sorted(set(pages) - set(FIRST))]


def text_of(checkout: Path, page: str) -> str:
    return (checkout / ("README.md" if page == "README.md" else f"docs/{page}")).read_text(encoding="utf-8")


@dataclass
class World:
    """A folder with everything that pages name, and what makes their trainings small."""

    checkout: Path
    folder: Path
    language: Path

    def smaller(self, command: list[str]) -> list[str]:
        """Return what is added to a command."""
        language = f"model.language.name={self.language}"
        if command[0] == "finetune":
            return [*SMALLER_TASKS]
        if command[0] == "train" and command[1].startswith("cbvila/"):
            return [f"model.text.tokenizer={self.language}", *SMALLER_PAIRS]
        if command[0] == "train":
            words = SMALLER_WORDS if "meaning" in command[1] else ()
            large = ("model.patch_size=8", "data.streams=2") if command[1] == "lqae/default" else ()
            return [language, *SMALLER, *words, *large]
        if command[0] == "ablate":
            return [language, *SMALLER, "--rows", "mask-0.3"]
        if command[:2] == ["evaluate", "few-shot"]:
            few = ["--encoder", str(self.language), "--ways", "2", "--episodes", "4"]
            few += [] if "--settings" in command else ["--settings", "1/0"]
            return [*few, *(["--llm-episodes", "2"] if "--llm" in command else [])]
        return []

    def read_smaller(self, recipe: str, overrides: list[str]) -> Run:
        """Read the run of a program's training, smaller."""
        return read_run(recipe, [*overrides, *self.smaller(["train", recipe])])

    def run(self, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Execute a page."""
        for language, block in re.findall(
            r"^```(bash|python)\n(.*?)^```", text_of(self.checkout, page), re.MULTILINE | re.DOTALL
        ):
            if language == "python":
                with monkeypatch.context() as patch:
                    patch.setattr("pixlex.run.read_run", self.read_smaller)
                    exec(block, {})
                continue
            for line in block.replace("\\\n", " ").splitlines():
                self.execute(shlex.split(line, comments=True), page, monkeypatch)

    def execute(self, command: list[str], page: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Execute a line of a page; what installs is compared with what there is."""
        if not command:
            return
        if command[0] == "torchrun":  # here one process does what many would share
            command = command[command.index("pixlex") :]
        if command[0] == "make":
            assert f"\n{command[1]}:" in (self.checkout / "Makefile").read_text(encoding="utf-8"), command
        elif "pip" in command[0]:
            (extra,) = re.findall(r"\[(\w+)\]", command[-1])
            described = tomllib.loads((self.checkout / "pyproject.toml").read_text(encoding="utf-8"))
            assert extra in described["project"]["optional-dependencies"], command
        elif command[0] == "pixlex":
            arguments = [*command[1:], *self.smaller(command[1:])]
            with monkeypatch.context() as patch:
                if command[1] == "ablate":  # its rows need no training of their own here
                    patch.setattr("pixlex.run.run_training", trained_before)
                assert main(arguments) == 0, f"{page}: {shlex.join(command)}"
        else:
            assert command[:3] == ["python", "-m", "venv"], f"{page}: {shlex.join(command)}"


def trained_before(run: Run, folder: Path, *, resume: bool) -> Path:
    """Take the model of the first tutorial for that of a row."""
    shutil.copytree("runs/mine", folder)
    write_run(with_precision(run, folder), folder / "config.yaml")
    return folder / "model"


def small_data(folder: Path) -> None:
    """Write what pages name in capitals, and a cat."""

    def picture(path: str, *color: int) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 36), color).save(folder / path)

    for number in range(6):
        for name in ("PICTURES", "OTHER_PICTURES"):
            picture(f"{name}/{number}.png", 40 * number, 200 - 30 * number, 90)
        for place, name in enumerate(("LABELED", "OTHER_LABELED", "NEW_CLASSES", "NEW", "OLD")):
            for shade, kind in ((60, "dark"), (180, "light")):
                picture(f"{name}/{kind}/{number}.png", shade + number, shade - place, shade + 2 * number)
        for name in ("PAIRS", "OTHER_PAIRS"):
            picture(f"{name}/{number}.png", 30 * number, 90, 200)
            (folder / name / f"{number}.txt").write_text(f"the class and {number} others")
    tables: dict[str, list[dict[str, str]]] = {
        name: [
            {"path": f"PAIRS/{number}.png", "question": "what is it", "answer": f"class {number % 2}"}
            for number in range(6)
        ]
        for name in ("QUESTIONS", "OTHER_QUESTIONS")
    }
    for name in ("NEW", "OLD"):
        tables[name] = [
            {"path": f"{name}/{kind}/{number}.png", "name": kind}
            for kind in ("dark", "light")
            for number in range(6)
        ]
    for name, rows in tables.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "WORDS.txt").write_text("class\nothers\nred house\n")
    for name in ("cat.jpg", "icon.png"):
        Image.new("RGB", (40, 36), (9, 99, 199)).save(folder / name)
    (folder / "shards").mkdir()
    for name in ("PICTURES", "OTHER_PICTURES"):
        assert main(["convert", str(folder / name), "--out", str(folder / f"shards/{name}.tar")]) == 0


@pytest.fixture(scope="module")
def world(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The folder in which pages are executed, behind the tutorials that make the models."""
    folder = tmp_path_factory.mktemp("world")
    small_data(folder)
    tiny_causal(folder / "LLM")
    made = World(checkout, folder, tiny_language(folder / "language"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for page in FIRST:
            made.run(page, patch)
        yield made


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One case a page."""
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", site(Path(__file__).resolve().parents[2]))


def test_commands_and_programs_run(world: World, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command ends well, and what the page promises lies there."""
    if page not in FIRST:
        world.run(page, monkeypatch)
    missing = [name for name in WRITTEN.get(page, ()) if not (world.folder / name).exists()]
    assert missing == []


def test_the_readme_runs(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README alone, from data to vectors."""
    small_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    world.run("README.md", monkeypatch)
    assert (tmp_path / "words.txt").read_text().count("\n") == 6
    assert len(list((tmp_path / "rebuilt").glob("*.png"))) == 6
