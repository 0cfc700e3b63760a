"""The nearest codeword is the one that float64 brute force finds, whatever the numbers look like."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pixlex.nn import nearest
from pixlex.nn.nearest import (
    Metric,
    NotFinite,
    PreparedCodebook,
    highest_scores,
    linear_scores,
    nearest_codeword,
    nearest_codewords,
)

METRICS: tuple[Metric, ...] = ("cosine", "euclidean")
Make = Callable[[int, int, int], Tensor]
FIRST_PRECISIONS = (torch.bfloat16, torch.float32)


@pytest.fixture(params=FIRST_PRECISIONS, ids=("bfloat16", "float32"))
def first_precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Both ways to begin, on every processor."""
    monkeypatch.setattr(nearest, "multiplies_bfloat16", lambda device, units: request.param == torch.bfloat16)
    return request.param


def brute_force(z: Tensor, codebook: Tensor, metric: Metric) -> np.ndarray:
    """Negated distances, or cosines, of all pairs (N, K): the larger the nearer."""
    rows, codewords = z.double().numpy(), codebook.double().numpy()
    if metric == "cosine":
        return rows @ (codewords / np.linalg.norm(codewords, axis=1, keepdims=True)).T
    return np.stack([-np.linalg.norm(row - codewords, axis=1) for row in rows])


def assert_nearest(codes: Tensor, z: Tensor, codebook: Tensor, metric: Metric) -> None:
    """Codes (N, k) have the k largest scores, in their order, but for float64 rounding."""
    scores = brute_force(z, codebook, metric)
    codes = codes.view(len(z), -1)
    best = -np.sort(-scores, 1)[:, : codes.shape[1]]
    chosen = np.take_along_axis(scores, codes.numpy(), 1)
    assert codes.dtype == torch.int64
    np.testing.assert_allclose(chosen, best, rtol=1e-12, atol=1e-12)


def random_vectors(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def random_pair(rows: int, codewords: int, width: int) -> tuple[Tensor, Tensor]:
    return random_vectors(rows, width), random_vectors(codewords, width, seed=1)


def copies(distance: float, count: int) -> tuple[Tensor, Tensor]:
    """Copies of a codeword a hair apart: 3 are told apart among candidates, 200 need float64 for all."""
    words = random_vectors(12, 96)
    codebook = words.repeat(count, 1) + distance * random_vectors(12 * count, 96, seed=1)
    beside = words + distance * random_vectors(12, 96, seed=2)
    return torch.cat([words, beside, random_vectors(12, 96, seed=3)]), codebook


def far_from_the_origin() -> tuple[Tensor, Tensor]:
    """A thousand lengths away, where products cancel; codewords themselves among the rows."""
    codebook = random_vectors(3000, 24) + 1000 * random_vectors(1, 24, seed=1)
    return torch.cat([codebook[::7], codebook[:50] + random_vectors(50, 24, seed=2)]), codebook


def of_very_different_length() -> tuple[Tensor, Tensor]:
    lengths = torch.logspace(-3, 3, 3000)[torch.randperm(3000, generator=torch.Generator().manual_seed(0))]
    codebook = lengths[:, None] * random_vectors(3000, 24, seed=1)
    return torch.logspace(-3, 3, 70)[:, None] * random_vectors(70, 24, seed=2), codebook


SHAPES = ((1, 1, 1), (50, 63, 8), (2100, 300, 16), (20, 2049, 3), (20, 5000, 256))
PAIRS = [
    *((random_pair, shape) for shape in SHAPES),
    *((copies, (distance, count)) for distance in (1e-2, 1e-6) for count in (3, 200)),
    (far_from_the_origin, ()),
    (of_very_different_length, ()),
]


@pytest.mark.usefixtures("first_precision")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("make", "given"), PAIRS)
def test_the_nearest_are_found(
    metric: Metric, make: Callable[..., tuple[Tensor, Tensor]], given: Any
) -> None:
    z, codebook = make(*given)
    assert_nearest(nearest_codeword(z, codebook, metric), z, codebook, metric)
    assert_nearest(nearest_codewords(z, codebook, metric, min(7, len(codebook))), z, codebook, metric)


