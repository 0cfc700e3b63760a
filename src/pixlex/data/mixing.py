"""Several sets of images with captions as one, in given proportions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from pixlex.data.captioned import PairSource
from pixlex.data.sources import concatenate, subset

# A set that is taken more often than this was given a weight by mistake.
_MAX_REPEATS = 1000
_SUBSET_SEED = 2208


def mix(name: str, sources: Sequence[PairSource], weights: Sequence[float]) -> PairSource:
    """Return the rows of all sets, each set as often as its weight says.

    Weights are divided by the smallest: a set of weight 1 comes once, one of weight 2.5 twice and then half
    of it, which half is drawn once and for all. Rows of a repeated image share `image_of`.

    Args:
        name: what to call the mixture.
        sources: the sets; images of different sets count as different.
        weights: above 0; only their proportions matter.

    Raises:
        ValueError: if a set would come more than 1000 times.
    """
    if len(sources) == 1:
        return sources[0]
    smallest = min(weights)
    if max(weights) > _MAX_REPEATS * smallest:
        raise ValueError(
            f"the weights of sets may differ by a factor of {_MAX_REPEATS}, got {smallest:g} and {max(weights):g}"
        )
    rows = [
        _rows(len(source), weight / smallest, number)
        for number, (source, weight) in enumerate(zip(sources, weights, strict=True))
    ]
    parts = [subset(source.images, taken) for source, taken in zip(sources, rows, strict=True)]
    places = [(source, row) for source, taken in zip(sources, rows, strict=True) for row in taken.tolist()]
    has_ids = any(source.ids for source in sources)
    return PairSource(
        concatenate(name, parts),
        tuple(source.captions[row] for source, row in places),
        tuple(source.image_id(row) for source, row in places) if has_ids else (),
        tuple(key for source in sources for key in source.ignored),
    )


def _rows(size: int, times: float, number: int) -> Int64[np.ndarray, " rows"]:
    """Return all rows, repeated, and a fixed subset for the fraction; the rows of a whole set are in order."""
    repeats = int(times)
    rest = round((times - repeats) * size)
    subset = np.random.default_rng((_SUBSET_SEED, number)).choice(size, rest, replace=False)
    return np.concatenate([np.tile(np.arange(size), repeats), np.sort(subset)]).astype(np.int64)
