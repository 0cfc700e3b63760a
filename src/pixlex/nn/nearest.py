"""The exact nearest codeword of every vector, in memory that does not grow with the codebook."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixlex.nn.candidates import (
    BLOCK,
    ROWS,
    Candidates,
    CodewordBlock,
    Metric,
    Screening,
    codeword_blocks,
    low_precision,
    mean_codeword,
    unit_rows,
)

__all__ = ["Metric", "PreparedCodebook", "nearest_codeword", "nearest_codewords"]

_PAIRS = 1024  # candidates compared in float64 at a time
_FEW_ROWS = 256  # rows compared with a whole block in float64 at a time
_DOUBLE = 2.0**-52  # rounding of a float64 sum, relative, for each of its terms


class PreparedCodebook:
    """A codebook that does not change, rounded once instead of at every search.

    Holds the codebook and its rounded copy: K D 2 bytes where the processor multiplies bfloat16 (AVX-512 BF16
    or AMX), 77 MB for RoBERTa's 50,265 x 768; K D 4 bytes elsewhere.

    Args:
        codebook: codewords, finite; not to be changed in place afterwards.
        metric: the metric of all its searches.

    Raises:
        ValueError: an empty codebook, an unknown metric, or values that are not finite.
    """

    def __init__(self, codebook: Float[Tensor, "K D"], metric: Metric = "cosine") -> None:
        _check_codebook(codebook, metric)
        self.codebook = codebook.detach()
        self.metric: Metric = metric
        self._version = self._current_version()
        with torch.no_grad(), torch.autocast(codebook.device.type, enabled=False):
            self._search = _Search.over(self.codebook, metric)
            self._search.stored = tuple(self._search.blocks(self._search.dtype))

    def search(self, metric: Metric) -> _Search:
        """Return the search that was prepared.

        Args:
            metric: the metric that the caller names.

        Raises:
            ValueError: another metric, or a codebook changed in place since it was prepared.
        """
        if metric != self.metric:
            raise ValueError(
                f"metric: expected {self.metric!r}, which the codebook is prepared for, got {metric!r}"
            )
        if self._current_version() != self._version:
            raise ValueError("codebook: expected the one that was prepared, got one changed in place since")
        return self._search

    def _current_version(self) -> int:
        return 0 if self.codebook.is_inference() else self.codebook._version


def nearest_codeword(
    z: Float[Tensor, "N D"], codebook: Float[Tensor, "K D"] | PreparedCodebook, metric: Metric = "cosine"
) -> Int[Tensor, " N"]:
    """Return the code of the nearest codeword of each vector.

    argmax_k z . e_k / |e_k| (cosine) or argmin_k |z - e_k| (euclidean): LQAE, section 3.2, and van den Oord et
    al. 2017, equation 1. The released LQAE code searches approximately on its accelerators; this is exact.
    See `nearest_codewords` for what holds of ties, zero vectors and memory.

    Args:
        z: vectors to be quantized, finite; any float dtype, computed in float32.
        codebook: codewords, finite, or a `PreparedCodebook`.
        metric: `cosine` or `euclidean`.

    Returns:
        Codes in [0, K), int64.

    Raises:
        ValueError: as `nearest_codewords`.
    """
    return nearest_codewords(z, codebook, metric, 1)[:, 0]


def nearest_codewords(
    z: Float[Tensor, "N D"],
    codebook: Float[Tensor, "K D"] | PreparedCodebook,
    metric: Metric = "cosine",
    top_k: int = 1,
) -> Int[Tensor, "N k"]:
    """Return the codes of the nearest codewords of each vector, nearest first.

    Exact: candidates found in low precision under an error bound (`pixlex.nn.candidates`) are compared in
    float64. Codewords equally near to within float64 rounding are a tie, which the lower code wins. Under
    `cosine` a codeword of norm 0 has no direction and is left out, and a vector z of norm 0 is equally near to
    all others. Memory beyond the arguments and the result stays below 100 MB for any N and K at D = 768. No
    gradient; autocast is switched off.

    Args:
        z: vectors to be quantized, finite; any float dtype, computed in float32.
        codebook: codewords, finite, or a `PreparedCodebook`.
        metric: `cosine` or `euclidean`.
        top_k: how many, in [1, K].

    Returns:
        Codes in [0, K), int64.

    Raises:
        ValueError: an empty codebook; widths or devices that differ; an unknown metric, or another one than the
            codebook is prepared for; values that are not finite; `top_k` below 1 or above the number of
            codewords (under `cosine`, of those with a direction).
    """
    plain = codebook.codebook if isinstance(codebook, PreparedCodebook) else codebook
    _check_codebook(plain, metric)
    _check_vectors(z, plain, top_k)
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        if isinstance(codebook, PreparedCodebook):
            search = codebook.search(metric)
        else:
            search = _Search.over(codebook.detach(), metric)
        found = [search.nearest(rows.float(), top_k) for rows in z.detach().split(ROWS)]
        return torch.cat(found) if found else z.new_empty(0, top_k, dtype=torch.long)


@dataclass
class _Search:
    """A codebook, and how it is searched.

    Attributes:
        codebook: the codewords as they were given.
        metric: the metric.
        center: what is subtracted from both sides under `euclidean`; None under `cosine`.
        dtype: precision of the first comparison.
        stored: rounded blocks in that precision; None to make them anew each time.
    """

    codebook: Tensor
    metric: Metric
    center: Tensor | None
    dtype: torch.dtype
    stored: tuple[CodewordBlock, ...] | None = None

    @classmethod
    def over(cls, codebook: Tensor, metric: Metric) -> _Search:
        center = mean_codeword(codebook) if metric == "euclidean" else None
        return cls(codebook, metric, center, low_precision(codebook.device))

    def blocks(self, dtype: torch.dtype) -> Iterable[CodewordBlock]:
        if self.stored is not None and dtype == self.dtype:
            return self.stored
        return codeword_blocks(self.codebook, self.metric, self.center, dtype)

    def nearest(self, z: Tensor, top_k: int) -> Tensor:
        """Return codes (n, top_k) of a few rows: low precision first, the next step for rows that got lost."""
        codes = torch.empty(len(z), top_k, dtype=torch.long, device=z.device)
        x = torch.empty_like(z) if self.center is None else z - self.center
        without = unit_rows(z, out=x) if self.center is None else torch.zeros_like(codes[:, 0], dtype=torch.bool)
        if without.any():
            codes[without] = self.among_all(torch.zeros_like(z[:1]), top_k)
        pending = (~without).nonzero()[:, 0]
        for dtype in dict.fromkeys((self.dtype, torch.float32)):
            if len(pending) == 0:
                return codes
            screening = Screening(x[pending], self.metric, dtype)
            candidates = screening.candidates(self.blocks(dtype), top_k, limit=32 + 4 * top_k)
            found = ~candidates.lost
            codes[pending[found]] = self.among(candidates, z[pending], top_k)[found]
            pending = pending[candidates.lost]
        if len(pending):
            codes[pending] = self.among_all(z[pending], top_k)
        return codes

    def among(self, candidates: Candidates, z: Tensor, top_k: int) -> Tensor:
        """Return the nearest candidates (n, top_k) of each row; those of lost rows mean nothing."""
        rows, codes = candidates.rows, candidates.codes
        counts = torch.bincount(rows, minlength=len(z))
        if (counts[~candidates.lost] < top_k).any():
            raise _too_few(top_k)
        place = torch.arange(len(rows), device=z.device) - (counts.cumsum(0) - counts)[rows]
        scored = _Scored.empty(len(z), max(int(counts.max()), top_k), z.device)
        scored.codes[rows, place] = codes
        scored.scores[rows, place] = 0.0
        # The only candidate of a row needs no score.
        for some in (counts[rows] > 1).nonzero()[:, 0].split(_PAIRS):
            at = rows[some], place[some]
            pair = z[rows[some]].double(), self.codebook[codes[some]].double()
            scored.scores[at], scored.tolerance[at] = _compare_pairs(*pair, self.metric)
        return scored.codes.gather(1, scored.nearest(top_k))

    def among_all(self, z: Tensor, top_k: int) -> Tensor:
        """Return the nearest codewords (n, top_k), every one compared in float64, block by block."""
        best = [_Scored.empty(len(some), 0, z.device) for some in z.split(_FEW_ROWS)]
        for start in range(0, len(self.codebook), BLOCK):
            block = self.codebook[start : start + BLOCK].double()
            codes = torch.arange(start, start + len(block), device=z.device)
            for number, some in enumerate(z.split(_FEW_ROWS)):
                scores, tolerance = _compare_all(some.double(), block, self.center)
                new = _Scored(scores, tolerance, codes.expand_as(scores))
                best[number] = best[number].joined(new).kept(top_k)
        found = [some.codes.gather(1, some.nearest(top_k)) for some in best]
        if any(bool((some.scores == -torch.inf).any()) or some.scores.shape[1] < top_k for some in best):
            raise _too_few(top_k)
        return torch.cat(found)


@dataclass(frozen=True)
class _Scored:
    """Codewords compared with some rows, in the order of their codes; -infinity where there is none (n, c).

    Two scores no further apart than their tolerances are a tie.
    """

    scores: Tensor
    tolerance: Tensor
    codes: Tensor

    @classmethod
    def empty(cls, num_rows: int, num_codes: int, device: torch.device) -> _Scored:
        scores = torch.full((num_rows, num_codes), -torch.inf, dtype=torch.float64, device=device)
        return cls(scores, torch.zeros_like(scores), torch.zeros_like(scores, dtype=torch.long))

    def joined(self, other: _Scored) -> _Scored:
        """Return these codewords and others of higher codes."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Scored(*(torch.cat(pair, 1) for pair in pairs))

    def kept(self, top_k: int) -> _Scored:
        """Return the nearest ones only."""
        places = self.nearest(top_k).sort(1).values
        return _Scored(*(values.gather(1, places) for values in vars(self).values()))

    def nearest(self, top_k: int) -> Tensor:
        """Return the columns of the nearest (n, top_k), nearest first, of equals the lowest code."""
        scores, chosen = self.scores.clone(), []
        for _ in range(min(top_k, scores.shape[1])):
            least = (scores - self.tolerance).amax(1, keepdim=True)
            equal = scores + self.tolerance >= least
            chosen.append(equal.to(torch.uint8).argmax(1, keepdim=True))
            scores.scatter_(1, chosen[-1], -torch.inf)
        return torch.cat(chosen, 1)


