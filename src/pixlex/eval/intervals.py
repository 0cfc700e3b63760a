"""How sure a share is."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # two-sided 95 % of a normal distribution
_ROUNDING = 1e-9


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of independent trials (Wilson 1927).

    With shared credits the share is a mean of numbers in [0, 1], whose variance is at most that of right and
    wrong with the same mean: the interval is then too wide, never too narrow. It knows the draw of the trials
    alone: images and classes that are the same in all of them are not in it.

    Args:
        share: share of right ones, or mean credit, in [0, 1].
        count: trials, 1 or more.

    Returns:
        The bounds, between which the share itself always lies: 0 % begins at 0 and 100 % ends at 1.

    Raises:
        ValueError: no trials, or no share.
    """
    if count < 1 or not -_ROUNDING <= share <= 1 + _ROUNDING:
        raise ValueError(f"expected a share in [0, 1] of 1 or more trials, got {share} of {count}")
    share = min(1.0, max(0.0, share))  # means of many numbers are rounded
    center = share + _Z**2 / (2 * count)
    spread = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    scale = 1 + _Z**2 / count
    # At the ends of the scale the share is a bound, which rounding would put on its wrong side.
    return min(share, max(0.0, (center - spread) / scale)), max(share, min(1.0, (center + spread) / scale))
