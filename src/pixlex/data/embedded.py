"""Sets of images that need no download: handwritten digits, crops of photographs, drawn scenes."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pixlex.data.decoding import ImageRecord
from pixlex.data.labels import Labels
from pixlex.data.sources import fingerprint
from pixlex.data.synthetic import MAX_OBJECTS, Scene, Split, draw, generator_for, make_scene, noun_of
from pixlex.data.synthetic_texts import captions, entailment, question, statement
from pixlex.messages import not_installed, quoted

SceneTask = Literal["vqa", "nlvr2", "entailment"]

# The color photographs that lie inside the installed package scikit-image: class name -> file.
PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "galaxies": "hubble_deep_field.jpg",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
}

# Wider photographs are halved first, or a crop of them would show no more than a texture.
_MAX_WIDTH = 800

# Fraction of the width, from the left, that the training crops lie in; the test crops lie right of it.
_TRAIN_FRACTION = 0.75
_CROPS_PER_PHOTOGRAPH = {"train": 500, "test": 40}
_CROP_SIDES = (96, 160)

_FIRST_TEST_DIGIT = 1437

# Part of the identity of the source: a change of what is drawn or said makes it another set.
SCENES_VERSION = 1
NUM_SCENES = {"train": 20_000, "test": 1_000}
# Of so many candidates the first that shares a colored shape with the left scene is put on the right.
_NUM_PARTNERS = 4


@dataclass(frozen=True)
class Region:
    """A square of a photograph: class name, first column, first row and side (96..160), in pixels."""

    name: str
    left: int
    top: int
    side: int


@dataclass(frozen=True)
class DigitsSource:
    """Scikit-learn's 8x8 handwritten digits, grey 0..16 scaled to 0..255.

    The last fifth of the set, in its own order, is the test split: most of its writers are not among
    those of the training split.

    Args:
        split: "train" (1437 images) or "test" (360).
    """

    split: Split

    def __len__(self) -> int:
        return len(self._labels.indices)

    @property
    def name(self) -> str:
        """The description that opens the source."""
        return f"embedded:digits:{self.split}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The ten digits."""
        return self._labels.class_names

    @cached_property
    def identity(self) -> str:
        """A fingerprint of keys and labels."""
        return fingerprint("digits", (self.key(index) for index in range(len(self))), self._labels)

    @cached_property
    def _labels(self) -> Labels:
        return Labels(_digits()[1][self._rows], tuple(str(digit) for digit in range(10)))

    @property
    def _rows(self) -> slice:
        return slice(None, _FIRST_TEST_DIGIT) if self.split == "train" else slice(_FIRST_TEST_DIGIT, None)

    def key(self, index: int) -> str:
        """Return the row of an image in the whole set, such as "digits/0017"."""
        return f"digits/{index + (self._rows.start or 0):04d}"

    def read(self, index: int) -> ImageRecord:
        """Return the pixels of a digit."""
        grey = _digits()[0][self._rows][index]
        return ImageRecord(np.stack([grey] * 3, axis=-1), int(self._labels.indices[index]), self.key(index))


