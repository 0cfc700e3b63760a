"""What earlier versions wrote still loads: model directories give the same numbers, checkpoints train on.

`PIXLEX_WRITE_GOLDEN=1 pytest tests/golden/test_stored.py` writes numbers of the models as they are read now.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pixlex

STORED = Path(__file__).with_name("stored")
NUMBERS = STORED / "numbers.json"
QUESTIONS = ("what color is the circle", "how many things are there")
# What is measured in a run, and not computed from its settings.
MEASURED = ("speed/", "memory/", "data/wait", "crc32")


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, entered: the models name their language model by its relative path."""
    folder = tmp_path / "stored"
    shutil.copytree(STORED, folder)
    monkeypatch.chdir(folder)
    return folder


def summary(values: torch.Tensor) -> list[float]:
    """Return the first values, then the mean square."""
    flat = values.detach().double().flatten()
    return [float(f"{one:.6g}") for one in (*flat[:6].tolist(), flat.square().mean().item())]


def numbers_of(name: str) -> dict[str, list[float]]:
    """Return what a model computes of two images of noise."""
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    if name == "vqa":
        answers = pixlex.load_reasoner(f"{name}/model").answer(images, list(QUESTIONS))
        return {"probabilities": [float(f"{one.probability:.6g}") for row in answers for one in row]}
    tokenizer = pixlex.load(f"{name}/model", device="cpu", precision="fp32")
    codes = tokenizer.tokenize(images)
    return {
        "codes": [float(code) for code in codes.flatten()],
        "decoded": summary(tokenizer.decode(codes)),
        "vectors": summary(tokenizer.embed(images)),
    }


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("name", ["lqae", "vqvae", "cbvila", "vqa"])
def test_a_model_of_before_computes_what_it_did(name: str) -> None:
    found = numbers_of(name)
    before = json.loads(NUMBERS.read_text(encoding="utf-8")) if NUMBERS.is_file() else {}
    if os.environ.get("PIXLEX_WRITE_GOLDEN"):
        before[name] = found
        NUMBERS.write_text(json.dumps(before, indent=1) + "\n", encoding="utf-8")
    assert found.keys() == before[name].keys()
    for key, values in found.items():
        assert values == pytest.approx(before[name][key], rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize("name", ["lqae", "cbvila"])
def test_a_run_of_before_goes_on(name: str, stored: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    """From its checkpoint of the second step to the fourth, with the losses that it had."""
    metrics = stored / name / "metrics.jsonl"
    before = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    assert before[-1]["step"] == 4
    code, _, remarks = call("train", f"{name}/config.yaml", "--out", name, "--resume")
    assert code == 0, remarks
    after = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    for then, now in zip(before[2:], after[-2:], strict=True):
        kept = {key: value for key, value in then.items() if not key.startswith(MEASURED)}
        assert {key: now[key] for key in kept} == pytest.approx(kept, rel=2e-3)
