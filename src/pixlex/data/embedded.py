"""Sets of images that need no download: handwritten digits, crops of photographs, drawn scenes."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pixlex.data.decoding import ImageRecord
from pixlex.data.labels import Labels
from pixlex.data.sources import fingerprint
from pixlex.data.synthetic import ScenesSource, Split, open_scenes
from pixlex.messages import not_installed

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
