"""The bound of the low-precision products holds, and is tight enough to be of use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pixlex.nn import candidates
from pixlex.nn.candidates import Screening, codeword_blocks, mean_codeword, unit_rows


def random_vectors(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def prepared_rows(z: Tensor, center: Tensor | None) -> Tensor:
    if center is not None:
        return z - center
    unit = torch.empty_like(z)
    unit_rows(z, out=unit)
    return unit


def exact_scores(z: Tensor, codebook: Tensor, center: Tensor | None) -> Tensor:
    """The scores that the module defines, in float64 (K, N)."""
    if center is None:
        return torch.nn.functional.normalize(codebook.double()) @ torch.nn.functional.normalize(z.double()).T
    x, y = z.double() - center, codebook.double() - center
    return y @ x.T - y.square().sum(1, keepdim=True) / 2


def hard_vectors(count: int, width: int, seed: int) -> Tensor:
    """Every component lies just beside the middle of two bfloat16, on one side in a row: errors add up."""
    generator = torch.Generator().manual_seed(seed)
    beside = torch.where(torch.rand(count, 1, generator=generator) < 0.5, 0.499, 0.501)
    return 1 + 2.0**-7 * (torch.randint(0, 128, (count, width), generator=generator) + beside)


@pytest.mark.parametrize("euclidean", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("make", [random_vectors, hard_vectors])
@pytest.mark.parametrize("width", [1, 7, 64, 1000])
def test_no_score_is_off_by_more_than_the_bound(
    euclidean: bool, dtype: torch.dtype, make: object, width: int
) -> None:
    z, codebook = make(60, width, seed=0), make(2100, width, seed=1)
    center = mean_codeword(codebook) if euclidean else None
    screening = Screening(prepared_rows(z, center), euclidean, dtype)
    for block in codeword_blocks(codebook, center, dtype):
        computed = (block.rounded @ screening.rounded.T)[: block.size, :60].double()
        exact = exact_scores(z, codebook[block.start : block.start + block.size], center)
        allowed = screening.radius(block.norm[: block.size, None], block.residual[: block.size, None])[:, :60]
        allowed = allowed + screening.result_rounding * computed.abs()
        assert ((computed - exact).abs() <= allowed).all()


@pytest.mark.usefixtures("rounded_products")
def test_the_bound_holds_where_products_are_rounded() -> None:
    test_no_score_is_off_by_more_than_the_bound(False, torch.float32, hard_vectors, 1000)
    test_no_score_is_off_by_more_than_the_bound(True, torch.float32, hard_vectors, 1000)


@pytest.mark.parametrize(("dtype", "at_most"), [(torch.bfloat16, 12.0), (torch.float32, 1.5)])
@pytest.mark.parametrize("euclidean", [False, True])
def test_few_codewords_remain(dtype: torch.dtype, at_most: float, euclidean: bool) -> None:
    """Otherwise every search would fall back to float64: right, and slow."""
    z, codebook = random_vectors(200, 256), random_vectors(10_000, 256, seed=1)
    center = mean_codeword(codebook) if euclidean else None
    screening = Screening(prepared_rows(z, center), euclidean, dtype)
    found = screening.candidates(codeword_blocks(codebook, center, dtype), top_k=1, limit=36)
    assert not found.lost.any()
    assert len(found.rows) / 200 <= at_most


def test_candidates_are_sorted_and_hold_the_nearest() -> None:
    z, codebook = random_vectors(80, 32), random_vectors(5000, 32, seed=1)
    screening = Screening(prepared_rows(z, None), False, torch.bfloat16)
    found = screening.candidates(codeword_blocks(codebook, None, torch.bfloat16), top_k=5, limit=80)
    keys = found.rows * 5000 + found.codes
    assert (keys.diff() > 0).all()
    best = exact_scores(z, codebook, None).topk(5, dim=0).indices
    expected = (torch.arange(80) * 5000 + best).T.flatten()
    kept = ~found.lost[torch.arange(80).repeat_interleave(5)]
    assert kept.sum() > 300
    assert torch.isin(expected[kept], keys).all()


def test_crowded_rows_are_lost_and_others_kept() -> None:
    """Row 0 has 50 equal codewords, row 1 one."""
    directions = torch.eye(8)[:2]
    codebook = torch.cat([directions[:1].repeat(50, 1), directions[1:], random_vectors(4000, 8)])
    screening = Screening(directions.clone(), False, torch.bfloat16)
    found = screening.candidates(codeword_blocks(codebook, None, torch.bfloat16), top_k=1, limit=36)
    assert found.lost.tolist() == [True, False]
    assert found.rows.unique().tolist() == [1]
    assert 50 in found.codes


def test_offset_of_three_columns_is_exact() -> None:
    codebook = 100 * random_vectors(50, 5)
    center = mean_codeword(codebook)
    (block,) = codeword_blocks(codebook, center, torch.bfloat16)
    offset = block.rounded[:50, 5:].double().sum(1)
    expected = -(codebook.double() - center.double()).square().sum(1) / 2
    torch.testing.assert_close(offset, expected, rtol=1e-6, atol=0)


def test_mean_of_half_precision_codebooks_is_float32() -> None:
    codebook = random_vectors(5001, 6).half()
    torch.testing.assert_close(mean_codeword(codebook), codebook.float().mean(0))


def test_unit_rows_of_any_length() -> None:
    vectors = random_vectors(6, 4).double()
    scaled = vectors * torch.tensor([1.0, 1e-30, 1e30, 1e-38, 0.0, 5.0])[:, None]
    unit = torch.empty(6, 4)
    without = unit_rows(scaled.float(), out=unit)
    assert without.tolist() == [False, False, False, False, True, False]
    expected = torch.nn.functional.normalize(vectors).float()
    expected[4] = 0
    torch.testing.assert_close(unit, expected, rtol=1e-5, atol=1e-6)


def test_low_precision_is_float32_without_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False, "avx512_bf16": False})
    assert candidates.low_precision(cpu) == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert candidates.low_precision(cpu) == torch.bfloat16
    assert candidates.low_precision(torch.device("cuda")) == torch.float32
