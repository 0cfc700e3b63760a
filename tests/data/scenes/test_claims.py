"""Names, relations and claims against a slow reading of their words."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from tests.data.scenes.reading import count, frame_of, stand, true_of

from pixlex.data.scenes.claims import (
    RELATIONS,
    Counts,
    Exists,
    Placed,
    Relates,
    contrast,
    holds,
    related,
    say,
)
from pixlex.data.scenes.nouns import LEVELS, Noun, noun_of, related_nouns
from pixlex.data.scenes.scene import COLORS, Scene, SceneObject, make_scene

pytestmark = pytest.mark.usefixtures("in_bulk")


def _scene(*things: SceneObject) -> Scene:
    return Scene(things, "gray", "plain", ((0.0, 0.0),) * len(things))


def test_relations_compare_rows_and_columns() -> None:
    cells = list(itertools.product(range(3), range(3)))
    for (row, column), (other_row, other_column) in itertools.permutations(cells, 2):
        first = SceneObject("star", "red", "small", row, column)
        second = SceneObject("ring", "blue", "small", other_row, other_column)
        found = {relation for relation in RELATIONS if related(first, relation, second)}
        assert found == {relation for relation in RELATIONS if stand(first, relation, second)}
        assert 1 <= len(found) <= 2
    with pytest.raises(ValueError, match="expected a relation of left, right, above, below, got 'beside'"):
        related(first, "beside", second)


def test_names_in_words() -> None:
    thing = SceneObject("cross", "orange", "small", 0, 0)
    assert noun_of(thing).one == "an orange cross"
    assert noun_of(thing).many == "orange crosses"
    assert noun_of(thing, ("size", "color", "shape")).one == "a small orange cross"
    assert Noun(color="red").numbered(1) == "one red object"
    assert Noun(shape="ring").numbered(0) == "no rings"
    assert Noun().many == "objects"


def test_names_for_questions_fit_and_do_not_fit() -> None:
    generator = np.random.default_rng(0)
    for index in range(400):
        scenes = (make_scene("train", index), make_scene("train", index + 1))[: 1 + index % 2]
        for level in LEVELS:
            nouns = related_nouns(scenes, level, generator)
            numbers = [sum(noun.count(scene) for scene in scenes) for noun in nouns]
            assert len(set(nouns)) == len(nouns)
            assert numbers == [sum(count(scene, noun.word) for scene in scenes) for noun in nouns]
            assert max(numbers) > 0
            assert min(numbers) == 0


def test_names_where_every_name_fits() -> None:
    """Eight objects of all eight colors: no color is left that fits none."""
    things = [SceneObject("star", color, "small", 0, place % 4) for place, color in enumerate(COLORS)]
    nouns = related_nouns((_scene(*things[:4]), _scene(*things[4:])), ("color",), np.random.default_rng(0))
    assert nouns == [Noun(color=color) for color in COLORS]


def test_claims_hold_as_their_words_read() -> None:
    generator = np.random.default_rng(1)
    kinds = Counter()
    for index in range(3000):
        scene = make_scene("test", index)
        pair = contrast(scene, generator)
        assert holds(pair.true, scene)
        assert not holds(pair.false, scene)
        for claim, truth in ((pair.true, True), (pair.false, False)):
            text = say(claim, generator)
            assert true_of(text, scene) is truth, (text, scene)
        kinds[type(pair.true)] += 1
    assert set(kinds) == {Exists, Counts, Placed, Relates}
    assert min(kinds.values()) > 300


def test_a_true_and_a_false_claim_differ_in_names_alone() -> None:
    for index in range(500):
        pair = contrast(make_scene("train", index), np.random.default_rng(index))
        texts = [say(claim, np.random.default_rng(index)) for claim in (pair.true, pair.false)]
        assert frame_of(texts[0]) == frame_of(texts[1])
        assert texts[0] != texts[1]


def test_two_things_of_one_name_may_stand_in_a_relation() -> None:
    scene = _scene(
        SceneObject("star", "red", "small", 0, 0),
        SceneObject("ring", "red", "small", 1, 1),
        SceneObject("star", "blue", "large", 2, 2),
    )
    star, ring = Noun(shape="star"), Noun(shape="ring")
    assert holds(Relates(star, "left", ring), scene)
    assert holds(Relates(star, "right", ring), scene)
    assert not holds(Relates(Noun(color="blue"), "left", ring), scene)
    assert holds(Placed(ring, 1, 1), scene)
    assert not holds(Placed(ring, 0, 0), scene)
    assert holds(Counts(star, 2), scene)
    assert not holds(Counts(star, 1), scene)
