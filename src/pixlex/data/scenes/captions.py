"""Five captions of a scene, from complete to partial."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pixlex.data.scenes.claims import COLUMNS, RELATIONS, ROWS, place_words, related
from pixlex.data.scenes.nouns import Level, Noun, noun_of
from pixlex.data.scenes.scene import Scene, SceneObject, pick

NUM_CAPTIONS = 5

_OPENINGS = ("{}", "{}", "there is {}", "the picture shows {}", "a picture of {}", "one can see {}")
_COUNTED_OPENINGS = ("{}", "{}", "the picture shows {}", "a picture of {}", "one can see {}")

# Where an object lies as seen from another one.
_SEEN_FROM = {"left": "to its left", "right": "to its right", "above": "above it", "below": "below it"}


def captions(scene: Scene, generator: np.random.Generator) -> tuple[str, ...]:
    """Return five true captions.

    The first names every object with color, shape and place; the second every object with color, shape and
    how it lies to one of them. The third names every object with its color and shape alone, equal ones
    counted. The fourth counts all objects by their shapes or by their colors alone; the fifth tells one
    object or one relation. Sizes are named in half of the first two, the background in a quarter of the
    first and the third.

    Args:
        scene: what is drawn.
        generator: decides the wording.
    """
    level = ("size", "color", "shape") if generator.random() < 0.5 else ("color", "shape")
    colored = [noun_of(thing) for thing in scene.objects]
    quality: Level = ("shape",) if generator.random() < 0.5 else ("color",)
    alike = [noun_of(thing, quality) for thing in scene.objects]
    return (
        _with_background(_placed(scene, level, generator), scene, generator),
        _related(scene, level, generator),
        _with_background(pick(generator, _COUNTED_OPENINGS).format(_counted(colored)), scene, generator),
        pick(generator, _COUNTED_OPENINGS).format(_counted(alike)),
        _partial(scene, generator),
    )


def _placed(scene: Scene, level: Level, generator: np.random.Generator) -> str:
    parts = [f"{noun_of(thing, level).one} {place_words(thing.row, thing.column)}" for thing in scene.objects]
    return pick(generator, _OPENINGS).format(_listed(parts))


def _related(scene: Scene, level: Level, generator: np.random.Generator) -> str:
    """Tell every object by how it lies to one of them."""
    anchor = pick(generator, scene.objects)
    name = noun_of(anchor, level).one
    others = [thing for thing in scene.objects if thing is not anchor]
    if not others:
        return pick(generator, ("{} and nothing else", "only {}", "{} alone")).format(name)
    parts = [
        f"{noun_of(other, level).one} {_SEEN_FROM[pick(generator, _relations(other, anchor))]}"
        for other in others
    ]
    return pick(generator, _OPENINGS).format(f"{name} with {_listed(parts)}")


def _partial(scene: Scene, generator: np.random.Generator) -> str:
    """Tell one object and its row or column, or how one object lies to another."""
    thing = pick(generator, scene.objects)
    name = noun_of(thing).one
    others = [other for other in scene.objects if other is not thing]
    if others and generator.random() < 0.5:
        other = pick(generator, others)
        relation = RELATIONS[pick(generator, _relations(thing, other))]
        return f"{name} {relation} {noun_of(other).one}"
    if generator.random() < 0.5:
        return pick(generator, _OPENINGS).format(f"{name} in the {ROWS[thing.row]} row")
    return pick(generator, _OPENINGS).format(f"{name} in the {COLUMNS[thing.column]} column")


def _relations(first: SceneObject, second: SceneObject) -> list[str]:
    """Return the one or two relations in which two objects stand."""
    return [relation for relation in RELATIONS if related(first, relation, second)]


def _counted(nouns: Iterable[Noun]) -> str:
    """Return the nouns as a list, equal ones counted: "two red circles and a blue star"."""
    numbers: dict[Noun, int] = {}
    for noun in nouns:
        numbers[noun] = numbers.get(noun, 0) + 1
    return _listed([noun.one if number == 1 else noun.numbered(number) for noun, number in numbers.items()])


def _with_background(text: str, scene: Scene, generator: np.random.Generator) -> str:
    return f"{text} on a {scene.background} background" if generator.random() < 0.25 else text


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
