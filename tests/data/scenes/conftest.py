"""Scenes by the thousand."""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture(scope="module")
def in_bulk() -> Iterator[None]:
    """Types are not checked at every call, which takes a hundred times as long as drawing a scene.

    They are checked in the modules that do not use this, on some hundreds of scenes.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
