"""Measures of images and codes against NumPy, scikit-image and what must hold of any such measure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pixlex.eval.metrics import (
    CodebookUsage,
    MeanImage,
    distinct_per_image,
    mean_color_mse,
    mse,
    psnr,
    ssim,
)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images and noisy copies, of unequal sides."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(5, 3, 6, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (24, 40), mode="bilinear")
    noise = torch.randn(images.shape, generator=generator) * torch.linspace(0.02, 0.4, 5).view(5, 1, 1, 1)
    return images, (images + noise).clamp(0, 1)


def test_mse_is_the_mean_over_channels_and_pixels_of_each_image(
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    images, copies = pair
    expected = ((images.numpy() - copies.numpy()) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(mse(images, copies).numpy(), expected, rtol=1e-6)


def test_psnr_is_scikit_images(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows = zip(*(batch.numpy() for batch in pair), strict=True)
    expected = [peak_signal_noise_ratio(image, copy, data_range=1.0) for image, copy in rows]
    np.testing.assert_allclose(psnr(*pair).numpy(), expected, rtol=1e-5)


def test_psnr_of_an_exact_copy_is_finite(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, _ = pair
    assert psnr(images, images.clone()).tolist() == [100.0] * len(images)


def test_ssim_is_scikit_images(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows = zip(*(batch.numpy() for batch in pair), strict=True)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [
        structural_similarity(image, copy, data_range=1.0, channel_axis=0, **settings) for image, copy in rows
    ]
    np.testing.assert_allclose(ssim(*pair).numpy(), expected, rtol=2e-4, atol=2e-5)
    assert ssim(pair[0], pair[0]).numpy() == pytest.approx(1.0, abs=1e-5)


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match=r"at least 11 x 11 pixels, got \(10, 12\)"):
        ssim(torch.rand(1, 3, 10, 12), torch.rand(1, 3, 10, 12))


def test_mean_image_is_the_strongest_constant() -> None:
    images = torch.rand(9, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    mean_image = MeanImage()
    for batch in images.split([4, 4, 1]):
        mean_image.update(batch)
    best = ((images - images.mean(0)) ** 2).mean().item()
    assert mean_image.mse() == pytest.approx(best, rel=1e-6)
    guess = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(2))
    assert mean_image.mse(guess) == pytest.approx(((images - guess) ** 2).mean().item(), rel=1e-6)
    assert mean_image.mse(images.mean(0) + 0.01) > mean_image.mse()


def test_mean_image_refuses_no_images_and_other_sizes() -> None:
    mean_image = MeanImage()
    with pytest.raises(ValueError, match="mean of no images"):
        mean_image.mse()
    mean_image.update(torch.rand(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"expected a mean image of \(3, 4, 4\), got \(3, 8, 8\)"):
        mean_image.mse(torch.rand(3, 8, 8))


def test_mean_color_error_is_that_of_a_flat_image() -> None:
    images = torch.rand(4, 3, 6, 7, generator=torch.Generator().manual_seed(3))
    flat = images.mean((2, 3), keepdim=True).expand_as(images)
    assert torch.allclose(mean_color_mse(images), mse(images, flat))
    assert mean_color_mse(flat).abs().max() < 1e-12


def test_usage_is_the_union_over_the_set_and_equals_unique() -> None:
    codes = torch.randint(0, 50, (20, 7, 7), generator=torch.Generator().manual_seed(4)) ** 2 // 20
    usage = CodebookUsage(200)
    for batch in codes.split(6):
        usage.update(batch)
    values, counts = np.unique(codes.numpy(), return_counts=True)
    shares = counts / counts.sum()
    assert usage.distinct == len(values)
    assert usage.usage == len(values) / 200
    assert usage.counts[values].tolist() == counts.tolist()
    assert usage.perplexity == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert usage.most_frequent_share == pytest.approx(shares.max())


def test_usage_does_not_count_a_codeword_once_for_each_column() -> None:
    """The released code would say 400 % here: every codeword stands in each of four columns."""
    usage = CodebookUsage(16)
    usage.update(torch.arange(16).view(1, 16, 1).expand(3, 16, 4))
    assert usage.usage == 1.0
    assert usage.perplexity == pytest.approx(16)


def test_perplexity_of_one_codeword_is_one() -> None:
    usage = CodebookUsage(8)
    usage.update(torch.full((3, 5), 7))
    assert usage.perplexity == pytest.approx(1.0)
    assert usage.most_frequent_share == 1.0


@pytest.mark.parametrize("code", [-1, 8])
def test_usage_refuses_codes_out_of_range(code: int) -> None:
    with pytest.raises(ValueError, match=r"expected codes in \[0, 8\)"):
        CodebookUsage(8).update(torch.tensor([[0, code]]))


def test_distinct_per_image_equals_unique() -> None:
    codes = torch.randint(0, 6, (12, 9), generator=torch.Generator().manual_seed(5))
    assert distinct_per_image(codes).tolist() == [len(np.unique(row)) for row in codes.numpy()]
