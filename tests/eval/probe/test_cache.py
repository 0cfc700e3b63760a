"""Features on the disk: computed once, never those of something else, resumed after a kill."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.eval.probe.classes import write_classes
from tests.tiny import tiny_lqae
from tests.train.running import digest
from torch import Tensor

from pixlex.data.images import open_source
from pixlex.eval.probe import cache
from pixlex.eval.probe.cache import extract
from pixlex.eval.probe.features import image_features
from pixlex.eval.probe.sets import LabeledImages, survey
from pixlex.models.lqae import LQAE
from pixlex.models.vqvae import VQVAE


@pytest.fixture(autouse=True)
def small_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_IMAGES_A_WRITE", 4)


@pytest.fixture
def labeled(tmp_path: Path) -> LabeledImages:
    return survey(open_source(str(write_classes(tmp_path / "images", 4))))


def only_place(folder: Path) -> Path:
    (place,) = folder.iterdir()
    return place


def test_the_second_time_nothing_is_computed(lqae: LQAE, labeled: LabeledImages, tmp_path: Path) -> None:
    first = extract(lqae, labeled, tmp_path / "cache")
    second = extract(lqae, labeled, tmp_path / "cache")
    assert (first.num_computed, second.num_computed) == (12, 0)
    assert first.values.tobytes() == second.values.tobytes()
    assert isinstance(second.values, np.memmap)
    assert second.values.dtype == np.float32
    assert second.of("layers").width == 64
    assert second.labels.tolist() == labeled.labels.tolist()
    header = json.loads((only_place(tmp_path / "cache") / "features.json").read_text())["header"]
    assert {"pixlex", "model", "listing", "contents", "image_size", "dtype", "widths"} <= set(header)


def test_a_row_does_not_depend_on_the_others(lqae: LQAE, labeled: LabeledImages, tmp_path: Path) -> None:
    every = extract(lqae, labeled, tmp_path / "a")
    some = extract(lqae, survey(labeled.source, limit=3), tmp_path / "b")
    assert some.values.tobytes() == every.values[[0, 4, 8]].tobytes()


def test_models_stay_as_they_are(lqae: LQAE, vqvae: VQVAE, labeled: LabeledImages, tmp_path: Path) -> None:
    for model in (lqae, vqvae):
        parts = [model, lqae.language]
        before = [digest(part) for part in parts]
        extract(model, labeled, tmp_path / "cache")
        assert [digest(part) for part in parts] == before
        assert all(parameter.grad is None for parameter in model.parameters())


def stopping_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt the computation after so many pieces; the first one only measures widths."""
    made = iter(range(calls))

    def stopping(model: Any, images: Tensor) -> dict[str, Tensor]:
        if next(made, None) is None:
            raise KeyboardInterrupt
        return image_features(model, images)

    monkeypatch.setattr(cache, "image_features", stopping)


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_run_that_was_stopped_goes_on(
    lqae: LQAE, labeled: LabeledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    expected = extract(lqae, labeled, tmp_path / "whole").values.tobytes()
    with monkeypatch.context() as patch:
        stopping_after(calls, patch)
        with pytest.raises(KeyboardInterrupt):
            extract(lqae, labeled, tmp_path / "cache")
    assert not (only_place(tmp_path / "cache") / "features.json").exists()
    resumed = extract(lqae, labeled, tmp_path / "cache")
    assert resumed.num_computed == 12 - 4 * (calls - 1)
    assert resumed.values.tobytes() == expected


@pytest.mark.parametrize("damage", ["no done.npy", "torn features.npy", "torn features.json"])
def test_what_a_kill_leaves_behind_is_not_taken_for_features(
    lqae: LQAE, labeled: LabeledImages, tmp_path: Path, damage: str
) -> None:
    expected = extract(lqae, labeled, tmp_path / "cache").values.tobytes()
    place = only_place(tmp_path / "cache")
    (place / "features.json").write_text('{"header": {"for' if damage == "torn features.json" else "")
    if damage != "torn features.json":
        (place / "done.npy").unlink()
        content = (place / "features.npy").read_bytes()
        (place / "features.npy").write_bytes(content[:-40] if damage == "torn features.npy" else content)
    again = extract(lqae, labeled, tmp_path / "cache")
    assert again.values.tobytes() == expected
    assert again.num_computed == (0 if damage == "torn features.json" else 12)


def test_other_weights_images_or_precisions_are_other_features(
    lqae: LQAE, language_folder: Path, labeled: LabeledImages, tmp_path: Path
) -> None:
    extract(lqae, labeled, tmp_path / "cache")
    other = tiny_lqae(language_folder, seed=1, search="raw")
    assert extract(other, labeled, tmp_path / "cache").num_computed == 12
    assert extract(lqae, labeled, tmp_path / "cache", precision="bf16").num_computed == 12
    # The listing is the same, the bytes of one picture are not.
    folder = tmp_path / "images"
    shutil.copy(folder / "red" / "0.png", folder / "red" / "1.png")
    changed = survey(open_source(str(folder)))
    assert changed.source.identity == labeled.source.identity
    assert extract(lqae, changed, tmp_path / "cache").num_computed == 12


def test_broken_images_are_left_out_and_listed(lqae: LQAE, tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "images", 10)
    (folder / "green" / "3.png").write_bytes(b"no image")
    labeled = survey(open_source(str(folder)))
    for computed in (29, 0):
        features = extract(lqae, labeled, tmp_path / "cache")
        assert [one.key for one in features.skipped] == ["green/3.png"]
        assert features.num_computed == computed
        part = features.of("last")
        assert (len(part), np.bincount(part.labels).tolist()) == (29, [10, 9, 10])
        assert np.abs(np.concatenate(list(part.chunks()))).sum(1).min() > 0


def test_one_process_at_a_time(lqae: LQAE, labeled: LabeledImages, tmp_path: Path) -> None:
    extract(lqae, labeled, tmp_path / "cache")
    with (only_place(tmp_path / "cache") / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="being computed by another process"):
            extract(lqae, labeled, tmp_path / "cache")


def test_training_mode_does_not_reach_the_features(
    language_folder: Path, labeled: LabeledImages, tmp_path: Path
) -> None:
    """A whitened search in training mode would look at the images beside an image."""
    model = tiny_lqae(language_folder)
    expected = extract(model, labeled, tmp_path / "a").values.tobytes()
    assert extract(model.train(), labeled, tmp_path / "b").values.tobytes() == expected
    assert torch.is_grad_enabled()
