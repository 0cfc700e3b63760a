"""The exact nearest codeword of every vector, in memory that does not grow with the codebook."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixlex.batch import NotFinite
from pixlex.nn.candidates import (
    BLOCK,
    Candidates,
    CodewordBlock,
    Screening,
    codeword_blocks,
    low_precision,
    mean_codeword,
    unit_rows,
)
from pixlex.nn.comparison import Compared, Metric, compare_all, compare_pairs
from pixlex.nn.fused import FusedCodebook, available, fused_nearest

__all__ = ["Metric", "PreparedCodebook", "nearest_codeword", "nearest_codewords"]

_ROWS = 2048  # rows compared with a whole block at a time
_ROWS_IN_DOUBLE = 256  # the same in float64
_PAIRS = 256  # candidates compared in float64 at a time


class PreparedCodebook:
    """A codebook that does not change, rounded once instead of at every search.

    Holds the codebook and its rounded copy: K D 2 bytes where the processor multiplies bfloat16 (AVX-512 BF16
    or AMX), 77 MB for RoBERTa's 50,265 x 768; K D 4 bytes elsewhere.

    Args:
        codebook: codewords, finite; not to be changed in place afterwards.
        metric: the metric of all its searches.

    Raises:
        ValueError: an empty codebook, or an unknown metric.
        NotFinite: a codeword holds values that are not finite.
    """

    def __init__(self, codebook: Float[Tensor, "K D"], metric: Metric = "cosine") -> None:
        _check_codebook(codebook, metric)
        self.codebook = codebook.detach()
        self.metric: Metric = metric
        self._version = self._current_version()
        with torch.no_grad(), torch.autocast(codebook.device.type, enabled=False):
            self._search = _Search.over(self.codebook, metric)
            if available(codebook.device):
                self._search.fused = FusedCodebook.over(self.codebook, self._search.center)
            else:
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
                f"metric: expected {self.metric!r}, as the codebook was prepared, got {metric!r}"
            )
        if self._current_version() != self._version:
            raise ValueError("codebook: expected it as it was prepared, got it changed in place")
        return self._search

    def _current_version(self) -> int:
        return 0 if self.codebook.is_inference() else self.codebook._version


def nearest_codeword(
    z: Float[Tensor, "N D"], codebook: Float[Tensor, "K D"] | PreparedCodebook, metric: Metric = "cosine"
) -> Int[Tensor, " N"]:
    """Return the code of the nearest codeword of each vector.

    On a GPU of compute capability 8.0 or more one kernel does it (`pixlex.nn.fused_nearest`) and the host does
    not wait for it: there values that are not finite are not looked for.

    argmax_k z . e_k / |e_k| (cosine) or argmin_k |z - e_k| (euclidean): LQAE, section 3.2, and van den Oord
    et al. 2017, equation 1. The released LQAE code searches approximately on its accelerators; this is exact.
    `nearest_codewords` says what holds of ties, zero vectors and memory.

    Args:
        z: vectors to be quantized, finite; any float dtype, rounded to float32.
        codebook: codewords, finite, or a `PreparedCodebook`.
        metric: `cosine` or `euclidean`.

    Returns:
        Codes in [0, K), int64.

    Raises:
        ValueError, NotFinite: as `nearest_codewords`.
    """
    if not available(z.device):
        return nearest_codewords(z, codebook, metric, 1)[:, 0]
    plain = _plain(codebook, metric)
    _check_shapes(z, plain, 1)
    with torch.no_grad(), torch.autocast("cuda", enabled=False):
        search = _search(codebook, plain, metric)
        return fused_nearest(z.detach().float(), search.fused or FusedCodebook.over(plain, search.center))


def nearest_codewords(
    z: Float[Tensor, "N D"],
    codebook: Float[Tensor, "K D"] | PreparedCodebook,
    metric: Metric = "cosine",
    top_k: int = 1,
) -> Int[Tensor, "N k"]:
    """Return the codes of the nearest codewords of each vector, nearest first.

    Exact: candidates found in low precision under an error bound (`pixlex.nn.candidates`) are compared in
    float64. Codewords equally near to within float64 rounding are a tie: the lower code comes first. Under
    `cosine` a codeword of norm 0 has no direction and is left out; a vector z of norm 0 is equally near to
    all others. Memory beyond arguments and result stays below 100 MB for any N and K at D = 768. No gradient;
    autocast is switched off.

    Args:
        z: vectors to be quantized, finite; any float dtype, rounded to float32.
        codebook: codewords, finite, or a `PreparedCodebook`.
        metric: `cosine` or `euclidean`.
        top_k: how many, in [1, K].

    Returns:
        Codes in [0, K), int64.

    Raises:
        ValueError: an empty codebook; widths or devices that differ; an unknown metric, or another one than
            the codebook was prepared for; `top_k` below 1 or above the number of codewords (under `cosine`, of
            those with a direction).
        NotFinite: vectors or codewords hold values that are not finite.
    """
    plain = _plain(codebook, metric)
    _check_vectors(z, plain, top_k)
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        search = _search(codebook, plain, metric)
        codes = torch.empty(len(z), top_k, dtype=torch.long, device=z.device)
        for start in range(0, len(z), _ROWS):
            rows = slice(start, start + _ROWS)
            codes[rows] = search.nearest(z.detach()[rows].float(), top_k)
        return codes


@dataclass
class _Search:
    """A codebook, and how it is searched.

    Attributes:
        codebook: the codewords as they were given.
        metric: the metric.
        center: what both sides are taken relative to under `euclidean`; None under `cosine`.
        dtype: precision of the first comparison.
        stored: rounded blocks in that precision; None to make them anew each time.
        fused: the codebook as the kernels of a GPU read it; None to make it anew each time.
    """

    codebook: Tensor
    metric: Metric
    center: Tensor | None
    dtype: torch.dtype
    stored: tuple[CodewordBlock, ...] | None = None
    fused: FusedCodebook | None = None

    @classmethod
    def over(cls, codebook: Tensor, metric: Metric) -> _Search:
        center = mean_codeword(codebook) if metric == "euclidean" else None
        return cls(codebook, metric, center, low_precision(codebook.device))

    def blocks(self, dtype: torch.dtype) -> Iterable[CodewordBlock]:
        if self.stored is not None and dtype == self.dtype:
            return self.stored
        return codeword_blocks(self.codebook, self.center, dtype)

    def nearest(self, z: Tensor, top_k: int) -> Tensor:
        """Return codes (n, top_k): all rows in low precision, then those that got lost in the next higher."""
        codes = torch.empty(len(z), top_k, dtype=torch.long, device=z.device)
        x = torch.empty_like(z)
        if self.center is None:
            without_direction = unit_rows(z, out=x)
            if without_direction.any():
                codes[without_direction] = self._among_all(torch.zeros_like(z[:1]), top_k)
            pending = (~without_direction).nonzero()[:, 0]
        else:
            torch.sub(z, self.center, out=x)
            pending = torch.arange(len(z), device=z.device)
        for dtype in dict.fromkeys((self.dtype, torch.float32)):
            if len(pending) == 0:
                return codes
            screening = Screening(_rows(x, pending), self.metric == "euclidean", dtype)
            candidates = screening.candidates(self.blocks(dtype), top_k, limit=32 + 4 * top_k)
            del screening  # and its buffer of scores
            found = ~candidates.lost
            codes[pending[found]] = self._among(candidates, _rows(z, pending), top_k)[found]
            pending = pending[candidates.lost]
        if len(pending):
            codes[pending] = self._among_all(z[pending], top_k)
        return codes

    def _among(self, candidates: Candidates, z: Tensor, top_k: int) -> Tensor:
        """Return the nearest candidates (n, top_k) of each row; those of lost rows mean nothing."""
        rows, codes = candidates.rows, candidates.codes
        counts = torch.bincount(rows, minlength=len(z))
        if (counts[~candidates.lost] < top_k).any():
            raise _too_few(top_k)
        place = torch.arange(len(rows), device=z.device) - (counts.cumsum(0) - counts)[rows]
        compared = Compared.empty(len(z), max(int(counts.max()), top_k), z.device)
        compared.codes[rows, place] = codes
        compared.scores[rows, place] = 0.0
        # The only candidate of a row needs no score.
        unclear = (counts[rows] > 1).nonzero()[:, 0]
        for start in range(0, len(unclear), _PAIRS):
            some = unclear[start : start + _PAIRS]
            at = rows[some], place[some]
            codewords = self.codebook[codes[some]].float()
            compared.scores[at], compared.tolerance[at] = compare_pairs(z[rows[some]], codewords, self.metric)
        return compared.nearest(top_k)[0]

    def _among_all(self, z: Tensor, top_k: int) -> Tensor:
        """Return the nearest codewords (n, top_k), every one compared in float64, block by block."""
        parts = [slice(start, start + _ROWS_IN_DOUBLE) for start in range(0, len(z), _ROWS_IN_DOUBLE)]
        best = [Compared.empty(len(z[part]), 0, z.device) for part in parts]
        for start in range(0, len(self.codebook), BLOCK):
            block = self.codebook[start : start + BLOCK].float()
            codes = torch.arange(start, start + len(block), device=z.device)
            for number, part in enumerate(parts):
                scores, tolerance = compare_all(z[part], block, self.metric)
                new = Compared(scores, tolerance, codes.expand_as(scores))
                best[number] = best[number].joined(new).kept(top_k)
        nearest = [some.nearest(top_k) for some in best]
        if any(bool((scores == -torch.inf).any()) for _, scores in nearest):
            raise _too_few(top_k)
        return torch.cat([codes for codes, _ in nearest])


def _plain(codebook: Tensor | PreparedCodebook, metric: Metric) -> Tensor:
    """Return the codewords, checked."""
    plain = codebook.codebook if isinstance(codebook, PreparedCodebook) else codebook.detach()
    _check_codebook(plain, metric)
    return plain


def _search(codebook: Tensor | PreparedCodebook, plain: Tensor, metric: Metric) -> _Search:
    """Return how a codebook is searched; what was prepared, if it was."""
    return codebook.search(metric) if isinstance(codebook, PreparedCodebook) else _Search.over(plain, metric)


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """Return some rows, without a copy where they are all."""
    return values if len(rows) == len(values) else values[rows]


def _check_codebook(codebook: Tensor, metric: str) -> None:
    if metric not in get_args(Metric):
        raise ValueError(f"metric: expected one of {', '.join(get_args(Metric))}, got {metric!r}")
    if codebook.ndim != 2 or 0 in codebook.shape or not codebook.is_floating_point():
        got = f"{codebook.dtype} {tuple(codebook.shape)}"
        raise ValueError(f"codebook: expected floats of shape (K, D), K and D at least 1, got {got}")


def _check_shapes(z: Tensor, codebook: Tensor, top_k: int) -> None:
    if z.ndim != 2 or z.shape[1] != codebook.shape[1] or not z.is_floating_point():
        expected = f"(N, {codebook.shape[1]}), as wide as the codebook"
        raise ValueError(f"z: expected floats of shape {expected}, got {z.dtype} {tuple(z.shape)}")
    if z.device != codebook.device:
        raise ValueError(f"z: expected the codebook's device {codebook.device}, got {z.device}")
    if not 1 <= top_k <= len(codebook):
        raise ValueError(f"top_k: expected 1 to {len(codebook)}, the number of codewords, got {top_k}")


def _check_vectors(z: Tensor, codebook: Tensor, top_k: int) -> None:
    _check_shapes(z, codebook, top_k)
    # Norms first, in one pass; they leave the range of a float before its values do.
    if torch.isfinite(torch.linalg.vector_norm(z, dim=1)).all():
        return
    finite = torch.isfinite(z).all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0, 0])
        raise NotFinite(f"z: expected finite values, got others in row {row} of {len(z)}", row)


def _too_few(top_k: int) -> ValueError:
    return ValueError(f"codebook: expected {top_k} or more codewords of norm above 0 for cosine, got fewer")
