"""Masks: the right share, reproducible, a ratio of its own for each image."""

from __future__ import annotations

import torch

from pixlex.nn.masking import random_mask


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_extreme_ratios_hide_nothing_and_everything() -> None:
    """Ratio 0 hides no word, ratio 1 hides all."""
    assert not random_mask(4, 50, 0.0, 0.0, _generator(0)).any()
    assert random_mask(4, 50, 1.0, 1.0, _generator(0)).all()


def test_one_ratio_is_bernoulli_per_word() -> None:
    """The share over many words is the ratio, within five standard errors, and words are independent."""
    mask = random_mask(1000, 64, 0.5, 0.5, _generator(1)).double()
    assert abs(mask.mean() - 0.5) < 5 * 0.5 / 64000**0.5
    assert abs(mask.mean(1).var() - 0.25 / 64) < 0.001


def test_a_range_gives_each_image_its_own_ratio() -> None:
    """Shares spread over the range: their variance is that of a uniform ratio, not of a fixed mean."""
    shares = random_mask(2000, 400, 0.2, 0.8, _generator(2)).double().mean(1)
    assert shares.min() < 0.3
    assert shares.max() > 0.7
    assert abs(shares.var() - 0.6**2 / 12) < 0.005


def test_the_generator_decides() -> None:
    """Same seed, same mask; another seed, another mask."""
    first = random_mask(3, 64, 0.5, 0.5, _generator(3))
    assert torch.equal(first, random_mask(3, 64, 0.5, 0.5, _generator(3)))
    assert not torch.equal(first, random_mask(3, 64, 0.5, 0.5, _generator(4)))