@pytest.mark.usefixtures("first_precision")
@pytest.mark.parametrize("metric", METRICS)
def test_equal_codewords_give_the_lowest_code(metric: Metric) -> None:
    """Also when they lie in different blocks, in the first place, and when there is nothing else."""
    words = random_vectors(1500, 32)
    codebook = words.repeat(4, 1)
    z = words[:100] + 0.01 * random_vectors(100, 32, seed=1)
    assert nearest_codeword(z, codebook, metric).tolist() == list(range(100))
    several = nearest_codewords(z, codebook, metric, 3)
    assert several.tolist() == [[code, code + 1500, code + 3000] for code in range(100)]
    assert nearest_codeword(z, words[:1].repeat(5000, 1), metric).tolist() == [0] * 100


@pytest.mark.parametrize("metric", METRICS)
def test_graphs_find_the_same(metric: Metric) -> None:
    """Without a branch: equal codewords, ones of norm 0 and a vector of norm 0 too."""
    words = random_vectors(1500, 32)
    codebook = torch.cat([torch.zeros(1, 32), words, words])
    z = torch.cat([words[:100] + 0.01 * random_vectors(100, 32, seed=1), random_vectors(300, 32, seed=2)])
    z = torch.cat([z, torch.zeros(1, 32)]) if metric == "cosine" else z
    for scale in (1.0, 2.0**60, 2.0**-60):
        found = highest_scores(scale * z, *linear_scores(scale * codebook, metric))[:, 0]
        assert torch.equal(found, nearest_codeword(z, codebook, metric))
    assert torch.equal(
        highest_scores(z[:400], *linear_scores(words, metric), 5),
        nearest_codewords(z[:400], words, metric, 5),
    )


@pytest.mark.usefixtures("first_precision")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("exponent", [-120, 110])
def test_scale_does_not_matter(metric: Metric, exponent: int) -> None:
    """Squares of such numbers leave the range of float32; a power of two changes no digit."""
    z, codebook = random_vectors(20, 16), random_vectors(500, 16, seed=1)
    scaled = nearest_codeword(z * 2.0**exponent, codebook * 2.0**exponent, metric)
    torch.testing.assert_close(scaled, nearest_codeword(z, codebook, metric))


def hard_vectors(count: int, width: int, seed: int) -> Tensor:
    """Every component lies just beside the middle of two bfloat16, on one side in a row: errors add up."""
    generator = torch.Generator().manual_seed(seed)
    beside = torch.where(torch.rand(count, 1, generator=generator) < 0.5, 0.499, 0.501)
    return 1 + 2.0**-7 * (torch.randint(0, 128, (count, width), generator=generator) + beside)


def screened(
    z: Tensor, codebook: Tensor, metric: Metric, dtype: torch.dtype
) -> tuple[nearest._Rows, list[nearest._Block], Tensor]:
    """Rows and codewords as they enter the product, and their scores in float64 (K, N)."""
    if metric == "euclidean":
        center = codebook.mean(0)
        x, y = z.double() - center, codebook.double() - center
        exact, rows = y @ x.T - y.square().sum(1, keepdim=True) / 2, z - center
    else:
        center, rows = None, F.normalize(z)
        exact = F.normalize(codebook.double()) @ F.normalize(z.double()).T
    starts = range(0, len(codebook), 2048)
    blocks = [nearest._Block.of(codebook[at : at + 2048], at, center, dtype) for at in starts]
    return nearest._Rows.of(rows, metric == "euclidean", dtype), blocks, exact


