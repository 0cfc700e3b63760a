"""What a scene is, and which scene stands at each place of a split: a function of (split, index) alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np

Split = Literal["train", "test"]
Purpose = Literal["scene", "captions", "question", "pair", "statement", "entailment"]
T = TypeVar("T")

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
SIZES = ("small", "large")
COLORS = {
    "red": (214, 32, 38),
    "orange": (250, 138, 22),
    "yellow": (250, 224, 54),
    "green": (30, 152, 62),
    "blue": (34, 74, 214),
    "purple": (134, 42, 172),
    "black": (16, 16, 18),
    "white": (250, 250, 250),
}
BACKGROUNDS = {
    "gray": (150, 150, 154),
    "beige": (198, 182, 150),
    "teal": (96, 146, 146),
    "pink": (206, 152, 168),
    "brown": (134, 110, 94),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")
GRID = 3
MAX_OBJECTS = 4

# Part of the identity of the source: a change of what is drawn or said makes it another set.
VERSION = 1

_SPLITS = ("train", "test")
_PURPOSES = ("scene", "captions", "question", "pair", "statement", "entailment")

# One of so many descriptions belongs to the test split, whatever the index.
_TEST_ONE_IN = 5

# A single object leaves little to say, and only 576 of them differ in more than size.
_NUMBERS = (1, 2, 2, 2, 3, 3, 3, 4, 4, 4)

# Rate at which an object takes the shape, and apart from it the color, of an earlier one: without it few
# scenes would have two circles to count, or a red circle beside a blue one to mix up.
_REPEAT_RATE = 0.25

# How far an object may lie from the center of its cell, as a share of the cell's side.
_MAX_SHIFT = 0.06

# Enough for one scene: 1 number, for each object 1 cell, 2 x 2 kinds, 1 size, 2 shifts, and 2 for the background.
_NUM_DRAWS = 40


@dataclass(frozen=True)
class SceneObject:
    """One colored shape.

    Attributes:
        shape: one of `SHAPES`.
        color: a key of `COLORS`.
        size: one of `SIZES`.
        row: row of its cell, from the top, in [0, 3).
        column: column of its cell, from the left, in [0, 3).
    """

    shape: str
    color: str
    size: str
    row: int
    column: int


@dataclass(frozen=True)
class Scene:
    """Objects on a 3 x 3 grid, at most one in a cell, before a background.

    Attributes:
        objects: one to four, in reading order.
        background: a key of `BACKGROUNDS`.
        texture: one of `TEXTURES`.
        shifts: how far each object lies right of and below the center of its cell, in cells, in [-0.06, 0.06].
    """

    objects: tuple[SceneObject, ...]
    background: str
    texture: str
    shifts: tuple[tuple[float, float], ...]


@lru_cache(maxsize=256)
def make_scene(split: Split, index: int) -> Scene:
    """Return the scene at a place of a split.

    Scenes are drawn until one belongs to the split (see `split_of`), so no test scene occurs in training.
    Shapes and colors are drawn alike: the distribution stays the same if they are renamed.

    Args:
        split: "train" or "test".
        index: 0 or more, without an end.
    """
    generator = generator_for("scene", split, index)
    while True:
        scene = _draw_scene(generator)
        if split_of(scene) == split:
            return scene


def split_of(scene: Scene) -> Split:
    """Return the only split in which a scene with these shapes and colors at these places may occur.

    A hash of shapes, colors and cells decides; sizes, shifts and background do not enter it, so scenes that
    differ in nothing else stay together.
    """
    placed = sorted((thing.row, thing.column, thing.shape, thing.color) for thing in scene.objects)
    digest = hashlib.blake2b(repr(placed).encode(), digest_size=4).digest()
    return "test" if int.from_bytes(digest, "big") % _TEST_ONE_IN == 0 else "train"


def generator_for(purpose: Purpose, split: Split, index: int, turn: int = 0) -> np.random.Generator:
    """Return the generator of one choice about one scene; no two choices share a stream.

    Args:
        purpose: what is chosen.
        split: split of the scene.
        index: its place in the split, 0 or more.
        turn: how often the same was chosen about it before.
    """
    # NumPy gives the seeds (a, b, c) and (a, b, c, 0) the same numbers.
    return np.random.default_rng((_PURPOSES.index(purpose), _SPLITS.index(split), index, turn))


def pick(generator: np.random.Generator, options: Sequence[T]) -> T:
    """Return one of the options, each as likely; six times as fast as `Generator.choice`."""
    return options[int(generator.random() * len(options))]


def shuffled(generator: np.random.Generator, options: Sequence[T]) -> list[T]:
    """Return the options in random order."""
    return [options[place] for place in generator.random(len(options)).argsort().tolist()]


def _draw_scene(generator: np.random.Generator) -> Scene:
    """Draw a scene of either split; one call of the generator makes it fast."""
    draws = iter(generator.random(_NUM_DRAWS).tolist())
    cells = list(range(GRID * GRID))
    shapes: list[str] = []
    colors: list[str] = []
    placed = []
    for _ in range(_one_of(draws, _NUMBERS)):
        row, column = divmod(cells.pop(int(next(draws) * len(cells))), GRID)
        shapes.append(_repeated(draws, shapes, SHAPES))
        colors.append(_repeated(draws, colors, tuple(COLORS)))
        shift = ((2 * next(draws) - 1) * _MAX_SHIFT, (2 * next(draws) - 1) * _MAX_SHIFT)
        placed.append((SceneObject(shapes[-1], colors[-1], _one_of(draws, SIZES), row, column), shift))
    placed.sort(key=lambda pair: (pair[0].row, pair[0].column))
    return Scene(
        tuple(thing for thing, _ in placed),
        _one_of(draws, tuple(BACKGROUNDS)),
        _one_of(draws, TEXTURES),
        tuple(shift for _, shift in placed),
    )


def _one_of(draws: Iterator[float], options: Sequence[T]) -> T:
    return options[int(next(draws) * len(options))]


def _repeated(draws: Iterator[float], earlier: Sequence[str], options: Sequence[str]) -> str:
    """Return an earlier value or any of the options."""
    return _one_of(draws, earlier if next(draws) < _REPEAT_RATE and earlier else options)
