"""Every benchmark runs, with tiny arguments; both sides do the same work; what cannot be is refused."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.eval.llm.tiny_causal import tiny_causal

CPU = torch.device("cpu")
# What each script is given here.
TINY = {
    "nearest": "--rows 64 --codewords 300 --width 16 --threads 1 --rounds 1",
    "masked_words": "--words 16 --width 8 --rounds 1 --passes 1",
    "lqae_step": "--small --rounds 1 --steps 1",
    "cbvila_step": "--small --rounds 1 --steps 1",
    "growth": "--axes batch --points 1 --out drawn",
    "scaling": "--small --rounds 1 --steps 1 --batch 2",
    "input_pipeline": "--images 80 --size 32 --batches 1 --rounds 1",
    "search": "--count 40 --queries 2 --rerank 2",
    "reranking": "--images 2 --top-k 1 --rounds 1",
    "shared_images": "--items 8 --rounds 1",
    "small_reader": "--episodes 2 --rows 0",
    "tokenizing": "--images 8 --rounds 1 model.image_size=32",
}


@pytest.fixture
def load(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports a benchmark as a module, and forgets all of them afterwards."""
    folder = checkout / "benchmarks"
    names = {path.stem for path in folder.glob("*.py")}
    assert not names & sys.modules.keys()
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module
    for name in names & sys.modules.keys():
        del sys.modules[name]


@pytest.fixture
def run(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str, Sequence[str]], str]:
    """Runs a benchmark, and in this process what it would run in others; returns what it prints."""

    def printed(script: str, arguments: Sequence[str]) -> str:
        module = load(Path(script).stem)
        before = sys.argv
        sys.argv = [script, *arguments]
        try:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                module.main()
        finally:
            sys.argv = before
        return out.getvalue()

    def last_line(script: str, arguments: Sequence[str], launcher: Sequence[str] = ()) -> str:
        return printed(script, arguments).splitlines()[-1]

    for name in ("in_turn", "nearest", "scaling"):
        monkeypatch.setattr(load(name), "last_line", last_line)
    monkeypatch.chdir(tmp_path)
    return printed


def tables(text: str) -> list[list[str]]:
    """Return the cells of every line of the tables in a text."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]


def test_no_benchmark_is_left_out(checkout: Path) -> None:
    """Neither here nor by `make bench`."""
    scripts = {
        path.stem for path in (checkout / "benchmarks").glob("*.py") if "def main(" in path.read_text()
    } - {"house"}  # tests/test_house.py runs it
    assert scripts == TINY.keys()
    makefile = (checkout / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"benchmarks/(\w+)\.py", makefile)) == scripts


@pytest.mark.parametrize("name", TINY)
def test_it_runs_and_prints_ratios(name: str, run: Callable[[str, Sequence[str]], str]) -> None:
    text = run(name, TINY[name].split())
    if name == "nearest":  # its table has no bars
        assert re.search(r"^pixlex .* 1\.00 ", text, re.MULTILINE)
    else:
        cells = [cell for row in tables(text)[2:] for cell in row[1:]]
        assert len([cell for cell in cells if re.fullmatch(r"[\d.,]+", cell)]) >= 3
    if name == "growth":
        assert Path("drawn/growth.png").read_bytes().startswith(b"\x89PNG")


def test_a_language_model_reads(run: Callable[[str, Sequence[str]], str], tmp_path: Path) -> None:
    arguments = ["--llm", str(tiny_causal(tmp_path / "tiny")), "--episodes", "1", "--rows", "0"]
    head, _, row = tables(run("small_reader", arguments))
    assert head[4:-1] == ["likelihood", "calibrated", "calibrated-orders", "bag of words"]
    assert len(row) == len(head)


def test_the_search_leaves_out_what_is_not_there(
    load: Callable[[str], Any], run: Callable[[str, Sequence[str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nearest = load("nearest")
    assert nearest.why_absent("faiss flat index", torch.device("cuda")) == "its index is on the CPU alone"
    monkeypatch.setattr(nearest.importlib.util, "find_spec", lambda name: None)
    text = run("nearest", TINY["nearest"].split())
    assert "left out: vector-quantize-pytorch: vector_quantize_pytorch is not installed" in text
    assert "left out: faiss flat index: faiss is not installed" in text


@pytest.mark.parametrize("name", ["lqae_step", "cbvila_step"])
def test_another_loss_is_noticed(
    name: str, load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides must compute the same before they are timed."""
    script = load(name)
    where, what = (script, "straightforward") if name == "lqae_step" else (script.pass_by_pass, "matching")
    original = getattr(where, what)
    monkeypatch.setattr(where, what, lambda *arguments: 1.001 * original(*arguments))
    with pytest.raises(AssertionError, match="not close"):
        script.check_equal(CPU)


def test_the_largest_batch(
    load: Callable[[str], Any], run: Callable[[str, Sequence[str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doubled until memory is full, where the rows before it are shown; or until a limit."""
    script = load("lqae_step")

    def measure(contestant: str, sizes: object, batch: int, steps: int, device: object) -> dict[str, float]:
        if batch > 7:
            raise torch.OutOfMemoryError("full")
        keys = ("seconds", "processor", "peak", "above_model", "operations", "utilization")
        return dict.fromkeys(keys, float(batch))

    monkeypatch.setattr(script, "measure", measure)
    text = run("lqae_step", ["--small", "--largest-batch", "64", "--compile"])
    assert text.count("a batch of 4 fits, 8 does not") == len(script.CONTESTANTS)
    batches = [row[0] for row in tables(text) if row[0].startswith("batch")]
    assert batches == ["batch 2", "batch 4"] * 2 * len(script.CONTESTANTS)
    for more, said in (
        ("4", "a batch of 4 fits, no larger one was tried"),
        ("16 --batch 8", "8 does not fit"),
    ):
        assert said in run("lqae_step", f"--small --largest-batch {more}".split())
    with pytest.raises(ValueError, match="expected a --batch that fits"):
        run("lqae_step", ["--small", "--batch", "8", "--rounds", "1"])


def test_processes_share_a_batch_out(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    scaling = load("scaling")
    _, pairs = scaling.work_of("cbvila", 6, 1, small=True)
    monkeypatch.setattr(scaling.distributed, "world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(scaling.distributed, "rank", lambda rank=rank: rank)
        parts.append(scaling.part_of(pairs))
    assert parts[0].texts + parts[1].texts == pairs.texts
    assert torch.equal(torch.cat([part.images for part in parts]), pairs.images)
    assert torch.equal(torch.cat([part.word_ids for part in parts]), pairs.word_ids)
