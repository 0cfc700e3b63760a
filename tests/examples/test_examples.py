"""Scripts and notebooks of `examples/`: what they name is there; `make test-all` executes them."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from tests.eval.llm.tiny_causal import tiny_causal
from tests.readme.test_readme import World

import pixlex
from pixlex.cli import build_parser
from pixlex.data.images import open_source
from pixlex.encoding.files import read_codes

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
COMMAND = re.compile(r"^!((?:.*\\\n)*.*)$", re.MULTILINE)
NEEDS = {"encode_datasets": "datasets", "encode_ray": "ray"}
# The second batch of part 1 kills the worker that encodes it, once.
DYING = """
import os, signal
from pathlib import Path
import encode_ray

class Dying(encode_ray.Encode):
    def __call__(self, batch):
        whole, sizes, died = self.tokenizer.tokenize, [], Path(os.environ["DIED"])
        def tokenize(images, **how):
            sizes.append(len(images))
            if batch["part"][0] == 1 and len(sizes) == 2 and not died.exists():
                died.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(images, **how)
        self.tokenizer.tokenize = tokenize
        try:
            return super().__call__(batch)
        finally:
            self.tokenizer.tokenize = whole

encode_ray.Encode = Dying
encode_ray.main()
"""


def code_of(path: Path) -> str:
    """The program of a script, or of the cells of a notebook in their order."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def named(paths: list[Path]) -> pytest.MarkDecorator:
    """One case a file."""
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


@named(SCRIPTS + NOTEBOOKS)
def test_what_an_example_imports_is_there(path: Path) -> None:
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    for node in ast.walk(ast.parse(COMMAND.sub("", code_of(path)))):
        if isinstance(node, ast.Import):
            for one in node.names:
                importlib.import_module(one.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert [one.name for one in node.names if not hasattr(module, one.name)] == []


@named(SCRIPTS)
def test_every_script_says_what_it_shows(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"python {path.name}\n" in shown or f"python {path.name} " in shown
    used = {word for line in re.findall(r"python .*", shown) for word in re.findall(r"--[\w-]+", line)}
    assert used <= set(re.findall(r"^  (--[\w-]+)", shown, re.MULTILINE))


@named(NOTEBOOKS)
def test_notebooks_are_clean_and_their_commands_known(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    cells = content["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert {cell["cell_type"] for cell in cells} == {"code", "markdown"}
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    for line in COMMAND.findall(code_of(path)):
        command, *arguments = shlex.split(line.replace("\\\n", " "))
        assert command == "pixlex"
        build_parser().parse_args(arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where scripts run, one after the other, so that a model is trained once."""
    return tmp_path_factory.mktemp("scripts")


def run(folder: Path, *arguments: object, **variables: object) -> str:
    """Run a Python program there, without network; return what it prints."""
    paths = (EXAMPLES.parent / "src", EXAMPLES, os.environ.get("PYTHONPATH", ""))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "RAY_USAGE_STATS_ENABLED": "0",
    } | {name: str(value) for name, value in variables.items()}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.campaign
def test_a_word_is_edited(folder: Path) -> None:
    assert "-> water: pixels change by 0." in run(folder, EXAMPLES / "edit_words.py")
    with Image.open(folder / "edited.png") as image:
        before, after = image.crop((0, 0, 128, 128)), image.crop((128, 0, 256, 128))
    assert ImageChops.difference(before, after).getbbox() is not None


@pytest.mark.campaign
def test_map_finds_what_it_computed(folder: Path) -> None:
    pytest.importorskip("datasets")
    first, second = (run(folder, EXAMPLES / "encode_datasets.py") for _ in range(2))
    assert "320 images computed in" in first
    assert "320 images found again in" in second
    assert first.splitlines()[-1] == second.splitlines()[-1]


@pytest.mark.campaign
def test_a_network_of_ones_own_learns(folder: Path) -> None:
    shown = run(folder, EXAMPLES / "own_network.py", "--steps", 150)
    errors = [float(error) for error in re.findall(r"error ([\d.]+)", shown)]
    assert len(errors) == 3
    assert errors[-1] < errors[0] / 2


@pytest.mark.campaign
def test_texts_find_pictures(folder: Path) -> None:
    shown = run(folder, EXAMPLES / "search_texts.py")
    assert len(re.findall(r"house \d+% arrow \d+%", shown)) == 4
    assert len(re.findall(r"\.png \(-?\d", shown)) == 3
    assert "'a house': home" in shown


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_a_killed_worker_of_ray_loses_and_doubles_nothing(folder: Path, models: Path) -> None:
    """Two workers, one killed behind the first batch of a part; then a part that is missing is made again."""
    pytest.importorskip("ray")
    (folder / "dying.py").write_text(DYING)
    given = "--data embedded:digits:test --workers 2 --part-size 100 --out codes --model"
    options = [*given.split(), models / "lqae"]
    shown = run(folder, "dying.py", *options, DIED=folder / "died")
    assert (folder / "died").exists()
    assert "360 images in 4 parts" in shown

    tokenizer, source = pixlex.load(models / "lqae"), open_source("embedded:digits:test")
    expected = tokenizer.tokenize(source.read(number).data for number in range(len(source)))

    def found() -> None:
        stored = list(read_codes(folder / "codes", tokenizer))
        assert [key for key, _ in stored] == [source.key(number) for number in range(len(source))]
        assert torch.equal(torch.tensor([codes for _, codes in stored]), expected)

    found()
    assert list((folder / "codes").glob("*.journal")) == []
    (folder / "codes/part-00002.parquet").unlink()
    written = {path: path.stat().st_mtime_ns for path in (folder / "codes").glob("part-*")}
    shown = run(folder, EXAMPLES / "encode_ray.py", *options)
    assert sorted(re.findall(r"part (\d): (\d+) images", shown)) == [
        (part, "100" if part == "2" else "0") for part in "0123"
    ]
    assert {path: path.stat().st_mtime_ns for path in written} == written
    found()


@pytest.mark.campaign
@named(NOTEBOOKS)
def test_notebooks_run(
    path: Path, checkout: Path, tmp_path: Path, language: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells in their order in one namespace, as a notebook has it; trainings and evaluations are small."""
    world = World(checkout, tmp_path, language)
    tiny_causal(tmp_path / "LLM")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM", "LLM")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr("pixlex.run.read_run", world.read_smaller)

    def shell(line: str) -> None:
        world.execute(shlex.split(line), path.name, monkeypatch)

    exec(COMMAND.sub(r'shell(f"""\1""")', code_of(path)), {"shell": shell})
    written = {"words": "grid.png", "search": "found.png", "few_shot": "runs/local/report.html"}
    assert Path(written[path.stem]).is_file()
