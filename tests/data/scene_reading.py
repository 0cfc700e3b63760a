"""Texts about scenes read back, word by word: slow, and without the library's own nouns and claims."""

from __future__ import annotations

import re

from pixlex.data.synthetic import Scene, SceneObject

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
NUMBERS = {"no": 0, "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
PLURALS = {"crosses": "cross"} | {f"{name}s": name for name in (*SHAPES, "object") if name != "cross"}

ONE = rf"(?:(?:small|large) )?(?:(?:{'|'.join(COLORS)}) )?(?:{'|'.join(SHAPES)}|object)"
MANY = rf"(?:(?:small|large) )?(?:(?:{'|'.join(COLORS)}) )?(?:{'|'.join(PLURALS)})"
# The article belongs to the noun here, so that it is checked: "an orange star", "a red star".
A = rf"an? {ONE}"
PLACE = r"in the center|at the (?:top|center|bottom) (?:left|center|right)"
RELATION = "left of|right of|above|below"


def named(scene: Scene, noun: str) -> list[SceneObject]:
    """The objects that every word of a noun fits, which may have an article or be a plural."""
    words = noun.split()
    if words[0] in ("a", "an"):
        assert (words[0] == "an") == (words[1][0] in "aeiou"), noun
        words = words[1:]
    words = [PLURALS.get(word, word) for word in words]
    return [
        thing
        for thing in scene.objects
        if all(word in (thing.size, thing.color, thing.shape, "object") for word in words)
    ]


def count(scene: Scene, noun: str) -> int:
    return len(named(scene, noun))


def lies(thing: SceneObject, place: str) -> bool:
    """Whether an object lies at a place such as "at the top left", "in the bottom row" or "in the center"."""
    rows, columns = ["top", "center", "bottom"], ["left", "center", "right"]
    if found := re.fullmatch(r"in the (\w+) row", place):
        return thing.row == rows.index(found[1])
    if found := re.fullmatch(r"in the (\w+) column", place):
        return thing.column == columns.index(found[1])
    row, column = ("center", "center") if place == "in the center" else place.split()[-2:]
    return (thing.row, thing.column) == (rows.index(row), columns.index(column))


def stand(first: SceneObject, relation: str, second: SceneObject) -> bool:
    """Whether two objects stand in a relation, given by its first word or the words of a caption."""
    across, down = second.column - first.column, second.row - first.row
    for word, distance in (("left", across), ("right", -across), ("above", down), ("below", -down)):
        if word in relation.split():
            return distance > 0
    raise AssertionError(relation)


def true_of(sentence: str, scene: Scene) -> bool:
    """Whether a sentence about one scene is true; fails on a sentence of another form."""
    if found := re.fullmatch(rf"(?:there is|the picture shows|one can see) ({A})", sentence):
        return count(scene, found[1]) > 0
    if found := re.fullmatch(
        rf"(there is|there are|the picture shows) exactly (\w+) ({ONE}|{MANY})", sentence
    ):
        number = NUMBERS[found[2]]
        assert (number == 1) == (found[3].split()[-1] not in PLURALS)
        assert "there" not in found[1] or (number == 1) == (found[1] == "there is")
        return count(scene, found[3]) == number
    if found := re.fullmatch(rf"({A}) is ({PLACE})", sentence):
        return any(lies(thing, found[2]) for thing in named(scene, found[1]))
    if found := re.fullmatch(rf"({A}) (?:is )?({RELATION}) ({A})", sentence):
        firsts, seconds = named(scene, found[1]), named(scene, found[3])
        return any(stand(first, found[2], second) for first in firsts for second in seconds)
    raise AssertionError(f"a sentence of no known form: {sentence}")


def frame_of(sentence: str) -> str:
    """A sentence with all its nouns left out."""
    return re.sub(rf"(?:an? )?\b(?:{MANY}|{ONE})\b", "_", sentence)
