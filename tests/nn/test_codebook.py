"""Laws of codebooks: of words, learned, whitened; what is prepared for inference follows the weights."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

import pixlex.nn
from pixlex.config.lqae import QuantizerConfig
from pixlex.losses import codebook_loss, commitment_loss
from pixlex.nn.codebook import (
    Codebook,
    ConceptCodebook,
    LearnedCodebook,
    Whitening,
    WordCodebook,
    count_codes,
    perplexity,
    straight_through,
)
from pixlex.nn.nearest import highest_scores, nearest_codeword

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
        quantizer = WordCodebook(words, QuantizerConfig(search="raw", metric=metric))  # type: ignore[arg-type]
        quantized = quantizer(words[None] * (3.0 if metric == "cosine" else 1.0))
        assert torch.equal(quantized.codes[0], torch.arange(len(words)))
        assert torch.equal(quantized.values[0], words)


def test_whitened_search_finds_the_word_it_was_given() -> None:
    """At inference, coordinates of a word in the whitened directions come back as that word."""
    words = _words()
    quantizer = WordCodebook(words, WHITENED).eval()
    rows = quantizer.search_codebook()
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(4), rtol=1e-4, atol=1e-4)
    assert torch.equal(quantizer(rows[None]).codes[0], torch.arange(len(words)))


def test_whitened_gradient_returns_along_the_map_to_the_embedding() -> None:
    """With fixed statistics the gradient to z is the incoming one times scales and directions."""
    quantizer = WordCodebook(_words(), WHITENED).eval()
    z = torch.randn(1, 5, 4, requires_grad=True)
    incoming = torch.randn(1, 5, 8)
    quantizer(z).values.backward(incoming)
    ridge = (1 + 1e-4 + 1e-8) ** 0.5
    assert z.grad is not None
    torch.testing.assert_close(z.grad, (incoming @ quantizer.directions) * quantizer.scales / ridge)


def test_top_k_average_and_random() -> None:
    """Average: the mean of the k nearest raw rows. Random: one of them for each patch, not one rank for all."""
    words = _words(200)
    z = torch.randn(4, 16, 8)
    distances = ((z[:, :, None] - words) ** 2).sum(-1)
    nearest = distances.topk(3, largest=False).indices
    averaging = WordCodebook(words, dataclasses.replace(RAW, top_k=3))
    quantized = averaging(z)
    torch.testing.assert_close(quantized.values, words[nearest].mean(2))
    assert torch.equal(quantized.codes, nearest[..., 0])
    drawing = WordCodebook(words, dataclasses.replace(RAW, top_k=3, top_k_mode="random"))
    codes = drawing(z, torch.Generator().manual_seed(0)).codes
    ranks = (codes[..., None] == nearest).int().argmax(-1)
    assert (codes[..., None] == nearest).any(-1).all()
    assert set(ranks.flatten().tolist()) == {0, 1, 2}
    assert torch.equal(drawing.eval()(z).codes, nearest[..., 0])


def test_assigned_search_passes_the_word_with_the_index_of_a_learned_codeword() -> None:
    """Table 3, row I: a learned codebook finds the index, the word embedding of that index is passed on."""
    words = _words()
    quantizer = WordCodebook(words, QuantizerConfig(search="assigned", search_dim=4))
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
        WordCodebook(_words(), QuantizerConfig(search="whitened", search_dim=9))
    with pytest.raises(ValueError, match="at most the 50 codewords, got 51"):
        WordCodebook(_words(), dataclasses.replace(RAW, top_k=51))


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


def test_dead_codewords_are_found_and_placed() -> None:
    """A planted dead codeword is found after its idle steps and placed; living ones stay to the bit."""
    codebook = LearnedCodebook(4, 3, "euclidean")
    before = codebook.weight.detach().clone()
    used = torch.tensor([True, True, False, True])
    for _ in range(4):
        codebook.note_usage(used)
        assert not codebook.dead(5).any()
    codebook.note_usage(used)
    assert codebook.dead(5).tolist() == [False, False, True, False]
    row = torch.randn(1, 3)
    moves = torch.tensor([False, True])
    codebook.place(torch.tensor([1, 2]), torch.stack([-row[0], row[0]]), moves)
    assert torch.equal(codebook.weight[used], before[used])
    assert torch.equal(codebook.weight[2], row[0])
    assert codebook.idle_steps.tolist() == [0, 0, 0, 0]


def test_gumbel_samples_are_codewords_drawn_by_distance() -> None:
    """Forward hard; without noise the nearest codeword; over many draws the fractions of the softmax."""
    torch.manual_seed(0)
    codebook = LearnedCodebook(5, 4, "euclidean")
    z = torch.randn(1, 1, 4, requires_grad=True)
    values, same = codebook.sample(z, 1.0, torch.zeros(1, 1, 5))
    torch.testing.assert_close(values, codebook(z).codewords)
    torch.testing.assert_close(same, values)
    both = z, codebook.weight
    assert torch.autograd.grad(same.square().sum(), both, allow_unused=True)[1] is None
    assert all(one.any() for one in torch.autograd.grad(values.square().sum(), both))
    noise = -torch.log(-torch.log(torch.rand(1, 20_000, 5)))
    drawn, _ = codebook.sample(z.expand(1, 20_000, 4).clone(), 0.5, noise)
    codes = (drawn[0].unsqueeze(1) - codebook.weight).norm(dim=-1).argmin(-1)
    fraction = np.bincount(codes.numpy(), minlength=5) / 20_000
    distance = (z[0] - codebook.weight).square().sum(-1).detach()
    np.testing.assert_allclose(fraction, torch.softmax(-distance / 2, dim=0).numpy(), atol=0.015)


def test_batches_leave_with_zero_mean_and_unit_covariance() -> None:
    """Whatever the scale and correlation of what comes in, also with a mean far larger than the spread."""
    for scale in (1e-1, 1.0, 1e3):
        z = torch.randn(16, 8, 4) @ (torch.eye(4) + 0.3 * torch.randn(4, 4)) * scale + 7 * scale
        whitened, moments = Whitening(4)(z)
        rows = whitened.flatten(0, 1)
        torch.testing.assert_close(rows.mean(0), torch.zeros(4), rtol=0, atol=1e-3)
        torch.testing.assert_close(rows.T @ rows / 128, torch.eye(4), rtol=0, atol=0.05)
        assert moments is not None


def test_forward_changes_nothing_and_update_does() -> None:
    """Running statistics move only by `update`: first to those of the batch, then by the momentum."""
    layer = Whitening(3, momentum=0.25)
    before = copy.deepcopy(layer.state_dict())
    _, first = layer(torch.randn(8, 4, 3) + 1)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
    _, second = layer(torch.randn(8, 4, 3) - 1)
    assert first is not None
    assert second is not None
    layer.update(first)
    torch.testing.assert_close(layer.mean, first.mean)
    layer.update(second)
    torch.testing.assert_close(layer.mean, 0.75 * first.mean + 0.25 * second.mean)
    torch.testing.assert_close(layer.covariance, 0.75 * first.covariance + 0.25 * second.covariance)


def test_inference_does_not_depend_on_neighbors() -> None:
    """At inference an image becomes the same alone and in any batch."""
    layer = Whitening(3)
    _, moments = layer(torch.randn(8, 4, 3) * 2 + 1)
    assert moments is not None
    layer.update(moments)
    layer.eval()
    z = torch.randn(5, 4, 3)
    together, none = layer(z)
    assert none is None
    torch.testing.assert_close(torch.cat([layer(one[None])[0] for one in z]), together)


@pytest.mark.parametrize("kind", ["raw", "whitened", "assigned", "learned"])
def test_what_is_prepared_for_inference_follows_the_weights(kind: str) -> None:
    """The same codes as in training; dropped by a step, by new weights, by a move, by training, by a copy."""
    words = _words(300)
    codebook: Codebook = (
        LearnedCodebook(300, 8, "euclidean")
        if kind == "learned"
        else WordCodebook(words, QuantizerConfig(search=kind, search_dim=4, metric="euclidean"))  # type: ignore[arg-type]
    )
    z = torch.randn(2, 30, 8) if kind in ("raw", "learned") else torch.randn(2, 30, 4)

    def check() -> None:
        codes, searched = codebook.nearest(z)
        fresh = codebook.search_codebook().detach()
        assert torch.equal(searched, fresh)
        assert torch.equal(codes[..., 0], torch.cdist(z, fresh.expand(2, -1, -1)).argmin(-1))

    codebook.train()
    check()
    assert codebook._prepared is None
    codebook.eval()
    check()
    before = codebook._prepared
    check()
    assert before is not None
    assert codebook._prepared is before
    assert copy.deepcopy(codebook)._prepared is None
    weight = {"raw": "embedding", "whitened": "directions", "assigned": "learned", "learned": "weight"}[kind]
    with torch.no_grad():
        getattr(codebook, weight).copy_(getattr(codebook, weight).flip(0) + 0.1)
    check()
    assert codebook._prepared is not before
    assert codebook.to("cpu")._prepared is None
    codebook.load_state_dict({name: 2 * value for name, value in codebook.state_dict().items()})
    check()
    codebook.train()
    check()
    assert codebook._prepared is None


def _codebooks() -> dict[str, Codebook]:
    """One of each search, with statistics and weights that are not those of the start."""
    words = _words(200)
    books: dict[str, Codebook] = {
        search: WordCodebook(words, QuantizerConfig(search=search, search_dim=4))  # type: ignore[arg-type]
        for search in ("raw", "whitened", "assigned")
    }
    whitening = books["whitened"].whitening
    whitening.update(whitening(torch.randn(2, 99, 4) @ torch.randn(4, 4) + 1)[1])  # type: ignore[operator]
    books |= {f"learned, {metric}": LearnedCodebook(200, 8, metric) for metric in ("cosine", "euclidean")}  # type: ignore[arg-type]
    return books


@pytest.mark.parametrize("kind", _codebooks())
def test_evaluation_is_one_linear_map_and_its_highest_output(kind: str) -> None:
    """Whatever comes before the search: what is exported chooses the codes that the codebook does."""
    codebook = _codebooks()[kind].eval()
    z = torch.randn(20, 16, 4 if kind == "whitened" else 8)
    expected = codebook(z).codes
    assert len(expected.unique()) > 20
    assert torch.equal(highest_scores(z.flatten(0, 1), *codebook.scores()).view(20, 16), expected)


def test_concepts_are_one_linear_map_too() -> None:
    concepts = ConceptCodebook(
        _words(), QuantizerConfig(search="concepts", search_dim=4, num_concepts=20), 12
    )
    concepts.center.normal_()
    features = torch.randn(30, 12)
    found = highest_scores(features, *concepts.eval().scores(), 5)
    assert torch.equal(concepts.rows[found], concepts(features, 5).codes)


@pytest.mark.parametrize("kind", _codebooks())
def test_maps_are_sequences_of_their_places(kind: str) -> None:
    codebook = _codebooks()[kind].eval()
    maps = torch.randn(2, 4 if kind == "whitened" else 8, 3, 5)
    found, expected = codebook(maps), codebook(maps.flatten(2).mT)
    assert found.codes.shape == (2, 3, 5)
    assert torch.equal(found.codes.flatten(1), expected.codes)
    assert torch.equal(found.values.flatten(2).mT, expected.values)
    assert torch.equal(found.z, expected.z)


def test_nearest_codeword_takes_sequences_and_maps() -> None:
    codebook, maps = _words(), torch.randn(2, 8, 3, 5)
    rows = maps.movedim(1, -1)
    expected = nearest_codeword(rows.reshape(30, 8), codebook)
    assert torch.equal(nearest_codeword(maps, codebook), expected.view(2, 3, 5))
    assert torch.equal(nearest_codeword(rows.flatten(1, 2), codebook), expected.view(2, 15))


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 7, 3, 3), (5, 8)])
def test_vectors_of_another_width_are_named(unchecked_shapes: None, shape: tuple[int, ...]) -> None:
    for codebook in (LearnedCodebook(4, 8), WordCodebook(_words(), RAW)):
        with pytest.raises(ValueError, match=r"expected vectors \(B, N, 8\) or maps \(B, 8, H, W\), got \("):
            codebook(torch.randn(shape))


def test_results_unpack_as_quantized_codes_and_loss() -> None:
    """The loss is commitment and codebook loss; it moves learned codewords, frozen ones stay."""
    learned, vectors = LearnedCodebook(6, 8), torch.randn(2, 5, 8, requires_grad=True)
    result = learned(vectors)
    quantized, codes, loss = result
    assert quantized is result.values
    assert codes is result.codes
    expected = commitment_loss(result.z, result.codewords) + codebook_loss(result.z, result.codewords)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert vectors.grad is not None
    assert learned.weight.grad is not None
    of_words = torch.randn(2, 5, 8, requires_grad=True)
    _, _, loss = WordCodebook(_words(), RAW)(of_words)
    assert torch.equal(torch.autograd.grad(loss, of_words)[0] != 0, torch.ones(2, 5, 8, dtype=torch.bool))


def test_what_people_take_away_has_its_name_in_nn() -> None:
    assert {"LearnedCodebook", "WordCodebook", "commitment_loss", "nearest_codeword"} <= {*pixlex.nn.__all__}
    for name in pixlex.nn.__all__:
        assert getattr(pixlex.nn, name).__name__ == name
    with pytest.raises(AttributeError, match=r"'pixlex\.nn' has no attribute 'nearest_codewort'"):
        _ = pixlex.nn.nearest_codewort
