"""Labeled pictures that the tests of episodes share."""

from __future__ import annotations

import pytest
from tests.eval.few_shot.fakes import labeled
from tests.tiny import write_images

from pixlex.data.images import open_source
from pixlex.data.sources import ImageSource


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    """Eight pictures of each of six classes."""
    return labeled(tmp_path_factory.mktemp("labeled"))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    """Ten pictures; the last is a copy of the first, and the one before it cannot be read."""
    folder = write_images(tmp_path_factory.mktemp("images"), [f"{number}.png" for number in range(8)])
    (folder / "8.png").write_bytes(b"no picture")
    (folder / "9.png").write_bytes((folder / "0.png").read_bytes())
    return open_source(str(folder))
