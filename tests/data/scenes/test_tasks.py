"""Items of the tasks: whole numbers into the images, answers of the list, the same after pickling."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest

from pixlex.data.scenes.questions import KINDS
from pixlex.data.scenes.scene import make_scene
from pixlex.data.scenes.tasks import SceneEntailment, ScenePairs, SceneQuestions

Task = type[SceneQuestions] | type[ScenePairs] | type[SceneEntailment]


@pytest.mark.parametrize(("task", "images"), [(SceneQuestions, 1), (ScenePairs, 2), (SceneEntailment, 1)])
def test_items(task: Task, images: int) -> None:
    items = task("test", 200)
    assert len(items) == len(items.images) == 200
    copy = pickle.loads(pickle.dumps(items))
    answers = Counter()
    for index, item in enumerate(items):  # ends by IndexError at the size
        assert item.images[0] == index
        assert len(set(item.images)) == images
        assert all(0 <= place < 200 for place in item.images)
        assert copy[index] == item
        assert (item.kind in KINDS) == (task is SceneQuestions)
        answers[item.answer] += 1
    assert sum(answers.values()) == 200
    assert set(answers) <= set(items.answers)
    assert len(answers) > 0.8 * len(items.answers)
    with pytest.raises(IndexError, match="embedded:scenes:test:200 has the images 0 to 199, got 200"):
        items[200]


@pytest.mark.parametrize("task", [SceneQuestions, ScenePairs, SceneEntailment])
def test_several_items_of_an_image(task: Task) -> None:
    """The first ones are those of fewer; an image's items differ, and all but their images and names."""
    one, three = task("train", 40), task("train", 40, 3)
    assert len(three) == 120
    assert [three[3 * index] for index in range(40)] == list(one)
    assert all(three[number].images[0] == number // 3 for number in range(120))
    different = sum(len({three[3 * index + turn].text for turn in range(3)}) == 3 for index in range(40))
    assert different > 30
    assert one.key(7) == "scenes/train-000007"
    assert three.key(22) == "scenes/train-000007/1"
    with pytest.raises(IndexError):
        three[120]


def test_splits_and_tasks_differ() -> None:
    texts = {task("train", 50)[3].text for task in (SceneQuestions, ScenePairs, SceneEntailment)}
    assert len(texts) == 3
    assert [SceneQuestions("train", 50)[k] for k in range(9)] != [
        SceneQuestions("test", 50)[k] for k in range(9)
    ]


def test_pairs_often_share_a_colored_shape() -> None:
    """Far more often than images drawn at random."""
    pairs = ScenePairs("train", 600)

    def share(first: int, second: int) -> bool:
        scenes = [make_scene("train", index).objects for index in (first, second)]
        colored = [{(thing.shape, thing.color) for thing in things} for things in scenes]
        return bool(colored[0] & colored[1])

    chosen = sum(share(*pairs[index].images) for index in range(600))
    drawn = sum(share(index, (index + 300) % 600) for index in range(600))
    assert chosen > 2 * drawn > 0


@pytest.mark.usefixtures("unchecked_shapes")
def test_tasks_of_nothing() -> None:
    for task in (SceneQuestions, ScenePairs, SceneEntailment):
        with pytest.raises(ValueError, match="size must be 1 or more, got 0"):
            task("train", 0)
        with pytest.raises(ValueError, match="split must be train or test, got 'all'"):
            task("all", 5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="texts must be 1 or more, got 0"):
            task("train", 5, 0)
    with pytest.raises(ValueError, match="size must be 2 or more for pairs of images, got 1"):
        ScenePairs("train", 1)
    assert ScenePairs("train", 2)[0].images == (0, 1)
