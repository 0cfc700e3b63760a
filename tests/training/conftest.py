"""Runs that several tests look at: each is made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.training.running import run, settings, write_pictures

from pixlex.objectives.phase import Objective

Alone = Callable[[str], tuple[Path, Objective]]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures with two captions each."""
    return write_pictures(tmp_path_factory.mktemp("pairs") / "pairs.parquet", captions=True)


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, language: Path, pairs: Path) -> Alone:
    """The uninterrupted run of a family on one process, with a checkpoint of every step, and its objective."""
    found: dict[str, tuple[Path, Objective]] = {}

    def train(family: str) -> tuple[Path, Objective]:
        if family not in found:
            folder = tmp_path_factory.mktemp("alone")
            config = settings(checkpoint_every=1, keep_checkpoints=99)
            found[family] = folder, run(folder, pairs, family, language, config)
        return found[family]

    return train
