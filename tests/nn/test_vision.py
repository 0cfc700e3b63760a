"""Encoders that are no transformers of ours: convolutions, published vision models; random views."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from pixlex.nn.vision import (
    NUM_DRAWS,
    BatchNorm,
    ContrastiveHead,
    ConvolutionalEncoder,
    PublishedEncoder,
    alone,
    measure_statistics,
    random_views,
)

IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
PUBLISHED = {
    "dinov2": (transformers.Dinov2Config, transformers.Dinov2Model),
    "vit_mae": (transformers.ViTMAEConfig, transformers.ViTMAEModel),
    "siglip": (transformers.SiglipVisionConfig, transformers.SiglipVisionModel),
    "clip": (transformers.CLIPVisionConfig, transformers.CLIPVisionModel),
}


def published(kind: str, folder: Path) -> Path:
    """Write a tiny random vision model of 28 px images and 14 px patches, with its preprocessing."""
    config, model = PUBLISHED[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model(config(**SIZES, image_size=28, patch_size=14)).save_pretrained(folder)
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "size": {"height": 28, "width": 28}}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


def test_norm_is_that_of_torch() -> None:
    """In training by the batch, and remembering nothing; then by what was measured."""
    maps = 3 * torch.randn(5, 4, 6, 6) + 2
    ours, theirs = BatchNorm(4), nn.BatchNorm2d(4, momentum=None)
    for over in (alone, lambda tensor: tensor):
        assert torch.allclose(ours(maps, over), theirs(maps), atol=1e-5)
    assert torch.equal(ours.mean, torch.zeros(4))
    measure_statistics(ours, [lambda part=part: ours(part, alone) for part in maps.split(1)])
    assert torch.allclose(ours.mean, maps.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(ours.variance, maps.var((0, 2, 3), unbiased=False), rtol=1e-4)
    normed = ours(maps)
    assert torch.allclose(normed.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(ours(maps[:1]), normed[:1], atol=1e-6)  # alone as among others


def test_convolutions_see_patches_and_the_whole() -> None:
    """The whole is the mean of the patches; a smaller image has a smaller grid; a head compares vectors."""
    encoder = ConvolutionalEncoder(32, 32, 8).eval()
    vectors = encoder(IMAGES)
    assert vectors.shape == (6, 17, 32)
    assert torch.allclose(vectors[:, 0], vectors[:, 1:].mean(1), atol=1e-6)
    assert encoder(IMAGES[..., :16, :16]).shape == (6, 5, 32)
    assert ContrastiveHead(32, 8)(vectors[:, 0]).shape == (6, 8)
    with pytest.raises(ValueError, match="images of 3 x 32 x 32, got"):
        encoder(torch.rand(1, 3, 40, 40))
    with pytest.raises(ValueError, match=r"power of two.*got patch_size 6 and width 32"):
        ConvolutionalEncoder(32, 30, 6)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_encoder_is_the_model_itself(kind: str, tmp_path: Path) -> None:
    """Its own output for images as its preprocessing wants them; one vector for the whole, one for each patch."""
    folder = published(kind, tmp_path)
    encoder = PublishedEncoder(str(folder)).train()
    vectors = encoder(IMAGES)
    assert vectors.shape == (6, 5, 32)
    assert torch.equal(vectors, encoder(IMAGES))
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    small = torch.nn.functional.interpolate(
        IMAGES, (28, 28), mode="bicubic", antialias=True, align_corners=False
    )
    pixels = (small - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(
        3, 1, 1
    )
    model = PUBLISHED[kind][1].from_pretrained(folder).eval()
    if kind == "vit_mae":
        model.config.mask_ratio = 0.0
    output = model(pixels)
    if kind in ("clip", "siglip"):
        expected = output.pooler_output
    else:
        expected = (
            output.last_hidden_state[:, 1:].mean(1) if kind == "vit_mae" else output.last_hidden_state[:, 0]
        )
    assert torch.allclose(vectors[:, 0], expected, atol=1e-5)
    torch.manual_seed(1)
    other = PublishedEncoder(str(folder), random_weights=True)
    assert other.fingerprint != encoder.fingerprint == PublishedEncoder(str(folder)).fingerprint


def test_published_encoder_refuses_what_reads_no_images(language: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a bert: expected a vision transformer"):
        PublishedEncoder(str(language))
    with pytest.raises(ValueError, match="no vision model"):
        PublishedEncoder(str(tmp_path / "nothing"))


@pytest.mark.parametrize("kind", ["photographs", "drawings"])
def test_views_are_images(kind: str) -> None:
    """In [0, 1], a function of the draws alone, of any size; no draw at all changes the color of a grey image."""
    draws = torch.rand(6, NUM_DRAWS, generator=torch.Generator().manual_seed(1))
    views = random_views(IMAGES, kind, draws, 16)  # type: ignore[arg-type]
    assert views.shape == (6, 3, 16, 16)
    assert 0 <= float(views.min()) < float(views.max()) <= 1
    assert torch.allclose(views[2:3], random_views(IMAGES[2:3], kind, draws[2:3], 16), atol=1e-6)  # type: ignore[arg-type]
    grey = random_views(torch.full_like(IMAGES, 0.5), "photographs", draws)
    assert torch.allclose(grey, grey[:, :1].expand_as(grey), atol=1e-2)


def test_drawings_keep_their_white_ground_and_their_sides() -> None:
    """Whatever is drawn, white stays white; what is dark at the left of a drawing stays left of what is light."""
    draws = torch.rand(200, NUM_DRAWS, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(
        random_views(torch.ones(200, 3, 16, 16), "drawings", draws), torch.ones(()), atol=1e-3
    )
    drawing = torch.ones(200, 3, 32, 32)
    drawing[..., 12:20, 10:16] = 0.2
    seen = 1 - random_views(drawing, "drawings", draws).mean(1)
    columns = torch.arange(32.0)
    middle = (seen.sum(1) * columns).sum(1) / seen.sum((1, 2))
    photographs = 1 - random_views(drawing, "photographs", draws).mean(1)
    assert float(middle.mean()) < 15.5
    assert abs(float(((photographs.sum(1) * columns).sum(1) / photographs.sum((1, 2))).mean()) - 15.5) < 1.0
