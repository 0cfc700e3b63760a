"""Captions are true, and the first three name every object."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from tests.data.scenes.reading import (
    MANY,
    NUMBERS,
    ONE,
    PLACE,
    PLURALS,
    A,
    count,
    lies,
    named,
    stand,
    true_of,
)

from pixlex.data.scenes.captions import captions
from pixlex.data.scenes.scene import Scene, SceneObject, make_scene

pytestmark = pytest.mark.usefixtures("in_bulk")

_OPENING = re.compile("^(?:there is|the picture shows|a picture of|one can see) ")
_BACKGROUND = re.compile(r" on a (\w+) background$")


@pytest.fixture(scope="module")
def captioned() -> list[tuple[Scene, tuple[str, ...]]]:
    scenes = [make_scene("train", index) for index in range(1500)]
    return [(scene, captions(scene, np.random.default_rng(row))) for row, scene in enumerate(scenes)]


def _core(caption: str, scene: Scene) -> str:
    """The caption without its opening and its background, which must be the scene's."""
    caption = _OPENING.sub("", caption)
    if found := _BACKGROUND.search(caption):
        assert found[1] == scene.background
        caption = caption[: found.start()]
    return caption


def _parts(text: str) -> list[str]:
    return re.split(", | and ", text)


def test_the_first_names_every_object_with_its_place(
    captioned: list[tuple[Scene, tuple[str, ...]]],
) -> None:
    for scene, texts in captioned:
        parts = _parts(_core(texts[0], scene))
        for part, thing in zip(parts, scene.objects, strict=True):
            found = re.fullmatch(rf"({A}) ({PLACE})", part)
            assert found, part
            assert {thing.color, thing.shape} <= set(found[1].split())
            assert thing in named(scene, found[1])
            assert lies(thing, found[2])


def _tells(part: str, thing: SceneObject, anchor: SceneObject, scene: Scene) -> bool:
    found = re.fullmatch(rf"({A}) (to its left|to its right|above it|below it)", part)
    assert found, part
    complete = {thing.color, thing.shape} <= set(found[1].split())
    return complete and thing in named(scene, found[1]) and stand(thing, found[2], anchor)


def test_the_second_tells_every_object_by_its_place_beside_one(
    captioned: list[tuple[Scene, tuple[str, ...]]],
) -> None:
    for scene, texts in captioned:
        name, _, rest = _core(texts[1], scene).partition(" with ")
        if len(scene.objects) == 1:
            assert re.fullmatch(rf"(?:only )?{A}(?: and nothing else| alone)?", name)
            assert not rest
            continue
        matches = 0
        for anchor in named(scene, name):
            others = [thing for thing in scene.objects if thing is not anchor]
            told = zip(_parts(rest), others, strict=True)
            matches += all(_tells(part, thing, anchor, scene) for part, thing in told)
        assert matches > 0, (texts[1], scene)


def _counts(text: str) -> list[tuple[int, str]]:
    """The numbers and nouns of a list such as "two red circles and a star"."""
    groups = []
    for part in _parts(text):
        found = re.fullmatch(rf"(\w+) ({MANY}|{ONE})", part)
        assert found, part
        number = NUMBERS[found[1]]
        assert (number > 1) == (found[2].split()[-1] in PLURALS)
        assert number > 1 or re.fullmatch(A, part)
        groups.append((number, found[2]))
    return groups


def test_the_third_counts_every_colored_shape(captioned: list[tuple[Scene, tuple[str, ...]]]) -> None:
    for scene, texts in captioned:
        told = Counter()
        for number, noun in _counts(_core(texts[2], scene)):
            color, shape = noun.split()
            told[color, PLURALS.get(shape, shape)] += number
        assert told == Counter((thing.color, thing.shape) for thing in scene.objects)


def test_the_fourth_counts_shapes_or_colors(captioned: list[tuple[Scene, tuple[str, ...]]]) -> None:
    by_color = 0
    for scene, texts in captioned:
        groups = _counts(_core(texts[3], scene))
        assert sum(number for number, _ in groups) == len(scene.objects)
        assert all(count(scene, noun) == number for number, noun in groups)
        assert len({len(noun.split()) for _, noun in groups}) == 1
        by_color += "object" in texts[3]
    assert 600 < by_color < 900


def test_the_fifth_is_true(captioned: list[tuple[Scene, tuple[str, ...]]]) -> None:
    for scene, texts in captioned:
        text = _core(texts[4], scene)
        if found := re.fullmatch(rf"({A}) (in the \w+ (?:row|column))", text):
            assert any(lies(thing, found[2]) for thing in named(scene, found[1]))
        else:
            assert true_of(text, scene)


def test_wording_varies(captioned: list[tuple[Scene, tuple[str, ...]]]) -> None:
    texts = [text for _, five in captioned for text in five]
    assert len(set(texts)) > 0.75 * len(texts)
    openings = Counter(found[0] for text in texts if (found := _OPENING.match(text)))
    assert len(openings) == 4
    backgrounds = sum("background" in five[0] for _, five in captioned)
    sizes = sum("large" in five[0] or "small" in five[0] for _, five in captioned)
    assert 300 < backgrounds < 450
    assert 650 < sizes < 850
