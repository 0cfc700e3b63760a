"""Whatever a caller has of images -> square pixels as a model takes them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from pixlex.config.data import Cut
from pixlex.data.images import UnreadableImage, load_image
from pixlex.data.sources import read_file
from pixlex.data.transforms import evaluation_transform

# Outside [0, 1] by more than rounding: the pixels were normalized or resized without clipping.
_PIXEL_TOLERANCE = 1e-3

OneImage = str | os.PathLike[str] | bytes | Image.Image
Images = Float[Tensor, "B 3 H W"] | OneImage | Sequence[OneImage]


def batches_of(images: Images, batch_size: int, size: int, cut: Cut) -> Iterator[Float[Tensor, "B 3 H W"]]:
    """Yield batches of prepared images; at least one image, for no images have no width to return.

    Args:
        images: RGB pixels in [0, 1] of the model's size, in one batch; or one or several of: a path, the bytes of
            an image file, a PIL image.
        batch_size: image files read at a time, 1 or more.
        size: side of the images in pixels.
        cut: how files that are not square become so.

    Raises:
        ValueError: tensors of another size, type or range; no image; `UnreadableImage` for a file that is none.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    if isinstance(images, Tensor):
        yield _checked(images, size)
        return
    several = listed(images)
    if len(several) == 0:
        raise ValueError("expected at least one image, got none")
    for first in range(0, len(several), batch_size):
        chunk = enumerate(several[first : first + batch_size], start=first)
        yield torch.stack([_prepared(image, number, size, cut) for number, image in chunk])


def listed(images: OneImage | Sequence[OneImage]) -> Sequence[OneImage]:
    """Return one or several images as several."""
    return [images] if isinstance(images, str | bytes | os.PathLike | Image.Image) else images


def _prepared(image: OneImage, number: int, size: int, cut: Cut) -> Float[Tensor, "3 H W"]:
    """Read one image and make it a square of the model's size."""
    if isinstance(image, Image.Image):
        picture = _rgb(image, f"image {number}")
    elif isinstance(image, bytes):
        picture = load_image(image, f"image {number}")
    elif isinstance(image, str | os.PathLike):
        path = Path(image)
        picture = load_image(read_file(path, path.as_posix()), path.as_posix())
    else:
        raise ValueError(f"image {number}: expected a path, bytes or a PIL image, got {type(image).__name__}")
    return evaluation_transform(picture, size, cut)


def _checked(images: Tensor, size: int) -> Tensor:
    """Return pixels as float32 if they are what the model takes."""
    if images.ndim != 4 or images.shape[1:] != (3, size, size) or not len(images):
        raise ValueError(f"expected images of shape (B, 3, {size}, {size}), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"expected floating-point pixels in [0, 1], got {images.dtype}")
    low, high = float(images.min()), float(images.max())
    if not (low >= -_PIXEL_TOLERANCE and high <= 1 + _PIXEL_TOLERANCE):  # also false for NaN
        raise ValueError(f"expected pixels in [0, 1], got {low:g} to {high:g}")
    return images.float()


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
