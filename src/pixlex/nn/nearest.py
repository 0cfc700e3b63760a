"""The exact nearest codeword of every vector, in memory that does not grow with the codebook.

Both metrics become one product. A row x and a codeword y have, in exact arithmetic, the score

    cosine     x = z / |z|,  y = e / |e|,  s = x . y
    euclidean  x = z - c,    y = e - c,    s = x . y - |y|^2 / 2    where c is the mean codeword

and the nearest codeword has the largest, for |z - e|^2 = |x|^2 - 2 s. The score S that comes out of rounded
vectors x' and y' is off by at most

    |S - s| <= radius + u |S|,    radius = |x - x'| |y| + |x'| |y - y'| + rounding of float32 sums,

by Cauchy-Schwarz, with u the rounding of the result itself. Hence a codeword whose upper bound stays below
the k-th best lower bound is none of the k nearest. Scores are bfloat16 where the device has units for it, else
float32; rows that keep too many candidates go on in float32, then in float64. The candidates of a row are
compared in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from pixlex.nn.transformer import multiplies_bfloat16, where_exact

Metric = Literal["cosine", "euclidean"]

_BLOCK = 2048  # codewords compared at a time
_GROUP = 64  # codewords whose best score is looked at before their own; divides _BLOCK
_STRIPE = 512  # codewords rounded at a time: their copies stay in the cache
_ROWS = {"cpu": 2048, "cuda": 16384}  # rows compared with a block at a time
_ROWS_IN_DOUBLE = 256  # the same in float64
_ROW_MULTIPLE = 64  # rows of a product: oneDNN keeps about 1 MB for every shape it has met
_PAIRS = 256  # candidates compared in float64 at a time

_SINGLE, _BFLOAT, _DOUBLE = 2.0**-24, 2.0**-8, 2.0**-52  # rounding, relative
_SECOND_ORDER = 1.01  # products of two roundings, and the rounding of the bounds themselves
_TINY = 1e-30  # below it float32 underflows: such rows keep every codeword and go to float64


class NotFinite(ArithmeticError):
    """Numbers of a network became infinite or not a number, which a search or a result cannot be made of.

    `row` is the first row concerned, of what the caller gave; None where it is none of those.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class PreparedCodebook:
    """A codebook that does not change, rounded once instead of at every search.

    Args:
        codebook: Codewords, finite; not to be changed in place afterwards.
        store: Whether to keep the rounded copy (K D 4 bytes, 2 in bfloat16) rather than make it at every search.

    Raises:
        ValueError: An empty codebook, or an unknown metric.
        NotFinite: A codeword holds values that are not finite.
    """

    def __init__(
        self, codebook: Float[Tensor, "K D"], metric: Metric = "cosine", *, store: bool = True
    ) -> None:
        if metric not in get_args(Metric):
            raise ValueError(f"metric: expected one of {', '.join(get_args(Metric))}, got {metric!r}")
        if codebook.ndim != 2 or 0 in codebook.shape or not codebook.is_floating_point():
            got = f"{codebook.dtype} {tuple(codebook.shape)}"
            raise ValueError(f"codebook: expected floats of shape (K, D), K and D at least 1, got {got}")
        self.codebook, self.metric = codebook.detach(), metric
        self._searched = where_exact(self.codebook)
        self._version = self._current_version()
        # AVX-512's instructions for bfloat16 are slower than float32.
        screens = multiplies_bfloat16(self._searched.device, ("amx_bf16",))
        self._dtype = torch.bfloat16 if screens else torch.float32
        self._stored: tuple[_Block, ...] | None = None
        with torch.no_grad(), _full_products(self._searched.device):
            self._center: Tensor | None = None
            if metric == "euclidean":
                center = self._searched.mean(0, dtype=torch.float32)
                self._center = torch.where(torch.isfinite(center), center, 0.0)  # any center is right
            if store:
                self._stored = tuple(self._blocks(self._dtype))

    def _current_version(self) -> int:
        return 0 if self.codebook.is_inference() else self.codebook._version

    def _blocks(self, dtype: torch.dtype) -> Iterable[_Block]:
        """The codebook rounded to a precision."""
        if self._stored is not None and dtype == self._dtype:
            return self._stored
        starts = range(0, len(self._searched), _BLOCK)
        return (_Block.of(self._searched[at : at + _BLOCK], at, self._center, dtype) for at in starts)

    def _nearest(self, z: Tensor, top_k: int) -> Tensor:
        """Codes (n, top_k): all rows in low precision, then those that got lost in the next higher."""
        codes = torch.empty(len(z), top_k, dtype=torch.long, device=z.device)
        if self._center is None:
            x = torch.empty_like(z)
            without_direction = _directions(z, torch.linalg.vector_norm(z, dim=1), out=x)
            if without_direction.any():
                codes[without_direction] = self._among_all(torch.zeros_like(z[:1]), top_k)
            pending = (~without_direction).nonzero()[:, 0]
        else:
            x, pending = z - self._center, torch.arange(len(z), device=z.device)
        for dtype in dict.fromkeys((self._dtype, torch.float32)):
            if len(pending) == 0:
                return codes
            rows = _Rows.of(x[pending], self._center is not None, dtype)
            found, lost = rows.candidates(self._blocks(dtype), top_k, limit=32 + 4 * top_k)
            codes[pending[~lost]] = self._among(found, z[pending], lost, top_k)[~lost]
            pending = pending[lost]
        if len(pending):
            codes[pending] = self._among_all(z[pending], top_k)
        return codes

    def _among(self, found: tuple[Tensor, Tensor], z: Tensor, lost: Tensor, top_k: int) -> Tensor:
        """The nearest of the candidates of each row, given as rows and codes; those of lost rows mean nothing."""
        rows, codes = found
        counts = torch.bincount(rows, minlength=len(z))
        if (counts[~lost] < top_k).any():
            raise _too_few(top_k)
        column = torch.arange(len(rows), device=z.device) - (counts.cumsum(0) - counts)[rows]
        compared = _nothing(len(z), max(int(counts.max()), top_k), z.device)
        compared[0, rows, column] = 0.0
        compared[2, rows, column] = codes.double()
        # The only candidate of a row needs no score.
        for some in torch.split((counts[rows] > 1).nonzero()[:, 0], _PAIRS):
            row, codewords = rows[some], self._searched[codes[some]].float()
            scores = _compare(z[row].unsqueeze(1), codewords.unsqueeze(1), self.metric)
            compared[:2, row, column[some]] = scores[..., 0, 0]
        return _nearest_of(compared, top_k)[2].long()

    def _among_all(self, z: Tensor, top_k: int) -> Tensor:
        """The nearest of all codewords, every one compared in float64, block by block."""
        if len(z) > _ROWS_IN_DOUBLE:
            return torch.cat([self._among_all(part, top_k) for part in torch.split(z, _ROWS_IN_DOUBLE)])
        best = _nothing(len(z), 0, z.device)
        for start in range(0, len(self._searched), _BLOCK):
            scores = _compare(z, self._searched[start : start + _BLOCK].float(), self.metric)
            codes = torch.arange(start, start + scores.shape[-1], device=z.device).expand_as(scores[:1])
            best = torch.cat([best, torch.cat([scores, codes.double()])], dim=2)
            best = _nearest_of(best, top_k, by_code=True)
        best = _nearest_of(best, top_k)
        if (best[0] == -torch.inf).any():
            raise _too_few(top_k)
        return best[2].long()


