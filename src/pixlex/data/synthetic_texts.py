"""What is said of drawn scenes: captions, questions, statements about two, hypotheses.

Truth is decided by a coin before the words are chosen, among words that allow both, and all colors, shapes and
sizes are treated alike: a text alone tells nothing, or as little as said below, of its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pixlex.data.synthetic import (
    COLORS,
    LEVELS,
    MAX_OBJECTS,
    SHAPES,
    Level,
    Noun,
    Scene,
    SceneObject,
    noun_of,
    pick,
    related_nouns,
    shuffled,
)

NUMBER_WORDS = ("no", "one", "two", "three", "four")
ROWS = ("top", "center", "bottom")
COLUMNS = ("left", "center", "right")
# A relation -> what a text calls it.
RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
KINDS = ("existence", "color", "shape", "count", "relation", "comparison")
ANSWERS = ("yes", "no", *COLORS, *SHAPES, *map(str, range(MAX_OBJECTS + 1)), *RELATIONS)

_OPENINGS = ("{}", "{}", "there is {}", "the picture shows {}", "a picture of {}", "one can see {}")
_COUNTED_OPENINGS = ("{}", "{}", "the picture shows {}", "a picture of {}", "one can see {}")
# Where an object lies as seen from another one.
_SEEN_FROM = {"left": "to its left", "right": "to its right", "above": "above it", "below": "below it"}
_COMPARISONS: tuple[tuple[str, Callable[[int, int], bool]], ...] = (
    ("more {} than {}", lambda first, second: first > second),
    ("fewer {} than {}", lambda first, second: first < second),
    ("as many {} as {}", lambda first, second: first == second),
)
# What no picture of shapes can tell.
_OPEN = (
    "a child drew the picture",
    "a school has hung up the picture",
    "somebody painted the picture yesterday",
    "an artist made the picture in the morning",
    "a museum has bought the picture",
    "someone likes the picture",
    "nobody has seen the picture before",
    "a secret is hidden behind the picture",
    "an old man has sold the picture",
    "people in a village dream of the picture",
)


def related(first: SceneObject, relation: str, second: SceneObject) -> bool:
    """Whether a relation holds between two objects: their columns or rows decide, not the shift inside a cell."""
    if relation in ("left", "above"):
        first, second = second, first
    across = relation in ("left", "right")
    return first.column > second.column if across else first.row > second.row


def relation_names(
    scene: Scene, relation: str, level: Level, generator: np.random.Generator
) -> tuple[tuple[Noun, Noun], tuple[Noun, Noun]] | None:
    """Return two names between which a relation holds in a scene, and two between which it does not.

    The names of a pair differ in every quality but size. Half of the false pairs are names of the scene's
    objects the wrong way around. None where the scene allows no such pairs.
    """
    qualities = [quality for quality in level if quality != "size"]

    def apart(firsts: Sequence[Noun], seconds: Sequence[Noun]) -> list[tuple[Noun, Noun]]:
        return [
            (one, other)
            for one in firsts
            for other in seconds
            if all(getattr(one, quality) != getattr(other, quality) for quality in qualities)
        ]

    def holds(names: tuple[Noun, Noun]) -> bool:
        return any(
            names[0].fits(one) and names[1].fits(other) and related(one, relation, other)
            for one in scene.objects
            for other in scene.objects
        )

    present = [noun_of(thing, level) for thing in scene.objects]
    mixed = related_nouns((scene,), level, generator)
    own, strange = apart(present, present), apart(mixed, present) + apart(present, mixed)
    true = [names for names in own if holds(names)]
    swapped = [names for names in own if not holds(names)]
    other = [names for names in strange if not holds(names)]
    false = swapped if swapped and (not other or generator.random() < 0.5) else other
    return (pick(generator, true), pick(generator, false)) if true and false else None


def contrast(scene: Scene, generator: np.random.Generator) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return a true and a false claim about a scene, each in all wordings; they differ in their names alone.

    The frame (kind, number, relation, place, qualities named) is chosen among those that allow both.
    """
    for kind in shuffled(generator, ("existence", "count", "place", "relation")):
        if kind == "relation":
            relation = pick(generator, tuple(RELATIONS))
            if found := relation_names(scene, relation, pick(generator, LEVELS), generator):
                true, false = (f"{one.one} is {RELATIONS[relation]} {other.one}" for one, other in found)
                return (true,), (false,)
            continue
        nouns = related_nouns((scene,), pick(generator, LEVELS), generator)
        fitting = [[thing for thing in scene.objects if noun.fits(thing)] for noun in nouns]
        if kind == "existence":
            frames: tuple[str, ...] = ("there is {one}", "the picture shows {one}", "one can see {one}")
            truths = [bool(things) for things in fitting]
        elif kind == "count":
            number = pick(generator, sorted({len(things) for things in fitting} - {0}))
            be, noun = ("is", "{word}") if number == 1 else ("are", "{many}")
            counted = f"exactly {NUMBER_WORDS[number]} {noun}"
            frames = (f"there {be} {counted}", f"the picture shows {counted}")
            truths = [len(things) == number for things in fitting]
        else:
            placed = pick(generator, scene.objects)
            frames = (f"{{one}} is {place_words(placed)}",)
            truths = [placed in things for things in fitting]
        names = [
            [noun for noun, holds in zip(nouns, truths, strict=True) if holds is told]
            for told in (True, False)
        ]
        if all(names):
            yes, no = (
                tuple(frame.format(one=noun.one, many=noun.many, word=noun.word) for frame in frames)
                for noun in [pick(generator, some) for some in names]
            )
            return yes, no
    raise AssertionError("four objects lack some color: a claim of existence can always be false")


