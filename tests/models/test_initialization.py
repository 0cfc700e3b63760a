"""Image encoders that start from the hub's: equal to transformers' outputs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tests.tiny import tiny_lqae_config, tiny_mae, tiny_mae_config
from torch import Tensor, nn

from pixlex import run as runs
from pixlex.config.cbvila import CBViLAConfig, FusionConfig, ImageTowerConfig, TextTowerConfig
from pixlex.config.fields import DataConfig, TrainConfig
from pixlex.config.lqae import LQAERun, VisionConfig
from pixlex.models import checkpoint
from pixlex.models.baselines import MAE
from pixlex.models.cbvila import MaskedWordHead
from pixlex.models.initialization import Published, initialize_encoder, initialize_towers
from pixlex.nn.bert import FusionEncoder, TextEncoder
from pixlex.nn.transformer import ClassTokenEncoder, ImageEncoder

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
    "attn_implementation": "eager",
}  # fmt: skip
WIDE = {"intermediate_size": 64}
DECODER = {
    "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}  # fmt: skip
MODELS: dict[str, Callable[[], Any]] = {
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**SHAPE, **WIDE), add_pooling_layer=False),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SHAPE, mlp_ratio=2)),
    "mae": lambda: transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SHAPE, **WIDE, **DECODER)),
    "siglip": lambda: transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**SHAPE, **WIDE, vision_use_head=False)
    ),
    "siglip, exact": lambda: transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**SHAPE, **WIDE, vision_use_head=False, hidden_act="gelu")
    ),
    "deit": lambda: transformers.DeiTModel(transformers.DeiTConfig(**SHAPE, **WIDE), add_pooling_layer=False),
}
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def written(kind: str, folder: Path) -> Any:
    """Save a small network of random weights, far from those it begins with."""
    torch.manual_seed(1)
    model = MODELS[kind]()
    for name, parameter in model.named_parameters():
        if ("position" not in name and "pos_embed" not in name) or kind != "mae":
            nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(folder)
    return model


def patches_of(kind: str, model: Any, images: Tensor) -> Tensor:
    """What transformers makes of images, the patches alone, nothing hidden."""
    if kind == "mae":
        noise = torch.arange(16.0).expand(len(images), -1)
        model.vit.config.mask_ratio = 0.0
        model.vit.embeddings.config.mask_ratio = 0.0
        return model.vit(images, noise=noise).last_hidden_state[:, 1:]  # type: ignore[no-any-return]
    hidden: Tensor = model(images).last_hidden_state
    return hidden if kind == "siglip" else hidden[:, 1:]


def configured(kind: str, folder: Path, **changes: Any) -> VisionConfig:
    settings = {"width": 32, "depth": 2, "heads": 4, "mlp_ratio": 2.0, "pretrained": str(folder)}
    settings |= {"class_token": kind != "siglip", "gelu": "tanh" if kind == "siglip" else "exact"}
    return VisionConfig(**(settings | changes))


@pytest.mark.parametrize("kind", ["vit", "dinov2", "mae", "siglip"])
def test_patch_vectors_equal_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model, config = written(kind, tmp_path), configured(kind, tmp_path, pixels="half")
    encoder = ImageEncoder(config, 32, 8)
    initialize_encoder(encoder, config, 4)
    with torch.no_grad():
        expected = patches_of(kind, model, (IMAGES - 0.5) / 0.5)
        torch.testing.assert_close(encoder(IMAGES), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_a_masked_autoencoder_starts_from_them_too(kind: str, tmp_path: Path) -> None:
    """Its features, with ImageNet's pixels, are the means of the patch vectors; they survive saving."""
    model = written(kind, tmp_path / "hub")
    vision = configured(kind, tmp_path / "hub", class_token=False)
    config = dataclasses.replace(tiny_mae_config(), encoder=vision)
    ours = MAE.build(config).eval()
    initialize_encoder(ours.network.vit, vision, ours.grid)
    checkpoint.save(ours, tmp_path / "ours")
    loaded = checkpoint.load_any(str(tmp_path / "ours"))
    assert isinstance(loaded, MAE)
    assert torch.equal(loaded.embed(IMAGES), ours.embed(IMAGES))
    if kind == "deit":  # its second token is not taken along
        return
    with torch.no_grad():
        expected = patches_of(kind, model, (IMAGES - ours.mean) / ours.std).mean(1)
    torch.testing.assert_close(ours.embed(IMAGES), expected, rtol=1e-4, atol=1e-4)


def test_a_run_starts_there_and_needs_it_no_more(language: Path, pictures: Path, tmp_path: Path) -> None:
    written("vit", tmp_path / "hub")
    config = dataclasses.replace(tiny_lqae_config(language), encoder=configured("vit", tmp_path / "hub"))
    train = TrainConfig(steps=1, batch_size=4, learning_rate=1e-12, device="cpu", precision="fp32")
    run = LQAERun(model=config, data=DataConfig(train=str(pictures)), train=train)
    assert runs.run_training(run, tmp_path / "run") is not None
    (tmp_path / "hub").rename(tmp_path / "gone")
    model = checkpoint.load_any(str(tmp_path / "run"))
    reference = transformers.ViTModel.from_pretrained(tmp_path / "gone")
    theirs = reference.embeddings.patch_embeddings.projection.weight
    torch.testing.assert_close(model.encoder.patches.weight, theirs, rtol=0, atol=1e-6)  # type: ignore[union-attr]


