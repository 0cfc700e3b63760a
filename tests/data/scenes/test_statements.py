"""Statements about pairs: true as labelled, and no more often true than false whatever their words."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
import pytest
from tests.data.scenes.reading import MANY, NUMBERS, ONE, RELATION, A, count, frame_of, true_of

from pixlex.data.scenes.scene import COLORS, Scene, SceneObject, make_scene
from pixlex.data.scenes.statements import Statement, statement
from pixlex.data.scenes.tasks import ScenePairs

pytestmark = pytest.mark.usefixtures("in_bulk")

_COUNT = 8000


@pytest.fixture(scope="module")
def said() -> list[tuple[Scene, Scene, str, bool]]:
    task = ScenePairs("train", _COUNT)
    items = [task[index] for index in range(_COUNT)]
    return [
        (
            make_scene("train", item.images[0]),
            make_scene("train", item.images[1]),
            item.text,
            item.answer == "true",
        )
        for item in items
    ]


def _truth(text: str, left: Scene, right: Scene) -> bool:
    """Whether a statement is true, from its words alone."""
    patterns = {
        rf"both images contain ({A})": lambda x, y: x > 0 and y > 0,
        rf"there is ({A}) in each image": lambda x, y: min(x, y) > 0,
        rf"exactly one image shows ({A})": lambda x, y: (x > 0) + (y > 0) == 1,
        rf"only one of the images contains ({A})": lambda x, y: (x > 0) + (y > 0) == 1,
        rf"at least one image contains ({A})": lambda x, y: x > 0 or y > 0,
        rf"neither image shows ({A})": lambda x, y: x == 0 and y == 0,
        rf"({A}) is in the left image but not in the right one": lambda x, y: x > 0 and y == 0,
        rf"({A}) is in the right image but not in the left one": lambda x, y: y > 0 and x == 0,
        rf"the left image has more ({MANY}) than the right one": lambda x, y: x > y,
        rf"the right image has more ({MANY}) than the left one": lambda x, y: y > x,
        rf"the left image has fewer ({MANY}) than the right one": lambda x, y: x < y,
        rf"the right image has fewer ({MANY}) than the left one": lambda x, y: y < x,
        rf"both images have the same number of ({MANY})": lambda x, y: x == y,
    }
    for pattern, truth in patterns.items():
        if found := re.fullmatch(pattern, text):
            return truth(count(left, found[1]), count(right, found[1]))
    if found := re.fullmatch(rf"the two images show exactly (\w+) ({ONE}|{MANY}) in total", text):
        return count(left, found[2]) + count(right, found[2]) == NUMBERS[found[1]]
    found = re.fullmatch(rf"in the (left|right) image ({A} is (?:{RELATION}) {A})", text)
    assert found, text
    return true_of(found[2], left if found[1] == "left" else right)


def test_labels_are_those_of_a_slow_reading(said: list[tuple[Scene, Scene, str, bool]]) -> None:
    for left, right, text, label in said:
        assert _truth(text, left, right) is label, (text, left, right)


def test_every_frame_is_true_half_of_the_time(said: list[tuple[Scene, Scene, str, bool]]) -> None:
    labels = defaultdict(list)
    for _, _, text, label in said:
        labels[frame_of(text)].append(label)
    assert len(labels) == 13 + 4 + 8
    for frame, found in labels.items():
        bound = 4 * 0.5 / len(found) ** 0.5  # four standard deviations of fair coins
        assert abs(np.mean(found) - 0.5) < bound, frame
    assert abs(np.mean([label for *_, label in said]) - 0.5) < 0.02


def test_words_alone_tell_nothing(said: list[tuple[Scene, Scene, str, bool]]) -> None:
    """A linear classifier of words and of their neighbors stays near one half."""
    pytest.importorskip("sklearn")
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    texts, labels = [text for *_, text, _ in said], [label for *_, label in said]
    half = _COUNT // 2
    for longest in (1, 2):
        features = CountVectorizer(ngram_range=(1, longest), token_pattern=r"\w+").fit_transform(texts)
        classifier = LogisticRegression(max_iter=300).fit(features[:half], labels[:half])
        assert classifier.score(features[half:], labels[half:]) < 0.54


def test_left_and_right_matter(said: list[tuple[Scene, Scene, str, bool]]) -> None:
    """The same sentence of the images in the other order is often false."""
    sided = [row for row in said if "left" in row[2] or "right" in row[2]]
    changed = sum(_truth(text, right, left) is not label for left, right, text, label in sided)
    assert changed > 0.3 * len(sided)


def test_any_two_scenes_have_a_statement() -> None:
    """The same scene twice, and two that together show every color."""
    same = make_scene("train", 0)
    things = [SceneObject("star", color, "small", 0, place % 4) for place, color in enumerate(COLORS)]
    four = [Scene(tuple(half), "gray", "plain", ((0.0, 0.0),) * 4) for half in (things[:4], things[4:])]
    for left, right in ((same, same), (four[0], four[1])):
        for seed in range(200):
            found = statement(left, right, np.random.default_rng(seed))
            assert isinstance(found, Statement)
            assert _truth(found.text, left, right) is found.label
