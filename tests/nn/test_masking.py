"""Masks: the right share, reproducible, a ratio of its own for each image."""

from __future__ import annotations

import torch

from pixlex.nn.masking import WordDraws, mask_words, random_mask, split_patches


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


def test_patches_are_split_exactly_and_in_order() -> None:
    """A quarter seen, the rest hidden, together each patch once; every patch is seen alike often."""
    split = split_patches(4000, 16, 4, _generator(0))
    assert split.visible.shape == (4000, 4)
    both = torch.cat([split.visible, split.hidden], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(16).expand(4000, -1))
    for part in (split.visible, split.hidden):
        assert (part.diff(dim=1) > 0).all()
    share = torch.bincount(split.visible.flatten(), minlength=16) / 4000
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_words_are_hidden_as_bert_hides_them() -> None:
    """15 % chosen, of which 80 % the mask word, 10 % any word, 10 % as they were; special words never."""
    word_ids = torch.full((500, 40), 7)
    special = torch.zeros(500, 40, dtype=torch.bool)
    special[:, 0] = special[:, 30:] = True
    draws = WordDraws.draw(500, 40, 1000, _generator(0))
    masked = mask_words(word_ids, special, 0.15, 4, draws)
    assert not masked.mask[special].any()
    chosen = masked.mask[~special].double()
    assert abs(chosen.mean() - 0.15) < 5 * (0.15 * 0.85 / len(chosen)) ** 0.5
    shown = masked.word_ids[masked.mask]
    count = len(shown)
    for share, hit in ((0.8, shown == 4), (0.1, shown == 7)):
        assert abs(hit.double().mean() - share) < 5 * (share * (1 - share) / count) ** 0.5
    assert torch.equal(masked.word_ids[~masked.mask], word_ids[~masked.mask])


def test_padding_changes_no_draw() -> None:
    """A text in a longer batch, or in another process's part, is hidden alike."""
    draws = WordDraws.draw(6, 20, 100, _generator(1))
    short, long = draws.part(2, 2, 8), draws.part(2, 2, 15)
    for one, other in zip(
        (short.hide, short.kind, short.words), (long.hide, long.kind, long.words), strict=True
    ):
        assert torch.equal(one, other[:, :8])
    assert torch.equal(short.hide[1], draws.hide[3, :8])