def nearest_codeword(
    z: Float[Tensor, "N D"] | Float[Tensor, "B N D"] | Float[Tensor, "B D H W"],
    codebook: Float[Tensor, "K D"] | PreparedCodebook,
    metric: Metric = "cosine",
) -> Int[Tensor, "..."]:
    """Return the code of the nearest codeword of each vector, of maps (B, H, W); see `nearest_codewords`."""
    vectors = z.movedim(1, -1) if z.ndim == 4 else z
    rows = vectors.flatten(0, -2) if z.ndim > 2 else vectors
    return nearest_codewords(rows, codebook, metric)[:, 0].view(vectors.shape[:-1])


def nearest_codewords(
    z: Float[Tensor, "N D"],
    codebook: Float[Tensor, "K D"] | PreparedCodebook,
    metric: Metric = "cosine",
    top_k: int = 1,
) -> Int[Tensor, "N k"]:
    """Return the codes of the nearest codewords of each vector, nearest first.

    argmax_k z . e_k / |e_k| (cosine) or argmin_k |z - e_k| (euclidean): LQAE, section 3.2, and van den Oord
    et al. 2017, equation 1. The released LQAE code searches approximately on its accelerators; this is exact,
    whatever is searched beside it. Codewords equally near to within float64 rounding are a tie: the lower code
    comes first. Under `cosine` a codeword of norm 0 has no direction and is left out; a vector z of norm 0 is
    equally near to all others. Memory beyond arguments and result stays below 100 MB for any N and K at D = 768
    on a CPU. No gradient; autocast is switched off. The host waits for a GPU; one without float64 has its vectors
    compared on the CPU. Under `torch.export`, whose graphs cannot branch, all is compared in float64.

    Args:
        z: Vectors to be quantized, finite; any float dtype, rounded to float32.
        codebook: Codewords, finite, or a `PreparedCodebook`.
        top_k: How many, in [1, K].

    Raises:
        ValueError: An empty codebook; widths or devices that differ; an unknown metric, or another one than
            the codebook was prepared for; `top_k` below 1 or above the number of codewords (under `cosine`, of
            those with a direction).
        NotFinite: Vectors or codewords hold values that are not finite.
    """
    prepared = codebook
    if torch.compiler.is_exporting():
        codewords = codebook.codebook if isinstance(codebook, PreparedCodebook) else codebook
        return highest_scores(z.detach(), *linear_scores(codewords.detach(), metric), top_k)
    if not isinstance(prepared, PreparedCodebook):
        prepared = PreparedCodebook(prepared, metric, store=False)
    codewords = prepared.codebook
    if metric != prepared.metric:
        raise ValueError(
            f"metric: expected {prepared.metric!r}, as the codebook was prepared, got {metric!r}"
        )
    if prepared._current_version() != prepared._version:
        raise ValueError("codebook: expected it as it was prepared, got it changed in place")
    if z.ndim != 2 or z.shape[1] != codewords.shape[1] or not z.is_floating_point():
        expected = f"(N, {codewords.shape[1]}), as wide as the codebook"
        raise ValueError(f"z: expected floats of shape {expected}, got {z.dtype} {tuple(z.shape)}")
    if z.device != codewords.device:
        raise ValueError(f"z: expected the codebook's device {codewords.device}, got {z.device}")
    if not 1 <= top_k <= len(codewords):
        raise ValueError(f"top_k: expected 1 to {len(codewords)}, the number of codewords, got {top_k}")
    device, z = z.device, where_exact(z.detach())
    codes = torch.empty(len(z), top_k, dtype=torch.long, device=z.device)
    if z.is_meta:  # shapes alone
        return codes
    with torch.no_grad(), _full_products(z.device):
        if (row := _row_not_finite(z, torch.linalg.vector_norm(z, dim=1))) is not None:
            raise NotFinite(f"z: expected finite values, got others in row {row} of {len(z)}", row)
        size = _ROWS.get(z.device.type, 2048)
        for start in range(0, len(z), size):
            codes[start : start + size] = prepared._nearest(z[start : start + size].float(), top_k)
    return codes.to(device)


