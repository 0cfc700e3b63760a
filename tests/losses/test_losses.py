"""Losses against slow references and known values."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pixlex.losses.cross_entropy import caption_loss, masked_word_loss
from pixlex.losses.quantization import codebook_loss, commitment_loss, entropy_regularization
from pixlex.losses.reconstruction import masked_patch_loss, normalized_patches, pixel_loss, restored_patches


def test_pixel_loss_is_the_mean_square() -> None:
    """Over every element, as in the released code."""
    one, other = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    expected = np.mean((one.numpy().astype(np.float64) - other.numpy()) ** 2)
    assert float(pixel_loss(one, other)) == pytest.approx(expected, rel=1e-5)


def test_masked_patch_loss_counts_hidden_patches_alone() -> None:
    """Against a loop; what is predicted for visible patches does not matter."""
    predicted, patches, mask = torch.randn(3, 5, 12), torch.randn(3, 5, 12), torch.rand(3, 5) < 0.6
    squares = [
        np.mean((predicted[i, n].double().numpy() - patches[i, n].numpy()) ** 2)
        for i in range(3)
        for n in range(5)
        if mask[i, n]
    ]
    assert float(masked_patch_loss(predicted, patches, mask)) == pytest.approx(np.mean(squares), rel=1e-5)
    predicted[~mask] = 1e6
    assert float(masked_patch_loss(predicted, patches, mask)) == pytest.approx(np.mean(squares), rel=1e-5)


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
    losses = [
        float(logits[i, t].logsumexp(0) - logits[i, t, word_ids[i, t]])
        for i in range(4)
        for t in range(5)
        if not key_padding[i, t]
    ]
    assert float(caption_loss(logits, word_ids, key_padding)) == pytest.approx(np.mean(losses), rel=1e-5)
    halves = [
        float(caption_loss(logits[part], word_ids[part], key_padding[part], total=len(losses) / 2))
        for part in (slice(0, 2), slice(2, 4))
    ]
    assert np.mean(halves) == pytest.approx(np.mean(losses), rel=1e-5)
    word_ids[key_padding] = 0
    assert float(caption_loss(logits, word_ids, key_padding)) == pytest.approx(np.mean(losses), rel=1e-5)


def test_commitment_moves_patches_and_codebook_loss_moves_codewords() -> None:
    """Same value, opposite routing."""
    z = torch.randn(2, 3, 4, requires_grad=True)
    codewords = torch.randn(2, 3, 4, requires_grad=True)
    commitment, codebook = commitment_loss(z, codewords), codebook_loss(z, codewords)
    assert torch.equal(commitment, codebook)
    assert torch.autograd.grad(commitment, codewords, allow_unused=True) == (None,)
    assert torch.autograd.grad(codebook, z, allow_unused=True) == (None,)
    expected = 2 * (z - codewords).detach() / z.numel()
    torch.testing.assert_close(torch.autograd.grad(commitment_loss(z, codewords), z)[0], expected)
    torch.testing.assert_close(torch.autograd.grad(codebook_loss(z, codewords), codewords)[0], -expected)


def test_masked_word_loss_equals_full_cross_entropy() -> None:
    """Value and gradient of the chunked loss against all logits at once; frozen head gets no gradient."""
    vectors = torch.randn(700, 16, requires_grad=True)
    weight, bias = torch.randn(900, 16), torch.randn(900)
    word_ids = torch.randint(0, 900, (700,))
    expected = F.cross_entropy(vectors @ weight.T + bias, word_ids)
    (reference,) = torch.autograd.grad(expected, vectors)
    loss = masked_word_loss(vectors, word_ids, weight, bias)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, vectors)
    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("count", [0, 5, 700])
def test_masked_word_loss_reaches_all_that_is_trained(with_bias: bool, count: int) -> None:
    """Gradients of vectors, weights and bias, words counted unlike, against all logits at once; twice the same."""
    vectors, weight = torch.randn(count, 16, requires_grad=True), torch.randn(90, 16, requires_grad=True)
    bias = torch.randn(90, requires_grad=True) if with_bias else None
    word_ids, factors = torch.randint(0, 90, (count,)), torch.rand(count)
    learned = [vectors, weight, *([] if bias is None else [bias])]
    logits = F.linear(vectors, weight, bias)
    expected = (factors * F.cross_entropy(logits, word_ids, reduction="none")).sum() / 7
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
    torch.testing.assert_close(alone, expected)


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


def test_masked_word_loss_starts_at_log_of_the_vocabulary() -> None:
    """A head that knows nothing is at ln V; nothing hidden gives 0, not 0/0."""
    weight = torch.randn(1000, 8)
    loss = masked_word_loss(torch.zeros(20, 8), torch.arange(20), weight, None)
    assert float(loss) == pytest.approx(math.log(1000), rel=1e-5)
    empty = masked_word_loss(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long), weight, None)
    assert float(empty) == 0.0


def test_masked_word_loss_of_two_halves_averages_to_the_whole() -> None:
    """With the shared total, the mean over two processes is the loss of one, also with uneven halves."""
    vectors, word_ids, weight = torch.randn(30, 8), torch.randint(0, 50, (30,)), torch.randn(50, 8)
    whole = masked_word_loss(vectors, word_ids, weight, None)
    halves = [
        masked_word_loss(vectors[part], word_ids[part], weight, None, total=30 / 2)
        for part in (slice(0, 11), slice(11, 30))
    ]
    torch.testing.assert_close(sum(halves) / 2, whole)


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


def test_entropy_regularization_is_lowest_for_sure_and_spread_codes() -> None:
    """Collapsed codes: about 0. Every codeword sure and in use: about -ln K."""
    codebook = torch.eye(8)
    collapsed = entropy_regularization(codebook[:1].expand(16, 8), codebook, 0.01)
    spread = entropy_regularization(codebook.repeat(2, 1), codebook, 0.01)
    assert float(collapsed) == pytest.approx(0.0, abs=1e-4)
    assert float(spread) == pytest.approx(-math.log(8), rel=1e-3)
