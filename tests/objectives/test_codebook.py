"""Maintenance of learned codebooks: moving averages and clustering against slow references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pixlex.nn.codebook import LearnedCodebook, count_codes
from pixlex.objectives.codebook import MovingAverages, k_means


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
