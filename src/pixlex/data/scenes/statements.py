"""True and false sentences about two scenes side by side, as NLVR2 has them of two photographs.

A. Suhr et al., "A Corpus for Reasoning About Natural Language Grounded in Photographs", ACL 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pixlex.data.scenes.claims import RELATIONS, relation_names
from pixlex.data.scenes.nouns import LEVELS, NUMBER_WORDS, Noun, related_nouns
from pixlex.data.scenes.scene import Scene, pick, shuffled


@dataclass(frozen=True)
class Statement:
    """A sentence about two scenes.

    Attributes:
        text: the sentence, without a capital letter or a full stop.
        label: whether it is true of the two, left and right in their order.
    """

    text: str
    label: bool


@dataclass(frozen=True)
class _Frame:
    """A sentence about how many objects of one name each scene has.

    Args:
        text: the sentence with {one} or {many} for the name.
        truth: whether it holds, from the number on the left and on the right.
        needs_any: whether it is said only of names that fit an object: "as many stars" of none sounds wrong.
    """

    text: str
    truth: Callable[[int, int], bool]
    needs_any: bool = False


def statement(left: Scene, right: Scene, generator: np.random.Generator) -> Statement:
    """Say something about two scenes that is true as often as it is false.

    The frame (the sentence but for its colors, shapes and sizes) is chosen among those that can be filled to
    a true and to a false sentence about these two scenes, and a fair coin decides which of the two it
    becomes; so neither a frame nor, since names are treated alike, a name tells anything of the label.

    Args:
        left: the first scene.
        right: the second scene.
        generator: decides what is said.
    """
    for group in shuffled(generator, (*_GROUPS, None)):
        label = bool(generator.random() < 0.5)
        text = (
            _say_relation(left, right, label, generator)
            if group is None
            else _say_numbers(group, left, right, label, generator)
        )
        if text is not None:
            return Statement(text, label)
    raise AssertionError("of the 64 colored shapes some are in neither scene, and some in one of them")


def _say_numbers(
    frames: tuple[_Frame, ...], left: Scene, right: Scene, label: bool, generator: np.random.Generator
) -> str | None:
    """Fill one of the frames, or return None if none can be made both true and false."""
    for level in shuffled(generator, LEVELS):
        nouns = related_nouns((left, right), level, generator)
        counted = [(noun, noun.count(left), noun.count(right)) for noun in nouns]
        for frame in shuffled(generator, frames):
            names: dict[bool, list[Noun]] = {True: [], False: []}
            for noun, first, second in counted:
                if first + second > 0 or not frame.needs_any:
                    names[frame.truth(first, second)].append(noun)
            if names[True] and names[False]:
                noun = pick(generator, names[label])
                return frame.text.format(one=noun.one, many=noun.many, word=noun.word)
    return None


def _say_relation(left: Scene, right: Scene, label: bool, generator: np.random.Generator) -> str | None:
    """Tell how two objects of one of the scenes lie, or return None if it has no two that differ."""
    side, scene = pick(generator, (("left", left), ("right", right)))
    relation = pick(generator, tuple(RELATIONS))
    found = relation_names(scene, relation, pick(generator, LEVELS), generator)
    if found is None:
        return None
    first, second = found[0] if label else found[1]
    return f"in the {side} image {first.one} is {RELATIONS[relation]} {second.one}"


def _total(number: int) -> _Frame:
    name = "{word}" if number == 1 else "{many}"
    text = f"the two images show exactly {NUMBER_WORDS[number]} {name} in total"
    return _Frame(text, lambda left, right: left + right == number)


# One group is as likely as another, and a frame as likely as another of its group.
_GROUPS: tuple[tuple[_Frame, ...], ...] = (
    (
        _Frame("both images contain {one}", lambda left, right: left > 0 and right > 0),
        _Frame("there is {one} in each image", lambda left, right: left > 0 and right > 0),
    ),
    (
        _Frame("exactly one image shows {one}", lambda left, right: (left > 0) != (right > 0)),
        _Frame("only one of the images contains {one}", lambda left, right: (left > 0) != (right > 0)),
    ),
    (
        _Frame("at least one image contains {one}", lambda left, right: left + right > 0),
        _Frame("neither image shows {one}", lambda left, right: left + right == 0),
    ),
    (
        _Frame("{one} is in the left image but not in the right one", lambda left, right: left > 0 == right),
        _Frame("{one} is in the right image but not in the left one", lambda left, right: right > 0 == left),
    ),
    (
        _Frame("the left image has more {many} than the right one", lambda left, right: left > right, True),
        _Frame("the right image has more {many} than the left one", lambda left, right: left < right, True),
        _Frame("the left image has fewer {many} than the right one", lambda left, right: left < right, True),
        _Frame("the right image has fewer {many} than the left one", lambda left, right: left > right, True),
    ),
    (_Frame("both images have the same number of {many}", lambda left, right: left == right, True),),
    tuple(_total(number) for number in (1, 2, 3, 4)),
)