def place_words(thing: SceneObject) -> str:
    """Return where an object lies, such as "at the top left", "at the bottom center" or "in the center"."""
    return (
        "in the center"
        if thing.row == thing.column == 1
        else f"at the {ROWS[thing.row]} {COLUMNS[thing.column]}"
    )


def captions(scene: Scene, generator: np.random.Generator) -> tuple[str, ...]:
    """Return five true captions.

    The first names every object with color, shape and place; the second every object with color, shape and
    how it lies to one of them. The third names every object with its color and shape alone, equal ones
    counted. The fourth counts all objects by their shapes or by their colors alone; the fifth tells one
    object or one relation. Sizes are named in half of the first two, the background in a quarter of the
    first and the third.
    """
    level = ("size", "color", "shape") if generator.random() < 0.5 else ("color", "shape")
    quality: Level = ("shape",) if generator.random() < 0.5 else ("color",)
    parts = [f"{noun_of(thing, level).one} {place_words(thing)}" for thing in scene.objects]
    placed = _with_background(pick(generator, _OPENINGS).format(_listed(parts)), scene, generator)
    beside = _caption_beside(scene, level, generator)
    counted = [
        _counted([noun_of(thing, of) for thing in scene.objects]) for of in (("color", "shape"), quality)
    ]
    third = _with_background(pick(generator, _COUNTED_OPENINGS).format(counted[0]), scene, generator)
    fourth = pick(generator, _COUNTED_OPENINGS).format(counted[1])
    return placed, beside, third, fourth, _partial_caption(scene, generator)


def _caption_beside(scene: Scene, level: Level, generator: np.random.Generator) -> str:
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


def _partial_caption(scene: Scene, generator: np.random.Generator) -> str:
    """Tell one object and its row or column, or how one object lies to another."""
    thing = pick(generator, scene.objects)
    name = noun_of(thing).one
    others = [other for other in scene.objects if other is not thing]
    if others and generator.random() < 0.5:
        other = pick(generator, others)
        return f"{name} {RELATIONS[pick(generator, _relations(thing, other))]} {noun_of(other).one}"
    stretch = f"{ROWS[thing.row]} row" if generator.random() < 0.5 else f"{COLUMNS[thing.column]} column"
    return pick(generator, _OPENINGS).format(f"{name} in the {stretch}")


def _relations(first: SceneObject, second: SceneObject) -> list[str]:
    """Return the one or two relations in which two objects stand."""
    return [relation for relation in RELATIONS if related(first, relation, second)]


def _counted(nouns: Sequence[Noun]) -> str:
    """Return the nouns as a list, equal ones counted: "two red circles and a blue star"."""
    numbers = {noun: nouns.count(noun) for noun in nouns}
    return _listed(
        [
            noun.one if number == 1 else f"{NUMBER_WORDS[number]} {noun.many}"
            for noun, number in numbers.items()
        ]
    )


