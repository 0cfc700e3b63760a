"""Whatever a caller has of images, codes or texts -> square pixels, one matrix, a list of texts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from pixlex.config.fields import ResizeMode
from pixlex.data.decoding import evaluation_transform
from pixlex.data.given import array_of, channels_last, in_range, picture_of

OneImage = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Tensor
Images = OneImage | Iterable[Any]
Codes = Tensor | np.ndarray | Iterable[Any]


def batches_of(
    images: Images, batch_size: int, size: int, resize_mode: ResizeMode
) -> Iterator[Float[Tensor, "B 3 H W"]]:
    """Yield batches of prepared images; at least one image, for no images have no width to return.

    Args:
        images: one or several of: a path; the bytes of an image file, an open one, or {"bytes", "path"} as
            `datasets` has it; a PIL image; pixels, (H, W, C) in arrays, (C, H, W) in tensors, or without C, of 8
            bits or floats in [0, 1]. Pixels (B, H, W, C) or (B, C, H, W) are several images. Floats of the model's
            size are taken as they are, everything else is resized and cut as a file is.
        batch_size: images read at a time, 1 or more.
        size: side of the images in pixels.
        resize_mode: how images that are not square become so.

    Raises:
        ValueError: pixels of another shape, type or range; no image; `UnreadableImage` for a file that is none.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    if (
        isinstance(images, Tensor)
        and images.is_floating_point()
        and images.shape[1:] == (3, size, size)
        and len(images)
    ):
        yield from torch.split(in_range(images.detach(), "").float(), batch_size)  # checked at once
        return
    prepared = (
        _prepared(one, f"image {number}", size, resize_mode) for number, one in enumerate(_apart(images))
    )
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
    """Return one or several texts as a list; `ValueError` for something else, or none."""
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
    if isinstance(given, Tensor | np.ndarray):
        if given.ndim > most_axes:
            return False
        given = array_of(given)
        if given.dtype.kind != "O":
            return given.dtype.kind in "iu"
    if hasattr(given, "tolist"):  # a column of pandas, or an array of objects
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
    matrix = _integers(codes)
    matrix = matrix[None] if matrix.ndim == 1 else matrix
    if matrix.ndim != 2 or matrix.shape[1] != num_codes:
        raise ValueError(f"expected codes of shape (B, {num_codes}), got {matrix.shape}")
    if matrix.size and not (matrix.min() >= 0 and matrix.max() < num_codewords):
        raise ValueError(f"expected codes in [0, {num_codewords}), got {matrix.min()} to {matrix.max()}")
    return torch.from_numpy(matrix.astype(np.int64))


def _integers(codes: Any) -> np.ndarray:
    if hasattr(codes, "to_pylist"):  # a column of pyarrow
        codes = codes.to_pylist()
    codes = array_of(codes)
    if not isinstance(codes, np.ndarray) or codes.dtype.kind == "O":
        if isinstance(codes, str | bytes | Mapping) or not isinstance(codes, Iterable):
            raise ValueError(f"expected integer codes, got {type(codes).__name__}")
        rows = [array_of(one) for one in codes]
        if not rows:
            raise ValueError("expected the codes of at least one image, got none")
        try:
            codes = np.array(rows)
        except ValueError as fault:
            lengths = sorted({len(row) if isinstance(row, Sized) else 0 for row in rows})
            raise ValueError(f"expected as many codes of every image, got {lengths}"[:200]) from fault
    if codes.dtype.kind not in "iu":
        cells = codes.flat if codes.dtype.kind == "O" else ()
        wrong = [type(one).__name__ for one in cells if not isinstance(one, int)]
        raise ValueError(f"expected integer codes, got {wrong[0] if wrong else codes.dtype}")
    return np.asarray(codes)


def _apart(images: Any) -> Iterable[Any]:
    """Return one or several images as several."""
    if isinstance(images, np.ndarray) and images.dtype.kind in "OUS":  # a column of paths
        images = images.tolist()
    if isinstance(images, Tensor | np.ndarray):
        return images if images.ndim > 3 else [images]
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Image.Image | Mapping):
        return [images]
    return [images] if hasattr(images, "read") or not isinstance(images, Iterable) else images


def _prepared(image: Any, key: str, size: int, resize_mode: ResizeMode) -> Float[Tensor, "3 H W"]:
    """Read one image and make it a square of the model's size."""
    if isinstance(image, Tensor | np.ndarray):
        pixels = channels_last(image, key)
        if pixels.dtype == np.float32 and pixels.shape[:2] == (size, size) and pixels.shape[2] < 4:
            return torch.from_numpy(pixels).movedim(-1, 0).expand(3, -1, -1)
    return evaluation_transform(picture_of(image, key), size, resize_mode)
