"""Questions about a scene with one answer each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from pixlex.data.scenes.claims import RELATIONS, Exists, holds, place_words, related
from pixlex.data.scenes.nouns import LEVELS, Level, Noun, noun_of, related_nouns
from pixlex.data.scenes.scene import COLORS, MAX_OBJECTS, SHAPES, Scene, SceneObject, pick, shuffled

QuestionKind = Literal["existence", "color", "shape", "count", "relation", "comparison"]
KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)

# Every answer that occurs.
ANSWERS = ("yes", "no", *COLORS, *SHAPES, *map(str, range(MAX_OBJECTS + 1)), *RELATIONS)


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes:
        text: the question, with its question mark.
        answer: one of `ANSWERS`.
        kind: one of `KINDS`.
    """

    text: str
    answer: str
    kind: QuestionKind


def question(scene: Scene, generator: np.random.Generator) -> Question:
    """Ask something that the scene answers without doubt.

    Kinds are equally likely where the scene allows them. Yes and no are decided by a coin before the words
    are chosen, among words that allow both; left and right, above and below are equally likely because
    either of two objects is named first, colors and shapes because scenes favor none. A count is drawn
    from those that the scene offers, so small numbers prevail. Colors, shapes and relations are asked only of
    objects that the question's own words single out.

    Args:
        scene: what is drawn.
        generator: decides what is asked, and how.
    """
    for kind in shuffled(generator, KINDS):
        if found := _ASKED[kind](scene, generator):
            text, answer = found
            return Question(text, answer, kind)
    raise AssertionError("whether some shape exists can always be asked")


# A text with its answer; None where the scene does not allow a question of the kind.
_Asked = tuple[str, str] | None


def _ask_existence(scene: Scene, generator: np.random.Generator) -> _Asked:
    nouns = related_nouns((scene,), pick(generator, LEVELS), generator)
    wanted = bool(generator.random() < 0.5)
    noun = pick(generator, [noun for noun in nouns if holds(Exists(noun), scene) == wanted])
    text = pick(generator, ("is there {}?", "does the picture show {}?", "can one see {}?"))
    return text.format(noun.one), _yes_or_no(wanted)


def _ask_color(scene: Scene, generator: np.random.Generator) -> _Asked:
    return _ask_quality("color", (("shape",), ("size", "shape")), scene, generator)


def _ask_shape(scene: Scene, generator: np.random.Generator) -> _Asked:
    return _ask_quality("shape", (("color",), ("size", "color")), scene, generator)


def _ask_quality(
    quality: str, levels: tuple[Level, ...], scene: Scene, generator: np.random.Generator
) -> tuple[str, str]:
    """Ask for a quality of an object that a name without it, or else its place, singles out."""
    thing = pick(generator, scene.objects)
    names = [noun.word for noun in _single_names(thing, levels, scene)]
    names.append(f"object {place_words(thing.row, thing.column)}")
    text = pick(generator, ("what {} is the {}?", "which {} does the {} have?"))
    return text.format(quality, pick(generator, names)), str(getattr(thing, quality))


def _ask_count(scene: Scene, generator: np.random.Generator) -> _Asked:
    nouns = [Noun()]
    for level in LEVELS:
        nouns += related_nouns((scene,), level, generator)
    number = pick(generator, sorted({noun.count(scene) for noun in nouns}))
    noun = pick(generator, [noun for noun in nouns if noun.count(scene) == number])
    text = pick(generator, ("how many {} are there?", "how many {} does the picture show?"))
    return text.format(noun.many), str(number)


def _ask_relation(scene: Scene, generator: np.random.Generator) -> _Asked:
    first, second = shuffled(generator, scene.objects)[:2] if len(scene.objects) > 1 else (None, None)
    if first is None or second is None:
        return None
    text, relations = pick(
        generator,
        (
            ("is the {} left or right of the {}?", ("left", "right")),
            ("is the {} above or below the {}?", ("above", "below")),
        ),
    )
    answer = next((relation for relation in relations if related(first, relation, second)), None)
    names = [_single_names(thing, LEVELS, scene) for thing in (first, second)]
    if answer is None or not all(names):
        return None
    return text.format(*(pick(generator, nouns).word for nouns in names)), answer


def _ask_comparison(scene: Scene, generator: np.random.Generator) -> _Asked:
    nouns = related_nouns((scene,), pick(generator, LEVELS[:3]), generator)
    words, compare = pick(generator, _COMPARISONS)
    counted = [(noun, noun.count(scene)) for noun in nouns]
    pairs: dict[bool, list[tuple[Noun, Noun]]] = {True: [], False: []}
    for first, number in counted:
        for second, other in counted:
            if first != second and number + other > 0:
                pairs[compare(number, other)].append((first, second))
    if not (pairs[True] and pairs[False]):
        return None
    wanted = bool(generator.random() < 0.5)
    first, second = pick(generator, pairs[wanted])
    return f"are there {words.format(first.many, second.many)}?", _yes_or_no(wanted)


def _single_names(thing: SceneObject, levels: tuple[Level, ...], scene: Scene) -> list[Noun]:
    """Return the names of an object that fit no other one."""
    nouns = (noun_of(thing, level) for level in levels)
    return [noun for noun in nouns if noun.count(scene) == 1]


def _yes_or_no(truth: bool) -> str:
    return "yes" if truth else "no"


_COMPARISONS: tuple[tuple[str, Callable[[int, int], bool]], ...] = (
    ("more {} than {}", lambda first, second: first > second),
    ("fewer {} than {}", lambda first, second: first < second),
    ("as many {} as {}", lambda first, second: first == second),
)

_ASKED: dict[QuestionKind, Callable[[Scene, np.random.Generator], _Asked]] = {
    "existence": _ask_existence,
    "color": _ask_color,
    "shape": _ask_shape,
    "count": _ask_count,
    "relation": _ask_relation,
    "comparison": _ask_comparison,
}
