"""The 95 % interval of a share: where it lies, and that the share lies in it."""

from __future__ import annotations

from itertools import product

import pytest

from pixlex.eval.intervals import wilson_interval


def test_a_textbook_value() -> None:
    """81 of 263 (Newcombe 1998, table I)."""
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize(("share", "count"), product((0.0, 1.0), (1, 2, 3, 7, 40, 100, 500, 5000, 10**6)))
def test_nothing_and_all_right(share: float, count: int) -> None:
    low, high = wilson_interval(share, count)
    assert (low if share == 0 else high) == share
    assert 0 <= low < high <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 10, 333, 500])
def test_the_share_lies_between_its_bounds(count: int) -> None:
    for right in range(count + 1):
        low, high = wilson_interval(right / count, count)
        assert 0 <= low <= right / count <= high <= 1


def test_a_mean_that_was_rounded() -> None:
    assert wilson_interval(1 + 2e-16, 9) == wilson_interval(1.0, 9)
    assert wilson_interval(-2e-16, 9) == wilson_interval(0.0, 9)


@pytest.mark.parametrize(("share", "count"), [(0.5, 0), (1.1, 5), (-0.1, 5), (float("nan"), 5)])
def test_what_is_no_share(share: float, count: int) -> None:
    with pytest.raises(ValueError, match="expected a share"):
        wilson_interval(share, count)
