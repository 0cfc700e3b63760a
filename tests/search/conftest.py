"""A small model, pictures, and what is in an index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tiny import tiny_cbvila, write_images

from pixlex.models.cbvila import CBViLA
from pixlex.search import ImageIndex, UpdateResult
from pixlex.search.store import Store

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


def contents(folder: Path) -> Contents:
    """Key and vector of all that an index on the disk holds."""
    store = Store(str(folder))
    entries = store.entries()
    vectors = store.vectors([entry.digest for entry in entries])
    found = {entry.key: vectors[entry.digest].tobytes() for entry in entries}
    assert len(found) == len(entries) == len(store)
    return dict(sorted(found.items()))
