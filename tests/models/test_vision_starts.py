"""Image encoders of LQAE, VQ-VAE, Frozen and MAE that start from the hub's: equal to transformers' outputs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.eval.few_shot.fakes import labeled
from tests.tiny import tiny_lqae_config, tiny_mae, tiny_mae_config, tiny_vqvae_config
from torch import Tensor, nn

from pixlex import runs
from pixlex.config.data import DataConfig
from pixlex.config.lqae import VisionConfig
from pixlex.config.run import LQAERun, MAERun, VQVAERun
from pixlex.config.train import TrainConfig
from pixlex.models import pretrained
from pixlex.models.mae import MAE
from pixlex.models.vision_starts import start_encoder
from pixlex.nn.vit import ImageEncoder

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
    start_encoder(encoder, config, 4)
    with torch.no_grad():
        expected = patches_of(kind, model, (IMAGES - 0.5) / 0.5)
        torch.testing.assert_close(encoder(IMAGES), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "mae", "deit"])
def test_a_masked_autoencoder_starts_from_them_too(kind: str, tmp_path: Path) -> None:
    """Its features, with ImageNet's pixels, are the means of the patch vectors; they survive saving."""
    model = written(kind, tmp_path / "hub")
    vision = configured(kind, tmp_path / "hub", class_token=False)
    config = dataclasses.replace(tiny_mae_config(), encoder=vision)
    ours = MAE.build(config).eval()
    start_encoder(ours.network.vit, vision, ours.grid)
    pretrained.save(ours, tmp_path / "ours")
    loaded = pretrained.load_any(str(tmp_path / "ours"))
    assert isinstance(loaded, MAE)
    assert torch.equal(loaded.embed(IMAGES), ours.embed(IMAGES))
    if kind == "deit":  # its second token is not taken along
        return
    with torch.no_grad():
        expected = patches_of(kind, model, (IMAGES - ours.mean) / ours.std).mean(1)
    torch.testing.assert_close(ours.embed(IMAGES), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["lqae", "vqvae", "mae"])
def test_a_run_starts_there_and_its_model_needs_it_no_more(
    family: str, language: Path, pictures: Path, tmp_path: Path
) -> None:
    written("vit", tmp_path / "hub")
    settings: dict[str, Any] = {
        "data": DataConfig(train=str(pictures)),
        "train": TrainConfig(steps=1, batch_size=4, learning_rate=1e-12, device="cpu", precision="fp32"),
    }
    vision = configured("vit", tmp_path / "hub", class_token=family != "mae")
    run = {
        "lqae": lambda: LQAERun(
            model=dataclasses.replace(tiny_lqae_config(language), encoder=vision), **settings
        ),
        "vqvae": lambda: VQVAERun(model=dataclasses.replace(tiny_vqvae_config(), encoder=vision), **settings),
        "mae": lambda: MAERun(model=dataclasses.replace(tiny_mae_config(), encoder=vision), **settings),
    }[family]()
    assert runs.run_training(run, tmp_path / "run") is not None
    (tmp_path / "hub").rename(tmp_path / "gone")
    model = pretrained.load_any(str(tmp_path / "run"))
    reference = transformers.ViTModel.from_pretrained(tmp_path / "gone")
    ours = (
        model.network.vit.embeddings.patch_embeddings.projection if family == "mae" else model.encoder.patches
    )  # type: ignore[union-attr]
    theirs = reference.embeddings.patch_embeddings.projection.weight
    torch.testing.assert_close(ours.weight, theirs, rtol=0, atol=1e-6)  # type: ignore[union-attr]


def test_positions_are_resampled(tmp_path: Path) -> None:
    written("vit", tmp_path)
    config = configured("vit", tmp_path)
    encoder = ImageEncoder(config, 64, 8)
    start_encoder(encoder, config, 8)
    assert encoder(torch.rand(1, 3, 64, 64)).shape == (1, 64, 32)


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
        start_encoder(ImageEncoder(config, 32, 8), config, 4)


def test_a_published_masked_autoencoder_makes_a_row(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    """MAE + linear with `--model MAE=DIRECTORY` of transformers' files, no run of ours."""
    model = written("mae", tmp_path / "hub")
    ours = pretrained.load_any(str(tmp_path / "hub"))
    assert isinstance(ours, MAE)
    with torch.no_grad():
        expected = patches_of("mae", model, (IMAGES - ours.mean) / ours.std).mean(1)
    torch.testing.assert_close(ours.embed(IMAGES), expected, rtol=1e-4, atol=1e-4)
    labeled(tmp_path / "images", per_class=3)
    code, out, err = call(
        "evaluate", "few-shot", "--model", f"MAE={tmp_path / 'hub'}", "--data", tmp_path / "images",
        "--episodes", 3, "--ways", 2, "--settings", "1/0", "--answerers", "linear", "--device", "cpu",
        "--quiet", "--json", "--out", tmp_path / "few",
    )  # fmt: skip
    assert code == 0, err
    assert [cell["answerer"] for cell in json.loads(out)] == ["MAE, encoder + linear"]


def test_a_published_one_that_is_damaged_is_refused(tmp_path: Path) -> None:
    pretrained.save(tiny_mae(), tmp_path / "ours")
    settings = {"model_type": "vit_mae", **SHAPE, **WIDE, **DECODER}
    (tmp_path / "ours/config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"lacks \d+ weights of its encoder|cannot be loaded as a ViTMAE"):
        pretrained.load_any(str(tmp_path / "ours"))
