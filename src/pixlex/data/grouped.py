"""Items that speak of the same images, brought together: an image is read and encoded once for several texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from pixlex.data.reasoning import ReasoningSource
from pixlex.data.sources import ImageSource, ImageSubset, subset

# Sets the generator of a group's order apart from those of an epoch's order and of its images.
_ITEMS = 1 << 62


@dataclass(frozen=True)
class Groups:
    """The items of a source by the images that they speak of.

    Attributes:
        images: those of the first group, then those of the second, and so on.
        places: the position of each of these images in the source of the items.
        items: positions of the items, those of a group one after the other.
        ends: where the items of each group end.
    """

    images: ImageSource
    places: Int64[np.ndarray, " images"]
    items: Int64[np.ndarray, " items"]
    ends: Int64[np.ndarray, " groups"]

    def __len__(self) -> int:
        return len(self.ends)

    def taken(self, group: int, turn: int, most: int, seed: int) -> Int64[np.ndarray, " taken"]:
        """Return the items of a group that come at a turn: all in one turn, or so many, the next ones at the next.

        Turns go through the items in an order drawn from (seed, group), round and round: none comes more than once
        more often than another.

        Args:
            group: its number.
            turn: how often the group came before.
            most: items at a turn, 1 or more.
            seed: 0 or more.
        """
        first = int(self.ends[group - 1]) if group else 0
        items = self.items[first : int(self.ends[group])]
        if len(items) <= most:
            return items
        order = np.random.default_rng((seed, group, _ITEMS)).permutation(len(items))
        return items[order[(turn * most + np.arange(most)) % len(items)]]


def group_items(source: ReasoningSource) -> Groups:
    """Bring items of the same images, in the same order, together; groups are in the order of their images."""
    images, together = source.images, source.num_images
    distinct = images.distinct if isinstance(images, ImageSubset) else np.arange(len(images))
    rows = distinct.reshape(-1, together)
    _, first, group, counts = np.unique(
        rows, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    places = (first[:, None] * together + np.arange(together)).ravel().astype(np.int64)
    return Groups(
        images=subset(images, places),
        places=places,
        items=np.argsort(group.ravel(), kind="stable").astype(np.int64),
        ends=np.cumsum(counts).astype(np.int64),
    )
