"""Data sets of Python: lists, tuples with captions, mappings, those of `datasets`; training on them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import write_images

import pixlex
from pixlex.config.run import read_run
from pixlex.data.captions import open_pairs
from pixlex.data.decoding import UnreadableImage
from pixlex.data.images import open_source
from pixlex.data.sources import ImageSource
from pixlex.run import run_training

SMALL: dict[str, Any] = {
    "model": {
        "image_size": 16, "patch_size": 4, "encoder": {"width": 32, "depth": 1, "heads": 2},
        "decoder": {"width": 32, "depth": 1, "heads": 2},
    },
    "train.steps": 2, "train.batch_size": 4, "train.log_every": 1, "eval.word_folds": 0,
}  # fmt: skip


def _pictures(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (20, 24), (40 * number, 90, 200)) for number in range(count)]


class Own:
    """Neither a list nor a mapping."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": _pictures(5)[index], "caption": f"blue {index}", "more": object()}


def test_every_kind_of_image_is_read_alike(tmp_path: Path) -> None:
    write_images(tmp_path, ["0.png"])
    picture = Image.open(tmp_path / "0.png")
    pixels = np.asarray(picture.convert("RGB"))
    kinds = [
        picture, tmp_path / "0.png", str(tmp_path / "0.png"), (tmp_path / "0.png").read_bytes(), pixels,
        torch.from_numpy(pixels).movedim(-1, 0), pixels / 255, {"bytes": (tmp_path / "0.png").read_bytes()},
    ]  # fmt: skip
    source = open_source(kinds)
    assert isinstance(source, ImageSource)
    assert len(source) == len(kinds)
    for index in range(len(kinds)):
        record = source.read(index)
        assert np.array_equal(record.data, pixels)
        assert (record.key, record.label) == (f"#{index}", -1)
    assert pickle.loads(pickle.dumps(source)).identity == source.identity
    with pytest.raises(IndexError):
        source.read(len(kinds))


@pytest.mark.parametrize("kind", ["tuples", "lists", "mappings", "own"])
def test_captions_stand_beside_images(kind: str) -> None:
    own = Own()
    data: Any = {
        "tuples": [(own[index]["image"], own[index]["caption"]) for index in range(5)],
        "lists": [[own[index]["image"], (own[index]["caption"],)] for index in range(5)],
        "mappings": [own[index] for index in range(5)],
        "own": own,
    }[kind]
    pairs = open_pairs(data)
    assert pairs.texts == tuple((f"blue {index}",) for index in range(5))
    assert np.asarray(pairs.images.read(3).data)[0, 0].tolist() == [120, 90, 200]


