"""How far a picture rebuilt from words is from the picture itself."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def pixel_loss(
    reconstruction: Float[Tensor, "B 3 H W"], images: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, ""]:
    """Return the mean squared error over batch, channels and pixels (LQAE, equation 1, first term).

    The paper writes a squared norm; the released code and we take the mean.

    Args:
        reconstruction: decoded pixels, not clipped.
        images: pixels in [0, 1].
    """
    return (reconstruction.float() - images).square().mean()
