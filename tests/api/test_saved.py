"""A tokenizer as others expect it: called, measured, moved; saved, pickled and hashed, and the same again."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import IMAGE_SIZE, tiny_cbvila, tiny_lqae, tiny_vqvae, write_images
from torch import Tensor

from pixlex import api
from pixlex.api import ImageTokenizer, load


def _images(count: int = 5) -> Tensor:
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=IMAGE_SIZE, mode="bilinear")


@pytest.fixture(params=["lqae", "vqvae", "cbvila"])
def built(request: pytest.FixtureRequest, language: Path) -> ImageTokenizer:
    """One of each family, built in memory."""
    models = {
        "lqae": lambda: tiny_lqae(language),
        "vqvae": tiny_vqvae,
        "cbvila": lambda: tiny_cbvila(language),
    }
    return ImageTokenizer(models[request.param](), trained_on=["noise"], card="# card")


@pytest.fixture
def saved(language: Path, tmp_path: Path) -> Path:
    ImageTokenizer(tiny_lqae(language)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_it_answers_as_tokenizers_do(built: ImageTokenizer) -> None:
    codes = built.tokenize(_images())
    assert torch.equal(built(_images()), codes)
    assert torch.equal(built.encode(_images(), batch_size=2), codes)
    assert ImageTokenizer.encode is ImageTokenizer.tokenize
    assert len(built) == built.vocab_size == built.num_codewords > codes.max()
    assert built
    assert built.to("cpu") is built
    assert repr(built).startswith(
        f"ImageTokenizer(in memory, family='{built.family}', image_size=32, num_words=16,"
    )
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda, cuda:N or mps, got 'tpu'"):
        built.to("tpu")


def test_what_was_built_in_memory_travels_without_its_language_model(built: ImageTokenizer) -> None:
    """As a model directory: the same codes, pictures, card and history, by the language model's own weights."""
    content = pickle.dumps(built)
    weights = sum(one.numel() * one.element_size() for one in built.model.state_dict().values())
    assert len(content) < weights + 30_000
    for again in (pickle.loads(content), copy.deepcopy(built)):
        assert again.fingerprint == built.fingerprint
        assert torch.equal(again(_images()), built(_images()))
        assert torch.equal(again.reconstruct(_images()), built.reconstruct(_images()))
        assert (again.card, again.trained_on, again.source) == (built.card, built.trained_on, None)
        assert pickle.dumps(again) == content


