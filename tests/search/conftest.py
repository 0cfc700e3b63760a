"""A small model, pictures, and what is in an index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.tiny import tiny_cbvila, write_images

from pixlex.models.cbvila import CBViLA
from pixlex.search import ImageIndex, UpdateResult
from pixlex.search.index import Store

NAMES = tuple(f"{group}/{number:02d}.png" for group in ("cats", "dogs") for number in range(6))

Contents = dict[str, bytes]
Indexed = Callable[..., tuple[ImageIndex, UpdateResult]]


@pytest.fixture(scope="session")
def model(language: Path) -> CBViLA:
    return tiny_cbvila(language)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", NAMES)


@pytest.fixture
def update(model: CBViLA, tmp_path: Path) -> Indexed:
    """Index a source, into `index` if not elsewhere."""

    def call(source: object, folder: str = "index", **settings: object) -> tuple[ImageIndex, UpdateResult]:
        found = ImageIndex.open(tmp_path / folder, model, create=True)
        described = str(source) if isinstance(source, str | Path) else source
        return found, found.update(described, progress=False, **settings)  # type: ignore[arg-type]

    return call


def contents(folder: Path, width: int = 8) -> Contents:
    """Key and vector of all that an index on the disk holds."""
    store = Store(folder, width)
    assert store.missing == ()
    rows = [(entry.key, store.vector(entry.row).tobytes()) for entry in store.entries()]
    assert len(rows) == len(dict(rows)) == len(store)
    blocks = [vectors for _, vectors in store.blocks()]
    stacked = np.concatenate(blocks) if blocks else np.empty((0, width))
    assert sorted(map(bytes, stacked)) == sorted(vector for _, vector in rows)
    return dict(rows)
