"""Candidates as continuations of a prompt, token by token: where they begin, where they part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EncodedCandidates:
    """A prompt with each of its candidates, as tokens.

    A text is cut into tokens as a whole, for a tokenizer may join the end of the prompt and the beginning of
    a candidate. The candidate's tokens are those that reach into it.

    Attributes:
        prefix: tokens that all the texts begin with, none of them a candidate's; one or more.
        rests: the other tokens of each text, one or more.
        starts: how many of them belong to the prompt alone.
    """

    prefix: list[int]
    rests: list[list[int]]
    starts: list[int]

    @property
    def sizes(self) -> tuple[int, int]:
        """Tokens that come first, and of the longest rest."""
        return len(self.prefix), max(len(rest) for rest in self.rests)

    @property
    def num_tokens(self) -> tuple[int, ...]:
        """Tokens of each candidate."""
        return tuple(len(rest) - start for rest, start in zip(self.rests, self.starts, strict=True))


def encode_candidates(
    tokenize: Callable[..., Any], prompt: str, candidates: Sequence[str]
) -> EncodedCandidates:
    """Cut a prompt with each candidate into tokens.

    Args:
        tokenize: a fast tokenizer that gives offsets and marks special tokens.
        prompt: what all the texts begin with.
        candidates: one or more, none of them empty.

    Raises:
        ValueError: no candidate, an empty one, or nothing before the first token of one.
    """
    if not candidates or not all(candidates):
        raise ValueError(f"expected one or more candidates that are not empty, got {list(candidates)}")
    rows, starts = [], []
    for candidate in candidates:
        encoding = tokenize(prompt + candidate)
        ids, offsets = without_end(encoding), encoding["offset_mapping"]
        rows.append(ids)
        starts.append(next(place for place in range(len(ids)) if offsets[place][1] > len(prompt)))
    shared = _shared_length(rows, min(starts))
    if shared == 0:
        raise ValueError(f"the prompt {prompt[:40]!r} leaves no token to come before the candidates")
    return EncodedCandidates(
        rows[0][:shared], [row[shared:] for row in rows], [start - shared for start in starts]
    )


def without_end(encoding: Any) -> list[int]:
    """Return the tokens of a text, less those with which some tokenizers end every text."""
    ids: list[int] = encoding["input_ids"]
    end = len(ids)
    while end > 1 and encoding["special_tokens_mask"][end - 1]:  # alone, it begins an empty text
        end -= 1
    return ids[:end]


def _shared_length(rows: Sequence[Sequence[int]], most: int) -> int:
    """Return how many tokens all rows begin with, at most so many."""
    for place in range(most):
        if any(row[place] != rows[0][place] for row in rows):
            return place
    return most


class Trie:
    """Which token may come next when nothing but one of the candidates may come.

    Args:
        rests: the tokens of each candidate; of two that are equal the first is meant.
        end: the token that ends a text; None where there is none.
    """

    def __init__(self, rests: Sequence[Sequence[int]], end: int | None) -> None:
        self._rests, self._end = [tuple(rest) for rest in rests], end

    def allowed(self, written: Sequence[int]) -> list[int]:
        """Return the tokens that may follow; none where the candidate is complete.

        A candidate that another one begins with competes with it as the end of the text.
        """
        size, begun = len(written), tuple(written)
        fits = [rest for rest in self._rests if rest[:size] == begun]
        following = sorted({rest[size] for rest in fits if len(rest) > size})
        if following and self._end is not None and begun in fits:
            following.append(self._end)
        return following

    def candidate(self, written: Sequence[int]) -> int:
        """Return which candidate was written, the token that ends a text aside."""
        row = tuple(written)
        if row not in self._rests:
            row = row[:-1]
        return self._rests.index(row)


class PlaceUnion:
    """Which token may come next where each place allows whatever any candidate has there.

    V2L's code decodes so (Zhu et al. 2024): parts of several names may follow each other, and no end is written.

    Args:
        rests: the tokens of each candidate.
    """

    def __init__(self, rests: Sequence[Sequence[int]]) -> None:
        self._rests = rests

    def allowed(self, written: Sequence[int]) -> list[int]:
        """Return the tokens that may follow; none behind the longest candidate."""
        return sorted({rest[len(written)] for rest in self._rests if len(rest) > len(written)})


def choose_by_scores(tokens: Sequence[Sequence[str]], log_probabilities: Sequence[Sequence[float]]) -> int:
    """Return the candidate that greedy choice would write, from the scores of all candidates' tokens.

    Greedy choice walks down the tree of the texts' tokens, to the likeliest at each fork; the scores of all
    of them are enough to walk it afterwards. Where a candidate ends and another goes on, the likelihood of an
    end is not known: the longer one is taken where its next token is likelier than all else together.

    Args:
        tokens: the tokens of each text, prompt and candidate.
        log_probabilities: ln p of each token given all that is before it.
    """
    left, depth = list(range(len(tokens))), 0
    while True:
        ended = [row for row in left if len(tokens[row]) == depth]
        left = [row for row in left if len(tokens[row]) > depth]
        if ended and (not left or max(log_probabilities[row][depth] for row in left) <= math.log(0.5)):
            return ended[0]
        best = max(left, key=lambda row: log_probabilities[row][depth])
        left = [row for row in left if tokens[row][depth] == tokens[best][depth]]
        depth += 1
