"""Images made on the spot."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from PIL import Image

from pixlex.data.synthetic import Scene, make_scene


def pixels_of(number: int, width: int = 12, height: int = 10) -> np.ndarray:
    """Smooth pixels, different for each number, that JPEG and resizing hardly change."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [(number * 37 + rows * 6) % 256, (number * 11 + columns * 5) % 256, (rows + columns) * 4 % 256]
    return np.stack(channels, axis=-1).astype(np.uint8)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """`picture(number)` is a PNG file whose pixels are `pixels_of(number)`."""

    def make(number: int, file_format: str = "PNG", **size: int) -> bytes:
        return encoded(Image.fromarray(pixels_of(number, **size)), file_format)

    return make


@pytest.fixture
def folder_of(tmp_path: Path, picture: Callable[..., bytes]) -> Callable[..., Path]:
    """`folder_of(count, broken)` is a flat folder of `count` images, those of the given numbers damaged."""

    def make(count: int, broken: tuple[int, ...] = (), name: str = "images") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(count):
            data = b"no image" if number in broken else picture(number)
            (folder / f"{number:04d}.png").write_bytes(data)
        return folder

    return make


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is served at far://, with a cache of its own and without waits between tries."""
    from tests.data.far import far_folder

    monkeypatch.setenv("PIXLEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pixlex.data.remote._WAITS", (0.0, 0.0))
    (tmp_path / "far").mkdir()
    yield from far_folder(tmp_path / "far", tmp_path / "asked.log")


@pytest.fixture(scope="session")
def scenes() -> list[Scene]:
    """Scenes of the training split."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    made = [make_scene("train", index) for index in range(2400)]
    jaxtyping.config.update("jaxtyping_disable", before)
    return made


@pytest.fixture(scope="module")
def in_bulk() -> Iterator[None]:
    """Types are not checked at every call, which takes a hundred times as long as drawing a scene."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
