"""RGB images -> square tensors of bytes: random crops for training, the center for everything else."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from pixlex.config.data import Cut, DataConfig

# Width / height of a random crop is log-uniform between these (Szegedy et al. 2014, "Going deeper with
# convolutions", section 6).
ASPECT_RATIOS = (3 / 4, 4 / 3)

# Draws of a crop that does not fit into the image, before the largest centered one is taken.
_ATTEMPTS = 10

# Shrink to at least this many times the target by averaging whole pixels before the bicubic filter: on a
# large photograph several times faster, and by Pillow's documentation hardly to be told apart.
_REDUCING_GAP = 3.0

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def training_crop(
    image: Image.Image, size: int, config: DataConfig, generator: np.random.Generator, cut: Cut = "center"
) -> UInt8[Tensor, "3 H W"]:
    """Crop a training image, scale it bicubically to a square and mirror half of them.

    With `augment="random_resized_crop"` the crop keeps a uniform fraction of the area in [crop_scale_min, 1],
    with an aspect ratio log-uniform in [3/4, 4/3], at a uniform place; with "resize" it is that of
    `evaluation_crop`.

    Args:
        image: An RGB image.
        size: Side of the result, in pixels.
        config: What to do.
        generator: The only source of randomness.
        cut: With "resize", as for `evaluation_crop`.
    """
    if config.augment == "random_resized_crop":
        box = random_box(image.width, image.height, config.crop_scale_min, generator)
    else:
        box = _whole_box(image, cut)
    square = _resize(image, size, box)
    if config.horizontal_flip and generator.random() < 0.5:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _to_tensor(square)


def evaluation_crop(image: Image.Image, size: int, cut: Cut = "center") -> UInt8[Tensor, "3 H W"]:
    """Return an image as a square, bicubically scaled.

    Args:
        image: An RGB image.
        size: Side of the result, in pixels.
        cut: "center" cuts out the largest centered square; "squash" keeps all of the image and not its shape
            (ALBEF).
    """
    return _to_tensor(_resize(image, size, _whole_box(image, cut)))


def evaluation_transform(image: Image.Image, size: int, cut: Cut = "center") -> Float[Tensor, "3 H W"]:
    """Return `evaluation_crop` with pixels in [0, 1]."""
    return float_images(evaluation_crop(image, size, cut))


def float_images(pixels: UInt8[Tensor, "*B 3 H W"]) -> Float[Tensor, "*B 3 H W"]:
    """Return pixels of 0..255 as float32 in [0, 1]."""
    # NumPy takes half of torch's time for it.
    return torch.from_numpy(np.divide(pixels.numpy(), np.float32(255), dtype=np.float32))


def minimum_decoded_side(size: int, config: DataConfig) -> int:
    """Return the short side that a training image must keep when decoded, for no crop to be enlarged.

    The shortest side that `random_box` can draw is s * sqrt(3/4 * crop_scale_min), s being the short side
    of the image. 0 (full size) for plain resizing, which then gives the pixels of evaluation.
    """
    if config.augment == "resize":
        return 0
    return math.ceil(size / math.sqrt(ASPECT_RATIOS[0] * config.crop_scale_min))


def random_box(width: int, height: int, scale_min: float, generator: np.random.Generator) -> Box:
    """Draw a crop, not rounded: small images have few whole pixels."""
    for _ in range(_ATTEMPTS):
        area = width * height * generator.uniform(scale_min, 1.0)
        ratio = math.exp(generator.uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])))
        crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if crop_width <= width and crop_height <= height:
            left = generator.uniform(0.0, width - crop_width)
            top = generator.uniform(0.0, height - crop_height)
            return left, top, min(left + crop_width, float(width)), min(top + crop_height, float(height))
    # The image is too long for the drawn shapes: the largest centered crop of an allowed aspect ratio.
    crop_width = min(width, height * ASPECT_RATIOS[1])
    crop_height = min(height, width / ASPECT_RATIOS[0])
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return left, top, left + crop_width, top + crop_height


def center_box(width: int, height: int) -> Box:
    """Return the largest centered square, on whole pixels."""
    side = float(min(width, height))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _whole_box(image: Image.Image, cut: Cut) -> Box:
    if cut == "squash":
        return 0.0, 0.0, float(image.width), float(image.height)
    return center_box(image.width, image.height)


def _resize(image: Image.Image, size: int, box: Box) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=_REDUCING_GAP)


def _to_tensor(image: Image.Image) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(np.array(np.asarray(image).transpose(2, 0, 1), order="C"))
