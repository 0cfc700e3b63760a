"""The pointing game: does the hottest place of a word's map lie on the object that the word names?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pixlex import distributed
from pixlex.data.loader import evaluation_batches
from pixlex.data.scenes import Scene, ScenesSource, object_boxes
from pixlex.data.scenes.scene import COLORS, SHAPES
from pixlex.data.text import clean_caption
from pixlex.eval.attention import explain
from pixlex.eval.gradcam import ExplainedScore, Explanation
from pixlex.eval.intervals import wilson_interval
from pixlex.eval.passes import progress_bar
from pixlex.models.cbvila import CBViLA

# Names every object by color and shape, and no place.
_CAPTION = 2
_LONGEST = 100

# What every word that plays has a share of.
_OF_WORDS = (
    "pointed",
    "pointed_whole",
    "pointed_chance",
    "pointed_center",
    "any_object",
    "any_object_chance",
)


@dataclass(frozen=True, kw_only=True)
class PointingResult:
    """What a pointing game found. Shares are means over scenes of the mean over the words of a scene.

    Attributes:
        score: what was explained.
        layer: of the fusion encoder, counted from 1.
        num_scenes: those with a word that names one object alone.
        num_words: such words.
        pointed: share whose hottest patch lies on the object.
        pointed_whole: the same of the map of the whole text.
        pointed_chance: share of the patches that lie on it: what a random patch, and a flat map, reaches.
        pointed_center: share where the middle of the image lies on it.
        any_object: share whose hottest patch lies on some object of the scene.
        any_object_chance: share of the patches that lie on some object.
        num_several: scenes whose words name two objects or more.
        own_word: `pointed` in those.
        other_word: share in those where the map of a word for another object points to this one: as high as
            `own_word` where maps show objects, but not which one is meant.
    """

    score: ExplainedScore
    layer: int
    num_scenes: int
    num_words: int
    pointed: float
    pointed_whole: float
    pointed_chance: float
    pointed_center: float
    any_object: float
    any_object_chance: float
    num_several: int
    own_word: float
    other_word: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `pointed`; a scene is one trial, however many words it has."""
        return wilson_interval(self.pointed, self.num_scenes)

    @property
    def preference(self) -> float:
        """How much oftener an object's own word points to it than another object's does: 0 without any reading."""
        return self.own_word - self.other_word

    @property
    def preference_interval(self) -> tuple[float, float]:
        """95 % interval of `preference`, too wide rather than too narrow: (1 + it) / 2 is a mean in [0, 1]."""
        if not self.num_several:
            return -1.0, 1.0
        low, high = wilson_interval((1 + self.preference) / 2, self.num_several)
        return 2 * low - 1, 2 * high - 1

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers by their names in the log."""
        low, high = self.interval
        found: dict[str, float] = {"num_scenes": self.num_scenes, "num_words": self.num_words}
        found |= {"pointed": self.pointed, "pointed_low": low, "pointed_high": high}
        for name in (*_OF_WORDS[1:], "num_several", "own_word", "other_word"):
            found[name] = getattr(self, name)
        low, high = self.preference_interval
        found |= {"preference": self.preference, "preference_low": low, "preference_high": high}
        return {f"eval/{name}": float(value) for name, value in found.items()}


def pointing_game(
    model: CBViLA,
    source: ScenesSource,
    *,
    score: ExplainedScore = "matching",
    layer: int | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> PointingResult:
    """Play the pointing game (Zhang et al. 2018, "Top-down neural attention by excitation backprop") on scenes.

    The text of a scene is the caption that names all objects by color and shape, without their places. A word
    plays if it is a color or a shape that one object of the scene alone has. Its map points to the patch of its
    highest value; of several equal ones each has its share, so a flat map scores what chance does.

    Objects stand out from the background whatever a network has learned, so an untrained one is far above chance
    too (docs/log.md). What was learned shows in `preference`, which is 0 before training.

    Args:
        model: the network, where it is.
        source: drawn scenes, which know where their objects are.
        score: what is explained (see `explain`).
        layer: of the fusion encoder, counted from 1; None for `default_layer`.
        limit: if given, so many scenes, evenly spaced.
        batch_size: scenes at a time.
        progress: show a bar.

    Raises:
        ValueError: no such score or layer, or scenes none of whose words names one object alone.
    """
    batches = evaluation_batches(
        source, image_size=model.config.image_size, batch_size=batch_size, limit=limit,
        rank=distributed.rank(), world_size=distributed.world_size(), cut=model.config.cut,
    )  # fmt: skip
    found: list[tuple[int, list[dict[str, Tensor]]]] = []
    with progress_bar(min(len(source), limit or len(source)), "scenes", "point", shown=progress) as bar:
        for batch in batches:
            indices = batch.indices.tolist()
            texts = [clean_caption(source.captions(index)[_CAPTION], _LONGEST) for index in indices]
            maps = explain(model, batch.images, texts, score=score, layer=layer)
            played = [play(one, source.scene(index)) for one, index in zip(maps, indices, strict=True)]
            found.append((maps[0].layer, played))
            bar.update(len(indices))
    everyone = distributed.in_turn(found)
    used, rows = everyone[0][0], [row for _, played in everyone for row in played]
    rows = [row for row in rows if len(row["pointed"])]
    if not rows:
        raise ValueError(f"{source.name}: no word of the captions names one object alone: give more scenes")
    several = [row for row in rows if len(row["other_word"])]
    return PointingResult(
        score=score,
        layer=used,
        num_scenes=len(rows),
        num_words=sum(len(row["pointed"]) for row in rows),
        **{name: _mean(rows, name) for name in _OF_WORDS},
        num_several=len(several),
        own_word=_mean(several, "own_word"),
        other_word=_mean(several, "other_word"),
    )


def play(explanation: Explanation, scene: Scene) -> dict[str, Tensor]:
    """Return what `PointingResult` is the mean of, by its names, for each word of one scene that plays."""
    grid = explanation.whole.shape[-1]
    regions = [patches_in(box, grid) for box in object_boxes(scene)]
    objects = torch.stack(regions).any(0)
    named = named_objects(explanation.words, scene)
    rows: dict[str, list[float]] = {name: [] for name in (*_OF_WORDS, "own_word", "other_word")}
    middle = torch.zeros(grid, grid)
    middle[(grid - 1) // 2 : grid // 2 + 1, (grid - 1) // 2 : grid // 2 + 1] = 1
    for word, thing in named:
        region, heat = regions[thing], explanation.maps[word]
        rows["pointed"].append(pointed(heat, region))
        rows["pointed_whole"].append(pointed(explanation.whole, region))
        rows["pointed_chance"].append(float(region.double().mean()))
        rows["pointed_center"].append(pointed(middle, region))
        rows["any_object"].append(pointed(heat, objects))
        rows["any_object_chance"].append(float(objects.double().mean()))
        others = [pointed(explanation.maps[other], region) for other, its in named if its != thing]
        if others:
            rows["own_word"].append(rows["pointed"][-1])
            rows["other_word"].append(sum(others) / len(others))
    return {name: torch.tensor(values) for name, values in rows.items()}


def named_objects(words: Sequence[str], scene: Scene) -> list[tuple[int, int]]:
    """Return word and object for each word that is a color or a shape of one object alone."""
    found = []
    for place, word in enumerate(words):
        if word in COLORS or word in SHAPES:
            things = [
                number for number, thing in enumerate(scene.objects) if word in (thing.color, thing.shape)
            ]
            if len(things) == 1:
                found.append((place, things[0]))
    return found


def patches_in(box: tuple[float, float, float, float], grid: int) -> Bool[Tensor, "grid grid"]:
    """Return the patches that lie on a box: those whose center it contains, and the one that its center is in.

    Args:
        box: left, top, right, bottom in shares of the side.
        grid: patches along one side.
    """
    left, top, right, bottom = box
    centers = (torch.arange(grid) + 0.5) / grid
    across, below = (centers >= left) & (centers <= right), (centers >= top) & (centers <= bottom)
    inside = below.unsqueeze(1) & across.unsqueeze(0)
    inside[int((top + bottom) / 2 * grid), int((left + right) / 2 * grid)] = True
    return inside


def pointed(heat: Float[Tensor, "grid grid"], region: Bool[Tensor, "grid grid"]) -> float:
    """Return the share of a map's hottest patches that lie in a region: 0 or 1 where there is one such patch."""
    hottest = heat == heat.max()
    return float((hottest & region).sum() / hottest.sum())


def _mean(rows: Sequence[dict[str, Tensor]], name: str) -> float:
    """Return the mean over scenes of the means over their words; 0 where there is no scene."""
    return float(torch.stack([row[name].double().mean() for row in rows]).mean()) if rows else 0.0
