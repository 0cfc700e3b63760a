"""Which codewords can be nearest: products in low precision, with an error bound that is never exceeded.

Both metrics become one product. A row x and a codeword y have, in exact arithmetic, the score

    cosine     x = z / |z|,  y = e / |e|,  s = x . y
    euclidean  x = z - c,    y = e - c,    s = x . y - |y|^2 / 2    where c is the mean codeword

and the nearest codeword has the largest, for |z - e|^2 = |x|^2 - 2 s. The score S that comes out of rounded
vectors x' and y' is off by at most

    |S - s| <= radius + u |S|,    radius = |x - x'| |y| + |x'| |y - y'| + rounding of float32 sums,

by Cauchy-Schwarz, with u the rounding of the result itself. Hence a codeword whose upper bound stays below
the k-th best lower bound is none of the k nearest. Those that remain, a few per row, are compared in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pixlex.batch import NotFinite

BLOCK = 2048  # codewords compared at a time
GROUP = 64  # codewords whose best score is looked at before their own; divides BLOCK
ROW_MULTIPLE = 128  # rows of a product: oneDNN keeps about 1 MB for every shape it has met
STRIPE = 512  # codewords rounded at a time: their copies stay in the cache

_SINGLE = 2.0**-24  # rounding of float32, relative
_BFLOAT = 2.0**-8  # rounding of bfloat16, relative
_SECOND_ORDER = 1.01  # products of two roundings, and the rounding of the bounds themselves
_TINY = 1e-30  # below it float32 underflows: such rows keep every codeword and go to float64


@dataclass(frozen=True)
class CodewordBlock:
    """Some codewords as they enter the product; zeros fill the last group.

    Attributes:
        start: code of the first.
        size: how many.
        rounded: y', under `euclidean` with three more columns that hold -|y|^2 / 2.
        norm: |y| of each.
        residual: |y - y'| of each.
        excluded: codewords without direction, under `cosine`; None where there is none.
    """

    start: int
    size: int
    rounded: Tensor
    norm: Tensor
    residual: Tensor
    excluded: Tensor | None


@dataclass(frozen=True)
class Candidates:
    """Codewords that can be among the nearest, sorted by row, then by code.

    Attributes:
        rows: row of each candidate.
        codes: code of each candidate.
        lost: rows with too many candidates, or whose scores overflowed: they have none here (N,).
    """

    rows: Tensor
    codes: Tensor
    lost: Tensor


def low_precision(device: torch.device) -> torch.dtype:
    """Return the precision of the fastest products: bfloat16 where the processor has it, else float32."""
    if device.type == "cpu" and torch.backends.mkldnn.enabled:
        has = torch.cpu.get_capabilities()
        if has.get("amx_bf16") or has.get("avx512_bf16"):
            return torch.bfloat16
    return torch.float32


def sum_rounding(width: int) -> float:
    """Return the rounding of norms, of x and y themselves, and of a float32 sum of D products in any order."""
    return 4 * (width + 16) * _SINGLE


def score_radius(
    x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], rounding: float, with_offset: bool
) -> Tensor:
    """Return how far scores can be off, as the module says.

    Args:
        x: |x| and |x - x'|, in shapes that broadcast with those of y.
        y: |y| and |y - y'|.
        rounding: of sums, relative; see `sum_rounding`.
        with_offset: whether |y|^2 / 2 is part of the score, as under `euclidean`.
    """
    (x_norm, x_residual), (norm, residual) = x, y
    sums = rounding * norm
    radius: Tensor = x_norm * (residual + sums) + x_residual * (norm + residual)
    if with_offset:
        radius = radius + sums * norm
    return radius.mul(_SECOND_ORDER).add(_TINY)


def mean_codeword(codebook: Tensor) -> Tensor:
    """Return the mean row in float32, block by block: a half-precision codebook is never copied whole."""
    total = torch.zeros(codebook.shape[1], device=codebook.device)
    for start in range(0, len(codebook), BLOCK):
        block = codebook[start : start + BLOCK]
        total += block.float().mean(0) * (len(block) / len(codebook))
    # Any center is right; one that overflowed would make every score meaningless.
    return torch.where(torch.isfinite(total), total, 0.0)


def codeword_blocks(codebook: Tensor, center: Tensor | None, dtype: torch.dtype) -> Iterator[CodewordBlock]:
    """Round the codebook block by block.

    Args:
        codebook: codewords (K, D).
        center: c under `euclidean`; None under `cosine`.
        dtype: bfloat16 or float32.

    Raises:
        NotFinite: a codeword holds a value that is not finite.
    """
    width, device = codebook.shape[1], codebook.device
    exact = dtype == torch.float32
    vectors, rests = torch.empty(2, 0 if exact else STRIPE, width, device=device).unbind()
    for start in range(0, len(codebook), BLOCK):
        block = codebook[start : start + BLOCK]
        padded = -(-len(block) // GROUP) * GROUP
        rounded = torch.zeros(padded, width + (0 if center is None else 3), dtype=dtype, device=device)
        norm, residual = torch.zeros(2, padded, device=device).unbind()
        excluded = torch.zeros(len(block), dtype=torch.bool, device=device)
        for first in range(0, len(block), STRIPE):
            part = slice(first, min(first + STRIPE, len(block)))
            raw = block[part].float()
            y = rounded[part, :width] if exact else vectors[: len(raw)]
            if center is None:
                excluded[part] = unit_rows(raw, out=y)
                norm[part] = 1.0
            else:
                torch.sub(raw, center, out=y)
                norm[part] = torch.linalg.vector_norm(y, dim=1)
                _write_offset(rounded[part, width:], norm[part].square() / -2)
            if exact:  # nothing was rounded: 0, or NaN where a value is not finite
                residual[part] = 0 * torch.linalg.vector_norm(y, dim=1)
            else:
                rounded[part, :width] = y
                rest = rests[: len(raw)].copy_(rounded[part, :width])
                residual[part] = torch.linalg.vector_norm(rest.sub_(y), dim=1)
        if not torch.isfinite(residual).all():
            _require_finite(block, start)
        yield CodewordBlock(start, len(block), rounded, norm, residual, excluded if excluded.any() else None)


def unit_rows(vectors: Tensor, out: Tensor) -> Tensor:
    """Write rows divided by their norm into `out`; return which rows have none: they become 0."""
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    torch.div(vectors, norm, out=out)
    without = torch.zeros(len(vectors), dtype=torch.bool, device=vectors.device)
    # Squares of such values leave the range of float32, though the values do not.
    odd = ~((norm > 1e-15) & (norm < 1e15))[:, 0]
    if odd.any():
        exact = vectors[odd].double()
        norm = torch.linalg.vector_norm(exact, dim=1, keepdim=True)
        out[odd] = torch.where(norm == 0, 0.0, exact / norm).float()
        without[odd] = norm[:, 0] == 0
    return without


def _write_offset(columns: Tensor, offset: Tensor) -> None:
    """Split an offset into three columns: three bfloat16 hold the 24 bits of a float32."""
    for column in columns.unbind(1):
        column.copy_(offset)
        offset = offset - column.float()


def _require_finite(block: Tensor, start: int) -> None:
    """Raise if a codeword is to blame, and not only the range of float32."""
    finite = torch.isfinite(block).all(1)
    if not finite.all():
        code = start + int((~finite).nonzero()[0, 0])
        raise NotFinite(f"codebook: expected finite values, got others in codeword {code}")


class Screening:
    """Bounds of the scores of some rows against every codeword.

    Args:
        x: the rows, as the module says (N, D); rows that are 0 get lost.
        with_offset: whether codewords carry an offset in three more columns, as under `euclidean`.
        dtype: precision of the product.
    """

    def __init__(self, x: Tensor, with_offset: bool, dtype: torch.dtype) -> None:
        num_rows, width = x.shape
        padded = -(-num_rows // ROW_MULTIPLE) * ROW_MULTIPLE
        self.num_rows = num_rows
        self.with_offset = with_offset
        self.rounded = torch.zeros(padded, width + (3 if with_offset else 0), dtype=dtype, device=x.device)
        self.rounded[:num_rows, :width] = x
        self.rounded[:, width:] = 1
        self.norm, self.residual = torch.zeros(2, padded, device=x.device).unbind()
        self.norm[:num_rows] = torch.linalg.vector_norm(x, dim=1)
        if dtype != x.dtype:
            self.residual[:num_rows] = torch.linalg.vector_norm(x - self.rounded[:num_rows, :width], dim=1)
        self.scores = self.rounded.new_empty(BLOCK, padded)
        self.result_rounding = _BFLOAT if dtype == torch.bfloat16 else 0.0
        self.sum_rounding = sum_rounding(width)
        if dtype == torch.float32 and _float32_products_are_rounded(x.device):
            self.sum_rounding += 2 * _BFLOAT

    def radius(self, norm: Tensor, residual: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return how far scores can be off before their own rounding.

        Args:
            norm: |y| of codewords, in a shape that broadcasts with that of the rows.
            residual: |y - y'|, likewise.
            rows: which rows.
        """
        return score_radius(
            (self.norm[rows], self.residual[rows]), (norm, residual), self.sum_rounding, self.with_offset
        )

    def candidates(self, blocks: Iterable[CodewordBlock], top_k: int, limit: int) -> Candidates:
        """Return every codeword that can be among the `top_k` nearest.

        Args:
            blocks: the codebook.
            top_k: how many of the nearest are wanted.
            limit: a row with more candidates is lost.
        """
        padded, device = self.rounded.shape[0], self.rounded.device
        lost = torch.arange(padded, device=device) >= self.num_rows
        floor = torch.full((top_k, padded), -torch.inf, device=device)
        rows = torch.empty(0, dtype=torch.long, device=device)
        codes, ceilings = rows, floor.new_empty(0)
        for block in blocks:
            groups = self._product(block).view(-1, GROUP, padded)
            peaks = groups.amax(1).float()
            norm, residual = block.norm.view(-1, GROUP), block.residual.view(-1, GROUP)
            spread = self.radius(norm.amax(1, keepdim=True), residual.amax(1, keepdim=True))
            spread += self.result_rounding * peaks.abs()
            floor = _largest(torch.cat([floor, _largest(peaks - spread, top_k)]), top_k)
            # NaN and infinity say that something overflowed; -infinity, that there was no codeword yet.
            lost |= ~(floor[-1] < torch.inf)
            reached = (peaks + spread >= floor[-1]) & ~lost
            lost |= reached.sum(0) > limit
            group, row = (reached & ~lost).nonzero(as_tuple=True)
            scores = groups[group, :, row].float()
            spread = self.radius(norm[group], residual[group], row[:, None])
            spread += self.result_rounding * scores.abs()
            which, member = (scores + spread >= floor[-1, row, None]).nonzero(as_tuple=True)
            rows = torch.cat([rows, row[which]])
            codes = torch.cat([codes, block.start + group[which] * GROUP + member])
            ceilings = torch.cat([ceilings, (scores + spread)[which, member]])
            keep = (ceilings >= floor[-1, rows]) & ~lost[rows]
            rows, codes, ceilings = rows[keep], codes[keep], ceilings[keep]
            lost |= torch.bincount(rows, minlength=padded) > limit
        keep = ~lost[rows]
        rows, codes = rows[keep], codes[keep]
        # Codes ascend from block to block, not inside a block.
        order = torch.argsort(codes)
        order = order[torch.argsort(rows[order], stable=True)]
        return Candidates(rows[order], codes[order], lost[: self.num_rows])

    def _product(self, block: CodewordBlock) -> Tensor:
        """Return the scores S (padded size, N) of a block, -infinity where there is no codeword."""
        scores = torch.mm(block.rounded, self.rounded.t(), out=self.scores[: len(block.rounded)])
        scores[block.size :] = -torch.inf
        if block.excluded is not None:
            scores[: block.size][block.excluded] = -torch.inf
        return scores


def _largest(values: Tensor, top_k: int) -> Tensor:
    """Return the `top_k` largest of each column, or all if there are fewer, the last of them the smallest."""
    if top_k == 1:
        return values.amax(0, keepdim=True)
    return values.topk(min(top_k, len(values)), dim=0).values


def _float32_products_are_rounded(device: torch.device) -> bool:
    """Whether the user let float32 products be computed from rounded factors."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return bool(backend.matmul.fp32_precision not in ("ieee", "none"))
