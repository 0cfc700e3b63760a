"""Drawn scenes of colored shapes: which one stands at each place of a split, its pixels, names of its objects.

All is a function of (split, index): the same in every process and on every machine, as far as Pillow allows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Literal, TypeVar, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from pixlex.data.decoding import ImageRecord
from pixlex.messages import quoted

Split = Literal["train", "test"]
Purpose = Literal["scene", "captions", "question", "pair", "statement", "entailment"]
# Which of an object's qualities a noun names.
Level = tuple[str, ...]
T = TypeVar("T")

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
SIZES = ("small", "large")
COLORS = {
    "red": (214, 32, 38), "orange": (250, 138, 22), "yellow": (250, 224, 54), "green": (30, 152, 62),
    "blue": (34, 74, 214), "purple": (134, 42, 172), "black": (16, 16, 18), "white": (250, 250, 250),
}  # fmt: skip
BACKGROUNDS = {
    "gray": (150, 150, 154), "beige": (198, 182, 150), "teal": (96, 146, 146), "pink": (206, 152, 168),
    "brown": (134, 110, 94),
}  # fmt: skip
TEXTURES = ("plain", "striped", "dotted", "checkered")
LEVELS: tuple[Level, ...] = (("color",), ("shape",), ("color", "shape"), ("size", "shape"))
GRID = 3
MAX_OBJECTS = 4
SIDE = 96
MIN_SIDE = 24
# Part of the identity of the source: a change of what is drawn or said makes it another set.
SCENES_VERSION = 1
NUM_SCENES = {"train": 20_000, "test": 1_000}

_QUALITIES = {"size": SIZES, "color": tuple(COLORS), "shape": SHAPES}
# Nouns of qualities of several objects, beside those of the objects.
_NUM_MIXED = 4
# One of so many descriptions belongs to the test split, whatever the index.
_TEST_ONE_IN = 5
# A single object leaves little to say, and only 576 of them differ in more than size.
_NUMBERS = (1, 2, 2, 2, 3, 3, 3, 4, 4, 4)
# Rate at which an object takes the shape, and apart from it the color, of an earlier one: without it few
# scenes would have two circles to count, or a red circle beside a blue one to mix up.
_REPEAT_RATE = 0.25
# How far an object may lie from the center of its cell, as a fraction of the cell's side.
_MAX_SHIFT = 0.06
# Enough for one scene: 1 number, for each object 1 cell, 2 x 2 kinds, 1 size, 2 shifts, and 2 for the background.
_NUM_DRAWS = 40
# Drawn so many times larger and averaged, which makes smooth edges.
_OVERSAMPLING = 4
# Half the height of an object, as a fraction of its cell: a large one with the largest shift stays inside.
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


@dataclass(frozen=True)
class SceneObject:
    """A shape in a cell, counted from the top left."""

    shape: str
    color: str
    size: str
    row: int
    column: int


@dataclass(frozen=True)
class Scene:
    """One to four objects on a 3 x 3 grid, in reading order, before a background of `BACKGROUNDS` and `TEXTURES`.

    Each is shifted right and down from the center of its cell, by -0.06 to 0.06 cells.
    """

    objects: tuple[SceneObject, ...]
    background: str
    texture: str
    shifts: tuple[tuple[float, float], ...]


@lru_cache(maxsize=256)
def make_scene(split: Split, index: int) -> Scene:
    """Return the scene at a place, 0 or more, of a split: drawn until one belongs to it (see `split_of`)."""
    generator = generator_for("scene", split, index)
    while split_of(scene := _draw_scene(generator)) != split:
        pass
    return scene


def split_of(scene: Scene) -> Split:
    """Return the only split in which a scene with these shapes and colors at these places may occur.

    A hash of shapes, colors and cells decides: scenes that differ in sizes, shifts or background stay together.
    """
    placed = sorted((thing.row, thing.column, thing.shape, thing.color) for thing in scene.objects)
    digest = hashlib.blake2b(repr(placed).encode(), digest_size=4).hexdigest()
    return "test" if int(digest, 16) % _TEST_ONE_IN == 0 else "train"


def generator_for(purpose: Purpose, split: Split, index: int, turn: int = 0) -> np.random.Generator:
    """Return the generator of one choice about one scene, made `turn` times before; no two share a stream."""
    # NumPy gives the seeds (a, b, c) and (a, b, c, 0) the same numbers.
    return np.random.default_rng(
        (get_args(Purpose).index(purpose), get_args(Split).index(split), index, turn)
    )


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
        for earlier, options in ((shapes, SHAPES), (colors, tuple(COLORS))):
            earlier.append(_one_of(draws, earlier if next(draws) < _REPEAT_RATE and earlier else options))
        shift = ((2 * next(draws) - 1) * _MAX_SHIFT, (2 * next(draws) - 1) * _MAX_SHIFT)
        placed.append((SceneObject(shapes[-1], colors[-1], _one_of(draws, SIZES), row, column), shift))
    placed.sort(key=lambda pair: (pair[0].row, pair[0].column))
    objects, shifts = zip(*placed, strict=True)
    return Scene(objects, _one_of(draws, tuple(BACKGROUNDS)), _one_of(draws, TEXTURES), shifts)


def _one_of(draws: Iterator[float], options: Sequence[T]) -> T:
    return options[int(next(draws) * len(options))]


def draw(scene: Scene, side: int = SIDE) -> UInt8[np.ndarray, "H W 3"]:
    """Return the RGB pixels of a scene; raises `ValueError` for a side (in pixels) too small for shapes."""
    if side < MIN_SIDE:
        raise ValueError(f"side must be {MIN_SIDE} pixels or more, got {side}")
    image = _background(scene.background, scene.texture, side).copy()
    canvas = ImageDraw.Draw(image)
    cell = side * _OVERSAMPLING / GRID
    for thing, (right, down) in zip(scene.objects, scene.shifts, strict=True):
        across, below = (thing.column + 0.5 + right) * cell, (thing.row + 0.5 + down) * cell
        color, radius = COLORS[thing.color], _RADII[thing.size] * cell
        # Corners are whole pixels of the large canvas: the last digits of a cosine may differ between machines.
        box = [round(across - radius), round(below - radius), round(across + radius), round(below + radius)]
        if thing.shape == "circle":
            canvas.ellipse(box, fill=color)
        elif thing.shape == "ring":
            canvas.ellipse(box, outline=color, width=round(_RING_WIDTH * radius))
        else:
            corners = _corners(thing.shape)
            canvas.polygon(
                [(round(across + radius * x), round(below + radius * y)) for x, y in corners], color
            )
    return np.asarray(image.reduce(_OVERSAMPLING))


@cache
def _corners(shape: str) -> tuple[tuple[float, float], ...]:
    """Return the corners of a shape around (0, 0), in radii, y downward."""
    if shape == "star":
        turns = [(number * math.pi / 5, 1.05 if number % 2 == 0 else 0.45) for number in range(10)]
        return tuple((far * math.sin(turn), 0.08 - far * math.cos(turn)) for turn, far in turns)
    if shape == "heart":  # the curve of a common textbook, 16 sin^3 t across and four cosines upward
        cos, angles = math.cos, [2 * math.pi * number / 48 for number in range(48)]
        ups = [13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t) for t in angles]
        return tuple((math.sin(t) ** 3, -(up + 2.5) / 15.5) for t, up in zip(angles, ups, strict=True))
    return _POLYGONS[shape]


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


@dataclass(frozen=True)
class Noun:
    """A name that fits every object with the qualities it gives; None leaves one open (no shape: "object")."""

    size: str | None = None
    color: str | None = None
    shape: str | None = None

    def fits(self, thing: SceneObject) -> bool:
        """Whether an object may be called so."""
        size, color, shape = self.size, self.color, self.shape
        return size in (None, thing.size) and color in (None, thing.color) and shape in (None, thing.shape)

    def count(self, scene: Scene) -> int:
        """Return how many objects of a scene may be called so."""
        return sum(self.fits(thing) for thing in scene.objects)

    @cached_property
    def word(self) -> str:
        """The noun without an article, such as "large red circle"."""
        return " ".join(filter(None, (self.size, self.color, self.shape or "object")))

    @cached_property
    def one(self) -> str:
        """The noun with its article, such as "an orange star"."""
        return f"{'an' if self.word[0] in 'aeiou' else 'a'} {self.word}"

    @cached_property
    def many(self) -> str:
        """The plural, such as "red crosses"."""
        return f"{self.word}{'es' if self.shape == 'cross' else 's'}"

    def into(self, frame: str) -> str:
        """Fill a sentence that has {one}, {many} or {word} for a name."""
        return frame.format(one=self.one, many=self.many, word=self.word)


_noun = cache(Noun)  # one and the same noun for the same qualities: its words are put together once


def noun_of(thing: SceneObject, level: Level = ("color", "shape")) -> Noun:
    """Name these qualities of an object."""
    return _noun(*(getattr(thing, quality) if quality in level else None for quality in _QUALITIES))


def related_nouns(scenes: Sequence[Scene], level: Level, generator: np.random.Generator) -> list[Noun]:
    """Return nouns worth asking about: those of the objects, and others made to be mistaken for them.

    The others take each quality from an object of its own ("blue circle" beside a red circle and a blue
    square); one more is drawn freely until it fits no object, unless all of the level fit one.
    """
    things = [thing for scene in scenes for thing in scene.objects]
    nouns = {noun_of(thing, level): None for thing in things}
    possible = math.prod(len(_QUALITIES[quality]) for quality in level)
    absent = None
    while len(nouns) < possible and (absent is None or absent in nouns):
        absent = Noun(**{quality: pick(generator, _QUALITIES[quality]) for quality in level})
    for _ in range(_NUM_MIXED):
        nouns[Noun(**{quality: getattr(pick(generator, things), quality) for quality in level})] = None
    if absent is not None:
        nouns[absent] = None
    return list(nouns)


@dataclass(frozen=True)
class ScenesSource:
    """Drawn scenes of colored shapes, 96 x 96 pixels; the class is the number of objects.

    Image k is the same whatever the size of the source. Mirroring or cropping an image makes captions that
    name sides or places untrue: train with `horizontal_flip=False` and `augment="resize"`. No scene of one split
    occurs in the other.
    """

    split: Split
    size: int

    def __len__(self) -> int:
        return self.size

    @property
    def name(self) -> str:
        """The description that opens the source."""
        count = "" if self.size == NUM_SCENES[self.split] else f":{self.size}"
        return f"embedded:scenes:{self.split}{count}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The number of objects, "1" to "4"."""
        return tuple(str(number + 1) for number in range(MAX_OBJECTS))

    @property
    def identity(self) -> str:
        """A fingerprint of what the source is made from: version, split and size."""
        return hashlib.sha256(f"scenes {SCENES_VERSION} {self.split} {self.size}".encode()).hexdigest()

    def key(self, index: int) -> str:
        """Return split and number of a scene, such as "scenes/train-000017"."""
        if not 0 <= index < self.size:  # scenes have no end: nothing else would stop a loop that runs past it
            raise IndexError(f"{self.name} has the images 0 to {self.size - 1}, got {index}")
        return f"scenes/{self.split}-{index:06d}"

    def read(self, index: int) -> ImageRecord:
        """Return the pixels of a scene."""
        key, scene = self.key(index), make_scene(self.split, index)
        return ImageRecord(draw(scene), len(scene.objects) - 1, key)


def open_scenes(split: Split, count: str | None = None) -> ScenesSource:
    """Open as many scenes as a description writes, by default 20,000 (train) or 1,000 (test)."""
    if count is not None and not (count.isascii() and count.isdecimal() and int(count) > 0):
        raise ValueError(
            f"embedded:scenes:{split}:COUNT expects a whole number of 1 or more as COUNT, got {quoted(count)}"
        )
    return ScenesSource(split, NUM_SCENES[split] if count is None else int(count))