def _compare_pairs(z: Tensor, codewords: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """Return the score of each pair of rows and its tolerance (n,)."""
    rounding = (z.shape[1] + 16) * _DOUBLE
    if metric == "cosine":
        norm = torch.linalg.vector_norm(z, dim=1) * torch.linalg.vector_norm(codewords, dim=1)
        scores = (z * codewords).sum(1) / norm
        return scores, torch.full_like(scores, rounding)
    scores = -(z - codewords).square().sum(1)
    return scores, -rounding * scores


def _compare_all(z: Tensor, codewords: Tensor, center: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the scores of all pairs and their tolerances (n, c); cosine where there is no center."""
    rounding = (z.shape[1] + 16) * _DOUBLE
    if center is None:
        norm = torch.linalg.vector_norm(codewords, dim=1)
        z = torch.nn.functional.normalize(z, dim=1, eps=0.0).nan_to_num_(0.0)
        scores = (z @ codewords.T) / norm
        return scores.masked_fill_(norm == 0, -torch.inf), torch.full_like(scores, rounding)
    z, codewords = z - center, codewords - center
    norm = torch.linalg.vector_norm(codewords, dim=1)
    scores = (z @ codewords.T).mul_(2).sub_(norm.square())
    return scores, (torch.linalg.vector_norm(z, dim=1, keepdim=True) * norm).add_(norm.square()).mul_(
        2 * rounding
    )


def _check_codebook(codebook: Tensor, metric: str) -> None:
    """Raise where a codebook or metric cannot be searched."""
    if metric not in get_args(Metric):
        raise ValueError(f"metric: expected one of {', '.join(get_args(Metric))}, got {metric!r}")
    if codebook.ndim != 2 or 0 in codebook.shape or not codebook.is_floating_point():
        shape = tuple(codebook.shape)
        raise ValueError(
            f"codebook: expected floats of shape (K, D), K and D at least 1, got {codebook.dtype} {shape}"
        )


def _check_vectors(z: Tensor, codebook: Tensor, top_k: int) -> None:
    """Raise where vectors cannot be compared with a codebook."""
    if z.ndim != 2 or z.shape[1] != codebook.shape[1] or not z.is_floating_point():
        expected = f"(N, {codebook.shape[1]}), as wide as the codebook"
        raise ValueError(f"z: expected floats of shape {expected}, got {z.dtype} {tuple(z.shape)}")
    if z.device != codebook.device:
        raise ValueError(f"z: expected the codebook's device {codebook.device}, got {z.device}")
    if not 1 <= top_k <= len(codebook):
        raise ValueError(f"top_k: expected 1 to {len(codebook)}, the number of codewords, got {top_k}")
    finite = torch.isfinite(z).all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0, 0])
        raise ValueError(f"z: expected finite values, got others in row {row} of {len(z)}")


def _too_few(top_k: int) -> ValueError:
    return ValueError(
        f"codebook: expected at least {top_k} codewords of a norm above 0 for cosine, got fewer"
    )
