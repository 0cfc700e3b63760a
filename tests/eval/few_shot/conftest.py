"""Labeled pictures that the tests of episodes share."""

from __future__ import annotations

import pytest
from tests.eval.few_shot.fakes import labeled

from pixlex.data.sources import ImageSource


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    """Eight pictures of each of six classes."""
    return labeled(tmp_path_factory.mktemp("labeled"))
