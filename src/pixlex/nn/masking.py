"""Random masks over words and patches, always from an explicit generator."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor


def random_mask(
    num_images: int, num_patches: int, ratio_min: float, ratio_max: float, generator: torch.Generator
) -> Bool[Tensor, "B N"]:
    """Hide each position independently with a probability drawn per image between two ratios.

    LQAE hides i.i.d. with ratio 0.5; the released code draws the ratio for every word, which equals the mean
    ratio throughout, so a range there has no effect. Here it is drawn for every image.

    Args:
        num_images: B.
        num_patches: N.
        ratio_min: lowest share hidden, in [0, 1].
        ratio_max: highest share hidden, in [ratio_min, 1].
        generator: source of randomness, on the CPU, so that every device draws the same masks.

    Returns:
        True where a position is hidden; on the CPU.
    """
    span = torch.rand(num_images, 1, generator=generator)
    ratio = ratio_min + (ratio_max - ratio_min) * span
    return torch.rand(num_images, num_patches, generator=generator) < ratio
