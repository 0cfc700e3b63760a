"""Pretrained starts of the image encoder: what transformers' networks compute, ours computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.tiny import tiny_mae
from torch import nn

from pixlex.config.cbvila import CBViLAConfig, FusionConfig, ImageTowerConfig, TextTowerConfig
from pixlex.models import pretrained
from pixlex.models.heads import MaskedWordHead
from pixlex.models.starts import start_from_pretrained
from pixlex.nn.bert import FusionEncoder, TextEncoder
from pixlex.nn.vit import ClassTokenEncoder

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6, "attn_implementation": "eager",
    "hidden_act": "gelu",
}  # fmt: skip


def _start(
    name: str, *, image_size: int = 32, depth: int = 2, width: int = 32, heads: int = 4
) -> ClassTokenEncoder:
    encoder = ClassTokenEncoder(image_size, 8, width, depth, heads, 2.0)
    image = ImageTowerConfig(width=width, depth=depth, heads=heads, mlp_ratio=2.0, pretrained=name)
    config = CBViLAConfig(
        image_size=image_size, patch_size=8, image=image, text=TextTowerConfig(width=8, heads=1),
        fusion=FusionConfig(depth=1),
    )  # fmt: skip
    start_from_pretrained(
        encoder, TextEncoder(9, 9, 8, 1, 1), FusionEncoder(8, 1, 1), MaskedWordHead(8, 9), config
    )
    return encoder.eval()


def _written(model: Any, folder: Path) -> Any:
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(folder)
    return model


def test_vit_gives_the_same_vectors(tmp_path: Path) -> None:
    reference = _written(
        transformers.ViTModel(transformers.ViTConfig(**SHAPE), add_pooling_layer=False), tmp_path
    )
    images = torch.rand(2, 3, 32, 32)
    found = _start(str(tmp_path))(images)
    torch.testing.assert_close(found, reference(images).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_a_classifier_around_a_vit_gives_its_body(tmp_path: Path) -> None:
    reference = _written(transformers.ViTForImageClassification(transformers.ViTConfig(**SHAPE)), tmp_path)
    images = torch.rand(2, 3, 32, 32)
    expected = reference.vit(images).last_hidden_state
    torch.testing.assert_close(_start(str(tmp_path))(images), expected, rtol=1e-4, atol=1e-4)


def test_deit_gives_its_weights_without_the_distillation_token(tmp_path: Path) -> None:
    """17 positions remain of 18: the class token's and the patches'."""
    reference = _written(
        transformers.DeiTModel(transformers.DeiTConfig(**SHAPE), add_pooling_layer=False), tmp_path
    )
    found = _start(str(tmp_path)).positions
    assert torch.equal(found[:, :1], reference.embeddings.position_embeddings[:, :1])
    assert torch.equal(found[:, 1:], reference.embeddings.position_embeddings[:, 2:])


def test_siglip_gives_the_same_vectors_but_for_the_class_token(tmp_path: Path) -> None:
    """Patches alone through our blocks; the class token, which SigLIP lacks, is our own."""
    config = transformers.SiglipVisionConfig(**(SHAPE | {"vision_use_head": False}))
    reference = _written(transformers.SiglipVisionModel(config), tmp_path)
    images = torch.rand(2, 3, 32, 32)
    encoder = _start(str(tmp_path))
    sequence = encoder.patches(images).flatten(2).transpose(1, 2) + encoder.positions[:, 1:]
    for block in encoder.blocks:
        sequence = block(sequence)
    torch.testing.assert_close(
        encoder.norm(sequence), reference(images).last_hidden_state, rtol=1e-4, atol=1e-4
    )


def test_our_masked_autoencoder_gives_the_same_features(tmp_path: Path) -> None:
    """A run of family mae: the mean of the patch vectors is its `embed`."""
    model = tiny_mae()
    pretrained.save(model, tmp_path / "model")
    images = torch.rand(2, 3, 32, 32)
    encoder = _start(str(tmp_path), depth=1, heads=2)
    found = encoder((images - model.mean) / model.std)[:, 1:].mean(1)
    torch.testing.assert_close(found, model.embed(images), rtol=1e-4, atol=1e-4)


def test_positions_are_resampled_to_another_grid(tmp_path: Path) -> None:
    """A linear slope over 4 x 4 positions stays one over 8 x 8, away from the border."""
    reference = transformers.ViTModel(transformers.ViTConfig(**SHAPE), add_pooling_layer=False)
    slope = torch.arange(4.0).repeat(4, 1).flatten()
    reference.embeddings.position_embeddings.data[0, 1:] = slope.unsqueeze(1)
    reference.save_pretrained(tmp_path)
    found = _start(str(tmp_path), image_size=64).positions[0, 1:, 0].view(8, 8)
    torch.testing.assert_close(found[4, 3:5], torch.tensor([1.25, 1.75]), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 2}, "has 4 attention heads, but image.heads is 2"),
        ({"depth": 3}, "has 2 layers, but 3 are asked for"),
        (
            {"width": 16},
            r"the patch embedding is \(32, 3, 8, 8\), the configuration asks for \(16, 3, 8, 8\)",
        ),
    ],
)
def test_another_shape_is_refused(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    _written(transformers.ViTModel(transformers.ViTConfig(**SHAPE), add_pooling_layer=False), tmp_path)
    with pytest.raises(ValueError, match=message):
        _start(str(tmp_path), **changes)


def test_what_holds_no_vision_transformer_is_refused(tmp_path: Path, language: Path) -> None:
    with pytest.raises(ValueError, match="expected a ViT, DeiT, ViTMAE, DINOv2 "):
        _start(str(language), heads=2)
    with pytest.raises(ValueError, match="holds no pretrained weights"):
        _start(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="its weights cannot be read"):
        _start(str(tmp_path))
