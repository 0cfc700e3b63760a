"""Questions have the one answer that a slow reading finds, and answers are balanced."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from tests.data.scenes.reading import MANY, ONE, PLACE, A, count, lies, named, stand

from pixlex.data.scenes.questions import ANSWERS, KINDS, Question, question
from pixlex.data.scenes.scene import COLORS, SHAPES, Scene, SceneObject, make_scene

pytestmark = pytest.mark.usefixtures("in_bulk")


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, Question]]:
    scenes = [make_scene("train", index) for index in range(6000)]
    return [(scene, question(scene, np.random.default_rng(row))) for row, scene in enumerate(scenes)]


def _only(things: list[SceneObject]) -> SceneObject:
    assert len(things) == 1, things
    return things[0]


def _pointed(scene: Scene, words: str) -> SceneObject:
    """The one object that "the ..." means."""
    if found := re.fullmatch(rf"object ({PLACE})", words):
        return _only([thing for thing in scene.objects if lies(thing, found[1])])
    return _only(named(scene, words))


def _answer(text: str, scene: Scene) -> tuple[str, str]:
    """Kind and answer of a question, from its words alone."""
    if found := re.fullmatch(rf"(?:is there|does the picture show|can one see) ({A})\?", text):
        return "existence", "yes" if count(scene, found[1]) else "no"
    if found := re.fullmatch(r"(?:what|which) (color|shape) (?:is|does) the (.*?)(?: have)?\?", text):
        # A name with the quality that is asked for would answer itself.
        options = COLORS if found[1] == "color" else SHAPES
        assert not set(options) & set(found[2].split())
        return found[1], getattr(_pointed(scene, found[2]), found[1])
    if found := re.fullmatch(rf"how many ({MANY}) (?:are there|does the picture show)\?", text):
        return "count", str(count(scene, found[1]))
    if found := re.fullmatch(rf"is the ({ONE}) (left|above) or (right of|below) the ({ONE})\?", text):
        first, second = _only(named(scene, found[1])), _only(named(scene, found[4]))
        options = [found[2], found[3].removesuffix(" of")]
        assert options in (["left", "right"], ["above", "below"])
        true = [option for option in options if stand(first, option, second)]
        assert len(true) == 1
        return "relation", true[0]
    found = re.fullmatch(rf"are there (more|fewer|as many) ({MANY}) (?:than|as) ({MANY})\?", text)
    assert found, text
    first, second = count(scene, found[2]), count(scene, found[3])
    assert first + second > 0
    truth = {"more": first > second, "fewer": first < second, "as many": first == second}[found[1]]
    return "comparison", "yes" if truth else "no"


def test_answers_are_those_of_a_slow_reading(asked: list[tuple[Scene, Question]]) -> None:
    for scene, found in asked:
        assert (found.kind, found.answer) == _answer(found.text, scene), (found, scene)
    assert {found.answer for _, found in asked} == set(ANSWERS)
    assert len(set(ANSWERS)) == len(ANSWERS) == 27


def test_kinds_and_answers_are_balanced(asked: list[tuple[Scene, Question]]) -> None:
    kinds = Counter(found.kind for _, found in asked)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 400
    shares = {}
    for kind in KINDS:
        answers = Counter(found.answer for _, found in asked if found.kind == kind)
        shares[kind] = {answer: number / kinds[kind] for answer, number in answers.items()}
    for kind in ("existence", "comparison"):
        assert abs(shares[kind]["yes"] - 0.5) < 0.04
    for kind, options in (("color", COLORS), ("shape", SHAPES), ("relation", range(4))):
        expected = 1 / len(options)
        assert all(abs(share - expected) < 0.06 for share in shares[kind].values()), shares[kind]
    assert max(shares["count"].values()) < 0.35
    assert sum(share for answer, share in shares["count"].items() if int(answer) > 1) > 0.33


def test_a_lone_object_is_asked_of_too() -> None:
    scene = Scene((SceneObject("ring", "blue", "large", 1, 2),), "gray", "plain", ((0.0, 0.0),))
    found = [question(scene, np.random.default_rng(seed)) for seed in range(300)]
    assert {one.kind for one in found} == set(KINDS) - {"relation"}
    assert all(_answer(one.text, scene) == (one.kind, one.answer) for one in found)