def check_bound(metric: Metric, dtype: torch.dtype, make: Make, width: int) -> None:
    rows, blocks, exact = screened(make(60, width, 0), make(2100, width, 1), metric, dtype)
    for block in blocks:
        scores = (block.rounded @ rows.rounded.T).view(-1, 64, 64)
        wanted = exact[block.start : block.start + block.size]
        for group, some in enumerate(scores):
            off = some[: max(0, block.size - 64 * group), :60].double()
            off = (off - wanted[64 * group : 64 * group + 64]).abs()
            allowed = rows.spread(some.float(), block, slice(group, group + 1), slice(None))
            assert (off <= allowed[: len(off), :60]).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", FIRST_PRECISIONS)
@pytest.mark.parametrize("make", [random_vectors, hard_vectors])
@pytest.mark.parametrize("width", [1, 64, 1000])
def test_no_score_exceeds_the_bound(metric: Metric, dtype: torch.dtype, make: Make, width: int) -> None:
    check_bound(metric, dtype, make, width)


@pytest.mark.usefixtures("rounded_products")
@pytest.mark.parametrize("metric", METRICS)
def test_the_bound_holds_where_products_are_rounded(metric: Metric) -> None:
    check_bound(metric, torch.float32, hard_vectors, 1000)


@pytest.mark.parametrize(("dtype", "at_most"), [(torch.bfloat16, 12.0), (torch.float32, 1.5)])
@pytest.mark.parametrize("metric", METRICS)
def test_few_codewords_remain(dtype: torch.dtype, at_most: float, metric: Metric) -> None:
    """Otherwise every search would fall back to float64: right, and slow."""
    z, codebook = random_vectors(200, 256), random_vectors(10_000, 256, seed=1)
    rows, blocks, _ = screened(z, codebook, metric, dtype)
    (found, _), lost = rows.candidates(blocks, top_k=1, limit=36)
    assert not lost.any()
    assert len(found) / 200 <= at_most


def exact_order(row: list[int], codebook: list[list[int]], metric: Metric) -> list[int]:
    """All codes, nearest first, by exact arithmetic; the lower code first where two are equally near."""

    def farness(code: int) -> Fraction:
        pairs = list(zip(row, codebook[code], strict=True))
        if metric == "euclidean":
            return Fraction(sum((a - b) ** 2 for a, b in pairs))
        product = sum(a * b for a, b in pairs)
        return -Fraction(product * abs(product), sum(b * b for _, b in pairs))

    directed = [code for code in range(len(codebook)) if metric == "euclidean" or any(codebook[code])]
    return sorted(directed, key=lambda code: (farness(code), code))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), metric=st.sampled_from(METRICS), first=st.sampled_from(FIRST_PRECISIONS))
def test_integers_against_exact_arithmetic(data: st.DataObject, metric: Metric, first: torch.dtype) -> None:
    """Whole numbers are full of exact ties, zero vectors and opposite directions."""
    width = data.draw(st.integers(1, 5))
    vectors = st.lists(st.lists(st.integers(-3, 3), min_size=width, max_size=width), min_size=1, max_size=150)
    rows, codebook = data.draw(vectors), data.draw(vectors)
    orders = [exact_order(row, codebook, metric) for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "multiplies_bfloat16", lambda device, units: first == torch.bfloat16)
        patch.setattr(nearest, "_BLOCK", 64)
        arguments = torch.tensor(rows).float(), torch.tensor(codebook).float(), metric
        if not orders[0]:
            with pytest.raises(ValueError, match="norm above 0"):
                nearest_codeword(*arguments)
            return
        top_k = data.draw(st.integers(1, len(orders[0])))
        assert nearest_codeword(*arguments).tolist() == [order[0] for order in orders]
        assert nearest_codewords(*arguments, top_k).tolist() == [order[:top_k] for order in orders]


