"""What is said of drawn scenes: captions, questions, statements about two, hypotheses.

Truth is decided by a coin before the words are chosen, among words that allow both, and all colors, shapes and
sizes are treated alike: a text alone tells nothing, or as little as said below, of its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, TypeVar

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
    ScenesSource,
    generator_for,
    make_scene,
    noun_of,
    pick,
    related_nouns,
    shuffled,
)

SceneTask = Literal["vqa", "nlvr2", "entailment"]
T = TypeVar("T")

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
# Of so many candidates the first that shares a colored shape with the left scene is put on the right.
_NUM_PARTNERS = 4


def related(first: SceneObject, relation: str, second: SceneObject) -> bool:
    """Whether a relation holds between two objects: their columns or rows decide, not the shift inside a cell."""
    if relation in ("left", "above"):
        first, second = second, first
    across = relation in ("left", "right")
    return first.column > second.column if across else first.row > second.row


def relation_claims(
    scene: Scene, generator: np.random.Generator
) -> tuple[tuple[Noun, str, Noun], tuple[Noun, str, Noun]] | None:
    """Return two names with a relation that holds between them in a scene, two with one that does not, or None.

    The names differ in every quality but size. Half of the false pairs are objects the wrong way around.
    """
    relation, level = pick(generator, tuple(RELATIONS)), pick(generator, LEVELS)
    present = [noun_of(thing, level) for thing in scene.objects]
    mixed = related_nouns((scene,), level, generator)
    own = _by_truth((names, _holds(scene, relation, names)) for names in _apart(present, present, level))
    strange = _apart(mixed, present, level) + _apart(present, mixed, level)
    strange = [names for names in strange if not _holds(scene, relation, names)]
    false = own[False] if own[False] and (not strange or generator.random() < 0.5) else strange
    if not (own[True] and false):
        return None
    (first, second), (third, fourth) = pick(generator, own[True]), pick(generator, false)
    return (first, relation, second), (third, relation, fourth)


def _apart(firsts: Sequence[Noun], seconds: Sequence[Noun], level: Level) -> list[tuple[Noun, Noun]]:
    """Return the pairs of nouns that differ in every quality of a level but size."""
    qualities = [quality for quality in level if quality != "size"]
    pairs = ((one, other) for one in firsts for other in seconds)
    return [pair for pair in pairs if all(getattr(pair[0], of) != getattr(pair[1], of) for of in qualities)]


def _holds(scene: Scene, relation: str, names: tuple[Noun, Noun]) -> bool:
    """Whether a relation holds between some objects that may be called so."""
    firsts, seconds = ([thing for thing in scene.objects if noun.fits(thing)] for noun in names)
    return any(related(one, relation, other) for one in firsts for other in seconds)


def _by_truth(options: Iterable[tuple[T, bool]]) -> dict[bool, list[T]]:
    """Return the options that are true, and those that are not."""
    found: dict[bool, list[T]] = {True: [], False: []}
    for option, truth in options:
        found[truth].append(option)
    return found


def _say_relation(claim: tuple[Noun, str, Noun]) -> str:
    first, relation, second = claim
    return f"{first.one} is {RELATIONS[relation]} {second.one}"


def contrast(scene: Scene, generator: np.random.Generator) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return a true and a false claim about a scene, each in all wordings; they differ in their names alone.

    The frame (kind, number, relation, place, qualities named) is chosen among those that allow both.
    """
    for kind in shuffled(generator, ("existence", "count", "place", "relation")):
        if kind == "relation":
            if claims := relation_claims(scene, generator):
                return (_say_relation(claims[0]),), (_say_relation(claims[1]),)
            continue
        nouns = related_nouns((scene,), pick(generator, LEVELS), generator)
        counts = [noun.count(scene) for noun in nouns]
        if kind == "existence":
            frames: tuple[str, ...] = ("there is {one}", "the picture shows {one}", "one can see {one}")
            truths = [count > 0 for count in counts]
        elif kind == "count":
            number = pick(generator, sorted({*counts} - {0}))
            counted = f"exactly {NUMBER_WORDS[number]} {'{word}' if number == 1 else '{many}'}"
            frames = (f"there {'is' if number == 1 else 'are'} {counted}", f"the picture shows {counted}")
            truths = [count == number for count in counts]
        else:
            placed = pick(generator, scene.objects)
            frames = (f"{{one}} is {place_words(placed)}",)
            truths = [noun.fits(placed) for noun in nouns]
        names = _by_truth(zip(nouns, truths, strict=True))
        if names[True] and names[False]:
            yes, no = pick(generator, names[True]), pick(generator, names[False])
            return tuple(map(yes.into, frames)), tuple(map(no.into, frames))
    raise AssertionError("four objects lack some color: a claim of existence can always be false")


def place_words(thing: SceneObject) -> str:
    """Return where an object lies, such as "at the top left", "at the bottom center" or "in the center"."""
    is_middle = thing.row == thing.column == 1
    return "in the center" if is_middle else f"at the {ROWS[thing.row]} {COLUMNS[thing.column]}"


def captions(scene: Scene, generator: np.random.Generator) -> tuple[str, ...]:
    """Return five true captions.

    Every object with color, shape and place; every object and how it lies to one of them; colors and shapes alone,
    equal ones counted; all objects counted by shape or by color; one object or one relation. Sizes are named in
    half of the first two, the background in a quarter of the first and the third.
    """
    level = ("size", "color", "shape") if generator.random() < 0.5 else ("color", "shape")
    quality: Level = ("shape",) if generator.random() < 0.5 else ("color",)
    parts = [f"{noun_of(thing, level).one} {place_words(thing)}" for thing in scene.objects]
    placed = _with_background(pick(generator, _OPENINGS).format(_listed(parts)), scene, generator)
    beside = _caption_beside(scene, level, generator)
    named, counted = (_counted(scene, of) for of in (("color", "shape"), quality))
    third = _with_background(pick(generator, _COUNTED_OPENINGS).format(named), scene, generator)
    fourth = pick(generator, _COUNTED_OPENINGS).format(counted)
    return placed, beside, third, fourth, _partial_caption(scene, generator)


