"""A model trained on squashed images gets squashed images wherever it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.tiny import tiny_cbvila, tiny_lqae_config, tiny_vqvae_config, write_classes

from pixlex import run as runs
from pixlex.api import ImageTokenizer
from pixlex.config.fields import DataConfig, ResizeMode, TrainConfig
from pixlex.config.lqae import LQAERun
from pixlex.data import decoding
from pixlex.data.decoding import load_image
from pixlex.models.baselines import VQVAE
from pixlex.models.lqae import LQAE


def _tokenizer(family: str, language: Path) -> ImageTokenizer:
    torch.manual_seed(1)  # not that of untrained copies
    if family == "lqae":
        return ImageTokenizer(
            LQAE.build(dataclasses.replace(tiny_lqae_config(language), resize_mode="squash"))
        )
    if family == "vqvae":
        return ImageTokenizer(VQVAE.build(dataclasses.replace(tiny_vqvae_config(), resize_mode="squash")))
    return ImageTokenizer(tiny_cbvila(language, resize_mode="squash"))


@pytest.fixture
def uncut(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model may get the square cut out of an image."""
    whole_box = decoding._whole_box

    def squashed(image: Image.Image, resize_mode: ResizeMode) -> tuple[float, float, float, float]:
        assert resize_mode == "squash"
        return whole_box(image, resize_mode)

    monkeypatch.setattr(decoding, "_whole_box", squashed)


@pytest.mark.usefixtures("uncut")
@pytest.mark.parametrize("family", ["lqae", "vqvae", "cbvila"])
def test_every_command_squashes(
    family: str, language: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    _tokenizer(family, language).save(model)
    train, test = write_classes(tmp_path / "train", 6), write_classes(tmp_path / "test", 3, seed=1)
    commands: list[list[object]] = [
        ["encode", test, "--to", "codes", "--out", out / "codes"],
        ["gallery", "--data", test, "--codewords", 2, "--out", out / "g.png"],
        ["evaluate", "linear-probe", "--data", train, "--test", test, "--out", out / "probe", "--untrained"],
        ["evaluate", "few-shot", "--data", test, "--episodes", 2, "--ways", 2, "--settings", "1/0",
         "--classifiers", "bag", "linear", "--code-words", language, "--untrained", "--out", out / "few"],
        ["reconstruct", test, "--out", out / "r.png"],
        ["evaluate", "reconstruction", "--data", test, "--out", out / "reconstruction"],
    ]  # fmt: skip
    for command in commands[: None if family == "lqae" else 2]:
        code, _, err = call(*command, "--model", model, "--device", "cpu", "--quiet")
        assert code == 0, (command[:2], err)


@pytest.mark.usefixtures("uncut")
def test_training_and_its_evaluation_squash(language: Path, tmp_path: Path) -> None:
    pictures = str(write_classes(tmp_path / "train", 4))
    settings: dict[str, Any] = {
        "data": DataConfig(train=pictures, validation=pictures, augment="resize"),
        "train": TrainConfig(steps=1, batch_size=4, device="cpu", precision="fp32"),
    }
    run = LQAERun(model=dataclasses.replace(tiny_lqae_config(language), resize_mode="squash"), **settings)
    assert runs.run_training(run, tmp_path / "run") == tmp_path / "run/model"


def test_codes_of_files_are_those_of_squashed_pixels(language: Path, tmp_path: Path) -> None:
    tokenizer = _tokenizer("lqae", language)
    path = next(write_classes(tmp_path, 1).rglob("*.png"))
    picture = load_image(path.read_bytes(), path.name).resize((90, 36))
    squashed = decoding.evaluation_transform(picture, tokenizer.image_size, "squash")[None]
    assert torch.equal(tokenizer.tokenize(picture), tokenizer.tokenize(squashed))
    centered = decoding.evaluation_transform(picture, tokenizer.image_size)[None]
    assert not torch.equal(tokenizer.tokenize(picture), tokenizer.tokenize(centered))
