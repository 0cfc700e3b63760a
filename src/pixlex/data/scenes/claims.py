"""What may be said of one scene, whether it holds, and pairs of claims that differ in nothing but that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pixlex.data.scenes.nouns import LEVELS, Level, Noun, noun_of, related_nouns
from pixlex.data.scenes.scene import Scene, SceneObject, pick, shuffled
from pixlex.messages import quoted

ROWS = ("top", "center", "bottom")
COLUMNS = ("left", "center", "right")

# A relation -> what a text calls it.
RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


@dataclass(frozen=True)
class Exists:
    """The scene has an object of this name, or more than one."""

    noun: Noun


@dataclass(frozen=True)
class Counts:
    """The scene has exactly so many objects of this name."""

    noun: Noun
    number: int


@dataclass(frozen=True)
class Placed:
    """An object of this name lies in a cell, given by row and column."""

    noun: Noun
    row: int
    column: int


@dataclass(frozen=True)
class Relates:
    """Some object of the first name stands in a relation, a key of `RELATIONS`, to some object of the second."""

    first: Noun
    relation: str
    second: Noun


Claim = Exists | Counts | Placed | Relates


@dataclass(frozen=True)
class Contrast:
    """Two claims about a scene, alike up to their shapes, colors and sizes.

    Attributes:
        true: a claim that holds.
        false: one that does not.
    """

    true: Claim
    false: Claim


def related(first: SceneObject, relation: str, second: SceneObject) -> bool:
    """Whether a relation holds between two objects; cells decide, not the shift inside them.

    "left" and "right" compare columns, "above" and "below" rows; objects of one column are neither left nor
    right of each other.

    Raises:
        ValueError: for another relation.
    """
    match relation:
        case "left":
            return first.column < second.column
        case "right":
            return first.column > second.column
        case "above":
            return first.row < second.row
        case "below":
            return first.row > second.row
    raise ValueError(f"expected a relation of {', '.join(RELATIONS)}, got {quoted(relation)}")


def holds(claim: Claim, scene: Scene) -> bool:
    """Whether a claim is true of a scene; what is not drawn is not there."""
    match claim:
        case Exists(noun):
            return noun.count(scene) > 0
        case Counts(noun, number):
            return noun.count(scene) == number
        case Placed(noun, row, column):
            return any(
                noun.fits(thing) and (thing.row, thing.column) == (row, column) for thing in scene.objects
            )
        case Relates(first, relation, second):
            return any(
                first.fits(one) and second.fits(other) and related(one, relation, other)
                for one in scene.objects
                for other in scene.objects
            )


def say(claim: Claim, generator: np.random.Generator) -> str:
    """Put a claim into words, without a capital letter or a full stop."""
    match claim:
        case Exists(noun):
            return pick(generator, ("there is {}", "the picture shows {}", "one can see {}")).format(noun.one)
        case Counts(noun, number):
            counted = noun.numbered(number)
            be = "is" if number == 1 else "are"
            return pick(generator, (f"there {be} exactly {counted}", f"the picture shows exactly {counted}"))
        case Placed(noun, row, column):
            return f"{noun.one} is {place_words(row, column)}"
        case Relates(first, relation, second):
            return f"{first.one} is {RELATIONS[relation]} {second.one}"


def place_words(row: int, column: int) -> str:
    """Return where a cell lies, such as "at the top left", "at the bottom center" or "in the center"."""
    if row == column == 1:
        return "in the center"
    if row == 1:
        return f"at the center {COLUMNS[column]}"
    return f"at the {ROWS[row]} {COLUMNS[column]}"


def contrast(scene: Scene, generator: np.random.Generator) -> Contrast:
    """Return a true and a false claim with the same frame: kind, number, relation, place, qualities named.

    The frame is chosen among those for which the scene allows both; then nothing but the names differs,
    and names are treated alike. So a text tells nothing about which of the two it is.
    """
    for build in shuffled(generator, _BUILDERS):
        if found := build(scene, generator):
            return found
    raise AssertionError("four objects lack some color: a claim of existence can always be false")


def relation_names(
    scene: Scene, relation: str, level: Level, generator: np.random.Generator
) -> tuple[tuple[Noun, Noun], tuple[Noun, Noun]] | None:
    """Return two names between which a relation holds in a scene, and two between which it does not.

    The names of a pair differ in every quality but size. Half of the false pairs are names of the scene's
    objects the wrong way around.

    Args:
        scene: the scene.
        relation: a key of `RELATIONS`.
        level: the qualities that the names give.
        generator: decides which.

    Returns:
        The true pair and the false one; None where the scene allows no such pair.
    """
    present = [noun_of(thing, level) for thing in scene.objects]
    mixed = related_nouns((scene,), level, generator)
    own = _apart(present, present, level)
    true = [pair for pair in own if holds(Relates(pair[0], relation, pair[1]), scene)]
    swapped = [pair for pair in own if not holds(Relates(pair[0], relation, pair[1]), scene)]
    strange = _apart(mixed, present, level) + _apart(present, mixed, level)
    other = [pair for pair in strange if not holds(Relates(pair[0], relation, pair[1]), scene)]
    false = swapped if swapped and (not other or generator.random() < 0.5) else other
    return (pick(generator, true), pick(generator, false)) if true and false else None


def _apart(firsts: Sequence[Noun], seconds: Sequence[Noun], level: Level) -> list[tuple[Noun, Noun]]:
    """Return the pairs of names that share neither a color nor a shape that the level gives."""
    qualities = [quality for quality in level if quality != "size"]
    return [
        (first, second)
        for first in firsts
        for second in seconds
        if all(getattr(first, quality) != getattr(second, quality) for quality in qualities)
    ]


def _contrast_existence(scene: Scene, generator: np.random.Generator) -> Contrast | None:
    claims = [Exists(noun) for noun in related_nouns((scene,), pick(generator, LEVELS), generator)]
    return _choose(scene, claims, generator)


def _contrast_count(scene: Scene, generator: np.random.Generator) -> Contrast | None:
    nouns = related_nouns((scene,), pick(generator, LEVELS), generator)
    numbers = sorted({noun.count(scene) for noun in nouns} - {0})
    number = pick(generator, numbers)
    return _choose(scene, [Counts(noun, number) for noun in nouns], generator)


def _contrast_place(scene: Scene, generator: np.random.Generator) -> Contrast | None:
    nouns = related_nouns((scene,), pick(generator, LEVELS), generator)
    thing = pick(generator, scene.objects)
    return _choose(scene, [Placed(noun, thing.row, thing.column) for noun in nouns], generator)


def _contrast_relation(scene: Scene, generator: np.random.Generator) -> Contrast | None:
    relation = pick(generator, tuple(RELATIONS))
    found = relation_names(scene, relation, pick(generator, LEVELS), generator)
    if found is None:
        return None
    true, false = (Relates(first, relation, second) for first, second in found)
    return Contrast(true, false)


def _choose(scene: Scene, claims: Sequence[Claim], generator: np.random.Generator) -> Contrast | None:
    """Return one of the claims that hold and one of those that do not; None without either."""
    true = [claim for claim in claims if holds(claim, scene)]
    false = [claim for claim in claims if not holds(claim, scene)]
    return Contrast(pick(generator, true), pick(generator, false)) if true and false else None


_BUILDERS: tuple[Callable[[Scene, np.random.Generator], Contrast | None], ...] = (
    _contrast_existence,
    _contrast_count,
    _contrast_place,
    _contrast_relation,
)
