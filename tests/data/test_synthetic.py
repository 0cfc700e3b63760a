"""Drawn scenes: the same everywhere, none in two splits; objects in their cells and colors; a source of images."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from pixlex.data.images import open_source
from pixlex.data.synthetic import (
    BACKGROUNDS,
    COLORS,
    SCENES_VERSION,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    ScenesSource,
    draw,
    make_scene,
    scene_captions,
    scene_items,
)

pytestmark = pytest.mark.usefixtures("in_bulk")


def _described(scene: Scene) -> frozenset[tuple[str, str, int, int]]:
    return frozenset((thing.shape, thing.color, thing.row, thing.column) for thing in scene.objects)


def test_scenes_and_texts_are_those_of_their_version() -> None:
    """In every process, which each hashes strings in its own way: a change needs another `SCENES_VERSION`."""
    text: list[str] = []
    for split in ("train", "test"):
        source = ScenesSource(split, 50)
        text += [repr(make_scene(split, index)) for index in range(50)]
        text += [repr(scene_captions(source, index)) for index in range(50)]
        for task in ("vqa", "nlvr2", "entailment"):
            text += map(repr, scene_items(task, source))
    assert SCENES_VERSION == 1
    found = hashlib.sha256("\n".join(text).encode()).hexdigest()
    assert found == "a7a4bc59b72ffb4656634e2e5093736973509068b1c2156ca173581901ea0f71"


def test_no_test_scene_occurs_in_training(scenes: list[Scene]) -> None:
    train = {_described(scene) for scene in scenes[:1200]}
    test = {_described(make_scene("test", index)) for index in range(600)}
    assert not train & test
    # Most scenes are new, so that the sets are no repetitions of a few.
    assert len(train) > 1100
    assert len(test) > 550


def test_scenes_are_in_range_and_favor_nothing(scenes: list[Scene]) -> None:
    things = [thing for scene in scenes for thing in scene.objects]
    for scene in scenes:
        cells = [(thing.row, thing.column) for thing in scene.objects]
        assert cells == sorted(set(cells))
        assert len(scene.shifts) == len(cells)
        assert all(abs(shift) <= 0.06 for pair in scene.shifts for shift in pair)
    for values, options in (
        ([thing.shape for thing in things], SHAPES),
        ([thing.color for thing in things], tuple(COLORS)),
        ([thing.size for thing in things], SIZES),
        (
            [(thing.row, thing.column) for thing in things],
            [(row, col) for row in range(3) for col in range(3)],
        ),
        ([scene.background for scene in scenes], tuple(BACKGROUNDS)),
        ([scene.texture for scene in scenes], TEXTURES),
    ):
        counts = Counter(values)
        assert set(counts) == set(options)
        expected = len(values) / len(options)
        assert all(abs(number - expected) < 0.12 * expected for number in counts.values()), counts
    numbers = Counter(len(scene.objects) for scene in scenes)
    assert sorted(numbers) == [1, 2, 3, 4]
    assert numbers[1] < numbers[2] < 1.2 * numbers[4]


def _scene(
    *things: SceneObject, background: str = "gray", texture: str = "plain", shift: float = 0.0
) -> Scene:
    return Scene(things, background, texture, ((shift, shift),) * len(things))


def _covered(image: np.ndarray, empty: np.ndarray) -> np.ndarray:
    return np.abs(image.astype(int) - empty.astype(int)).max(axis=-1) > 0


def test_objects_stay_in_their_cells_and_have_their_colors() -> None:
    for index in range(100):
        scene = make_scene("train", index)
        image = draw(scene)
        assert image.shape == (96, 96, 3)
        covered = _covered(image, draw(_scene(background=scene.background, texture=scene.texture)))
        for thing, (right, down) in zip(scene.objects, scene.shifts, strict=True):
            rows = slice(32 * thing.row, 32 * thing.row + 32)
            columns = slice(32 * thing.column, 32 * thing.column + 32)
            cell = covered[rows, columns]
            assert cell.sum() > 50
            covered[rows, columns] = False
            if thing.shape != "ring":
                middle = round(32 * (thing.row + 0.5 + down)), round(32 * (thing.column + 0.5 + right))
                assert tuple(image[middle]) == COLORS[thing.color]
        assert not covered.any()


def test_records() -> None:
    source = open_source("embedded:scenes:test")
    assert isinstance(source, ScenesSource)
    assert (len(source), len(open_source("embedded:scenes:train"))) == (1_000, 20_000)
    five, more = ScenesSource("train", 5), ScenesSource("train", 50)
    assert [scene_captions(one, 4) for one in (five, more)] == [scene_captions(more, 4)] * 2
    assert len({one.identity for one in (five, more, ScenesSource("test", 5), ScenesSource("train", 5))}) == 3
    assert open_source(five.name) == five
    assert source.class_names == ("1", "2", "3", "4")
    assert source.key(17) == "scenes/test-000017"
    seen = set()
    for index in range(60):
        record, scene = source.read(index), make_scene("test", index)
        assert record.key == source.key(index)
        assert isinstance(record.data, np.ndarray)
        assert np.array_equal(record.data, draw(scene))
        assert source.class_names[record.label] == str(len(scene.objects))
        seen.add(record.data.tobytes())
    assert len(seen) == 60


def test_what_does_not_exist() -> None:
    source = ScenesSource("train", 3)
    for index in (-1, 3):
        for read in (source.read, source.key):
            with pytest.raises(IndexError, match=f"embedded:scenes:train:3 has .* 0 to 2, got {index}"):
                read(index)
    for count in ("0", "-1", "many", "", "1.5", "²"):
        with pytest.raises(ValueError, match=f"expects a whole number of 1 or more as COUNT, got '{count}'"):
            open_source(f"embedded:scenes:train:{count}")
    for rest in ("scenes", "scenes:validation", "scenes:train:5:6", "scenes:validation:5"):
        with pytest.raises(ValueError, match=rf"embedded:scenes:test\[:COUNT\], got 'embedded:{rest}'"):
            open_source(f"embedded:{rest}")
