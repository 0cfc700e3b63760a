"""Pixels of scenes: objects in their cells, in their colors, shapes told apart when small."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pixlex.data.scenes.drawing import draw, object_boxes
from pixlex.data.scenes.scene import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    make_scene,
)


def _scene(
    *things: SceneObject, background: str = "gray", texture: str = "plain", shift: float = 0.0
) -> Scene:
    return Scene(things, background, texture, ((shift, shift),) * len(things))


def _drawn(shape: str, size: str, color: str = "red", side: int = 96) -> np.ndarray:
    return draw(_scene(SceneObject(shape, color, size, 1, 1)), side)


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


@pytest.mark.parametrize("size", SIZES)
def test_the_largest_shift_leaves_the_object_in_its_cell(size: str) -> None:
    empty = draw(_scene())
    for shape, shift in itertools.product(SHAPES, (-0.06, 0.06)):
        image = draw(_scene(SceneObject(shape, "white", size, 1, 1), shift=shift))
        covered = _covered(image, empty)
        covered[32:64, 32:64] = False
        assert not covered.any(), shape


def test_a_ring_is_open() -> None:
    assert tuple(_drawn("ring", "small", side=64)[32, 32]) == BACKGROUNDS["gray"]
    assert tuple(_drawn("circle", "small", side=64)[32, 32]) == COLORS["red"]


@pytest.mark.parametrize("size", SIZES)
def test_any_two_shapes_differ_much_at_64_pixels(size: str) -> None:
    """In a sixth or more of the pixels that either covers."""
    empty = draw(_scene(), 64)
    masks = {shape: _covered(_drawn(shape, size, side=64), empty) for shape in SHAPES}
    for first, second in itertools.combinations(SHAPES, 2):
        either = (masks[first] | masks[second]).sum()
        assert (masks[first] ^ masks[second]).sum() > either / 6, (first, second)
    sizes = [
        (_covered(_drawn(shape, "large", side=64), empty)).sum() / masks[shape].sum() for shape in SHAPES
    ]
    assert size == "large" or min(sizes) > 2


def test_colors_differ_from_each_other_and_from_every_background() -> None:
    every = [*COLORS.values(), *BACKGROUNDS.values()]
    for first, second in itertools.combinations(every, 2):
        assert max(abs(one - other) for one, other in zip(first, second, strict=True)) > 25


def test_textures_are_light_and_differ() -> None:
    images = {texture: draw(_scene(texture=texture)).astype(int) for texture in TEXTURES}
    plain = np.array(BACKGROUNDS["gray"])
    assert (images["plain"] == plain).all()
    for first, second in itertools.combinations(TEXTURES, 2):
        assert (images[first] != images[second]).mean() > 0.2
        assert np.abs(images[first] - plain).max() <= 9


def test_edges_are_smooth() -> None:
    reds = set(_drawn("circle", "large")[..., 1].ravel().tolist())
    assert len(reds) > 5


def test_other_sides_show_the_same() -> None:
    scene = make_scene("test", 5)
    small, large = draw(scene, 32).astype(float), draw(scene, 128).astype(float)
    assert small.shape == (32, 32, 3)
    blocks = large.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    assert np.abs(blocks - small).mean() < 6
    with pytest.raises(ValueError, match="side must be 24 pixels or more, got 23"):
        draw(scene, 23)


def test_boxes_hold_their_objects_and_little_else() -> None:
    """Every pixel that an object covers lies in its box, to a pixel; the box is filled across or down."""
    for index in range(60):
        scene = make_scene("train", index)
        covered = _covered(draw(scene), draw(_scene(background=scene.background, texture=scene.texture)))
        for left, top, right, bottom in object_boxes(scene):
            rows = slice(max(0, math.floor(96 * top) - 1), math.ceil(96 * bottom) + 1)
            columns = slice(max(0, math.floor(96 * left) - 1), math.ceil(96 * right) + 1)
            inside = covered[rows, columns]
            across, down = inside.any(0).sum(), inside.any(1).sum()
            assert max(across / (96 * (right - left)), down / (96 * (bottom - top))) > 0.8
            covered[rows, columns] = False
        assert not covered.any()
