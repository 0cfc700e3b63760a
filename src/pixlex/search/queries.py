"""What is searched by, and where the images of an index are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pixlex.config.cbvila import CBViLAConfig
from pixlex.data.decoding import load_image
from pixlex.data.sources import read_file
from pixlex.data.text import clean_caption
from pixlex.data.transforms import evaluation_transform
from pixlex.messages import quoted

Images = Sequence[str | os.PathLike[str]] | Tensor

# Outside [0, 1] by more than rounding: the pixels were normalized.
_PIXEL_TOLERANCE = 1e-3


def square(image: Image.Image, config: CBViLAConfig) -> Float[Tensor, "3 H W"]:
    """Return an image as the model sees it in evaluation; pixels in [0, 1]."""
    return evaluation_transform(image, config.image_size, config.cut)


def query_text(text: str) -> str:
    """Return a text as captions are cleaned.

    Raises:
        ValueError: nothing is left of it.
    """
    cleaned = clean_caption(text)
    if not cleaned:
        why = "" if not text.strip() else ": it holds punctuation alone"
        raise ValueError(f"expected a text to search by, got {quoted(text)}{why}")
    return cleaned


def query_pixels(images: Images, config: CBViLAConfig) -> Float[Tensor, "Q 3 H W"]:
    """Return images as the model sees them, pixels in [0, 1].

    Args:
        images: paths of image files; or RGB pixels in [0, 1], taken as they are.
        config: of the model.

    Raises:
        ValueError: no image, or tensors of another size or range; `UnreadableImage` for a file that is none.
    """
    if len(images) == 0:
        raise ValueError("expected at least one image to search by, got none")
    if isinstance(images, Tensor):
        size = config.image_size
        if images.dim() != 4 or images.shape[1:] != (3, size, size) or not images.is_floating_point():
            raise ValueError(
                f"expected floating-point images of shape (Q, 3, {size}, {size}), got {images.dtype} "
                f"{tuple(images.shape)}"
            )
        low, high = float(images.min()), float(images.max())
        if not (low >= -_PIXEL_TOLERANCE and high <= 1 + _PIXEL_TOLERANCE):  # also false for NaN
            raise ValueError(f"expected pixels in [0, 1], got {low:g} to {high:g}")
        return images.float()
    names = [os.fspath(image) for image in images]
    read = [load_image(read_file(Path(name), name), name) for name in names]
    return torch.stack([square(image, config) for image in read])


def lasting_description(source: str) -> str:
    """Return the description of a source such that it can be opened from any folder."""
    source = source.strip()
    if source.startswith(("embedded:", "hf:")):
        return source
    return str(Path(source).expanduser().absolute())
