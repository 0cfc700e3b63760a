"""Measures of images and codes: tensors in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from pixlex.nn.codebook import count_codes, perplexity

# An exact copy has an infinite PSNR, which no mean survives and JSON cannot hold.
LARGEST_PSNR = 100.0
SSIM_WINDOW = 11


def mse(images: Float[Tensor, "B 3 H W"], reconstructions: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the mean squared error of each image, over channels and pixels.

    Args:
        images: pixels in [0, 1].
        reconstructions: pixels in [0, 1].
    """
    return functional.mse_loss(reconstructions, images, reduction="none").mean(dim=(1, 2, 3))


def psnr(images: Float[Tensor, "B 3 H W"], reconstructions: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the peak signal-to-noise ratio of each image, 10 log10(1 / MSE), in dB, at most 100.

    Over the three RGB channels at once, not over luminance. The PSNR of a set is the mean over its images,
    which is above the PSNR of the set's mean MSE.

    Args:
        images: pixels in [0, 1].
        reconstructions: pixels in [0, 1].
    """
    values: Tensor = peak_signal_noise_ratio(
        reconstructions, images, data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return values.clamp(max=LARGEST_PSNR)


def ssim(images: Float[Tensor, "B 3 H W"], reconstructions: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the structural similarity of each image, mean over channels and pixels (Wang et al. 2004).

    Gaussian window of 11 pixels with sigma 1.5 and data range 1. Only windows that lie inside the image
    count, as in the paper, scikit-image and TensorFlow; torchmetrics alone would also count windows over a
    mirrored border.

    Args:
        images: pixels in [0, 1], at least 11 x 11 of them.
        reconstructions: pixels in [0, 1].

    Raises:
        ValueError: images smaller than the window.
    """
    if min(images.shape[-2:]) < SSIM_WINDOW:
        size = tuple(images.shape[-2:])
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, got {size}")
    _, everywhere = structural_similarity_index_measure(
        reconstructions, images, data_range=1.0, reduction="none", return_full_image=True
    )
    border = SSIM_WINDOW // 2
    inside: Tensor = everywhere[..., border:-border, border:-border]
    return inside.mean(dim=(1, 2, 3))


class MeanImage:
    """The error of guessing one and the same image for a whole set, in one pass over it.

    Without a given image the guess is the mean of the very images it is judged on: no constant does better,
    so a model that is not below it has learned nothing about single images.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | None = None
        self._sum_of_squares: Tensor | None = None

    def update(self, images: Float[Tensor, "B 3 H W"]) -> None:
        """Take in a batch of images with pixels in [0, 1]."""
        pixels = images.double()
        self._add(pixels.sum(0).cpu(), pixels.square().sum(0).cpu(), len(images))

    def _add(self, total: Tensor, squares: Tensor, count: int) -> None:
        self._sum = total if self._sum is None else self._sum + total
        self._sum_of_squares = squares if self._sum_of_squares is None else self._sum_of_squares + squares
        self._count += count

    @staticmethod
    def sum(parts: Sequence[MeanImage]) -> MeanImage:
        """Return what has taken in all that the parts have; parts that have taken in nothing add nothing."""
        whole = MeanImage()
        for part in parts:
            if part._sum is not None and part._sum_of_squares is not None:
                whole._add(part._sum, part._sum_of_squares, part._count)
        return whole

    def mse(self, guess: Float[Tensor, "3 H W"] | None = None) -> float:
        """Return the mean squared error of a guess, over images, channels and pixels.

        Args:
            guess: the constant image, for example the mean of the training images; None for the mean of all
                images taken in.

        Raises:
            ValueError: no image was taken in, or a guess of another size.
        """
        if self._sum is None or self._sum_of_squares is None:
            raise ValueError("the mean of no images is not defined")
        mean = self._sum / self._count
        constant = mean if guess is None else guess.to(mean)
        if constant.shape != mean.shape:
            raise ValueError(f"expected a mean image of {tuple(mean.shape)}, got {tuple(constant.shape)}")
        errors = self._sum_of_squares / self._count - 2 * constant * mean + constant.square()
        return float(errors.mean())


def mean_color_mse(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the error of painting each image in its own mean color: its variance, mean over channels."""
    return images.var(dim=(2, 3), unbiased=False).mean(dim=1)


class CodebookUsage:
    """How often each codeword was used, over everything taken in.

    The released LQAE code counts distinct pairs of column and codeword and reports up to 357 % use; here a
    codeword counts once, whatever its place, and the union is over the whole evaluated set.

    Args:
        num_codewords: K.

    Attributes:
        counts: uses of each codeword; sum them over processes where an evaluation is spread over several.
    """

    def __init__(self, num_codewords: int) -> None:
        self.counts: Int[Tensor, " K"] = torch.zeros(num_codewords, dtype=torch.long)

    def update(self, codes: Int[Tensor, "..."]) -> None:
        """Take in codes.

        Raises:
            ValueError: a code outside [0, K).
        """
        codes = codes.cpu()
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < len(self.counts):
            raise ValueError(
                f"expected codes in [0, {len(self.counts)}), got {int(codes.min())} to {int(codes.max())}"
            )
        self.counts += count_codes(codes, len(self.counts))

    @property
    def distinct(self) -> int:
        """Number of codewords used at least once."""
        return int((self.counts > 0).sum())

    @property
    def usage(self) -> float:
        """Share of the K codewords used at least once, in [0, 1]."""
        return self.distinct / len(self.counts)

    @property
    def perplexity(self) -> float:
        """Number of codewords in even use that would have the same entropy, in [1, K]."""
        return float(perplexity(self.counts))

    @property
    def most_frequent_share(self) -> float:
        """Share of the most frequent codeword: how often guessing it blindly is right."""
        return float(self.counts.max() / self.counts.sum().clamp_min(1))


def distinct_per_image(codes: Int[Tensor, "B N"]) -> Int[Tensor, " B"]:
    """Return how many different codewords each image uses."""
    ordered = codes.sort(dim=1).values
    return (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1) + 1