def _with_background(text: str, scene: Scene, generator: np.random.Generator) -> str:
    return f"{text} on a {scene.background} background" if generator.random() < 0.25 else text


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def question(scene: Scene, generator: np.random.Generator) -> tuple[str, str, str]:
    """Return a question that the scene answers without doubt, its answer of `ANSWERS`, its kind of `KINDS`.

    Kinds are equally likely where the scene allows them, and so are yes and no, left and right, above and below,
    colors, shapes. A count is drawn from those that the scene offers, so small numbers prevail. Colors, shapes and
    relations are asked only of objects that the question's own words single out.
    """
    for kind in shuffled(generator, KINDS):
        if found := _ask(kind, scene, generator):
            return *found, kind
    raise AssertionError("whether some shape exists can always be asked")


def _ask(kind: str, scene: Scene, generator: np.random.Generator) -> tuple[str, str] | None:
    """Return a question of a kind with its answer; None where the scene does not allow one."""
    if kind == "existence":
        nouns = related_nouns((scene,), pick(generator, LEVELS), generator)
        wanted = bool(generator.random() < 0.5)
        noun = pick(generator, [noun for noun in nouns if (noun.count(scene) > 0) == wanted])
        text = pick(generator, ("is there {}?", "does the picture show {}?", "can one see {}?"))
        return text.format(noun.one), "yes" if wanted else "no"
    if kind in ("color", "shape"):
        other = "shape" if kind == "color" else "color"
        thing = pick(generator, scene.objects)
        names = [noun.word for noun in _single_names(thing, ((other,), ("size", other)), scene)]
        names.append(f"object {place_words(thing)}")
        text = pick(generator, ("what {} is the {}?", "which {} does the {} have?"))
        return text.format(kind, pick(generator, names)), str(getattr(thing, kind))
    if kind == "count":
        nouns = [Noun(), *(noun for level in LEVELS for noun in related_nouns((scene,), level, generator))]
        number = pick(generator, sorted({noun.count(scene) for noun in nouns}))
        noun = pick(generator, [noun for noun in nouns if noun.count(scene) == number])
        text = pick(generator, ("how many {} are there?", "how many {} does the picture show?"))
        return text.format(noun.many), str(number)
    return _ask_relation(scene, generator) if kind == "relation" else _ask_comparison(scene, generator)


def _ask_relation(scene: Scene, generator: np.random.Generator) -> tuple[str, str] | None:
    if len(scene.objects) < 2:
        return None
    first, second = shuffled(generator, scene.objects)[:2]
    sides = (("left or right of", ("left", "right")), ("above or below", ("above", "below")))
    words, relations = pick(generator, sides)
    answer = next((relation for relation in relations if related(first, relation, second)), None)
    names = [_single_names(thing, LEVELS, scene) for thing in (first, second)]
    if answer is None or not all(names):
        return None
    one, other = (pick(generator, nouns).word for nouns in names)
    return f"is the {one} {words} the {other}?", answer


def _ask_comparison(scene: Scene, generator: np.random.Generator) -> tuple[str, str] | None:
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
    return f"are there {words.format(first.many, second.many)}?", "yes" if wanted else "no"


def _single_names(thing: SceneObject, levels: tuple[Level, ...], scene: Scene) -> list[Noun]:
    """Return the names of an object that fit no other one."""
    nouns = (noun_of(thing, level) for level in levels)
    return [noun for noun in nouns if noun.count(scene) == 1]


# A sentence with {one}, {many} or {word} for a name; whether it holds, from how many objects of that name the left
# and the right scene have. "As many stars" of none sounds wrong: frames that compare are said of names that fit.
_Frame = tuple[str, Callable[[int, int], bool]]
_FRAMES: tuple[tuple[_Frame, ...], ...] = (
    (
        ("both images contain {one}", lambda left, right: left > 0 and right > 0),
        ("there is {one} in each image", lambda left, right: left > 0 and right > 0),
    ),
    (
        ("exactly one image shows {one}", lambda left, right: (left > 0) != (right > 0)),
        ("only one of the images contains {one}", lambda left, right: (left > 0) != (right > 0)),
    ),
    (
        ("at least one image contains {one}", lambda left, right: left + right > 0),
        ("neither image shows {one}", lambda left, right: left + right == 0),
    ),
    (
        ("{one} is in the left image but not in the right one", lambda left, right: left > 0 == right),
        ("{one} is in the right image but not in the left one", lambda left, right: right > 0 == left),
    ),
    (
        ("the left image has more {many} than the right one", lambda left, right: left > right),
        ("the right image has more {many} than the left one", lambda left, right: left < right),
        ("the left image has fewer {many} than the right one", lambda left, right: left < right),
        ("the right image has fewer {many} than the left one", lambda left, right: left > right),
    ),
    (("both images have the same number of {many}", lambda left, right: left == right),),
    (
        ("the two images show exactly one {word} in total", lambda left, right: left + right == 1),
        ("the two images show exactly two {many} in total", lambda left, right: left + right == 2),
        ("the two images show exactly three {many} in total", lambda left, right: left + right == 3),
        ("the two images show exactly four {many} in total", lambda left, right: left + right == 4),
    ),
)
_COMPARING = _FRAMES[4:6]


