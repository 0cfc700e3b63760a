"""Texts about scenes against a slow reading of their words: true, balanced, and telling nothing by words alone."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from pixlex.data.synthetic import (
    ANSWERS,
    COLORS,
    KINDS,
    SHAPES,
    Scene,
    SceneObject,
    ScenesSource,
    SceneTask,
    captions,
    entailment,
    question,
    scene_items,
)
from pixlex.data.text import CLASSES

pytestmark = pytest.mark.usefixtures("in_bulk")

NUMBERS = {"no": 0, "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
PLURALS = {"crosses": "cross"} | {f"{name}s": name for name in (*SHAPES, "object") if name != "cross"}

ONE = rf"(?:(?:small|large) )?(?:(?:{'|'.join(COLORS)}) )?(?:{'|'.join(SHAPES)}|object)"
MANY = rf"(?:(?:small|large) )?(?:(?:{'|'.join(COLORS)}) )?(?:{'|'.join(PLURALS)})"
# The article belongs to the noun here, so that it is checked: "an orange star", "a red star".
A = rf"an? {ONE}"
PLACE = r"in the center|at the (?:top|center|bottom) (?:left|center|right)"
RELATION = "left of|right of|above|below"
_OPENING = re.compile("^(?:there is|the picture shows|a picture of|one can see) ")
_BACKGROUND = re.compile(r" on a (\w+) background$")
_COUNT = 2400


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


def test_captions(scenes: list[Scene]) -> None:
    """Every object with its place; one fact. (What the other captions say is frozen by the digest of scenes.)"""
    for index, scene in enumerate(scenes[:300]):
        found = []
        for text in captions(scene, np.random.default_rng(index)):
            if background := _BACKGROUND.search(text):
                assert background[1] == scene.background
            found.append(_BACKGROUND.sub("", _OPENING.sub("", text)))
        for part, thing in zip(re.split(", | and ", found[0]), scene.objects, strict=True):
            told = re.fullmatch(rf"({A}) ({PLACE})", part)
            assert told, part
            assert {thing.color, thing.shape} <= set(told[1].split())
            assert thing in named(scene, told[1])
            assert lies(thing, told[2])
        if told := re.fullmatch(rf"({A}) (in the \w+ (?:row|column))", found[-1]):
            assert any(lies(thing, told[2]) for thing in named(scene, told[1]))
        else:
            assert true_of(found[-1], scene)


@pytest.fixture(scope="module")
def asked(scenes: list[Scene]) -> list[tuple[Scene, str, str, str]]:
    return [(scene, *question(scene, np.random.default_rng(row))) for row, scene in enumerate(scenes)]


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


def test_answers_are_those_of_a_slow_reading(asked: list[tuple[Scene, str, str, str]]) -> None:
    """And balanced."""
    for scene, text, answer, kind in asked:
        assert (kind, answer) == _answer(text, scene), (text, scene)
    assert {answer for *_, answer, _ in asked} == set(ANSWERS)
    assert len(set(ANSWERS)) == len(ANSWERS) == 27
    kinds = Counter(kind for *_, kind in asked)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 160
    for kind, options in (("existence", 2), ("comparison", 2), ("color", len(COLORS)), ("relation", 4)):
        answers = Counter(answer for *_, answer, of in asked if of == kind)
        assert all(abs(count / kinds[kind] - 1 / options) < 0.06 for count in answers.values()), kind


@pytest.fixture(scope="module")
def said(scenes: list[Scene]) -> list[tuple[Scene, Scene, str, bool]]:
    items = scene_items("nlvr2", ScenesSource("train", _COUNT))
    return [(*(scenes[place] for place in one.images), one.text, one.answer == "true") for one in items]


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


@pytest.fixture(scope="module")
def made(scenes: list[Scene]) -> list[tuple[Scene, str, str]]:
    return [(scene, *entailment(scene, np.random.default_rng(row))) for row, scene in enumerate(scenes)]


def _undecided(sentence: str) -> None:
    """Check that a clause says nothing of what is drawn."""
    assert sentence.endswith(" the picture") or " the picture " in sentence
    assert not {*SHAPES, *COLORS, "object", "exactly", "there", "shows"} & set(sentence.split()), sentence


def _form_and_label(text: str, scene: Scene) -> tuple[str, str]:
    """The form of a hypothesis, and its label by three-valued logic: True, False, None for undecided."""
    if ", and it is true that " in text:
        first, rest = text.split(", and it is true that ")
        second, open_clause = rest.split(" or that ")
        _undecided(open_clause)
        values = [true_of(first, scene), True if true_of(second, scene) else None]
        value = False if False in values else (None if None in values else True)
        form = "nested"
    elif " or " in text:
        first, open_clause = text.split(" or ")
        _undecided(open_clause)
        value, form = (True if true_of(first, scene) else None), "or"
    elif " and " in text:
        first, open_clause = text.split(" and ")
        _undecided(open_clause)
        value, form = (None if true_of(first, scene) else False), "and"
    else:
        value, form = true_of(text, scene), "plain"
    return form, {True: "entailment", None: "neutral", False: "contradiction"}[value]


def test_labels_are_those_of_three_valued_logic(made: list[tuple[Scene, str, str]]) -> None:
    forms = defaultdict(Counter)
    for scene, text, label in made:
        form, expected = _form_and_label(text, scene)
        assert label == expected, (text, scene)
        forms[form][label] += 1
    assert set(forms["nested"]) == set(CLASSES["entailment"])
    assert set(forms["plain"]) == {"entailment", "contradiction"}
    assert set(forms["and"]) == {"neutral", "contradiction"}
    assert set(forms["or"]) == {"entailment", "neutral"}
    for counts in forms.values():
        expected = sum(counts.values()) / len(counts)
        assert all(abs(number - expected) < 0.1 * expected for number in counts.values())
    for number in Counter(label for *_, label in made).values():
        assert abs(number - _COUNT / 3) < 0.1 * _COUNT / 3


def test_words_alone_tell_little(
    made: list[tuple[Scene, str, str]], said: list[tuple[Scene, Scene, str, bool]]
) -> None:
    """From the form of a hypothesis the best guess is right in 5 of 12 cases; of a statement in half of them."""
    pytest.importorskip("sklearn")
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    for rows, most in ((made, 0.46), (said, 0.54)):
        texts, labels = [row[-2] for row in rows], [row[-1] for row in rows]
        half = len(rows) // 2
        features = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+").fit_transform(texts)
        classifier = LogisticRegression(max_iter=300).fit(features[:half], labels[:half])
        assert classifier.score(features[half:], labels[half:]) < most


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "entailment"])
def test_items(task: SceneTask) -> None:
    """Of each image in turn; the first of several about an image are those of fewer."""
    items = scene_items(task, ScenesSource("test", 100))
    assert [item.images[0] for item in items] == list(range(100))
    assert all(len(set(item.images)) == 1 + (task == "nlvr2") for item in items)
    assert all((item.kind in KINDS) == (task == "vqa") for item in items)
    assert {item.answer for item in items} <= set(ANSWERS if task == "vqa" else CLASSES[task])
    three = scene_items(task, ScenesSource("test", 100), 3)
    assert three[::3] == items
    assert sum(len({item.text for item in three[3 * row : 3 * row + 3]}) == 3 for row in range(100)) > 75
    assert items != scene_items(task, ScenesSource("train", 100))


def test_items_of_nothing() -> None:
    with pytest.raises(ValueError, match="size must be 2 or more for pairs of images, got 1"):
        scene_items("nlvr2", ScenesSource("train", 1))
    assert scene_items("nlvr2", ScenesSource("train", 2))[0].images == (0, 1)