def linear_scores(
    codebook: Float[Tensor, "K D"], metric: Metric
) -> tuple[Float64[Tensor, "K D"], Float64[Tensor, " K"]]:
    """Return weight and bias of a linear map: the nearest codeword of a vector has its highest output."""
    codewords = where_exact(codebook).double()
    if metric == "euclidean":
        return codewords, codewords.square().sum(1) / -2
    norms = torch.linalg.vector_norm(codewords, dim=1)
    weight = torch.where(norms.unsqueeze(1) > 0, codewords / norms.unsqueeze(1), 0.0)
    return weight, torch.where(norms > 0, 0.0, -torch.inf).double()


def highest_scores(
    x: Float[Tensor, "N D"], weight: Float64[Tensor, "K D"], bias: Float64[Tensor, " K"], top_k: int = 1
) -> Int[Tensor, "N k"]:
    """Return the codes of the highest scores, with `linear_scores` those of the nearest codewords.

    As `nearest_codewords`, but that of more than one the order in a tie is left open. No step depends on a value,
    so that a graph (`torch.export`, ONNX) can hold it. Memory grows with N K.
    """
    x = x.double()
    scores = F.linear(x, weight, bias)
    if top_k > 1:
        return scores.topk(top_k, dim=1).indices
    longest = torch.linalg.vector_norm(weight, dim=1).amax(0)
    size = torch.linalg.vector_norm(x, dim=1, keepdim=True) * longest
    size = size + bias.masked_fill(bias == -torch.inf, 0.0).abs().amax(0)
    # As far as two scores can be off.
    ties = scores >= scores.amax(1, keepdim=True) - 4 * (x.shape[1] + 16) * _DOUBLE * size
    highest: Tensor = ties.to(torch.uint8).argmax(1, keepdim=True)
    return highest


