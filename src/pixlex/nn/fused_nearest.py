"""The exact nearest codeword on a GPU: products and running bests in one kernel, no N x K matrix, no waiting.

Three kernels of Triton, written after the same plan as `pixlex.nn.candidates`:

screen  bfloat16 products of rows and codewords, tile by tile. Codewords fall into 64 slots (pairs of columns of a
        tile); each slot keeps its three best scores, with the number of the codeword in the lowest bits of the
        score. At the end a row leaves its best few codewords and a bound for all others.
refine  the few that can be nearest, compared in float64 as `pixlex.nn.comparison` does. A row whose bound for
        the others reaches its best is lost: more codewords are near than were kept.
search  lost rows against all codewords in float64. The grid is made for all rows; what is not needed ends at once,
        so that nobody has to know how many are lost.

With x and y as in `pixlex.nn.candidates`, and x', y' rounded to bfloat16, a score is off by at most

    radius = |x - x'| max|y| + |x'| max|y - y'| + rounding of float32 sums,

and by the bits that the number takes. Sixteen warps share a tile of the screening, which keeps its bests in
registers (126 of each thread for compute capability 9.0); with eight they spilled. Imported where a GPU is: Triton
comes with torch for CUDA.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixlex.nn.fused import COLUMNS, DEPTH, LOWEST, ROWS, FusedCodebook, rounded_rows

_LOWEST = tl.constexpr(LOWEST)
_NOTHING = tl.constexpr(-1.0e38)  # below it no codeword stands behind a score
# Rounding of a float64 sum, relative, for each of its terms: pixlex.nn.comparison.
_ROUNDING = tl.constexpr(2.0**-52)

KEPT = 8  # codewords that a row leaves
LOST_ROWS = 16  # rows compared with all codewords at a time
_MOST_TILES = 512  # of one stretch of the codebook: their numbers take 10 bits of a score
_PROGRAMS = 264  # enough to fill a large GPU twice


def launch(z: Tensor, codebook: FusedCodebook, codes: Tensor) -> None:
    """Write the code of the nearest codeword of each row; everything is asked for, nothing waited for.

    Args:
        z: rows in float32 (N, D), at least one.
        codebook: what they are compared with.
        codes: where the result goes (N,), int64.
    """
    (size, width), device = z.shape, z.device
    rounded, radius = rounded_rows(z, codebook)
    row_tiles, tiles = len(rounded) // ROWS, len(codebook.rounded) // COLUMNS
    stretches = max(-(-tiles // _MOST_TILES), min(tiles, -(-_PROGRAMS // row_tiles)))
    each = -(-tiles // stretches)
    stretches = -(-tiles // each)
    bits = (2 * each - 1).bit_length()
    kept = torch.empty(len(rounded), stretches * KEPT, dtype=torch.int32, device=device)
    scores = torch.empty(len(rounded), stretches * KEPT, device=device)
    others = torch.empty(len(rounded), stretches, device=device)
    screen[(row_tiles, stretches)](
        rounded, codebook.rounded, codebook.offset, kept, scores, others, tiles, each, stretches,
        **screen_settings(rounded.shape[1], bits),
    )  # fmt: skip
    norms = torch.linalg.vector_norm(z, dim=1, dtype=torch.float64)
    lost = torch.empty(size, dtype=torch.bool, device=device)
    refine[(size,)](
        z, codebook.codebook, norms, codebook.norms, radius, kept, scores, others, codes, lost,
        2.0 ** (bits - 23), stretches, len(codebook.codebook), width,
        **refine_settings(codebook.center is None, triton.next_power_of_2(stretches), width),
    )  # fmt: skip
    order = torch.argsort(lost, stable=True, descending=True)
    search[(-(-size // LOST_ROWS),)](
        z, codebook.codebook, norms, codebook.norms, order, lost.sum(), codes, len(codebook.codebook), width,
        **search_settings(codebook.center is None),
    )  # fmt: skip


def screen_settings(width: int, bits: int) -> dict[str, Any]:
    """Return the constants of `screen` for rows of a width, filled up, and numbers of so many bits."""
    tile = {"KEPT": KEPT, "ROWS": ROWS, "COLUMNS": COLUMNS, "DEPTH": DEPTH}
    return {"WIDTH": width, "BITS": bits, **tile, "num_warps": 16, "num_stages": 3}


def refine_settings(cosine: bool, stretches: int, width: int) -> dict[str, Any]:
    """Return the constants of `refine`; `stretches` is a power of two."""
    depth = min(512, triton.next_power_of_2(width))
    return {"COSINE": cosine, "KEPT": KEPT, "STRETCHES": stretches, "DEPTH": depth, "num_warps": 1}


def search_settings(cosine: bool) -> dict[str, Any]:
    """Return the constants of `search`."""
    return {"COSINE": cosine, "ROWS": LOST_ROWS, "COLUMNS": 32, "DEPTH": 16, "num_warps": 4}


@triton.jit
def screen(
    x_start, y_start, offset_start, kept_start, score_start, other_start,
    tiles, each, stretches,
    WIDTH: tl.constexpr, BITS: tl.constexpr, KEPT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Leave the KEPT best codewords of ROWS rows in one stretch of the codebook, and a bound for the others."""
    SLOTS: tl.constexpr = COLUMNS // 2
    stretch = tl.program_id(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    depth = tl.arange(0, DEPTH)
    columns = tl.arange(0, COLUMNS)
    x_at = x_start + rows[:, None].to(tl.int64) * WIDTH + depth[None, :]
    first = stretch * each
    best = tl.full((ROWS, SLOTS), _LOWEST, tl.float32)
    second = tl.full((ROWS, SLOTS), _LOWEST, tl.float32)
    third = tl.full((ROWS, SLOTS), _LOWEST, tl.float32)
    for tile in range(first, min(first + each, tiles)):
        codes = tile * COLUMNS + columns
        y_at = y_start + codes[None, :].to(tl.int64) * WIDTH + depth[:, None]
        product = tl.zeros((ROWS, COLUMNS), tl.float32)
        for done in range(0, WIDTH, DEPTH):
            product = tl.dot(tl.load(x_at + done), tl.load(y_at + done), product)
        product += tl.load(offset_start + codes)[None, :]
        left, right = tl.split(tl.reshape(product, (ROWS, SLOTS, 2)))
        number = (tile - first) * 2
        left = _numbered(left, number, BITS)
        right = _numbered(right, number + 1, BITS)
        high, low = tl.maximum(left, right), tl.minimum(left, right)
        # The three largest of three and two, both in order.
        third = tl.maximum(third, tl.maximum(tl.minimum(second, high), tl.minimum(best, low)))
        second = tl.maximum(tl.maximum(second, low), tl.minimum(best, high))
        best = tl.maximum(best, high)
    slots = tl.arange(0, SLOTS)
    out = rows.to(tl.int64) * (stretches * KEPT) + stretch * KEPT
    for place in tl.static_range(KEPT):
        score = tl.max(best, 1)
        slot = tl.argmax(best, 1)
        number = score.to(tl.int32, bitcast=True) & ((1 << BITS) - 1)
        code = (first + (number >> 1)) * COLUMNS + 2 * slot + (number & 1)
        tl.store(kept_start + out + place, code)
        tl.store(score_start + out + place, score)
        # What stood behind it in its slot moves up.
        taken = slots[None, :] == slot[:, None]
        best = tl.where(taken, second, best)
        second = tl.where(taken, third, second)
    # A third that moved up is counted once more, which changes nothing: what comes behind it is unknown anyway.
    tl.store(
        other_start + rows.to(tl.int64) * stretches + stretch, tl.maximum(tl.max(best, 1), tl.max(third, 1))
    )


@triton.jit
def _numbered(scores, number, BITS: tl.constexpr):
    """Write a number into the lowest bits of scores."""
    bits = scores.to(tl.int32, bitcast=True)
    return ((bits & (-1 << BITS)) | number).to(tl.float32, bitcast=True)


@triton.jit
def refine(
    z_start, codebook_start, norm_start, codeword_norm_start, radius_start,
    kept_start, score_start, other_start, code_start, lost_start,
    share, stretches, size, width,
    COSINE: tl.constexpr, KEPT: tl.constexpr, STRETCHES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Compare the kept codewords of one row in float64; mark the row where others can be nearer."""
    row = tl.program_id(0).to(tl.int64)
    stretch = tl.arange(0, STRETCHES)
    inside = stretch < stretches
    others = tl.load(other_start + row * stretches + stretch, inside, other=_LOWEST)
    place = tl.arange(0, STRETCHES * KEPT)
    scores = tl.load(score_start + row * stretches * KEPT + place, place < stretches * KEPT, other=_LOWEST)
    top = tl.max(scores, 0)
    # Both bounds at once, and what the numbers in the scores changed.
    floor = top - 2 * tl.load(radius_start + row) - 2 * share * tl.abs(top)
    tl.store(lost_start + row, (tl.max(others, 0) >= floor) | ~(top > _NOTHING))
    norm = tl.load(norm_start + row)
    best_score = tl.full((), -float("inf"), tl.float64)
    best_tolerance = tl.full((), 0.0, tl.float64)
    best_code = tl.full((), 0, tl.int64)
    for kept in range(stretches * KEPT):
        score = tl.load(score_start + row * stretches * KEPT + kept)
        code = tl.load(kept_start + row * stretches * KEPT + kept).to(tl.int64)
        if (score >= floor) & (score > _NOTHING) & (code < size):
            total = tl.zeros((DEPTH,), tl.float64)
            for start in range(0, width, DEPTH):
                at = start + tl.arange(0, DEPTH)
                a = tl.load(z_start + row * width + at, at < width, other=0.0).to(tl.float64)
                b = tl.load(codebook_start + code * width + at, at < width, other=0.0).to(tl.float64)
                if COSINE:
                    total += a * b
                else:
                    total -= (a - b) * (a - b)
            exact = tl.sum(total, 0)
            tolerance = (tl.full((), 16.0, tl.float64) + width) * _ROUNDING  # a width of 1 is no tensor
            if COSINE:
                exact = exact / (norm * tl.load(codeword_norm_start + code))
            else:
                tolerance = -tolerance * exact
            nearer = exact - tolerance > best_score + best_tolerance
            tied = (exact + tolerance >= best_score - best_tolerance) & (code < best_code)
            if nearer | tied:
                best_score, best_tolerance, best_code = exact, tolerance, code
    tl.store(code_start + row, best_code)


@triton.jit
def search(
    z_start, codebook_start, norm_start, codeword_norm_start, order_start,
    count_start, code_start, size, width,
    COSINE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Compare some of the lost rows with every codeword in float64."""
    count = tl.load(count_start)
    if tl.program_id(0) * ROWS < count:
        place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        here = place < count
        rows = tl.load(order_start + place, here, other=0)
        norm = tl.load(norm_start + rows, here, other=1.0)
        best = tl.full((ROWS,), -float("inf"), tl.float64)
        slack = tl.zeros((ROWS,), tl.float64)
        found = tl.zeros((ROWS,), tl.int64)
        for first in range(0, size, COLUMNS):
            codes = first + tl.arange(0, COLUMNS)
            exists = codes < size
            total = tl.zeros((ROWS, COLUMNS), tl.float64)
            for start in range(0, width, DEPTH):
                at = start + tl.arange(0, DEPTH)
                a = tl.load(
                    z_start + rows[:, None] * width + at[None, :],
                    here[:, None] & (at < width)[None, :],
                    other=0.0,
                ).to(tl.float64)
                b = tl.load(
                    codebook_start + codes[:, None].to(tl.int64) * width + at[None, :],
                    exists[:, None] & (at < width)[None, :], other=0.0,
                ).to(tl.float64)  # fmt: skip
                if COSINE:
                    total += tl.sum(a[:, None, :] * b[None, :, :], 2)
                else:
                    apart = a[:, None, :] - b[None, :, :]
                    total -= tl.sum(apart * apart, 2)
            tolerance = (
                tl.zeros((ROWS, COLUMNS), tl.float64) + (tl.full((), 16.0, tl.float64) + width) * _ROUNDING
            )
            if COSINE:
                length = tl.load(codeword_norm_start + codes, exists, other=0.0)
                exists = exists & (length > 0)
                product = norm[:, None] * length[None, :]
                total = tl.where(product > 0, total / tl.where(product > 0, product, 1.0), 0.0)
            else:
                tolerance = -tolerance * total
            total = tl.where(exists[None, :], total, -float("inf"))
            # The lowest code whose score reaches the surest one of this block.
            surest = tl.max(total - tl.where(exists[None, :], tolerance, 0.0), 1)
            reaches = exists[None, :] & (total + tolerance >= surest[:, None])
            code = tl.min(tl.where(reaches, codes[None, :], size), 1)
            chosen = codes[None, :] == code[:, None]
            score = tl.sum(tl.where(chosen, total, 0.0), 1)
            around = tl.sum(tl.where(chosen, tolerance, 0.0), 1)
            nearer = (code < size) & (score - around > best + slack)
            best = tl.where(nearer, score, best)
            slack = tl.where(nearer, around, slack)
            found = tl.where(nearer, code.to(tl.int64), found)
        tl.store(code_start + rows, found, here)
