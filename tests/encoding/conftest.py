"""Two small tokenizers, pictures, and the codes that the tokenizer itself gives them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny import tiny_lqae, tiny_vqvae, write_images

from pixlex.api import ImageTokenizer

NAMES = tuple(f"{group}/{number:02d}.png" for group in ("cats", "dogs") for number in range(10))

Expected = list[tuple[str, tuple[int, ...]]]


@pytest.fixture(scope="session")
def lqae(language: Path) -> ImageTokenizer:
    return ImageTokenizer(tiny_lqae(language))


@pytest.fixture(scope="session")
def vqvae() -> ImageTokenizer:
    return ImageTokenizer(tiny_vqvae())


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that no test changes."""
    return write_images(tmp_path_factory.mktemp("photos"), NAMES)


@pytest.fixture(scope="session")
def expected(lqae: ImageTokenizer, photos: Path) -> Expected:
    """Key and codes of each image of the folder, straight from the tokenizer."""
    rows = lqae.tokenize([photos / name for name in NAMES]).tolist()
    return [(name, tuple(row)) for name, row in zip(NAMES, rows, strict=True)]