@dataclass(frozen=True)
class _Block:
    """Some codewords as they enter the product, zeros filling the last group."""

    start: int  # code of the first
    size: int
    rounded: Tensor  # y', under `euclidean` with -|y|^2 / 2 in three more columns: a float32 in bfloat16s
    norm: Tensor  # the largest |y| of each group
    residual: Tensor  # the largest |y - y'| of each group
    excluded: Tensor | None  # those without direction, under `cosine`

    @classmethod
    def of(cls, codewords: Tensor, start: int, center: Tensor | None, dtype: torch.dtype) -> _Block:
        """Round codewords; the center is None under `cosine`."""
        size, width = codewords.shape
        shape = -(-size // _GROUP) * _GROUP, width + (0 if center is None else 3)
        rounded = torch.zeros(shape, dtype=dtype, device=codewords.device)
        norms, residuals, without = torch.zeros(3, len(rounded), device=codewords.device).unbind()
        exact = dtype == torch.float32
        buffer = rounded.new_empty(0 if exact else min(size, _STRIPE), width, dtype=torch.float32)
        for at in range(0, size, _STRIPE):
            part = slice(at, min(at + _STRIPE, size))
            raw = codewords[part].float()
            y = rounded[part, :width] if exact else buffer[: len(raw)]
            if center is None:
                raw_norm = torch.linalg.vector_norm(raw, dim=1)
                without[part] = _directions(raw, raw_norm, out=y)
                norms[part] = 1.0
            else:
                torch.sub(raw, center, out=y)
                raw_norm = norms[part] = torch.linalg.vector_norm(y, dim=1)
            if (row := _row_not_finite(raw, raw_norm)) is not None:
                raise NotFinite(
                    f"codebook: expected finite values, got others in codeword {start + at + row}"
                )
            if not exact:
                rounded[part, :width] = y
                residuals[part] = torch.linalg.vector_norm(y.sub_(rounded[part, :width]), dim=1)
        offset = norms.square() / -2
        for column in rounded[:, width:].unbind(1):
            column.copy_(offset)
            offset = offset - column.float()
        norm, residual = (one.view(-1, _GROUP).amax(1, keepdim=True) for one in (norms, residuals))
        excluded = without.nonzero()[:, 0] if without.any() else None
        return cls(start, size, rounded, norm, residual, excluded)


@dataclass(frozen=True)
class _Rows:
    """Rows as they enter the product, zeros filling the last multiple, and how far their scores can be off."""

    size: int
    rounded: Tensor  # x', with a 1 for each column of the codewords' offset
    norm: Tensor  # |x| of each
    residual: Tensor  # |x - x'| of each
    rounding: float  # relative, of a sum of D products in any order, of norms, x and y
    has_offset: bool

    @classmethod
    def of(cls, x: Tensor, has_offset: bool, dtype: torch.dtype) -> _Rows:
        size, width = x.shape
        rounded = x.new_zeros(-(-size // _ROW_MULTIPLE) * _ROW_MULTIPLE, width + 3 * has_offset, dtype=dtype)
        rounded[:size, :width] = x
        rounded[:, width:] = 1
        norm, residual = x.new_zeros(2, len(rounded)).unbind()
        norm[:size] = torch.linalg.vector_norm(x, dim=1)
        if dtype != torch.float32:
            residual[:size] = torch.linalg.vector_norm(x - rounded[:size, :width], dim=1)
        rounding = 4 * (width + 16) * _SINGLE
        backend = torch.backends.cuda if x.is_cuda else torch.backends.mkldnn
        if dtype == torch.float32 and backend.matmul.fp32_precision not in ("ieee", "none"):
            rounding += 2 * _BFLOAT  # the user lets float32 products be computed from rounded factors
        return cls(size, rounded, norm, residual, rounding, has_offset)

    def spread(self, scores: Tensor, block: _Block, group: Tensor | slice, row: Tensor | slice) -> Tensor:
        """How far scores of groups (the first dimension) and rows can be off."""
        norm, residual, x_norm = block.norm[group], block.residual[group], self.norm[row]
        sums = self.rounding * norm
        radius: Tensor = x_norm * (residual + sums) + self.residual[row] * (norm + residual)
        if self.has_offset:
            radius = radius + sums * norm
        radius = radius.mul(_SECOND_ORDER).add(_TINY)
        return radius + _BFLOAT * scores.abs() if self.rounded.dtype == torch.bfloat16 else radius

    def candidates(
        self, blocks: Iterable[_Block], top_k: int, limit: int
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Row and code of every codeword that can be among the nearest, sorted by row, then by code.

        Then which rows are lost, and have none: those with more than the limit, or whose scores overflowed.
        """
        padded, device = len(self.rounded), self.rounded.device
        buffer = self.rounded.new_empty(_BLOCK, padded)
        lost = torch.arange(padded, device=device) >= self.size
        floor = torch.full((top_k, padded), -torch.inf, device=device)
        rows = torch.empty(0, dtype=torch.long, device=device)
        codes, ceilings = rows, floor.new_empty(0)
        for block in blocks:
            product = torch.mm(block.rounded, self.rounded.t(), out=buffer[: len(block.rounded)])
            product[block.size :] = -torch.inf
            if block.excluded is not None:
                product[block.excluded] = -torch.inf
            groups = product.view(-1, _GROUP, padded)
            peaks = groups.amax(1).float()
            spread = self.spread(peaks, block, slice(None), slice(None))
            floor = _largest(torch.cat([floor, _largest(peaks - spread, top_k)]), top_k)
            # NaN and infinity say that something overflowed; -infinity, that there was no codeword yet.
            lost |= ~(floor[-1] < torch.inf)
            reached = (peaks + spread >= floor[-1]) & ~lost
            lost |= reached.sum(0) > limit
            group, row = (reached & ~lost).nonzero(as_tuple=True)
            scores = groups[group, :, row].float()
            ceiling = scores + self.spread(scores, block, group, row[:, None])
            can_be = (ceiling >= floor[-1, row, None]) & (scores > -torch.inf)
            which, member = can_be.nonzero(as_tuple=True)
            rows = torch.cat([rows, row[which]])
            codes = torch.cat([codes, block.start + group[which] * _GROUP + member])
            ceilings = torch.cat([ceilings, ceiling[which, member]])
            keep = (ceilings >= floor[-1, rows]) & ~lost[rows]
            rows, codes, ceilings = rows[keep], codes[keep], ceilings[keep]
            lost |= torch.bincount(rows, minlength=padded) > limit
        keep = ~lost[rows]
        rows, codes = rows[keep], codes[keep]
        order = torch.argsort(codes)
        order = order[torch.argsort(rows[order], stable=True)]
        return (rows[order], codes[order]), lost[: self.size]


# Codewords compared with rows in float64, in the order of their codes, are (3, n, c): the scores, the larger the
# nearer, -infinity where there is no codeword; how far each can be off, no further apart than which two are a tie;
# the codes, exact in float64.


def _nothing(num_rows: int, num_codes: int, device: torch.device) -> Tensor:
    """Room for compared codewords, with none in it."""
    compared = torch.zeros(3, num_rows, num_codes, dtype=torch.float64, device=device)
    compared[0] = -torch.inf
    return compared


def _nearest_of(compared: Tensor, top_k: int, *, by_code: bool = False) -> Tensor:
    """The nearest of compared codewords, nearest first or by code; of equally near ones the lowest code first."""
    scores, tolerance = compared[0].clone(), compared[1]
    columns: list[Tensor] = []
    for _ in range(min(top_k, scores.shape[1])):
        least = (scores - tolerance).amax(1, keepdim=True)
        equal = scores + tolerance >= least
        columns.append(equal.to(torch.uint8).argmax(1, keepdim=True))
        scores.scatter_(1, columns[-1], -torch.inf)
    chosen = torch.cat(columns, 1)
    return compared.gather(2, (chosen.sort(1).values if by_code else chosen).expand(3, -1, -1))


def _compare(z: Tensor, codewords: Tensor, metric: Metric) -> Tensor:
    """Scores of rows (..., n, D) with codewords (..., c, D) in float64, and their tolerances (2, ..., n, c)."""
    z, codewords = z.double(), codewords.double()
    rounding = (z.shape[-1] + 16) * _DOUBLE  # of each term of a sum; 16 for norms and quotients
    if metric == "cosine":
        norms = torch.linalg.vector_norm(codewords, dim=-1)
        row_norms = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        directions = torch.where(row_norms > 0, z / row_norms, 0.0)
        scores = directions @ (codewords / norms.unsqueeze(-1)).mT
        scores = scores.masked_fill(norms.unsqueeze(-2) == 0, -torch.inf)
        return torch.stack([scores, torch.full_like(scores, rounding)])
    # From differences: distances far below the length of the vectors would drown in their product.
    scores = -torch.cdist(z, codewords, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.stack([scores, -rounding * scores])


def _directions(vectors: Tensor, norm: Tensor, out: Tensor) -> Tensor:
    """Write rows divided by their norm; return which have none: they become 0."""
    torch.div(vectors, norm.unsqueeze(1), out=out)
    without = torch.zeros_like(norm, dtype=torch.bool)
    # Squares of such values leave the range of float32, though the values do not.
    odd = ~((norm > 1e-15) & (norm < 1e15))
    if odd.any():
        exact = vectors[odd].double()
        norm = torch.linalg.vector_norm(exact, dim=1, keepdim=True)
        out[odd] = torch.where(norm == 0, 0.0, exact / norm).float()
        without[odd] = norm[:, 0] == 0
    return without


def _largest(values: Tensor, top_k: int) -> Tensor:
    """The `top_k` largest of each column, or all if there are fewer, the last of them the smallest."""
    if top_k == 1:
        return values.amax(0, keepdim=True)
    return values.topk(min(top_k, len(values)), dim=0).values


def _row_not_finite(rows: Tensor, norms: Tensor) -> int | None:
    """The first row with a value that is not finite; looked for where a norm is not, which overflows first."""
    if torch.isfinite(norms).all():
        return None
    finite = torch.isfinite(rows).all(1)
    return None if finite.all() else int((~finite).nonzero()[0, 0])


def _too_few(top_k: int) -> ValueError:
    return ValueError(f"codebook: expected {top_k} or more codewords of norm above 0 for cosine, got fewer")


@contextmanager
def _full_products(device: torch.device) -> Iterator[None]:
    """Switch off autocast, and sums in bfloat16 inside of products, which the bound does not know."""
    backend = torch.backends.cuda.matmul
    before = backend.allow_bf16_reduced_precision_reduction
    with torch.autocast(device.type, enabled=False):
        try:
            backend.allow_bf16_reduced_precision_reduction = False
            yield
        finally:
            backend.allow_bf16_reduced_precision_reduction = before
