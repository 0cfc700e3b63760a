"""A scene -> pixels, the same on every machine as far as Pillow allows."""

from __future__ import annotations

import math
from functools import cache, lru_cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from pixlex.data.scenes.scene import BACKGROUNDS, COLORS, GRID, Scene

SIDE = 96
MIN_SIDE = 24

# Drawn so many times larger and averaged, which makes smooth edges.
_OVERSAMPLING = 4

# Half the height of an object, as a share of its cell: a large one with the largest shift stays inside.
_RADII = {"small": 0.25, "large": 0.43}

_RING_WIDTH = 0.4  # of the radius
_TEXTURE_LEVELS = 9  # of 255, between the two tones of a texture
_TEXTURE_PERIODS = 12  # across the image

_POLYGONS = {
    "square": ((-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)),
    "triangle": ((0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)),
    "diamond": ((0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)),
    "cross": (
        *((-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3)),
        *((0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)),
    ),
}


def draw(scene: Scene, side: int = SIDE) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a scene.

    Args:
        scene: what to draw.
        side: width and height in pixels, 24 or more.

    Returns:
        RGB pixels in 0..255.

    Raises:
        ValueError: if the image would be too small to tell shapes apart.
    """
    if side < MIN_SIDE:
        raise ValueError(f"side must be {MIN_SIDE} pixels or more, got {side}")
    image = _background(scene.background, scene.texture, side).copy()
    canvas = ImageDraw.Draw(image)
    cell = side * _OVERSAMPLING / GRID
    for thing, (across, below, radius) in zip(scene.objects, _places(scene, cell), strict=True):
        _draw_shape(canvas, thing.shape, (across, below), radius, COLORS[thing.color])
    return np.asarray(image.reduce(_OVERSAMPLING))


def object_boxes(scene: Scene) -> list[tuple[float, float, float, float]]:
    """Return (left, top, right, bottom) of the square around each object, in shares of the image's side."""
    places = _places(scene, 1 / GRID)
    return [
        (across - radius, below - radius, across + radius, below + radius) for across, below, radius in places
    ]


def _places(scene: Scene, cell: float) -> list[tuple[float, float, float]]:
    """Return how far right and down the center of each object lies, and its radius, for a side of the cells."""
    return [
        ((thing.column + 0.5 + right) * cell, (thing.row + 0.5 + down) * cell, _RADII[thing.size] * cell)
        for thing, (right, down) in zip(scene.objects, scene.shifts, strict=True)
    ]


def _draw_shape(
    canvas: ImageDraw.ImageDraw,
    shape: str,
    center: tuple[float, float],
    radius: float,
    color: tuple[int, int, int],
) -> None:
    # Corners are whole pixels of the large canvas: the last digits of a cosine may differ between machines.
    across, below = center
    box = [round(across - radius), round(below - radius), round(across + radius), round(below + radius)]
    if shape == "circle":
        canvas.ellipse(box, fill=color)
    elif shape == "ring":
        canvas.ellipse(box, outline=color, width=round(_RING_WIDTH * radius))
    else:
        corners = [(round(across + radius * x), round(below + radius * y)) for x, y in _corners(shape)]
        canvas.polygon(corners, fill=color)


@cache
def _corners(shape: str) -> tuple[tuple[float, float], ...]:
    """Return the corners of a shape around (0, 0), in radii, y downward."""
    if shape == "star":
        turns = [(number * math.pi / 5, 1.05 if number % 2 == 0 else 0.45) for number in range(10)]
        return tuple((far * math.sin(turn), 0.08 - far * math.cos(turn)) for turn, far in turns)
    if shape == "heart":  # the curve of a common textbook, 16 sin^3 t across and four cosines upward
        return tuple(_heart(2 * math.pi * number / 48) for number in range(48))
    return _POLYGONS[shape]


def _heart(turn: float) -> tuple[float, float]:
    up = 13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn)
    return math.sin(turn) ** 3, -(up + 2.5) / 15.5


@lru_cache(maxsize=32)
def _background(name: str, texture: str, side: int) -> Image.Image:
    """Return the canvas before anything lies on it, in the size that is drawn."""
    large = side * _OVERSAMPLING
    rows, columns = np.ogrid[0:large, 0:large]
    down, across = rows * _TEXTURE_PERIODS / large, columns * _TEXTURE_PERIODS / large
    lighter: np.ndarray | bool = False
    if texture == "striped":
        lighter = (down + across) % 1.0 < 0.5
    elif texture == "dotted":
        lighter = (down % 1.0 - 0.5) ** 2 + (across % 1.0 - 0.5) ** 2 < 0.09
    elif texture == "checkered":
        lighter = (down.astype(int) + across.astype(int)) % 2 == 0
    tones = np.broadcast_to(lighter, (large, large))[..., None] * _TEXTURE_LEVELS
    return Image.fromarray((np.array(BACKGROUNDS[name]) + tones).astype(np.uint8))
