"""Images found by texts or by images, over an index that is brought up to date as pictures come and go."""

from __future__ import annotations

from pixlex.search.index import Hit, ImageIndex, Score, SearchResult
from pixlex.search.store import DamagedIndex, Head, read_head
from pixlex.search.update import UpdateResult

__all__ = [
    "DamagedIndex",
    "Head",
    "Hit",
    "ImageIndex",
    "Score",
    "SearchResult",
    "UpdateResult",
    "read_head",
]
