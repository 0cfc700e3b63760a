"""Contrast, matching and hard negatives, against the equations written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pixlex.losses.cross_entropy import hard_negatives, image_text_contrastive_loss, image_text_matching_loss


def test_contrast_is_the_cross_entropy_of_both_directions() -> None:
    """One positive each: InfoNCE; equal similarities: ln B."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5, 5)).astype(np.float32)
    same = torch.eye(5, dtype=torch.bool)

    def direction(rows: np.ndarray) -> float:
        logs = rows - np.log(np.exp(rows).sum(1, keepdims=True))
        return float(-np.diag(logs).mean())

    found = image_text_contrastive_loss(torch.tensor(scores), torch.tensor(scores.T), same)
    assert float(found) == pytest.approx((direction(scores) + direction(scores.T)) / 2, rel=1e-5)
    level = image_text_contrastive_loss(torch.zeros(5, 5), torch.zeros(5, 5), same)
    assert float(level) == pytest.approx(math.log(5))


def test_what_is_the_same_shares_the_target() -> None:
    """Two captions of one image: half each; the loss is lowest where both are equally likely."""
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    right = torch.tensor([[9.0, 9.0, 0.0], [9.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    found = float(image_text_contrastive_loss(right, right, same))
    assert found == pytest.approx(2 * math.log(2) / 3, abs=1e-3)
    alone = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    assert float(image_text_contrastive_loss(alone, alone, same)) > found + 1


def test_matching_is_the_cross_entropy_of_two_classes_without_ignored_rows() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [5.0, -5.0]])
    labels = torch.tensor([1, 0, -100])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert float(image_text_matching_loss(logits, labels)) == pytest.approx(expected)


def test_hard_negatives_follow_the_similarities_and_never_the_same() -> None:
    """Shares over many draws are softmax + 1e-4, renormalized without what is the same."""
    similarity = torch.tensor([[5.0, 1.0, 0.0, 2.0]])
    same = torch.tensor([[True, False, False, False]])
    count = 40_000
    chance = (torch.arange(count) + 0.5) / count
    drawn = hard_negatives(similarity.expand(count, 4), same.expand(count, 4), chance)
    weights = torch.softmax(similarity[0], 0) + 1e-4
    weights[0] = 0
    share = np.bincount(drawn.numpy(), minlength=4) / count
    np.testing.assert_allclose(share, (weights / weights.sum()).numpy(), atol=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_hard_negatives_of_broken_similarities_are_drawn_evenly(bad: float) -> None:
    similarity = torch.tensor([[bad, 0.0, 0.0]]).expand(3000, 3)
    same = torch.tensor([[False, True, False]]).expand(3000, 3)
    drawn = hard_negatives(similarity, same, torch.rand(3000, generator=torch.Generator().manual_seed(0)))
    share = np.bincount(drawn.numpy(), minlength=3) / 3000
    np.testing.assert_allclose(share, [0.5, 0, 0.5], atol=0.04)


def test_a_row_whose_columns_are_all_the_same_has_no_negative() -> None:
    same = torch.tensor([[True, True], [True, False]])
    assert hard_negatives(torch.zeros(2, 2), same, torch.tensor([0.999999, 0.999999])).tolist() == [-1, 1]


def test_the_ends_of_chance_stay_within_what_can_be_drawn() -> None:
    same = torch.tensor([[True, False, True]] * 2)
    assert hard_negatives(torch.zeros(2, 3), same, torch.tensor([0.0, 1.0])).tolist() == [1, 1]
