"""What a search finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pixlex.batch import Skipped

Score = Literal["matching", "matching+contrastive"]
SCORES: tuple[Score, ...] = ("matching", "matching+contrastive")


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        rank: 1 for the best.
        key: the stable name of the image inside its source.
        similarity: cosine of its vector and the query's, in [-1, 1].
        matching: what the second stage ranked it by, a logit (with `matching+contrastive` plus the similarity);
            None where it was not looked at. Those that were stand first.
    """

    rank: int
    key: str
    similarity: float
    matching: float | None


@dataclass(frozen=True)
class SearchResult:
    """What one query found.

    Attributes:
        hits: the best first.
        skipped: candidates that could not be read again for the second stage; they are ranked by their vectors,
            behind those that were.
    """

    hits: tuple[Hit, ...]
    skipped: tuple[Skipped, ...] = ()
