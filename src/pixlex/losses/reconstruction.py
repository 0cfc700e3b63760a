"""Squared errors of reconstructed images and patches."""

from __future__ import annotations

from jaxtyping import Bool, Float
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


def masked_patch_loss(
    predicted: Float[Tensor, "B N pixels"], patches: Float[Tensor, "B N pixels"], mask: Bool[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """Return the mean squared error over the pixels of hidden patches (He et al. 2021, section 3).

    Args:
        predicted: what the decoder predicts, in the space of `patches`.
        patches: the pixels of each patch.
        mask: True where a patch was hidden; one or more.
    """
    errors = (predicted.float() - patches).square().mean(-1)
    return errors.masked_fill(~mask, 0.0).sum() / mask.sum()


def normalized_patches(patches: Float[Tensor, "B N pixels"]) -> Float[Tensor, "B N pixels"]:
    """Return each patch minus its mean, over its standard deviation (He et al. 2021, section 3).

    Mean and unbiased variance are over the patch's pixels and channels together; 1e-6 is added to the variance.
    """
    return (patches - patches.mean(-1, keepdim=True)) / _deviation(patches)


def restored_patches(
    normalized: Float[Tensor, "B N pixels"], patches: Float[Tensor, "B N pixels"]
) -> Float[Tensor, "B N pixels"]:
    """Return normalized patches with mean and standard deviation of `patches` put back, to look at them."""
    return normalized.float() * _deviation(patches) + patches.mean(-1, keepdim=True)


def _deviation(patches: Tensor) -> Tensor:
    return (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
