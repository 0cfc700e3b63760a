"""Whatever a caller has of images, codes or texts -> square pixels, one matrix, a list of texts."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from torch import Tensor

from pixlex.config.data import Cut
from pixlex.data.decoding import evaluation_transform
from pixlex.data.images import UnreadableImage, load_image
from pixlex.data.sources import read_file, stored_bytes

# Outside [0, 1] by more than rounding: the pixels were normalized or resized without clipping.
_PIXEL_TOLERANCE = 1e-3
_CHANNELS = (1, 3, 4)

OneImage = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Tensor
Images = OneImage | Iterable[Any]
Codes = Tensor | np.ndarray | Iterable[Any]


def batches_of(images: Images, batch_size: int, size: int, cut: Cut) -> Iterator[Float[Tensor, "B 3 H W"]]:
    """Yield batches of prepared images; at least one image, for no images have no width to return.

    Args:
        images: one or several of: a path; the bytes of an image file, an open one, or {"bytes", "path"} as
            `datasets` has it; a PIL image; pixels, (H, W, C) in arrays, (C, H, W) in tensors, or without C, of 8
            bits or floats in [0, 1]. Pixels (B, H, W, C) or (B, C, H, W) are several images. Floats of the model's
            size are taken as they are, everything else is resized and cut as a file is.
        batch_size: images read at a time, 1 or more.
        size: side of the images in pixels.
        cut: how images that are not square become so.

    Raises:
        ValueError: pixels of another shape, type or range; no image; `UnreadableImage` for a file that is none.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    if (
        isinstance(images, Tensor)
        and images.shape[1:] == (3, size, size)
        and len(images)
        and _kind(images) == "f"
    ):
        yield from torch.split(_in_range(images.detach(), "").float(), batch_size)  # checked at once
        return
    numbered = enumerate(_apart(images))
    prepared = (_prepared(image, f"image {number}", size, cut) for number, image in numbered)
    chunk = list(islice(prepared, batch_size))
    if not chunk:
        raise ValueError("expected at least one image, got none")
    while chunk:
        yield torch.stack(chunk)
        chunk = list(islice(prepared, batch_size))


def images_of(images: Images) -> list[Any]:
    """Return one or several images, or groups of them, as a list of single ones."""
    several = list(_apart(images))
    return [one for group in several for one in (group if isinstance(group, list | tuple) else [group])]


def texts_of(texts: str | Iterable[str]) -> list[str]:
    """Return one or several texts as a list.

    Raises:
        ValueError: something else than texts, or none.
    """
    several = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, str | bytes) else [texts]
    wrong = [type(one).__name__ for one in several if not isinstance(one, str)]
    if wrong or not several:
        raise ValueError(f"expected a text or several, got {wrong[0] if wrong else 'none'}")
    return [str(one) for one in several]


def are_texts(given: Any) -> TypeGuard[str | Sequence[str]]:
    """Whether something holds texts: one, or several of which the first is looked at."""
    if isinstance(given, np.ndarray) and given.dtype.kind in "OU":
        given = given.tolist()
    return isinstance(given, str) or (
        isinstance(given, Sequence) and bool(given) and isinstance(given[0], str)
    )


def are_codes(given: Any, most_axes: int = 2) -> TypeGuard[Codes]:
    """Whether something holds codes rather than images: integers, of one image or of several."""
    if isinstance(given, Tensor | np.ndarray) and _kind(given) != "O":
        return given.ndim <= most_axes and _kind(given) in "iu"
    if hasattr(given, "tolist"):  # a column of pandas
        given = given.tolist()
    if isinstance(given, Sequence) and not isinstance(given, str | bytes) and len(given):
        return isinstance(given[0], int | np.integer) or (most_axes > 1 and are_codes(given[0], 1))
    return hasattr(given, "to_pylist")


def codes_of(codes: Codes, num_codes: int, num_codewords: int) -> Int[Tensor, "B N"]:
    """Return the codes of one image or of several as a matrix.

    Args:
        codes: a tensor or array of any type of integers, or lists of them, as JSON, Parquet and `datasets` give
            them back.
        num_codes: N, codes of an image.
        num_codewords: K; a code out of range would stop a GPU for good.

    Raises:
        ValueError: another shape, no integers, or integers out of [0, K).
    """
    matrix = _matrix(codes)
    matrix = matrix[None] if matrix.ndim == 1 else matrix
    if matrix.ndim != 2 or matrix.shape[1] != num_codes:
        raise ValueError(f"expected codes of shape (B, {num_codes}), got {matrix.shape}")
    if matrix.size and not (matrix.min() >= 0 and matrix.max() < num_codewords):
        raise ValueError(f"expected codes in [0, {num_codewords}), got {matrix.min()} to {matrix.max()}")
    return torch.from_numpy(matrix.astype(np.int64))