def test_what_was_loaded_travels_by_its_place(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a few bytes, also where a relative path meant it, to another working directory."""
    monkeypatch.chdir(saved.parent)
    tokenizer = load("model", precision="bf16")
    assert repr(saved.as_posix()) in repr(tokenizer)
    content = pickle.dumps(tokenizer)
    assert len(content) < 1000
    monkeypatch.chdir(saved.parents[1])
    again = pickle.loads(content)
    assert (again.precision, again.source) == ("bf16", tokenizer.source)
    assert torch.equal(again(_images()), tokenizer(_images()))


def test_a_moved_language_model_is_found_again(language: Path, tmp_path: Path) -> None:
    shutil.copytree(language, tmp_path / "before")
    ImageTokenizer(tiny_lqae(tmp_path / "before")).save(tmp_path / "model")
    (tmp_path / "before").rename(tmp_path / "after")
    tokenizer = load(tmp_path / "model", language_model=str(tmp_path / "after"))
    assert torch.equal(pickle.loads(pickle.dumps(tokenizer))(_images()), tokenizer(_images()))


def test_another_model_in_its_place_is_refused(saved: Path, language: Path) -> None:
    content = pickle.dumps(load(saved))
    ImageTokenizer(tiny_lqae(language, seed=1)).save(saved)
    with pytest.raises(
        ValueError, match=r"expected the model \w{12} that was pickled in .*, found \w{12}: it"
    ):
        pickle.loads(content)
    shutil.rmtree(saved)
    with pytest.raises(ValueError, match=r"no model '.*model'|holds no model"):
        pickle.loads(content)


def test_another_process_computes_the_same(saved: Path) -> None:
    tokenizer = load(saved)
    program = (
        "import pickle, sys, torch; tokenizer, images = pickle.load(sys.stdin.buffer); "
        "sys.stdout.buffer.write(pickle.dumps(tokenizer(images).tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps((tokenizer, _images())),
        capture_output=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert pickle.loads(done.stdout) == tokenizer(_images()).tolist()


def test_hashes_are_those_of_weights_and_settings(saved: Path, language: Path, tmp_path: Path) -> None:
    """`datasets.map` finds what any load of the same model computed, used or not, and nothing else."""
    fingerprint = pytest.importorskip("datasets.fingerprint")

    def hashed(value: Any) -> str:
        return str(fingerprint.Hasher.hash(value))

    def asking(tokenizer: ImageTokenizer) -> Any:
        return lambda row: tokenizer(row["path"])

    one, other = load(saved), load(saved)
    other.to_words(_images())
    assert hashed(one) == hashed(other)
    assert hashed(one.tokenize) == hashed(other.tokenize)
    assert hashed(asking(one)) == hashed(asking(other))
    assert hashed(load(saved, precision="bf16")) != hashed(one)
    ImageTokenizer(tiny_lqae(language, seed=1)).save(tmp_path / "else")
    assert hashed(load(tmp_path / "else")) != hashed(one)
    built = [ImageTokenizer(tiny_lqae(language, seed=seed)) for seed in (0, 0, 1)]
    built[1](_images())
    hashes = [hashed(tokenizer) for tokenizer in built]
    assert hashes[0] == hashes[1] != hashes[2]


def test_datasets_map(saved: Path, tmp_path: Path) -> None:
    """Two processes compute what one does; with another load nothing is computed again."""
    datasets = pytest.importorskip("datasets")
    names = [f"{number}.png" for number in range(6)]
    write_images(tmp_path, names)
    paths = [str(tmp_path / name) for name in names]
    rows = datasets.Dataset.from_dict({"path": paths})
    rows.save_to_disk(tmp_path / "rows")
    rows = datasets.load_from_disk(tmp_path / "rows")

    def encoded(processes: int | None = None) -> Any:
        tokenizer = load(saved)
        return rows.map(
            lambda batch: {"codes": tokenizer(batch["path"]).tolist()}, batched=True, num_proc=processes
        )

    first = encoded()
    assert first["codes"] == load(saved)(paths).tolist()
    files = sorted(path.name for path in (tmp_path / "rows").iterdir())
    assert encoded()._fingerprint == first._fingerprint
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == files
    assert encoded(2)["codes"] == first["codes"]


def test_the_hub_is_asked_as_the_caller_says(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`from_pretrained` and `save_pretrained` take what the hub's own mixin takes."""
    asked: list[Any] = []

    def download(name: str, **settings: Any) -> str:
        asked.append((name, settings))
        return str(saved)

    monkeypatch.setattr(api, "snapshot_download", download)
    tokenizer = ImageTokenizer.from_pretrained("me/tiny", revision="v1", token="secret", precision="bf16")
    assert asked[0][0] == "me/tiny"
    settings = asked[0][1]
    assert (settings["revision"], settings["token"], settings.get("cache_dir")) == ("v1", "secret", None)
    assert "README.md" in settings["allow_patterns"]
    assert tokenizer.precision == "bf16"
    assert ImageTokenizer.from_pretrained(saved, token="secret").fingerprint == load(saved).fingerprint
    assert len(asked) == 1
    pushed: list[Any] = []
    monkeypatch.setattr(
        ImageTokenizer, "push_to_hub", lambda self, *given, **more: pushed.append((given, more))
    )
    tokenizer.save_pretrained(saved.parent / "copy", push_to_hub=True, private=True)
    tokenizer.save_pretrained(saved.parent / "copy", push_to_hub=True, repo_id="me/other", bits=16)
    assert tokenizer.save_pretrained(saved.parent / "copy") is None
    assert pushed == [(("copy",), {"bits": 32, "private": True}), (("me/other",), {"bits": 16})]
    assert load(saved.parent / "copy", precision="bf16").fingerprint == tokenizer.fingerprint


def test_a_branch_and_a_pull_request(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Hub:
        def __init__(self, token: str | None = None) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            return lambda *given, **more: calls.append((name, given, {**more, "folder_path": None}))

    monkeypatch.setattr(api, "HfApi", Hub)
    ImageTokenizer(tiny_vqvae()).push_to_hub(
        "me/tiny", branch="small", create_pr=True, commit_message="Smaller"
    )
    assert [name for name, *_ in calls] == ["create_repo", "create_branch", "upload_folder"]
    assert calls[1][2]["branch"] == "small"
    uploaded = calls[2][2]
    assert (uploaded["revision"], uploaded["create_pr"], uploaded["commit_message"]) == (
        "small",
        True,
        "Smaller",
    )
