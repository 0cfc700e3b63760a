"""The kernels of the GPU, run by Triton's interpreter, against the search on the CPU; and compiled."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pixlex.nn import fused
from pixlex.nn.fused import FusedCodebook, available, filled
from pixlex.nn.nearest import Metric, nearest_codeword

pytest.importorskip("triton", reason="Triton comes with torch for CUDA; here the extra `test` brings it")
# Where there is no GPU, tests/conftest.py has Triton interpret its kernels.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
METRICS: tuple[Metric, ...] = ("cosine", "euclidean")


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    """The module as it is: Triton cannot read functions that the checks of shapes wrap."""
    name = "pixlex.nn.fused_nearest"
    spec = importlib.util.spec_from_file_location(name, Path(fused.__file__).with_name("fused_nearest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _found(kernels: ModuleType, z: torch.Tensor, codebook: torch.Tensor, metric: Metric) -> torch.Tensor:
    z, codebook = z.to(DEVICE), codebook.to(DEVICE)
    center = codebook.float().mean(0) if metric == "euclidean" else None
    codes = torch.full((len(z),), -1, device=DEVICE)
    prepared = FusedCodebook.over(codebook, center)
    if (
        DEVICE == "cpu"
    ):  # the interpreter multiplies bfloat16 as if it were whole numbers: the same values wider
        prepared = replace(prepared, rounded=prepared.rounded.float())
    kernels.launch(z, prepared, codes)
    return codes.cpu()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("rows", "codewords", "width"), [(5, 3, 4), (130, 300, 70), (40, 700, 33)])
def test_random_vectors(kernels: ModuleType, metric: Metric, rows: int, codewords: int, width: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    z = torch.randn(rows, width, generator=generator)
    codebook = torch.randn(codewords, width, generator=generator)
    assert torch.equal(_found(kernels, z, codebook, metric), nearest_codeword(z, codebook, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_awkward_vectors(kernels: ModuleType, metric: Metric) -> None:
    """Codewords that are twins or 0, rows that are 0, are codewords, or lie at the ends of float32's range."""
    generator = torch.Generator().manual_seed(1)
    codebook = torch.randn(200, 16, generator=generator)
    codebook[150:] = codebook[100:150]  # twins: the lower code comes first
    codebook[:2] = 0
    z = torch.randn(20, 16, generator=generator)
    z[:2], z[2:6] = 0, codebook[150:154]
    z[6], z[7] = z[6] * 1e-18, z[7] * 1e18
    assert torch.equal(_found(kernels, z, codebook, metric), nearest_codeword(z, codebook, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_more_near_codewords_than_are_kept(kernels: ModuleType, metric: Metric) -> None:
    """A crowd within rounding of bfloat16: rows are lost to the screening and found by the search."""
    generator = torch.Generator().manual_seed(2)
    codebook = 1 + 1e-4 * torch.randn(300, 24, generator=generator)
    z = 1 + 1e-4 * torch.randn(18, 24, generator=generator)
    assert torch.equal(_found(kernels, z, codebook, metric), nearest_codeword(z, codebook, metric))


def test_several_stretches_of_the_codebook(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches that hold few tiles each, the last one fewer."""
    monkeypatch.setattr(kernels, "_MOST_TILES", 2)
    monkeypatch.setattr(kernels, "_PROGRAMS", 1)
    generator = torch.Generator().manual_seed(3)
    z, codebook = torch.randn(9, 20, generator=generator), torch.randn(650, 20, generator=generator)
    assert torch.equal(_found(kernels, z, codebook, "cosine"), nearest_codeword(z, codebook, "cosine"))


def test_rows_that_are_not_finite_disturb_no_other(kernels: ModuleType) -> None:
    generator = torch.Generator().manual_seed(4)
    z, codebook = torch.randn(6, 20, generator=generator), torch.randn(100, 20, generator=generator)
    expected = nearest_codeword(z, codebook)
    z[1], z[4, 3] = torch.nan, torch.inf
    found = _found(kernels, z, codebook, "cosine")
    others = torch.tensor([0, 2, 3, 5])
    assert torch.equal(found[others], expected[others])
    assert ((found >= 0) & (found < 100)).all()


@pytest.mark.skipif(torch.version.hip is not None, reason="compiles for NVIDIA GPUs")
@pytest.mark.parametrize(("capability", "unit"), [(80, "mma.sync"), (90, "wgmma")])
def test_kernels_compile_without_a_gpu(tmp_path: Path, capability: int, unit: str) -> None:
    """All of them, for A100 and H100; the screening on the units for matrices, in shared memory that both have."""
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, str(script), str(capability)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    screen, *others = [json.loads(line) for line in found.stdout.splitlines()]
    assert unit in screen["units"]
    assert screen["shared"] <= 99 << 10
    assert [one["kernel"] for one in others] == ["refine", "search"] * 3


def test_shapes_alone_need_no_kernel() -> None:
    z, codebook = torch.empty(7, 20, device="meta"), torch.empty(100, 20, device="meta")
    found = nearest_codeword(z, codebook, "euclidean")
    assert (found.shape, found.dtype, found.device.type) == ((7,), torch.int64, "meta")
    assert not available(torch.device("cpu"))
    assert filled(129, 128) == 256


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("metric", METRICS)
def test_on_a_gpu(metric: Metric) -> None:
    generator = torch.Generator().manual_seed(5)
    z, codebook = torch.randn(5000, 768, generator=generator), torch.randn(50_265, 768, generator=generator)
    expected = nearest_codeword(z, codebook, metric)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = nearest_codeword(z.cuda(), codebook.cuda(), metric)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), expected)