def statement(left: Scene, right: Scene, generator: np.random.Generator) -> tuple[str, bool]:
    """Return a sentence about two scenes side by side, and whether it is true: as often as not (NLVR2's form).

    The frame (the sentence but for its colors, shapes and sizes) is chosen among those that can be filled to
    a true and to a false sentence about these two scenes.
    """
    for group in shuffled(generator, (*_FRAMES, None)):
        label = bool(generator.random() < 0.5)
        if group is None:
            side, scene = pick(generator, (("left", left), ("right", right)))
            relation = pick(generator, tuple(RELATIONS))
            if found := relation_names(scene, relation, pick(generator, LEVELS), generator):
                first, second = found[0] if label else found[1]
                return f"in the {side} image {first.one} is {RELATIONS[relation]} {second.one}", label
        elif text := _say_numbers(group, (left, right), label, generator):
            return text, label
    raise AssertionError("of the 64 colored shapes some are in neither scene, and some in one of them")


def _say_numbers(
    frames: tuple[_Frame, ...], scenes: tuple[Scene, Scene], label: bool, generator: np.random.Generator
) -> str | None:
    """Fill one of the frames, or return None if none can be made both true and false."""
    for level in shuffled(generator, LEVELS):
        nouns = related_nouns(scenes, level, generator)
        counted = [(noun, noun.count(scenes[0]), noun.count(scenes[1])) for noun in nouns]
        for text, truth in shuffled(generator, frames):
            names: dict[bool, list[Noun]] = {True: [], False: []}
            for noun, first, second in counted:
                if first + second > 0 or frames not in _COMPARING:
                    names[truth(first, second)].append(noun)
            if names[True] and names[False]:
                noun = pick(generator, names[label])
                return text.format(one=noun.one, many=noun.many, word=noun.word)
    return None


def entailment(scene: Scene, generator: np.random.Generator) -> tuple[str, str]:
    """Return a hypothesis and its label, entailment, neutral or contradiction, equally likely (SNLI-VE's form).

    A sentence is made of claims D that the picture decides and claims U that it cannot decide, such as who
    drew it. Its label follows from which D are true ("or" includes "both"):

    - "D": entailed or contradicted.
    - "D and U": open or contradicted.
    - "D or U": entailed or open.
    - "D, and it is true that E or U": contradicted without D, entailed with both, open with D alone.

    From the sentence alone the best guess is right in one of three cases of the last form, which is half of all,
    and in one of two of the others: 5/12 in all.
    """

    def decided(truth: bool) -> str:
        wordings = contrast(scene, generator)[0 if truth else 1]
        return wordings[0] if len(wordings) == 1 else pick(generator, wordings)

    form = pick(generator, ("plain", "and", "or", "nested", "nested", "nested"))
    if form == "nested":
        label = pick(generator, ("entailment", "neutral", "contradiction"))
        # In a contradiction E is true in half of the cases, as it is in the other two labels together.
        second = label == "entailment" or (label == "contradiction" and bool(generator.random() < 0.5))
        first = decided(label != "contradiction")
        return f"{first}, and it is true that {decided(second)} or that {pick(generator, _OPEN)}", label
    truth = bool(generator.random() < 0.5)
    if form == "plain":
        return decided(truth), "entailment" if truth else "contradiction"
    labels = ("neutral", "contradiction") if form == "and" else ("entailment", "neutral")
    return f"{decided(truth)} {form} {pick(generator, _OPEN)}", labels[0 if truth else 1]