def towers(name: str, *, image_size: int = 32, depth: int = 2, heads: int = 4) -> ClassTokenEncoder:
    """CB-ViLA's image encoder, started from what is named; the other parts start from nothing."""
    encoder = ClassTokenEncoder(image_size, 8, 32, depth, heads, 2.0)
    image = ImageTowerConfig(width=32, depth=depth, heads=heads, mlp_ratio=2.0, pretrained=name)
    config = CBViLAConfig(
        image_size=image_size, patch_size=8, image=image, text=TextTowerConfig(width=8, heads=1),
        fusion=FusionConfig(depth=1),
    )  # fmt: skip
    initialize_towers(
        encoder, TextEncoder(9, 9, 8, 1, 1), FusionEncoder(8, 1, 1), MaskedWordHead(8, 9), config
    )
    return encoder.eval()


@pytest.mark.parametrize("kind", ["vit", "deit", "siglip, exact"])
def test_cbvilas_image_encoder_takes_all_but_a_token_of_its_own(kind: str, tmp_path: Path) -> None:
    """DeiT: 17 positions remain of 18. SigLIP: the class token, which it lacks, and its position stay ours."""
    model, found = written(kind, tmp_path), towers(str(tmp_path))
    positions = found.positions.detach()
    if kind == "deit":
        theirs = model.embeddings.position_embeddings
        assert torch.equal(positions, torch.cat([theirs[:, :1], theirs[:, 2:]], dim=1))
        return
    with torch.no_grad():
        if kind == "vit":
            expected, vectors = model(IMAGES).last_hidden_state, found(IMAGES)
        else:
            sequence = found.patches(IMAGES).flatten(2).transpose(1, 2) + positions[:, 1:]
            for block in found.blocks:
                sequence = block(sequence)
            expected, vectors = model(IMAGES).last_hidden_state, found.norm(sequence)
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-4)


def test_a_run_of_a_masked_autoencoder_gives_the_same_features(tmp_path: Path) -> None:
    """The mean of the patch vectors is its `embed`."""
    model = tiny_mae()
    checkpoint.save(model, tmp_path / "model")
    encoder = towers(str(tmp_path), depth=1, heads=2)
    found = encoder((IMAGES - model.mean) / model.std)[:, 1:].mean(1)
    torch.testing.assert_close(found, model.embed(IMAGES), rtol=1e-4, atol=1e-4)


def test_positions_are_resampled_to_another_grid(tmp_path: Path) -> None:
    """A linear slope over 4 x 4 positions stays one over 8 x 8, away from the border."""
    reference = MODELS["vit"]()
    slope = torch.arange(4.0).repeat(4, 1).flatten()
    reference.embeddings.position_embeddings.data[0, 1:] = slope.unsqueeze(1)
    reference.save_pretrained(tmp_path)
    found = towers(str(tmp_path), image_size=64).positions[0, 1:, 0].view(8, 8)
    torch.testing.assert_close(found[4, 3:5], torch.tensor([1.25, 1.75]), atol=0.05, rtol=0)


def test_names_of_old_files_are_understood(tmp_path: Path) -> None:
    """TensorFlow's gamma and beta, and the name of what the body is part of."""
    save_file({"bert.embeddings.LayerNorm.gamma": torch.ones(3)}, tmp_path / "model.safetensors")
    assert list(Published(str(tmp_path)).weights) == ["embeddings.LayerNorm.weight"]


def test_what_holds_no_vision_transformer_is_refused(tmp_path: Path, language: Path) -> None:
    with pytest.raises(ValueError, match="expected a ViT, DeiT, ViTMAE, DINOv2 "):
        towers(str(language), heads=2)
    with pytest.raises(ValueError, match="holds no pretrained weights"):
        towers(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="its weights cannot be read"):
        towers(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("vit", {"class_token": False}, "has a class token: it needs encoder.class_token=true"),
        ("siglip", {"class_token": True}, "has no class token: it needs encoder.class_token=false"),
        ("siglip", {"gelu": "exact"}, "needs encoder.gelu=tanh, got exact"),
        ("dinov2", {"heads": 2}, "has 4 attention heads, but encoder.heads is 2"),
        ("vit", {"depth": 3}, "has 2 layers, but 3 are asked for"),
        ("vit", {"mlp_ratio": 4.0}, "the configuration asks for"),
    ],
)
def test_what_does_not_fit_is_named(kind: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    written(kind, tmp_path)
    config = configured(kind, tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        initialize_encoder(ImageEncoder(config, 32, 8), config, 4)


def test_a_published_masked_autoencoder_is_loaded(tmp_path: Path) -> None:
    """A directory of transformers' files, no run of ours, as `--model MAE=DIRECTORY` takes it."""
    model = written("mae", tmp_path / "hub")
    ours = checkpoint.load_any(str(tmp_path / "hub"))
    assert isinstance(ours, MAE)
    with torch.no_grad():
        expected = patches_of("mae", model, (IMAGES - ours.mean) / ours.std).mean(1)
    torch.testing.assert_close(ours.embed(IMAGES), expected, rtol=1e-4, atol=1e-4)


def test_a_published_one_that_is_damaged_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tiny_mae(), tmp_path / "ours")
    settings = {"model_type": "vit_mae", **SHAPE, **WIDE, **DECODER}
    (tmp_path / "ours/config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"lacks \d+ weights of its encoder|cannot be loaded as a ViTMAE"):
        checkpoint.load_any(str(tmp_path / "ours"))
