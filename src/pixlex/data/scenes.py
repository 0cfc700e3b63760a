"""Drawn scenes as a source of images with captions, and as items with a question, statement or hypothesis."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from pixlex.data.decoding import ImageRecord
from pixlex.data.synthetic import MAX_OBJECTS, Scene, Split, draw, generator_for, make_scene, noun_of
from pixlex.data.synthetic_texts import captions, entailment, question, statement
from pixlex.messages import quoted

SceneTask = Literal["vqa", "nlvr2", "entailment"]

# Part of the identity of the source: a change of what is drawn or said makes it another set.
VERSION = 1
NUM_SCENES = {"train": 20_000, "test": 1_000}
# Of so many candidates the first that shares a colored shape with the left scene is put on the right.
_NUM_PARTNERS = 4


@dataclass(frozen=True)
class ScenesSource:
    """Drawn scenes of colored shapes, 96 x 96 pixels; the class is the number of objects.

    Image k is the same whatever the size of the source. Mirroring or cropping an image makes captions that
    name sides or places untrue: train with `horizontal_flip=False` and `augment="resize"`.

    Args:
        split: "train" or "test"; no scene of one occurs in the other.
        size: number of images, 1 or more.

    Raises:
        ValueError: for another split, or no images.
    """

    split: Split
    size: int

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        if self.split not in NUM_SCENES:
            raise ValueError(f"split must be train or test, got {quoted(self.split)}")
        if self.size < 1:
            raise ValueError(f"size must be 1 or more, got {self.size}")

    def __len__(self) -> int:
        return self.size

    @property
    def name(self) -> str:
        """The description that opens the source."""
        count = "" if self.size == NUM_SCENES[self.split] else f":{self.size}"
        return f"embedded:scenes:{self.split}{count}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The number of objects, "1" to "4"."""
        return tuple(str(number + 1) for number in range(MAX_OBJECTS))

    @property
    def identity(self) -> str:
        """A fingerprint of what the source is made from: version, split and size."""
        return hashlib.sha256(f"scenes {VERSION} {self.split} {self.size}".encode()).hexdigest()

    def key(self, index: int) -> str:
        """Return split and number of a scene, such as "scenes/train-000017"."""
        return f"scenes/{self.split}-{self._checked(index):06d}"

    def scene(self, index: int) -> Scene:
        """Return what is drawn; raises `IndexError` outside [0, size)."""
        return make_scene(self.split, self._checked(index))

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the five captions of a scene (see `captions`); the first two are complete."""
        return captions(self.scene(index), generator_for("captions", self.split, index))

    def read(self, index: int) -> ImageRecord:
        """Return the pixels of a scene."""
        scene = self.scene(index)
        return ImageRecord(draw(scene), len(scene.objects) - 1, self.key(index))

    def _checked(self, index: int) -> int:
        # Scenes have no end, so nothing else would stop a loop that runs past the size.
        if not 0 <= index < self.size:
            raise IndexError(f"{self.name} has the images 0 to {self.size - 1}, got {index}")
        return index


def open_scenes(split: Split, count: str | None = None) -> ScenesSource:
    """Open as many scenes as a description writes, by default 20,000 (train) or 1,000 (test)."""
    if count is not None and not (count.isascii() and count.isdecimal() and int(count) > 0):
        raise ValueError(
            f"embedded:scenes:{split}:COUNT expects a whole number of 1 or more as COUNT, got {quoted(count)}"
        )
    return ScenesSource(split, NUM_SCENES[split] if count is None else int(count))


@dataclass(frozen=True)
class SceneItem:
    """A question (of a kind), statement or hypothesis about images, places in their source; its answer."""

    images: tuple[int, ...]
    text: str
    answer: str
    kind: str = ""


def scene_items(task: SceneTask, source: ScenesSource, texts: int = 1) -> list[SceneItem]:
    """Return items in the order of their (left) images, so many of each; the first are the same for any number.

    Raises:
        ValueError: fewer texts than 1, or pairs of fewer than two images.
    """
    if texts < 1:
        raise ValueError(f"texts must be 1 or more, got {texts}")
    if task == "nlvr2" and source.size < 2:
        raise ValueError(f"size must be 2 or more for pairs of images, got {source.size}")
    return [_item(task, source, index, turn) for index in range(source.size) for turn in range(texts)]


def _item(task: SceneTask, source: ScenesSource, index: int, turn: int) -> SceneItem:
    scene = source.scene(index)
    if task == "vqa":
        text, answer, kind = question(scene, generator_for("question", source.split, index, turn))
        return SceneItem((index,), text, answer, kind)
    if task == "entailment":
        return SceneItem((index,), *entailment(scene, generator_for("entailment", source.split, index, turn)))
    # Two scenes that share nothing leave little to say.
    generator = generator_for("pair", source.split, index)
    colored = {noun_of(thing) for thing in scene.objects}
    for _ in range(_NUM_PARTNERS):
        partner = (index + 1 + int(generator.random() * (source.size - 1))) % source.size
        right = source.scene(partner)
        if any(noun_of(thing) in colored for thing in right.objects):
            break
    text, truth = statement(scene, right, generator_for("statement", source.split, index, turn))
    return SceneItem((index, partner), text, "true" if truth else "false")
