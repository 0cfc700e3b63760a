"""Images found by texts or by images, over an index that is brought up to date as pictures come and go."""

from __future__ import annotations

from pixlex.search.index import ImageIndex
from pixlex.search.parts import DamagedIndex
from pixlex.search.results import Hit, Score, SearchResult
from pixlex.search.store import Head, read_head
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
