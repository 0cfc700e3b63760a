"""Measures through networks that the user brings, here tiny ones, against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from pixlex.eval.metrics import FrechetDistance, PerceptualDistance, perceptual_notes

CPU = torch.device("cpu")


class PooledColors(nn.Module):
    """Features: mean and maximum of each channel, of bytes; probabilities unless features are asked for."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        pixels = images.float() / 255.0
        features = torch.cat([pixels.mean((2, 3)), pixels.amax((2, 3))], dim=1)
        return features if return_features else features.softmax(1)


class PlainFeatures(nn.Module):
    """The same without a choice."""

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float() / 255.0
        return torch.cat([pixels.mean((2, 3)), pixels.amax((2, 3))], dim=1)


class PairDistance(nn.Module):
    """Compares images in [-1, 1], shaped as the lpips package shapes its answer."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second).abs().mean((1, 2, 3), keepdim=True)


class LPIPSFeatures(nn.Module):
    """Features of images in [0, 255] whose squared distance is the distance."""

    def forward(self, images: Tensor, resize_images: bool = True, return_lpips: bool = False) -> Tensor:
        if not return_lpips or resize_images:
            return images.flatten(1) * 0.0
        return images.mean((2, 3)) / 255.0


class OneNumber(nn.Module):
    """One distance for the whole batch."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second).abs().mean()


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Images on the 256 levels of a byte, and other ones."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(0, 256, (40, 3, 9, 9), generator=generator) / 255 for _ in range(2))
    return first, second * 0.8


def scripted(module: nn.Module, folder: Path) -> Path:
    """The module as a TorchScript file."""
    path = folder / f"{type(module).__name__}.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(module).save(str(path))
    return path


@pytest.mark.parametrize("network", [PooledColors(), PlainFeatures()])
def test_frechet_distance_equals_its_formula(
    network: nn.Module, pair: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    """In several batches; of copies it is zero, of a single image there is none."""
    distance = FrechetDistance(scripted(network, tmp_path), CPU)
    for images, copies in zip(*(batch.split(15) for batch in pair), strict=True):
        distance.update(images, copies)
    plain = PlainFeatures()
    first, second = (plain((batch * 255).round().byte()).double().numpy() for batch in pair)
    covariances = [np.cov(features, rowvar=False) for features in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root)
    assert distance.compute() == pytest.approx(expected, rel=1e-4)
    copies = FrechetDistance(scripted(network, tmp_path), CPU)
    copies.update(pair[0][:1], pair[0][:1])
    assert copies.compute() is None
    copies.update(pair[0][1:], pair[0][1:])
    assert copies.compute() == pytest.approx(0, abs=1e-6)


def test_perceptual_distance_of_both_kinds_of_networks(pair: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    """One compares images around zero, the other gives features whose squared distance counts."""
    expected = 2 * (pair[0] - pair[1]).abs().mean((1, 2, 3))
    assert torch.allclose(
        PerceptualDistance(scripted(PairDistance(), tmp_path), CPU)(*pair), expected, rtol=1e-4
    )
    expected = (pair[0].mean((2, 3)) - pair[1].mean((2, 3))).square().sum(1)
    assert torch.allclose(
        PerceptualDistance(scripted(LPIPSFeatures(), tmp_path), CPU)(*pair), expected, rtol=1e-4
    )


def test_networks_that_do_not_fit_are_named(pair: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Linear\.pt does not turn uint8 images"):
        FrechetDistance(scripted(nn.Linear(7, 5), tmp_path), CPU)
    with pytest.raises(ValueError, match="expected 40 distances"):
        PerceptualDistance(scripted(OneNumber(), tmp_path), CPU)(*pair)
    with pytest.raises(ValueError, match=r"Bilinear\.pt cannot compare images"):
        PerceptualDistance(scripted(nn.Bilinear(2, 3, 1), tmp_path), CPU)(*pair)
    with pytest.raises(ValueError, match="no network at"):
        FrechetDistance(tmp_path / "absent.pt", CPU)
    weights = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match=r"weights\.pt is not a TorchScript file"):
        PerceptualDistance(weights, CPU)


def test_what_is_missing_is_noted() -> None:
    notes = [note.split()[0] for note in perceptual_notes(40, has_fid=False, has_lpips=False)]
    assert notes == ["rFID", "LPIPS"]
    assert "published values are of 50000" in perceptual_notes(40, has_fid=True, has_lpips=True)[0]
    assert perceptual_notes(50_000, has_fid=True, has_lpips=True) == []