@dataclass(frozen=True)
class PhotographsSource:
    """Square crops of scikit-image's photographs; the class is the photograph.

    Training crops lie in the left 75 % of the width, test crops in the right 25 %: no pixel is in both.
    Sizes and places are fixed and cover a region evenly: crop k takes the k-th point of an additive
    recurrence with the generalized golden ratio (M. Roberts, "The Unreasonable Effectiveness of
    Quasirandom Sequences", 2018), which needs no random generator and so is the same in every version.

    Args:
        split: "train" (4000 crops) or "test" (320).
    """

    split: Split

    def __len__(self) -> int:
        return _CROPS_PER_PHOTOGRAPH[self.split] * len(PHOTOGRAPHS)

    @property
    def name(self) -> str:
        """The description that opens the source."""
        return f"embedded:photographs:{self.split}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the photographs."""
        return tuple(PHOTOGRAPHS)

    @cached_property
    def identity(self) -> str:
        """A fingerprint of keys, places and labels."""
        places = [f"{self.key(index)} {self.region(index)}" for index in range(len(self))]
        labels = np.arange(len(self), dtype=np.int64) % len(PHOTOGRAPHS)
        return fingerprint("photographs", places, Labels(labels, self.class_names))

    def region(self, index: int) -> Region:
        """Return the place of a crop in its photograph."""
        number, label = divmod(index, len(PHOTOGRAPHS))
        name = self.class_names[label]
        height, width, _ = photograph(name).shape
        border = int(width * _TRAIN_FRACTION)
        first, end = (0, border) if self.split == "train" else (border, width)
        smallest, largest = _CROP_SIDES
        largest = min(largest, end - first, height)
        across, down, size = _quasirandom(number)
        side = smallest + int(size * (largest - smallest + 1))
        left = first + int(across * (end - first - side + 1))
        return Region(name, left, int(down * (height - side + 1)), side)

    def key(self, index: int) -> str:
        """Return class, split and number of a crop, such as "cat/train-0017"."""
        number, label = divmod(index, len(PHOTOGRAPHS))
        return f"{self.class_names[label]}/{self.split}-{number:04d}"

    def read(self, index: int) -> ImageRecord:
        """Return the pixels of a crop."""
        crop = self.region(index)
        rows, columns = slice(crop.top, crop.top + crop.side), slice(crop.left, crop.left + crop.side)
        pixels = np.ascontiguousarray(photograph(crop.name)[rows, columns])
        return ImageRecord(pixels, index % len(PHOTOGRAPHS), self.key(index))


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
        return hashlib.sha256(f"scenes {SCENES_VERSION} {self.split} {self.size}".encode()).hexdigest()

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


def open_embedded(description: str) -> DigitsSource | PhotographsSource | ScenesSource:
    """Open digits, photographs or scenes by set and split, such as "digits:train" or "scenes:train:5000".

    Raises:
        ValueError: It is no such set, split or count.
        ModuleNotFoundError: scikit-learn or scikit-image is not installed.
    """
    match description.split(":"):
        case ["digits", "train" | "test" as split]:
            _digits()
            return DigitsSource(split)
        case ["photographs", "train" | "test" as split]:
            photograph("cat")
            return PhotographsSource(split)
        case ["scenes", "train" | "test" as split, *count] if len(count) <= 1:
            return open_scenes(split, *count)
    raise ValueError(
        "expected embedded:digits:train, embedded:digits:test, embedded:photographs:train, "
        "embedded:photographs:test, embedded:scenes:train[:COUNT] or embedded:scenes:test[:COUNT], "
        f"got 'embedded:{description}'"
    )


@cache
def photograph(name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Return a bundled photograph, halved if it is wider than 800 pixels.

    Args:
        name: A key of `PHOTOGRAPHS`.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
        ValueError: The installed scikit-image does not bundle the photograph.
    """
    # The files are opened where they lie: skimage.data would download what it does not find.
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise not_installed("embedded:photographs", "scikit-image", "embedded")
    path = Path(package.origin).parent / "data" / PHOTOGRAPHS[name]
    if not path.is_file():
        raise ValueError(f"the installed scikit-image does not bundle the photograph {path.name}")
    with Image.open(path) as image:
        pixels = image.convert("RGB")
    return np.asarray(pixels.reduce(2) if pixels.width > _MAX_WIDTH else pixels)


@cache
def _digits() -> tuple[UInt8[np.ndarray, "images 8 8"], np.ndarray]:
    """Return all digits and their labels."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as fault:
        raise not_installed("embedded:digits", "scikit-learn", "embedded") from fault
    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target.astype(np.int64)


def _quasirandom(number: int) -> tuple[float, float, float]:
    """Return the point of a three-dimensional low-discrepancy sequence, in [0, 1)."""
    ratio = 1.2207440846057596  # the real root of x^4 = x + 1
    across, down, size = ((0.5 + (number + 1) * ratio**-power) % 1.0 for power in (1, 2, 3))
    return across, down, size


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
