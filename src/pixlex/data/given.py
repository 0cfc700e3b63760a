"""What a Python program has of images -> RGB pictures: paths, bytes, PIL images, pixels; data sets of such."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pixlex.data.decoding import ImageRecord, UnreadableImage, load_image
from pixlex.data.labels import Labeled, Labels, no_labels
from pixlex.data.sources import fingerprint, read_file, stored_bytes
from pixlex.data.text import CAPTION_COLUMNS, texts_in
from pixlex.messages import quoted

# What the descriptions of data sets of Python begin with, which cannot be opened again.
IN_MEMORY = "python:"
# Outside [0, 1] by more than rounding: the pixels were normalized or resized without clipping.
_PIXEL_TOLERANCE = 1e-3


@runtime_checkable
class Dataset(Protocol):
    """Any sized data set: a list, one of torch or of `datasets`. An item is an image, or has one and its captions.

    An image is whatever `pixlex.load(...).tokenize` takes. With captions: (image, caption or list of captions), or
    a mapping with `image` and one of captions, caption, title, text; what else an item holds is not looked at.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class GivenSource(Labeled):
    """The images of a data set in memory, read when they are asked for."""

    dataset: Dataset

    def __post_init__(self) -> None:
        """A data set has a length and items."""
        sized = hasattr(self.dataset, "__len__") and hasattr(self.dataset, "__getitem__")
        one = isinstance(self.dataset, bytes | Mapping | Image.Image)  # or one array of pixels
        shape = tuple(self.dataset.shape) if isinstance(self.dataset, np.ndarray | Tensor) else ()
        one |= len(shape) == 2 or (len(shape) == 3 and bool({shape[0], shape[-1]} & {1, 3, 4}))
        if not sized or one or not len(self.dataset):
            raise ValueError(
                f"expected a data set with a length of 1 or more and numbered items, got {quoted(self.dataset)}"
            )

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def name(self) -> str:
        """Type and length."""
        return f"{IN_MEMORY}{type(self.dataset).__name__} of {len(self)}"

    @cached_property
    def labels(self) -> Labels:  # type: ignore[override]
        """Unknown."""
        return no_labels(len(self))

    @cached_property
    def identity(self) -> str:
        """A fingerprint of type, length and some pixels, where they are the same twice; Hugging Face's own."""
        known = getattr(self.dataset, "_fingerprint", None)
        keys = [self.name, str(known)]
        for index in () if known else sorted({0, len(self) // 3, len(self) // 2, len(self) - 1}):
            with contextlib.suppress(UnreadableImage):
                pixels = (np.ascontiguousarray(self.read(index).data).data for _ in range(2))
                found = {hashlib.sha256(one).hexdigest() for one in pixels}
                keys += found if len(found) == 1 else ()  # two: the data set augments by itself
        return fingerprint("given", keys, self.labels)

    def key(self, index: int) -> str:
        """Return the number of an image, such as "#17"."""
        return f"#{index}"

    def read(self, index: int) -> ImageRecord:
        """Return the pixels of an image; raises `UnreadableImage` for a damaged one."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: got index {index}")
        key, image = self.key(index), _parts(self.dataset[index])[0]
        try:
            picture = picture_of(image, key)
        except UnreadableImage as fault:
            raise UnreadableImage(key, fault.reason) from fault
        return ImageRecord(np.asarray(picture), -1, key)

    def captions(self) -> list[tuple[str, ...]]:
        """Return the captions of all images, every item read once; `ValueError` for something else than texts."""
        cells = (_parts(self.dataset[index])[1] for index in range(len(self)))
        return [texts_in(cell, f"{self.name}, {self.key(index)}") for index, cell in enumerate(cells)]


def _parts(item: Any) -> tuple[Any, Any]:
    """Return image and captions of an item."""
    if isinstance(item, Mapping) and not item.keys() <= {"bytes", "path"}:
        if "image" not in item:
            raise ValueError(f"expected items with a field image, found {quoted(list(item))}")
        return item["image"], next((item[name] for name in CAPTION_COLUMNS if name in item), None)
    if isinstance(item, tuple | list) and len(item) > 1 and not isinstance(item[0], int | float | list):
        texts = list(item[1]) if isinstance(item[1], tuple) else item[1]
        return item[0], texts if isinstance(texts, str | list) else None
    return item, None


def picture_of(image: Any, key: str) -> Image.Image:
    """Return the upright RGB picture of a path, the bytes of a file, an open one, a PIL image or pixels.

    Raises:
        ValueError: something else, or pixels of another shape, type or range.
        UnreadableImage: a file that is no image.
    """
    if isinstance(image, Tensor | np.ndarray):
        pixels = channels_last(image, key)
        if pixels.dtype == np.float32:
            pixels = np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)  # as an image file would store them
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    if isinstance(image, Image.Image):
        return _rgb(image, key)
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        return load_image(read_file(path, path.as_posix()), path.as_posix())
    if isinstance(image, bytes | bytearray | memoryview | Mapping) or hasattr(image, "read"):
        cell = image.read() if hasattr(image, "read") else image
        return load_image(stored_bytes(cell, Path(), key), key)
    raise ValueError(
        f"{key}: expected a path, the bytes of a file, a PIL image or pixels, got {type(image).__name__}"
    )


def channels_last(image: Tensor | np.ndarray, key: str) -> np.ndarray:
    """Return pixels (H, W, C) of 8 bits or float32 in [0, 1]; `ValueError` for another shape, type or range."""
    axes = (0, -1) if isinstance(image, Tensor) else (-1, 0)
    array = array_of(image)
    if array.ndim == 2:
        array = np.expand_dims(array, axes[0])
    # Arrays of tensors and tensors of arrays are common: the other order is taken where only that one fits.
    axis = next((one for one in axes if array.ndim == 3 and array.shape[one] in (1, 3, 4)), None)
    if axis is None or 0 in array.shape:
        raise ValueError(
            f"{key}: expected pixels (H, W, C) or (C, H, W) with 1, 3 or 4 channels, got {array.shape}"
        )
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
        in_range(torch.from_numpy(array), f"{key}: ")
    elif array.dtype != np.uint8:
        raise ValueError(f"{key}: expected pixels of 8 bits or floats in [0, 1], got {image.dtype}")
    return np.moveaxis(array, axis, -1)


def array_of(given: Any) -> Any:
    """Return a tensor as an array, floats of any width as float32; anything else as it is."""
    if not isinstance(given, Tensor):
        return given
    plain = given.detach().cpu()
    return (plain.float() if plain.is_floating_point() else plain).numpy()


def in_range(pixels: Tensor, where: str) -> Tensor:
    """Return pixels if they lie in [0, 1], else raise `ValueError`."""
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -_PIXEL_TOLERANCE and high <= 1 + _PIXEL_TOLERANCE):  # also false for NaN
        raise ValueError(
            f"{where}expected pixels in [0, 1], got {low:g} to {high:g}: floats without mean and standard "
            "deviation taken off, or 8-bit integers"
        )
    return pixels


def _rgb(image: Image.Image, key: str) -> Image.Image:
    """Return what `load_image` would make of the file that an image was opened from."""
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "F" or upright.mode.startswith("I"):
            stream = io.BytesIO()
            upright.save(stream, "TIFF")
            return load_image(stream.getvalue(), key)
        if upright.has_transparency_data:
            canvas = Image.new("RGBA", upright.size, "white")
            canvas.alpha_composite(upright.convert("RGBA"))
            return canvas.convert("RGB")
        return upright.convert("RGB")
    except OSError as fault:  # opened from a file that ends too early
        raise UnreadableImage(key, str(fault)) from fault