@pytest.mark.usefixtures("first_precision")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("block", [64, 4096])
def test_sizes_of_blocks_do_not_matter(metric: Metric, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z, codebook = random_vectors(200, 32), random_vectors(1000, 32, seed=1)
    expected = nearest_codewords(z, codebook, metric, 4)
    monkeypatch.setattr(nearest, "_BLOCK", block)
    monkeypatch.setattr(nearest, "_ROWS", {"cpu": 77})
    torch.testing.assert_close(nearest_codewords(z, codebook, metric, 4), expected)


@pytest.mark.usefixtures("first_precision")
def test_codewords_without_direction_never_win() -> None:
    """All others point away, so that a cosine of 0 would be the largest."""
    away = -random_vectors(3000, 16).abs()
    away[0] = 0
    away[7:2500] = 0
    z = random_vectors(30, 16, seed=1).abs()
    directed = away.norm(dim=1).nonzero()[:, 0]
    expected = directed[nearest_codeword(z, away[directed])]
    torch.testing.assert_close(nearest_codeword(z, away), expected)
    with pytest.raises(ValueError, match="expected 600 or more codewords of norm above 0"):
        nearest_codewords(z, away, "cosine", 600)


def test_vectors_without_direction_take_the_first_codeword() -> None:
    z, codebook = random_vectors(4, 8), random_vectors(10, 8, seed=1)
    z[1:3] = 0
    expected = nearest_codeword(z[[0, 3]], codebook)
    assert nearest_codeword(z, codebook).tolist() == [int(expected[0]), 0, 0, int(expected[1])]
    codebook[0] = 0
    assert nearest_codewords(z, codebook, "cosine", 2)[1].tolist() == [1, 2]
    assert nearest_codeword(z[1:3], codebook, "euclidean").tolist() == [0, 0]


@pytest.mark.parametrize("metric", METRICS)
def test_other_precisions_views_autocast_and_no_rows(metric: Metric) -> None:
    """Vectors are rounded to float32; none give none; no gradient."""
    z, codebook = random_vectors(16, 30).T, random_vectors(32, 3000, seed=1).T[:, ::2]
    expected = nearest_codewords(z.contiguous(), codebook.contiguous(), metric, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = nearest_codewords(z.clone().requires_grad_(), codebook.clone().requires_grad_(), metric, 2)
    assert not codes.requires_grad
    for found in (codes, nearest_codewords(z, codebook, metric, 2)):
        torch.testing.assert_close(found, expected)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        rounded = z.to(dtype), codebook.to(dtype)
        wanted = nearest_codewords(rounded[0].float(), rounded[1].float(), metric, 2)
        torch.testing.assert_close(nearest_codewords(*rounded, metric, 2), wanted)
    assert nearest_codeword(z[:0], codebook, metric).shape == (0,)
    assert nearest_codewords(z[:0], codebook, metric, 3).shape == (0, 3)


@pytest.mark.usefixtures("first_precision")
@pytest.mark.parametrize("metric", METRICS)
def test_prepared_codebook(metric: Metric) -> None:
    z, codebook = random_vectors(200, 32), random_vectors(5000, 32, seed=1)
    prepared = PreparedCodebook(codebook, metric)
    for top_k in (1, 3):
        expected = nearest_codewords(z, codebook, metric, top_k)
        torch.testing.assert_close(nearest_codewords(z, prepared, metric, top_k), expected)
    with torch.inference_mode():
        assert_nearest(
            nearest_codeword(z, PreparedCodebook(codebook + 1, metric), metric), z, codebook + 1, metric
        )


def test_prepared_codebook_refuses_what_it_was_not_made_for() -> None:
    z, codebook = random_vectors(2, 4), random_vectors(9, 4, seed=1)
    prepared = PreparedCodebook(codebook, "euclidean")
    with pytest.raises(ValueError, match="expected 'euclidean', as the codebook was prepared, got 'cosine'"):
        nearest_codeword(z, prepared)
    codebook[3] += 1
    with pytest.raises(ValueError, match="changed in place"):
        nearest_codeword(z, prepared, "euclidean")


Z, WORDS = torch.zeros(2, 3), torch.ones(4, 3)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("z", "codebook", "options", "message"),
    [
        (Z, torch.zeros(0, 3), {}, r"codebook: .* at least 1, got torch.float32 \(0, 3\)"),
        (Z[:, :0], Z[:, :0], {}, r"codebook: .* at least 1, got torch.float32 \(2, 0\)"),
        (Z, WORDS.long(), {}, r"codebook: expected floats .* got torch.int64 \(4, 3\)"),
        (Z, WORDS[:, 0], {}, r"codebook: expected floats of shape \(K, D\)"),
        (Z[:, :2], WORDS, {}, r"z: expected floats of shape \(N, 3\), .* \(2, 2\)"),
        (Z[0], WORDS, {}, r"z: expected floats of shape \(N, 3\), .* \(3,\)"),
        (Z.long(), WORDS, {}, r"z: expected floats .* got torch.int64"),
        (Z, WORDS, {"metric": "manhattan"}, "one of cosine, euclidean, got 'manhattan'"),
        (Z, WORDS, {"top_k": 0}, "top_k: expected 1 to 4, .* got 0"),
        (Z, WORDS, {"top_k": 5}, "top_k: expected 1 to 4, .* got 5"),
        (torch.tensor([[1.0], [torch.nan]]), WORDS[:, :1], {}, "z: expected finite values, .* row 1 of 2"),
        (torch.tensor([[torch.inf]]), WORDS[:, :1], {}, "z: expected finite values, .* row 0 of 1"),
        (Z, 0 * WORDS, {}, "expected 1 or more codewords of norm above 0"),
    ],
)
def test_documented_errors(z: Tensor, codebook: Tensor, options: dict[str, object], message: str) -> None:
    with pytest.raises(NotFinite if "finite" in message else ValueError, match=message):
        nearest_codewords(z, codebook, **options)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_codebook_that_is_not_finite(metric: Metric, value: float) -> None:
    codebook = random_vectors(3000, 4)
    codebook[2222, 1] = value
    with pytest.raises(NotFinite, match="codebook: expected finite values, got others in codeword 2222"):
        nearest_codeword(random_vectors(2, 4), codebook, metric)


MEMORY_PROGRAM = """
import ctypes, pathlib, torch
from pixlex.nn.nearest import nearest_codeword

def resident(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

torch.set_num_threads(1)
z = torch.randn(512, 64)
for metric in ("cosine", "euclidean"):
    nearest_codeword(z, torch.randn(5_000, 64), metric)
    for num_codewords in (10_000, 50_000):
        codebook = torch.randn(num_codewords, 64)
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not be there to be taken again
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        nearest_codeword(z, codebook, metric)
        print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux' account of memory")
def test_memory_does_not_grow_with_the_codebook() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", MEMORY_PROGRAM], capture_output=True, text=True, check=True
    )
    few, many, few_euclidean, many_euclidean = (float(line) for line in answer.stdout.split())
    # In MiB; a float32 score for each of the 40,000 further codewords and 512 rows would be 78.
    assert many - few < 4
    assert many_euclidean - few_euclidean < 4
    assert max(many, many_euclidean) < 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("fixture", ["checkout", "rounded_products"])
def test_cuda(metric: Metric, fixture: str, request: pytest.FixtureRequest) -> None:
    """As on the CPU, also where the user allows TF32."""
    request.getfixturevalue(fixture)
    z, codebook = random_vectors(3000, 128), random_vectors(5000, 128, seed=1)
    codes = nearest_codeword(z.cuda(), codebook.cuda(), metric)
    assert codes.is_cuda
    assert_nearest(codes.cpu(), z, codebook, metric)
    prepared = PreparedCodebook(codebook.cuda(), metric)
    torch.testing.assert_close(nearest_codeword(z.cuda(), prepared, metric), codes)
    with pytest.raises(ValueError, match="device"):
        nearest_codeword(z, codebook.cuda(), metric)
