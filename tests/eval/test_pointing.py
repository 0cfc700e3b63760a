"""The pointing game with maps planted by hand: what points right, wrong, everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pixlex.data.scenes import Scene, SceneObject, ScenesSource, object_boxes
from pixlex.eval import pointing
from pixlex.eval.gradcam import Explanation
from pixlex.eval.intervals import wilson_interval
from pixlex.eval.pointing import named_objects, patches_in, play, pointed, pointing_game

GRID = 6  # two patches along a cell of the scene
SCENE = Scene(
    (
        SceneObject("circle", "red", "large", 0, 0),
        SceneObject("star", "red", "large", 1, 1),
        SceneObject("heart", "blue", "large", 2, 2),
    ),
    "gray", "plain", ((0.0, 0.0),) * 3,
)  # fmt: skip
WORDS = ("a", "red", "circle", "a", "red", "star", "and", "a", "blue", "heart")


def _planted(*places: tuple[int, int]) -> Tensor:
    heat = torch.zeros(GRID, GRID)
    for row, column in places:
        heat[row, column] = 1
    return heat


def _explained(of_word: dict[str, Tensor], words: Sequence[str] = WORDS) -> Explanation:
    maps = torch.stack([of_word.get(word, torch.zeros(GRID, GRID)) for word in words])
    return Explanation(tuple(words), maps, _planted((0, 0)), "matching", 0.0, 1, ())


def test_words_that_name_one_object_alone() -> None:
    """Two objects are red: that word plays no part, whichever of them it stands before."""
    assert named_objects(WORDS, SCENE) == [(2, 0), (5, 1), (8, 2), (9, 2)]


def test_patches_of_a_box() -> None:
    """Those whose centers it contains; of a box smaller than a patch the one it lies in."""
    whole, none = patches_in((0.0, 0.0, 0.5, 1.0), 4), patches_in((0.55, 0.3, 0.56, 0.31), 4)
    assert whole.nonzero().tolist() == [[row, column] for row in range(4) for column in (0, 1)]
    assert none.nonzero().tolist() == [[1, 2]]
    assert patches_in(object_boxes(SCENE)[2], GRID).nonzero().tolist() == [[4, 4], [4, 5], [5, 4], [5, 5]]


def test_planted_maps() -> None:
    """One word right, one on another object, one beside all, one with two hottest patches."""
    right = {
        "circle": _planted((1, 0)), "star": _planted((5, 5)), "blue": _planted((0, 5)),
        "heart": _planted((4, 4), (0, 2)),
    }  # fmt: skip
    rows = {name: values.tolist() for name, values in play(_explained(right), SCENE).items()}
    assert rows["pointed"] == rows["own_word"] == [1, 0, 0, 0.5]
    assert rows["any_object"] == [1, 1, 0, 0.5]
    assert rows["pointed_chance"] == pytest.approx([4 / 36] * 4)
    assert rows["any_object_chance"] == pytest.approx([12 / 36] * 4)
    assert rows["pointed_center"] == [0, 1, 0, 0]
    assert rows["pointed_whole"] == [1, 0, 0, 0]
    # For the heart's words: the maps of circle (miss) and star (hit).
    assert rows["other_word"] == pytest.approx([0, 0, 0.5, 0.5])


def test_a_flat_map_scores_what_chance_does() -> None:
    region = patches_in(object_boxes(SCENE)[0], GRID)
    assert pointed(torch.zeros(GRID, GRID), region) == pytest.approx(float(region.float().mean()))
    assert pointed(torch.ones(GRID, GRID), region) == pytest.approx(4 / 36)


Pointer = Callable[[Scene, str], int | None]


@pytest.fixture
def game(
    monkeypatch: pytest.MonkeyPatch, unchecked_shapes: None
) -> Callable[[Pointer], pointing.PointingResult]:
    """The whole game with explanations that point to the object a rule names, without a model."""

    def run(rule: Pointer, size: int = 40) -> pointing.PointingResult:
        source, index = ScenesSource("test", size), iter(range(size))

        def planted(model: Any, images: Tensor, texts: Sequence[str], **_: Any) -> list[Explanation]:
            assert images.shape[1:] == (3, 24, 24)
            found = []
            for text in texts:
                scene = source.scene(next(index))
                words = tuple(text.split())
                maps = []
                for word in words:
                    thing = rule(scene, word)
                    heat = torch.zeros(GRID, GRID)
                    if thing is not None:
                        left, top, right, bottom = object_boxes(scene)[thing]
                        heat[int((top + bottom) / 2 * GRID), int((left + right) / 2 * GRID)] = 1
                    maps.append(heat)
                found.append(Explanation(words, torch.stack(maps), maps[0], "matching", 0.0, 2, ()))
            return found

        monkeypatch.setattr(pointing, "explain", planted)

        class Model:
            config = type("Config", (), {"image_size": 24, "cut": "center"})

        return pointing_game(Model(), source, batch_size=7, progress=False)  # type: ignore[arg-type]

    return run


def _meant(scene: Scene, word: str) -> int | None:
    """The last object that has the color or shape."""
    things = [number for number, thing in enumerate(scene.objects) if word in (thing.color, thing.shape)]
    return things[-1] if things else None


def test_who_knows_the_objects_wins(game: Any) -> None:
    result = game(_meant)
    assert result.pointed == result.own_word == result.any_object == 1
    assert result.other_word == 0  # no patch lies on two objects
    assert result.preference == 1
    low, high = result.preference_interval
    assert low > 0.7
    assert high == pytest.approx(1)
    assert result.layer == 2
    assert 30 <= result.num_scenes <= 40
    assert result.num_several < result.num_scenes < result.num_words
    assert result.interval == wilson_interval(1.0, result.num_scenes)
    assert 0.02 < result.pointed_chance < 0.2
    assert result.pointed_chance < result.any_object_chance


def test_who_sees_objects_but_not_which_is_no_better_than_with_another_word(game: Any) -> None:
    result = game(lambda scene, word: 0)
    assert result.any_object == 1
    assert result.own_word == result.other_word < 0.7
    low, high = result.preference_interval
    assert low == pytest.approx(-high)
    assert low < 0


def test_who_sees_nothing_reaches_chance(game: Any) -> None:
    result = game(lambda scene, word: None)
    assert result.pointed == pytest.approx(result.pointed_chance)
    assert result.numbers["eval/pointed_low"] < result.pointed_chance < result.numbers["eval/pointed_high"]