def test_data_sets_of_hugging_face_are_read_undecoded() -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": _pictures(3), "text": ["a", "b", ""], "label": [0, 1, 0]}
    features = datasets.Features(
        image=datasets.Image(), text=datasets.Value("string"), label=datasets.ClassLabel(names=["x", "y"])
    )
    data = datasets.Dataset.from_dict(rows, features=features)
    assert open_source(data).class_names == ("x", "y")
    with pytest.warns(UserWarning, match="images without a caption"):
        assert open_pairs(data).texts == (("a",), ("b",))


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_is_no_data_set_is_named() -> None:
    for wrong in ([], {"image": 1}, 7, b"bytes", iter([1]), _pictures(1)[0], np.zeros((9, 9, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected a data set with a length of 1 or more"):
            open_source(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"#0: expected a path, the bytes of a file, .*got int"):
        open_source([3]).read(0)
    with pytest.raises(ValueError, match=r"expected items with a field image, found \['picture'\]"):
        open_source([{"picture": 3}]).read(0)
    with pytest.raises(UnreadableImage, match="#1"):
        open_source([_pictures(1)[0], b"no image"]).read(1)
    with pytest.raises(ValueError, match="expected a caption or a list of captions, got 3"):
        open_pairs([{"image": _pictures(1)[0], "caption": 3}])


def test_training_on_lists(language: Path, tmp_path: Path) -> None:
    """A run folder like any other; what is logged arrives, and a second call goes on."""
    heard: list[tuple[int, float]] = []
    settings = {**SMALL, "model": {**SMALL["model"], "language": {"name": str(language)}}}
    tokenizer = pixlex.train(
        "lqae/tiny", _pictures(6), _pictures(3), out=tmp_path / "run",
        on_log=lambda step, numbers: heard.append((step, numbers.get("train/total", -1))), **settings,
    )  # fmt: skip
    assert isinstance(tokenizer, pixlex.ImageTokenizer)
    assert tokenizer(_pictures(1)).shape == (1, 16)
    assert [step for step, total in heard if total > 0] == [1, 2]
    assert (tmp_path / "run/report.html").is_file()
    (trained_on,) = tokenizer.trained_on
    assert re.fullmatch(r"python:list of 6, \w{12}", trained_on)
    with pytest.raises(ValueError, match="holds the checkpoints of a run"):
        pixlex.train("lqae/tiny", _pictures(6), out=tmp_path / "run", **settings)
    again = pixlex.train(
        "lqae/tiny", _pictures(6), _pictures(3), out=tmp_path / "run", resume=True, **settings
    )
    assert isinstance(again, pixlex.ImageTokenizer)
    assert again.fingerprint == tokenizer.fingerprint
    others = [*_pictures(5), Image.new("RGB", (9, 9), "red")]
    with pytest.raises(
        ValueError, match=r"its run differs in data\.train: 'python:list of 6, \w+' -> 'python:list"
    ):
        pixlex.train("lqae/tiny", others, _pictures(3), out=tmp_path / "run", resume=True, **settings)
    with pytest.raises(ValueError, match="was a data set of a Python program: go on there"):
        run_training(read_run(tmp_path / "run/config.yaml"), tmp_path / "run", resume=True)


def test_arrays_and_tensors_are_data_sets_too(tmp_path: Path) -> None:
    pixels = np.stack([np.asarray(one) for one in _pictures(4)])
    small = {
        "model": {
            "image_size": 16,
            "encoder": {"width": 16, "depth": 1},
            "decoder": {"width": 16, "depth": 1},
        }
    }
    pixlex.train(
        "mae/tiny", pixels, torch.from_numpy(pixels).movedim(-1, 1), out=tmp_path / "run",
        **small, **{"train.steps": 1, "train.batch_size": 2},
    )  # fmt: skip
    assert (tmp_path / "run/report.html").is_file()


def test_gray_pictures_stack_and_one_picture_is_none() -> None:
    stack = np.arange(10 * 28 * 28, dtype=np.uint8).reshape(10, 28, 28)
    source = open_source(stack)
    assert len(source) == 10
    assert np.array_equal(source.read(3).data[..., 0], stack[3])


class Augmented(Own):
    """Another crop at each look."""

    def __init__(self) -> None:
        self.random = np.random.default_rng()

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.random.integers(256, size=(8, 8, 3), dtype=np.uint8)}


def test_a_data_set_that_augments_is_the_same_one_later() -> None:
    first, again = open_source(Augmented()), open_source(Augmented())
    assert not np.array_equal(first.read(0).data, again.read(0).data)
    assert first.identity == again.identity != open_source(Own()).identity


def test_what_is_said_of_data_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named validation beside a data set of Python; names that are no ASCII, or no UTF-8."""
    begun: list[Any] = []
    monkeypatch.setattr("pixlex.run.run_training", lambda run, *given, **how: begun.append(run))
    pixlex.train("lqae/tiny", _pictures(3), out=tmp_path, **{"data.validation": "embedded:photographs:test"})
    pixlex.train("lqae/tiny", _pictures(3), out=tmp_path)
    pixlex.train("lqae/tiny", "photos/\N{GRINNING FACE}", "photos/\udcff", out=tmp_path)
    assert [run.data.validation for run in begun] == ["embedded:photographs:test", "", "photos/\udcff"]
    assert begun[2].data.train == "photos/\N{GRINNING FACE}"


def test_training_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown key train\.stebs; did you mean train\.steps"):
        pixlex.train("lqae/tiny", _pictures(2), out=tmp_path, **{"train.stebs": 1})
    with pytest.raises(ValueError, match=r"unknown key steps; did you mean train\.steps\?"):
        pixlex.train("lqae/tiny", _pictures(2), out=tmp_path, steps=1)
    with pytest.raises(ValueError, match=r"expected items \(image, caption\), or with a field caption"):
        pixlex.train("cbvila/tiny", _pictures(2), out=tmp_path)
    with pytest.raises(ValueError, match="described by a file, got a list"):
        pixlex.train("finetune/scenes-vqa", _pictures(2), out=tmp_path, **{"train.batch_size": 8})
    assert not [*tmp_path.iterdir()]
