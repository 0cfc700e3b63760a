"""Scenes as a source of images, each with its captions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pixlex.data.decoding import ImageRecord
from pixlex.data.scenes.captions import captions
from pixlex.data.scenes.drawing import draw
from pixlex.data.scenes.scene import MAX_OBJECTS, VERSION, Scene, Split, generator_for, make_scene
from pixlex.messages import quoted

SIZES = {"train": 20_000, "test": 1_000}


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
        if self.split not in SIZES:
            raise ValueError(f"split must be train or test, got {quoted(self.split)}")
        if self.size < 1:
            raise ValueError(f"size must be 1 or more, got {self.size}")

    def __len__(self) -> int:
        return self.size

    @property
    def name(self) -> str:
        """The description that opens the source."""
        count = "" if self.size == SIZES[self.split] else f":{self.size}"
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
        """Return the five captions of a scene (see `captions.captions`); the first two are complete."""
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
    """Open the scenes of a split.

    Args:
        split: "train" or "test".
        count: number of images as written in a description; None for 20,000 (train) or 1,000 (test).

    Raises:
        ValueError: if the count is no whole number of 1 or more.
    """
    if count is None:
        return ScenesSource(split, SIZES[split])
    if not (count.isascii() and count.isdecimal() and int(count) > 0):
        raise ValueError(
            f"embedded:scenes:{split}:COUNT expects a whole number of 1 or more as COUNT, got {quoted(count)}"
        )
    return ScenesSource(split, int(count))