def _caption_beside(scene: Scene, level: Level, generator: np.random.Generator) -> str:
    """Tell every object by how it lies to one of them."""
    anchor = pick(generator, scene.objects)
    name = noun_of(anchor, level).one
    others = [thing for thing in scene.objects if thing is not anchor]
    if not others:
        return pick(generator, ("{} and nothing else", "only {}", "{} alone")).format(name)
    sides = [_SEEN_FROM[pick(generator, _relations(other, anchor))] for other in others]
    parts = [f"{noun_of(other, level).one} {side}" for other, side in zip(others, sides, strict=True)]
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


def _counted(scene: Scene, level: Level) -> str:
    """Return the objects as a list, equal names counted: "two red circles and a blue star"."""
    nouns = [noun_of(thing, level) for thing in scene.objects]
    numbers = {noun: NUMBER_WORDS[nouns.count(noun)] for noun in nouns}
    return _listed([noun.one if word == "one" else f"{word} {noun.many}" for noun, word in numbers.items()])


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
        noun = pick(generator, [noun for noun in nouns if bool(noun.count(scene)) == wanted])
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
    pairs = _by_truth(
        ((first, second), compare(number, other))
        for first, number in counted
        for second, other in counted
        if first != second and number + other > 0
    )
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
            if claims := relation_claims(scene, generator):
                return f"in the {side} image {_say_relation(claims[0 if label else 1])}", label
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
        if frames in _COMPARING:
            counted = [(noun, left, right) for noun, left, right in counted if left + right > 0]
        for text, truth in shuffled(generator, frames):
            names = _by_truth((noun, truth(left, right)) for noun, left, right in counted)
            if names[True] and names[False]:
                return pick(generator, names[label]).into(text)
    return None


def entailment(scene: Scene, generator: np.random.Generator) -> tuple[str, str]:
    """Return a hypothesis and its label, entailment, neutral or contradiction, equally likely (SNLI-VE's form).

    A sentence is made of claims D that the picture decides and claims U that it cannot decide, such as who
    drew it. Its label follows from which D are true ("or" includes "both"):

    - "D": entailed or contradicted.
    - "D and U": open or contradicted.
    - "D or U": entailed or open.
    - "D, and it is true that E or U": contradicted without D, entailed with both, open with D alone.

    From the sentence alone the best guess is right in 5 of 12 cases: the last form is half of all.
    """
    form = pick(generator, ("plain", "and", "or", "nested", "nested", "nested"))
    if form == "nested":
        label = pick(generator, ("entailment", "neutral", "contradiction"))
        # In a contradiction E is true in half of the cases, as it is in the other two labels together.
        second = label == "entailment" or (label == "contradiction" and bool(generator.random() < 0.5))
        first = _claim(scene, label != "contradiction", generator)
        other = _claim(scene, second, generator)
        return f"{first}, and it is true that {other} or that {pick(generator, _OPEN)}", label
    truth = bool(generator.random() < 0.5)
    claim = _claim(scene, truth, generator)
    if form == "plain":
        return claim, "entailment" if truth else "contradiction"
    labels = ("neutral", "contradiction") if form == "and" else ("entailment", "neutral")
    return f"{claim} {form} {pick(generator, _OPEN)}", labels[0 if truth else 1]


def _claim(scene: Scene, truth: bool, generator: np.random.Generator) -> str:
    wordings = contrast(scene, generator)[0 if truth else 1]
    return wordings[0] if len(wordings) == 1 else pick(generator, wordings)


def scene_captions(source: ScenesSource, index: int) -> tuple[str, ...]:
    """Return the five captions of a scene (see `captions`); the first two are complete."""
    return captions(make_scene(source.split, index), generator_for("captions", source.split, index))


class SceneItem(NamedTuple):
    """A question (of a kind), statement or hypothesis about images, places in their source; its answer."""

    images: tuple[int, ...]
    text: str
    answer: str
    kind: str = ""


def scene_items(task: SceneTask, source: ScenesSource, texts: int = 1) -> list[SceneItem]:
    """Return items in the order of their (left) images, so many of each; the first are the same for any number.

    Raises `ValueError` for pairs of fewer than two images.
    """
    if task == "nlvr2" and source.size < 2:
        raise ValueError(f"size must be 2 or more for pairs of images, got {source.size}")
    return [_item(task, source, index, turn) for index in range(source.size) for turn in range(texts)]


def _item(task: SceneTask, source: ScenesSource, index: int, turn: int) -> SceneItem:
    split, scene = source.split, make_scene(source.split, index)
    if task == "vqa":
        return SceneItem((index,), *question(scene, generator_for("question", split, index, turn)))
    if task == "entailment":
        return SceneItem((index,), *entailment(scene, generator_for("entailment", split, index, turn)))
    # Two scenes that share nothing leave little to say.
    generator = generator_for("pair", split, index)
    colored = {noun_of(thing) for thing in scene.objects}
    for _ in range(_NUM_PARTNERS):
        partner = (index + 1 + int(generator.random() * (source.size - 1))) % source.size
        right = make_scene(split, partner)
        if any(noun_of(thing) in colored for thing in right.objects):
            break
    text, truth = statement(scene, right, generator_for("statement", split, index, turn))
    return SceneItem((index, partner), text, "true" if truth else "false")
