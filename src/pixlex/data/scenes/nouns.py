"""What an object may be called: "a red circle", "large stars", "three blue objects"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from pixlex.data.scenes.scene import COLORS, SHAPES, SIZES, Scene, SceneObject, pick

# Which of an object's qualities a noun names.
Level = tuple[str, ...]
LEVELS: tuple[Level, ...] = (("color",), ("shape",), ("color", "shape"), ("size", "shape"))

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")

_QUALITIES = {"size": SIZES, "color": tuple(COLORS), "shape": SHAPES}

# Nouns put together from the qualities of several objects, beside those of the objects.
_NUM_MIXED = 4


@dataclass(frozen=True)
class Noun:
    """A name that fits every object with the qualities it gives.

    Attributes:
        size: one of `SIZES`; None leaves it open, as it does below.
        color: a key of `COLORS`.
        shape: one of `SHAPES`; None reads "object".
    """

    size: str | None = None
    color: str | None = None
    shape: str | None = None

    def fits(self, thing: SceneObject) -> bool:
        """Whether an object may be called so."""
        return (
            self.size in (None, thing.size)
            and self.color in (None, thing.color)
            and self.shape in (None, thing.shape)
        )

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

    def numbered(self, number: int) -> str:
        """Return the noun after a number word, 0 to 8: "no stars", "one star", "two stars"."""
        return f"{NUMBER_WORDS[number]} {self.word if number == 1 else self.many}"


def noun_of(thing: SceneObject, level: Level = ("color", "shape")) -> Noun:
    """Name these qualities of an object."""
    return _noun(
        thing.size if "size" in level else None,
        thing.color if "color" in level else None,
        thing.shape if "shape" in level else None,
    )


@cache
def _noun(size: str | None, color: str | None, shape: str | None) -> Noun:
    """Return one and the same noun for the same qualities: its words are put together once."""
    return Noun(size, color, shape)


def related_nouns(scenes: Sequence[Scene], level: Level, generator: np.random.Generator) -> list[Noun]:
    """Return nouns worth asking about: those of the objects, and others made to be mistaken for them.

    The others take each quality from an object of its own ("blue circle" beside a red circle and a blue
    square); one more is drawn freely until it fits no object. All colors are treated alike, and all shapes.

    Args:
        scenes: where the objects are, one scene or more.
        level: the qualities that the nouns name.
        generator: decides which.

    Returns:
        Different nouns: some fit an object, and at least one fits none unless all of the level fit one.
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
