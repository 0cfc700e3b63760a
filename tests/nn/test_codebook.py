"""Laws of quantizing: identity on codewords, exact straight-through."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from pixlex.config.lqae import QuantizerConfig
from pixlex.nn.codebook import WordQuantizer, count_codes, perplexity, straight_through

RAW = QuantizerConfig(search="raw", metric="euclidean")
WHITENED = QuantizerConfig(search="whitened", search_dim=4)


def _words(num: int = 50, width: int = 8) -> torch.Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.5, 2, width)


def test_straight_through_returns_the_values_and_the_incoming_gradient() -> None:
    """Forward: the values to the bit. Backward: the gradient to z, nothing to the values."""
    z = torch.randn(2, 3, 4, requires_grad=True)
    values = torch.randn(2, 3, 4, requires_grad=True)
    passed = straight_through(z, values)
    assert torch.equal(passed, values)
    incoming = torch.randn(2, 3, 4)
    passed.backward(incoming)
    assert z.grad is not None
    assert torch.equal(z.grad, incoming)
    assert values.grad is None


def test_quantizing_a_codeword_is_the_identity() -> None:
    """A word embedding's nearest word is itself, and its value is its raw row to the bit."""
    words = _words()
    for metric in ("cosine", "euclidean"):
        quantizer = WordQuantizer(words, QuantizerConfig(search="raw", metric=metric))  # type: ignore[arg-type]
        quantized = quantizer(words[None] * (3.0 if metric == "cosine" else 1.0))
        assert torch.equal(quantized.codes[0], torch.arange(len(words)))
        assert torch.equal(quantized.values[0], words)


def test_whitened_search_finds_the_word_it_was_given() -> None:
    """At inference, coordinates of a word in the whitened directions come back as that word."""
    words = _words()
    quantizer = WordQuantizer(words, WHITENED).eval()
    coordinates = quantizer.search_codebook()
    rows = coordinates.double()
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(4).double(), rtol=1e-4, atol=1e-4)
    assert torch.equal(quantizer(coordinates[None]).codes[0], torch.arange(len(words)))


def test_whitened_gradient_returns_along_the_map_to_the_embedding() -> None:
    """With fixed statistics the gradient to z is the incoming one times scales and directions."""
    quantizer = WordQuantizer(_words(), WHITENED).eval()
    z = torch.randn(1, 5, 4, requires_grad=True)
    incoming = torch.randn(1, 5, 8)
    quantizer(z).values.backward(incoming)
    ridge = (1 + 1e-4 + 1e-8) ** 0.5
    assert z.grad is not None
    torch.testing.assert_close(z.grad, (incoming @ quantizer.directions) * quantizer.scales / ridge)


def test_a_nearly_constant_encoder_still_spreads_over_words() -> None:
    """The collapse of the raw search (one codeword) and what whitening makes of the same vectors."""
    z = 5 + 1e-3 * torch.randn(4, 64, 8)
    raw = WordQuantizer(_words(500), QuantizerConfig(search="raw"))
    whitened = WordQuantizer(_words(500), QuantizerConfig(search="whitened", search_dim=8))
    assert len(raw(z).codes.unique()) == 1
    assert len(whitened(z).codes.unique()) > 100


def test_directions_are_saved_and_embeddings_are_not() -> None:
    """A model file holds the map to the search space, never the language model's word embeddings."""
    state = WordQuantizer(_words(), WHITENED).state_dict()
    assert "directions" in state
    assert "embedding" not in state


def test_top_k_average_and_random() -> None:
    """Average: the mean of the k nearest raw rows. Random: one of them for each patch, not one rank for all."""
    words = _words(200)
    z = torch.randn(4, 16, 8)
    distances = ((z[:, :, None] - words) ** 2).sum(-1)
    nearest = distances.topk(3, largest=False).indices
    averaging = WordQuantizer(words, dataclasses.replace(RAW, top_k=3))
    quantized = averaging(z)
    torch.testing.assert_close(quantized.values, words[nearest].mean(2))
    assert torch.equal(quantized.codes, nearest[..., 0])
    drawing = WordQuantizer(words, dataclasses.replace(RAW, top_k=3, top_k_mode="random"))
    codes = drawing(z, torch.Generator().manual_seed(0)).codes
    ranks = (codes[..., None] == nearest).int().argmax(-1)
    assert (codes[..., None] == nearest).any(-1).all()
    assert set(ranks.flatten().tolist()) == {0, 1, 2}
    assert torch.equal(drawing.eval()(z).codes, nearest[..., 0])


def test_assigned_search_passes_the_word_with_the_index_of_a_learned_codeword() -> None:
    """Table 3, row I: a learned codebook finds the index, the word embedding of that index is passed on."""
    words = _words()
    quantizer = WordQuantizer(words, QuantizerConfig(search="assigned", search_dim=4))
    z = torch.randn(2, 5, 8, requires_grad=True)
    quantized = quantizer(z)
    assert torch.equal(quantized.values, words[quantized.codes])
    quantized.values.sum().backward(retain_graph=True)
    assert z.grad is not None
    assert torch.equal(z.grad, torch.ones_like(z))
    quantized.codewords.sum().backward()
    assert quantizer.learned.grad is not None


def test_impossible_widths_are_named() -> None:
    """A search wider than the embedding, and more neighbors than words."""
    with pytest.raises(ValueError, match=r"at most 8.* got 9"):
        WordQuantizer(_words(), QuantizerConfig(search="whitened", search_dim=9))
    with pytest.raises(ValueError, match="at most the 50 codewords, got 51"):
        WordQuantizer(_words(), dataclasses.replace(RAW, top_k=51))


def test_usage_counts_and_perplexity_against_numpy() -> None:
    """Counts equal np.bincount, perplexity of even use is K, of one codeword 1."""
    codes = torch.randint(0, 30, (5, 7), generator=torch.Generator().manual_seed(0))
    counts = count_codes(codes, 40)
    np.testing.assert_array_equal(counts.numpy(), np.bincount(codes.flatten().numpy(), minlength=40))
    share = np.bincount(codes.flatten().numpy()) / codes.numel()
    share = share[share > 0]
    assert perplexity(counts) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert perplexity(torch.full((12,), 3)) == pytest.approx(12)
    assert perplexity(torch.tensor([0, 9, 0])) == pytest.approx(1)


def test_what_was_prepared_for_kernels_stays_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy, or the same moved, prepares its own: on the device without values, where kernels count as there."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **settings: nullcontext())
    quantizer = WordQuantizer(torch.randn(20, 8), QuantizerConfig(search="raw")).to("meta")
    vectors = torch.empty(2, 3, 8, device="meta")
    assert quantizer(vectors).codes.shape == (2, 3)
    assert quantizer._last is not None
    prepared = quantizer._last
    quantizer(vectors)
    assert quantizer._last is prepared
    again = copy.deepcopy(quantizer)
    assert again._last is None
    assert again(vectors).codes.shape == (2, 3)
    assert quantizer.to("meta")._last is None
