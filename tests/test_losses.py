"""Losses against slow references and known values."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pixlex.losses import (
    caption_loss,
    codebook_loss,
    commitment_loss,
    entropy_regularization,
    hard_negatives,
    image_text_contrastive_loss,
    image_text_matching_loss,
    masked_patch_loss,
    masked_word_loss,
    normalized_patches,
    restored_patches,
)


def test_masked_patch_loss_counts_hidden_patches_alone() -> None:
    """What is predicted for visible patches does not matter."""
    predicted, patches, mask = torch.randn(3, 5, 12), torch.randn(3, 5, 12), torch.rand(3, 5) < 0.6
    expected = float((predicted[mask] - patches[mask]).double().square().mean())
    predicted[~mask] = 1e6
    assert float(masked_patch_loss(predicted, patches, mask)) == pytest.approx(expected, rel=1e-5)


def test_normalized_patches_have_mean_zero_and_variance_one_and_can_be_restored() -> None:
    """A flat patch stays finite."""
    patches = torch.cat([torch.rand(2, 4, 48), torch.full((2, 1, 48), 0.5)], dim=1)
    normalized = normalized_patches(patches)
    torch.testing.assert_close(normalized.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized[:, :4].var(-1), torch.ones(2, 4), atol=1e-4, rtol=0)
    assert torch.equal(normalized[:, 4], torch.zeros(2, 48))
    torch.testing.assert_close(restored_patches(normalized, patches), patches)


def test_caption_loss_is_the_mean_over_words_that_are_no_padding() -> None:
    """Against a loop; two processes that divide by the mean number of words give the mean of all."""
    logits, word_ids = torch.randn(4, 5, 7), torch.randint(0, 7, (4, 5))
    key_padding = torch.arange(5) >= torch.tensor([[5], [2], [1], [3]])
    places = (~key_padding).nonzero().tolist()
    losses = [float(logits[i, t].logsumexp(0) - logits[i, t, word_ids[i, t]]) for i, t in places]
    word_ids[key_padding] = 0
    assert float(caption_loss(logits, word_ids, key_padding)) == pytest.approx(np.mean(losses), rel=1e-5)
    halves = [
        float(caption_loss(logits[part], word_ids[part], key_padding[part], total=len(losses) / 2))
        for part in (slice(0, 2), slice(2, 4))
    ]
    assert np.mean(halves) == pytest.approx(np.mean(losses), rel=1e-5)


def test_commitment_moves_patches_and_codebook_loss_moves_codewords() -> None:
    """Same value, opposite routing."""
    z = torch.randn(2, 3, 4, requires_grad=True)
    codewords = torch.randn(2, 3, 4, requires_grad=True)
    commitment, codebook = commitment_loss(z, codewords), codebook_loss(z, codewords)
    assert torch.equal(commitment, codebook)
    expected = 2 * (z - codewords).detach() / z.numel()
    for loss, moved, other in ((commitment, z, codewords), (codebook, codewords, z)):
        found, none = torch.autograd.grad(loss, (moved, other), allow_unused=True)
        assert none is None
        torch.testing.assert_close(found, expected if moved is z else -expected)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("count", [0, 5, 700])
def test_masked_word_loss_reaches_all_that_is_trained(with_bias: bool, count: int) -> None:
    """Value and gradients, words counted unlike, against all logits at once; twice the same; 0 of nothing."""
    vectors, weight = torch.randn(count, 16, requires_grad=True), torch.randn(90, 16, requires_grad=True)
    bias = torch.randn(90, requires_grad=True) if with_bias else None
    word_ids, factors = torch.randint(0, 90, (count,)), torch.rand(count)
    learned = [vectors, weight, *([] if bias is None else [bias])]
    losses = F.cross_entropy(F.linear(vectors, weight, bias), word_ids, reduction="none")
    expected = (factors * losses).sum() / 7
    reference = torch.autograd.grad(3 * expected, learned)
    loss = masked_word_loss(vectors, word_ids, weight, bias, total=7.0, factors=factors, block=256)
    torch.testing.assert_close(loss, expected)
    for _ in range(2):
        for found, other in zip(
            torch.autograd.grad(3 * loss, learned, retain_graph=True), reference, strict=True
        ):
            torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        alone = masked_word_loss(vectors, word_ids, weight, bias, total=7.0, factors=factors)
        mean = masked_word_loss(vectors, word_ids, weight, bias)
    torch.testing.assert_close(alone, expected)
    torch.testing.assert_close(mean, losses.sum() / max(count, 1))


def test_masked_word_loss_in_low_precision_is_near() -> None:
    """Under autocast products are rounded, the sum of exponentials is not."""
    vectors, weight = torch.randn(40, 32, requires_grad=True), torch.randn(500, 32, requires_grad=True)
    word_ids = torch.randint(0, 500, (40,))
    exact = masked_word_loss(vectors, word_ids, weight, None)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = masked_word_loss(vectors, word_ids, weight, None)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=1e-2, atol=0)
    for found, expected in zip(
        torch.autograd.grad(rounded, (vectors, weight)), torch.autograd.grad(exact, (vectors, weight)),
        strict=True,
    ):  # fmt: skip
        assert found.dtype == torch.float32
        assert float((found - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_entropy_regularization_against_numpy(metric: Literal["cosine", "euclidean"]) -> None:
    """E[H(p)] - H(E[p]) with p = softmax(-|z - c|^2 / temperature), any block size; gradients flow."""
    z, codebook = torch.randn(23, 6, requires_grad=True), torch.randn(11, 6)
    rows, words = z.detach().double().numpy(), codebook.double().numpy()
    if metric == "cosine":
        rows, words = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (rows, words))
    p = np.exp(-((rows[:, None] - words) ** 2).sum(-1) / 0.1)
    p /= p.sum(1, keepdims=True)
    mean = p.mean(0)
    expected = -(p * np.log(p)).sum(1).mean() + (mean * np.log(mean)).sum()
    for block in (5, 64):
        value = entropy_regularization(z, codebook, 0.1, metric, block=block)
        assert float(value.detach()) == pytest.approx(expected, rel=1e-4)
    (gradient,) = torch.autograd.grad(value, z)
    assert gradient.abs().sum() > 0


def test_contrast_is_the_cross_entropy_of_both_directions() -> None:
    """One positive each: InfoNCE; equal similarities: ln B."""
    scores, own = torch.randn(5, 5), torch.arange(5)
    same = torch.eye(5, dtype=torch.bool)
    expected = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    torch.testing.assert_close(image_text_contrastive_loss(scores, scores.T, same), expected)
    level = image_text_contrastive_loss(torch.zeros(5, 5), torch.zeros(5, 5), same)
    assert float(level) == pytest.approx(math.log(5))


def test_what_is_the_same_shares_the_target() -> None:
    """Two captions of one image: half each; the loss is lowest where both are equally likely."""
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    found = float(image_text_contrastive_loss(9.0 * same, 9.0 * same, same))
    assert found == pytest.approx(2 * math.log(2) / 3, abs=1e-3)
    alone = 9 * torch.eye(3)
    assert float(image_text_contrastive_loss(alone, alone, same)) > found + 1


def test_matching_is_the_cross_entropy_of_two_classes_without_ignored_rows() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [5.0, -5.0]])
    labels = torch.tensor([1, 0, -100])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert float(image_text_matching_loss(logits, labels)) == pytest.approx(expected)


@pytest.mark.parametrize("first", [5.0, math.nan, math.inf])
def test_hard_negatives_follow_the_similarities_and_never_the_same(first: float) -> None:
    """Fractions of many draws are softmax + 1e-4 without what is the same; even where similarities are broken."""
    similarity, count = torch.tensor([[1.0, first, 0.0, 2.0]]), 40_000
    same = torch.tensor([[True, False, False, False]])
    chance = (torch.arange(count) + 0.5) / count
    drawn = hard_negatives(similarity.expand(count, 4), same.expand(count, 4), chance)
    weights = torch.softmax(similarity[0], 0) + 1e-4 if math.isfinite(first) else torch.ones(4)
    weights[0] = 0
    share = np.bincount(drawn.numpy(), minlength=4) / count
    np.testing.assert_allclose(share, (weights / weights.sum()).numpy(), atol=1e-3)


def test_hard_negatives_at_the_ends() -> None:
    """A row whose columns are all the same has none; the ends of chance stay within what can be drawn."""
    same = torch.tensor([[True, True, True], [True, False, True], [True, False, True]])
    assert hard_negatives(torch.zeros(3, 3), same, torch.tensor([0.999999, 0.0, 1.0])).tolist() == [-1, 1, 1]
