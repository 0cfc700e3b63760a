"""Learned codebooks: gradients, Gumbel-softmax, moving averages, clustering, dead codewords."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pixlex.nn.codebook import count_codes
from pixlex.nn.learned_codebook import LearnedCodebook, MovingAverages, k_means


def test_learned_codebook_routes_gradients() -> None:
    """Values send their gradient to z alone; codewords are moved through `codewords`."""
    codebook = LearnedCodebook(10, 4, "euclidean")
    z = torch.randn(1, 6, 4, requires_grad=True)
    quantized = codebook(z)
    quantized.values.sum().backward()
    assert z.grad is not None
    assert codebook.weight.grad is None
    codebook(z).codewords.sum().backward()
    assert codebook.weight.grad is not None


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
    """Forward hard; without noise the nearest codeword; over many draws the shares of the softmax."""
    torch.manual_seed(0)
    codebook = LearnedCodebook(5, 4, "euclidean")
    z = torch.randn(1, 1, 4)
    values, same = codebook.sample(z, 1.0, torch.zeros(1, 1, 5))
    torch.testing.assert_close(values, codebook(z).codewords)
    torch.testing.assert_close(same, values)
    noise = -torch.log(-torch.log(torch.rand(1, 20_000, 5)))
    drawn, _ = codebook.sample(z.expand(1, 20_000, 4).clone(), 0.5, noise)
    codes = (drawn[0].unsqueeze(1) - codebook.weight).norm(dim=-1).argmin(-1)
    share = np.bincount(codes.numpy(), minlength=5) / 20_000
    distance = (z[0] - codebook.weight).square().sum(-1).detach()
    np.testing.assert_allclose(share, torch.softmax(-distance / 2, dim=0).numpy(), atol=0.015)


def test_gumbel_reaches_the_codewords_by_the_first_value_alone() -> None:
    codebook = LearnedCodebook(5, 4, "euclidean")
    z = torch.randn(2, 3, 4, requires_grad=True)
    noise = -torch.log(-torch.log(torch.rand(2, 3, 5)))
    reaching, detached = codebook.sample(z, 1.0, noise)
    detached.square().sum().backward()
    assert codebook.weight.grad is None
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    reaching.square().sum().backward()
    assert codebook.weight.grad is not None
    assert codebook.weight.grad.abs().sum() > 0


def test_moving_averages_against_numpy() -> None:
    """Two batches: decayed sums over decayed counts; a codeword without any stays."""
    codebook = LearnedCodebook(4, 2, "euclidean")
    start = codebook.weight.detach().clone()
    averages = MovingAverages(codebook, 0.9)
    sums, counts = np.zeros((4, 2)), np.zeros(4)
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        rows, codes = rng.normal(size=(30, 2)), rng.integers(0, 3, 30)
        batch_sums = np.stack([rows[codes == code].sum(0) for code in range(4)])
        batch_counts = np.bincount(codes, minlength=4)
        sums, counts = 0.9 * sums + 0.1 * batch_sums, 0.9 * counts + 0.1 * batch_counts
        averages.move(codebook, torch.tensor(batch_counts), torch.tensor(batch_sums, dtype=torch.float32))
    np.testing.assert_allclose(codebook.weight[:3].detach().numpy(), sums[:3] / counts[:3, None], rtol=1e-5)
    assert torch.equal(codebook.weight[3], start[3])
    averages.forget(torch.tensor([False, True, False, False]))
    assert averages.counts[1] == 0
    assert averages.sums[1].abs().sum() == 0


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_k_means_finds_planted_clusters(metric: str) -> None:
    """Six far clusters of 50 rows: each center is a mean of one, whatever the start."""
    generator = torch.Generator().manual_seed(0)
    centers = 10 * torch.eye(6)
    rows = centers.repeat(50, 1) + 0.1 * torch.randn(300, 6, generator=generator)
    found = k_means(rows, 6, metric, generator, iterations=30)  # type: ignore[arg-type]
    codes = torch.cdist(rows, found).argmin(1)
    assert int((count_codes(codes, 6) > 0).sum()) == len(found.unique(dim=0)) == 6
    nearest = torch.cdist(centers, found).min(1).values
    assert (nearest < 0.2).sum() >= 5  # Lloyd's algorithm may split one and join two


def test_k_means_with_fewer_rows_than_clusters_gives_different_centers() -> None:
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    found = k_means(rows, 8, "euclidean", torch.Generator().manual_seed(0))
    assert found.shape == (8, 4)
    assert len(found.unique(dim=0)) == 8
    assert {tuple(row) for row in rows.tolist()} <= {tuple(row) for row in found.tolist()}