def _matrix(codes: Any) -> np.ndarray:
    """Return integers as one array."""
    if hasattr(codes, "to_pylist"):  # a column of pyarrow
        codes = codes.to_pylist()
    if not isinstance(codes, Tensor | np.ndarray) or _kind(codes) == "O":
        if isinstance(codes, str | bytes | Mapping) or not isinstance(codes, Iterable):
            raise ValueError(f"expected integer codes, got {type(codes).__name__}")
        rows = [one.detach().cpu().numpy() if isinstance(one, Tensor) else one for one in codes]
        if not rows:
            raise ValueError("expected the codes of at least one image, got none")
        try:
            codes = np.array(rows)
        except ValueError as fault:
            lengths = sorted({len(row) if isinstance(row, Sized) else 0 for row in rows})
            raise ValueError(f"expected as many codes of every image, got {lengths}"[:200]) from fault
    if _kind(codes) not in "iu":
        cells = codes.flat if _kind(codes) == "O" else ()
        wrong = [type(one).__name__ for one in cells if not isinstance(one, int)]
        raise ValueError(f"expected integer codes, got {wrong[0] if wrong else codes.dtype}")
    return codes.detach().cpu().numpy() if isinstance(codes, Tensor) else codes


def _kind(pixels: Tensor | np.ndarray) -> str:
    """Return the letter that NumPy has for a type: b, i, u, f, ..."""
    if isinstance(pixels, np.ndarray):
        return pixels.dtype.kind
    if pixels.dtype == torch.bool:
        return "b"
    return "f" if pixels.is_floating_point() else "c" if pixels.is_complex() else "i"


def _apart(images: Any) -> Iterable[Any]:
    """Return one or several images as several."""
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Image.Image | Mapping):
        return [images]
    if isinstance(images, np.ndarray) and images.dtype.kind in "OUS":  # a column of paths
        return _apart(images.tolist())
    if isinstance(images, Tensor | np.ndarray):
        return images if images.ndim > 3 else [images]
    if hasattr(images, "read") or not isinstance(images, Iterable):
        return [images]
    return images


def _prepared(image: Any, key: str, size: int, cut: Cut) -> Float[Tensor, "3 H W"]:
    """Read one image and make it a square of the model's size."""
    if isinstance(image, Tensor | np.ndarray):
        pixels = _pixels(image, key)
        if isinstance(pixels, Tensor):
            if pixels.shape[1:] == (size, size):
                return pixels
            pixels = Image.fromarray(_eight_bits(pixels.movedim(0, 2).numpy()))
        picture = pixels
    elif isinstance(image, Image.Image):
        picture = _rgb(image, key)
    elif isinstance(image, str | os.PathLike):
        path = Path(image)
        picture = load_image(read_file(path, path.as_posix()), path.as_posix())
    elif isinstance(image, bytes | bytearray | memoryview | Mapping) or hasattr(image, "read"):
        cell = image.read() if hasattr(image, "read") else image
        picture = load_image(stored_bytes(cell, Path(), key), key)
    else:
        raise ValueError(
            f"{key}: expected a path, the bytes of a file, a PIL image or pixels, got {type(image).__name__}"
        )
    return evaluation_transform(picture, size, cut)


def _pixels(image: Tensor | np.ndarray, key: str) -> Image.Image | Float[Tensor, "3 H W"]:
    """Return 8-bit pixels as a picture, and floats as they are, channels first."""
    axes = (0, -1) if isinstance(image, Tensor) else (-1, 0)
    if image.ndim == 2:
        image = image[None] if isinstance(image, Tensor) else image[..., None]
    # Arrays of tensors and tensors of arrays are common: the other order is taken where only that one fits.
    axis = next((one for one in axes if image.ndim == 3 and image.shape[one] in _CHANNELS), None)
    if axis is None or 0 in image.shape:
        raise ValueError(
            f"{key}: expected pixels (H, W, C) or (C, H, W) with 1, 3 or 4 channels, got {tuple(image.shape)}"
        )
    if _kind(image) == "f":
        tensor = image if isinstance(image, Tensor) else torch.from_numpy(image.astype(np.float32))
        floats = _in_range(tensor.detach().cpu().float(), f"{key}: ").movedim(axis, 0)
        if len(floats) < 4:
            return floats.expand(3, -1, -1)
        channels_last = _eight_bits(floats.movedim(0, 2).numpy())
    else:
        if image.dtype not in (torch.uint8, np.uint8):
            raise ValueError(f"{key}: expected pixels of 8 bits or floats in [0, 1], got {image.dtype}")
        plain = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
        channels_last = np.ascontiguousarray(np.moveaxis(plain, axis, -1))
    return _rgb(
        Image.fromarray(channels_last[..., 0] if channels_last.shape[-1] == 1 else channels_last), key
    )


def _eight_bits(floats: np.ndarray) -> np.ndarray:
    """Return floats in [0, 1] as an image file would store them."""
    return np.asarray(np.rint(floats.clip(0, 1) * 255), dtype=np.uint8)


def _in_range(pixels: Tensor, where: str) -> Tensor:
    """Return pixels if they lie in [0, 1]."""
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
