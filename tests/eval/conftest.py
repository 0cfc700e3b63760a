"""Tiny untrained autoencoders, and images for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny import IMAGE_SIZE, tiny_lqae, tiny_vqvae

from pixlex.models.baselines import VQVAE
from pixlex.models.lqae import LQAE
from pixlex.nn.language_model import LanguageModel


@pytest.fixture
def lqae(language: Path) -> LQAE:
    """An LQAE of 16 words whose untrained encoder uses many of them."""
    return tiny_lqae(language, search="raw")


@pytest.fixture
def bert(lqae: LQAE) -> LanguageModel:
    """The language model of that LQAE."""
    return lqae.language


@pytest.fixture
def vqvae() -> VQVAE:
    """A VQ-VAE of 16 codes."""
    return tiny_vqvae()


@pytest.fixture
def images() -> torch.Tensor:
    """Ten images of noise around ten colors."""
    generator = torch.Generator().manual_seed(6)
    colors = torch.rand(10, 3, 1, 1, generator=generator)
    noise = torch.randn(10, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return (colors + 0.3 * noise).clamp(0, 1)
