"""How many images a pass computes: always as many on a CPU, as many as asked for on a GPU, whoever asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_cbvila, tiny_lqae, write_images
from torch import Tensor

from pixlex import models
from pixlex.api import ImageTokenizer
from pixlex.data.images import open_source
from pixlex.encoding.decode import decode_codes
from pixlex.encoding.encode import encode_source
from pixlex.models import PassSizes, compute_rows, rows_at_once
from pixlex.search import ImageIndex

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_the_size_of_a_pass() -> None:
    """On a CPU it decides the rounding, so nothing else may; a GPU takes what its memory is said to hold."""
    assert [rows_at_once(16, CPU, size) for size in (1, 64, 4096)] == [2, 2, 2]
    assert [rows_at_once(grid, CPU, 64) for grid in (1, 4, 14, 64)] == [512, 32, 2, 1]
    for grid in (1, 16, 64):
        assert [rows_at_once(grid, CUDA, size) for size in (1, 64, 4096)] == [1, 64, 4096]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all passes, were this processor a GPU."""
    seen: list[int] = []

    def recorded(grid: int, device: torch.device, batch_size: int) -> int:
        seen.append(rows_at_once(grid, CUDA, batch_size))
        return seen[-1]

    monkeypatch.setattr(models, "rows_at_once", recorded)
    return seen


def test_passes_are_as_large_as_asked_for(passes: list[int], language: Path, tmp_path: Path) -> None:
    """Of all that compute many images."""
    photos = str(write_images(tmp_path / "photos", [f"{number}.png" for number in range(7)]))
    tokenizer, images = ImageTokenizer(tiny_lqae(language)), torch.rand(7, 3, 32, 32)
    ImageTokenizer(tiny_cbvila(language)).save(tmp_path / "model")
    index = ImageIndex.open(tmp_path / "index", tmp_path / "model", create=True)
    codes, source, rest = [(0,) * 16] * 7, open_source(photos), {"batch_size": 3, "progress": False}
    for use in (
        lambda: tokenizer.tokenize(images, batch_size=3),
        lambda: tokenizer.embed(images, batch_size=3),
        lambda: tokenizer.reconstruct(images, batch_size=3),
        lambda: tokenizer.decode(codes, batch_size=3),
        lambda: encode_source(tokenizer, source, tmp_path / "codes.jsonl", "jsonl", **rest),
        lambda: decode_codes(tokenizer, list(zip("abcdefg", codes, strict=True)), tmp_path / "out", **rest),
        lambda: index.update(photos, **rest),
    ):
        passes.clear()
        use()
        assert set(passes) == {3}


def test_a_pass_is_filled_up(passes: list[int]) -> None:
    """So that a row depends on no other and not on their number, on a GPU too."""
    seen: list[tuple[int, ...]] = []

    def compute(rows: Tensor) -> Tensor:
        seen.append(tuple(rows.shape))
        return rows + 1

    inputs = torch.arange(10.0).view(5, 2)
    assert torch.equal(compute_rows(inputs, compute, grid=4, device=CPU, batch_size=3), inputs + 1)
    assert seen == [(3, 2), (3, 2)]


def test_too_large_a_pass_is_named() -> None:
    def compute(rows: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.raises(RuntimeError, match=r"cpu does not hold a pass of 32 .* a smaller batch size may fit"):
        compute_rows(torch.zeros(1, 2), compute, grid=4, device=CPU)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        compute_rows(torch.zeros(1, 2), compute, grid=4, device=CPU, batch_size=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_few_images_are_what_they_are_among_many(precision: Any, language: Path) -> None:
    """Codes, reconstructions and vectors, to the bit; alone they are not computed 32 at a time."""
    tokenizer = ImageTokenizer(tiny_lqae(language), precision=precision)
    images = torch.rand(5, 3, 32, 32)
    codes = tokenizer.tokenize(torch.cat([images] * 8))[:5]
    decoded, vectors = tokenizer.decode(codes.repeat(8, 1))[:5], tokenizer.embed(torch.cat([images] * 8))[:5]
    for number in (1, 2, 3, 5):
        assert torch.equal(tokenizer.tokenize(images[:number]), codes[:number])
        assert torch.equal(tokenizer.decode(codes[:number]), decoded[:number])
        assert torch.equal(tokenizer.embed(images[:number]), vectors[:number])


class _Rounded(torch.nn.Module):
    """A layer that rounds by the number of rows, as products of matrices do on some processors."""

    def __init__(self, same: Sequence[int]) -> None:
        super().__init__()
        self.same, self.sizes = same, list[int]()

    def forward(self, rows: Tensor) -> Tensor:
        self.sizes.append(len(rows))
        return rows + (0.0 if len(rows) in self.same else 1e-7)


@pytest.mark.parametrize("same", [(2, 4, 8, 16), (4, 8)])
def test_other_passes_are_taken_where_they_give_the_same_bits(same: tuple[int, ...]) -> None:
    """Tried once for each size; what comes out of the whole, here whole numbers, does not have to show it."""
    layer, sizes = _Rounded(same), PassSizes()

    def computed(count: int) -> list[int]:
        del layer.sizes[:]
        rows = torch.rand(count, 3)
        found = compute_rows(rows, lambda some: layer(some).long(), grid=8, device=CPU, sizes=sizes)
        assert len(found) == count
        return [*layer.sizes]

    assert computed(2) == ([2, 8, 2] if 2 in same else [2, 8, 4, 8, 4])
    assert computed(2) == ([2] if 2 in same else [4])
    assert computed(11) == ([8, 4, 8, 4] if 2 in same else [8, 4])
    assert computed(5) == [8]
    assert computed(35) == ([8, 16, 16, 16, 4] if 16 in same else [8, 16, 8, 8, 8, 8, 4])
    assert computed(47) == ([16, 16, 16] if 16 in same else [8, 8, 8, 8, 8, 8])
