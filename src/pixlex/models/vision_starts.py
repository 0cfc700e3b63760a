"""Vision transformers of the hub to start an image encoder from: ViT, DeiT, ViTMAE, DINOv2, SigLIP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pixlex.config.lqae import VisionConfig
from pixlex.models.weights import Weights, check_depth, check_heads, copy, described, read_weights, taker
from pixlex.nn.transformer import Block
from pixlex.nn.vit import ClassTokenEncoder, ImageEncoder, sine_positions

_QUERY = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
# Our names of a vision transformer's layer -> theirs, in the order of the known kinds of file.
_LAYER = {
    "attention.query_key_value": (
        _QUERY,
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        _QUERY,
    ),
    "attention.output": (
        ("attention.output.dense",), ("self_attn.out_proj",), ("attention.o_proj",), ("attention.output.dense",),
    ),
    "attention_norm": (("layernorm_before",), ("layer_norm1",), ("layernorm_before",), ("norm1",)),
    "feed_forward_norm": (("layernorm_after",), ("layer_norm2",), ("layernorm_after",), ("norm2",)),
    "expand": (("intermediate.dense",), ("mlp.fc1",), ("mlp.fc1",), ("mlp.fc1",)),
    "contract": (("output.dense",), ("mlp.fc2",), ("mlp.fc2",), ("mlp.fc2",)),
}  # fmt: skip
_LAYERS = ("encoder.layer", "encoder.layers", "layers", "encoder.layer")
_VIT, _SIGLIP, _NEW, _DINOV2 = range(4)
# A network of transformers' ViTMAE in memory has the names of the third kind.
_SCALES = {"attention.output": "layer_scale1.lambda1", "contract": "layer_scale2.lambda1"}


@dataclass(frozen=True)
class VisionWeights:
    """The weights of a vision transformer under our names.

    Attributes:
        patches: weight and bias of the patch embedding.
        class_token: without its position; None where there is none (SigLIP).
        positions: of class token and patches, on the wanted grid; the first row is zero without a class token.
        layers: of each layer, its weights by our names.
        norm: weight and bias of the last norm.
    """

    patches: tuple[Tensor, Tensor]
    class_token: Float[Tensor, "1 1 D"] | None
    positions: Float[Tensor, "1 N1 D"]
    layers: tuple[Mapping[str, Tensor], ...]
    norm: tuple[Tensor, Tensor]


def read_vision(name: str, grid: int, depth: int) -> VisionWeights:
    """Read the first layers of a vision transformer, its positions resampled.

    DINOv2's scales of what a layer adds are multiplied into the linear map before them.

    Args:
        name: as for `read_weights`.
        grid: patches along one side.
        depth: number of layers.

    Raises:
        ValueError: no weights, or not those of a known vision transformer.
    """
    weights = read_weights(name)
    kind = _kind(weights)
    patches = "embeddings.patch_embedding" if kind == _SIGLIP else "embeddings.patch_embeddings.projection"
    if kind is None or f"{patches}.weight" not in weights or "embeddings.register_tokens" in weights:
        raise ValueError(
            f"{name}: expected a ViT, DeiT, ViTMAE, DINOv2 (without registers) or SigLIP, found "
            f"{', '.join(sorted(weights)[:3])}, ..."
        )
    take = taker(weights, name)
    check_depth(weights, _LAYERS[kind], depth, name)
    norm = "post_layernorm" if kind == _SIGLIP else "layernorm"
    width = weights[f"{patches}.weight"].shape[0]
    return VisionWeights(
        patches=(take(f"{patches}.weight"), take(f"{patches}.bias")),
        class_token=weights.get("embeddings.cls_token"),
        positions=_positions(weights, grid, width),
        layers=tuple(_layer(weights, kind, number, name) for number in range(depth)),
        norm=(take(f"{norm}.weight"), take(f"{norm}.bias")),
    )


def _kind(weights: Weights) -> int | None:
    if "encoder.layer.0.norm1.weight" in weights:
        return _DINOV2
    first = (f"{key}.0." for key in _LAYERS)
    return next((kind for kind, key in enumerate(first) if any(one.startswith(key) for one in weights)), None)


def _layer(weights: Weights, kind: int, number: int, name: str) -> dict[str, Tensor]:
    """Return the weights of a layer by our names."""
    take, prefix = taker(weights, name), f"{_LAYERS[kind]}.{number}."
    found = {
        f"{ours}.{one}": torch.cat([take(f"{prefix}{part}.{one}") for part in theirs[kind]])
        for ours, theirs in _LAYER.items()
        for one in ("weight", "bias")
    }
    if kind == _DINOV2:
        for ours, scale in _SCALES.items():
            factors = take(f"{prefix}{scale}")
            found[f"{ours}.weight"] = found[f"{ours}.weight"] * factors.unsqueeze(1)
            found[f"{ours}.bias"] = found[f"{ours}.bias"] * factors
    return found


def _positions(weights: Weights, grid: int, width: int) -> Float[Tensor, "1 N1 D"]:
    """Return positions for class token and patches, bicubically resampled where the grid is another one."""
    if "embeddings.position_embedding.weight" in weights:
        patches = weights["embeddings.position_embedding.weight"].unsqueeze(0)
        first = torch.zeros_like(patches[:, :1])
    elif "embeddings.position_embeddings" in weights:
        found = weights["embeddings.position_embeddings"]
        # DeiT's distilled ones have a second token before the patches.
        before = found.shape[1] - int(found.shape[1] ** 0.5) ** 2
        first, patches = found[:, :1], found[:, before:]
    else:  # our masked autoencoder's are fixed
        return sine_positions(grid, width)
    side = round(patches.shape[1] ** 0.5)
    on_grid = patches.transpose(1, 2).reshape(1, -1, side, side)
    if side != grid:
        on_grid = F.interpolate(on_grid, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([first, on_grid.flatten(2).transpose(1, 2)], dim=1)


def start_class_token_encoder(encoder: ClassTokenEncoder, name: str, grid: int) -> None:
    """Copy a vision transformer into CB-ViLA's image encoder; a class token that it lacks stays as it is."""
    found = read_vision(name, grid, len(encoder.blocks))
    _copy_ends(encoder.patches, encoder.norm, found, name)
    positions = found.positions
    if found.class_token is None:
        positions = torch.cat([encoder.positions.detach()[:, :1], positions[:, 1:]], dim=1)
    else:
        copy(encoder.class_token, found.class_token, name, "the class token")
    copy(encoder.positions, positions, name, "the positions")
    _copy_blocks(encoder.blocks, found, name)


def start_encoder(encoder: nn.Module, config: VisionConfig, grid: int) -> None:
    """Copy a vision transformer into the image encoder of LQAE, VQ-VAE, MAE or Frozen, if one is named.

    Args:
        encoder: an `ImageEncoder`, or the body of transformers' ViTMAE.
        config: the encoder's; its `pretrained` is the name.
        grid: patches along one side.

    Raises:
        ValueError: no such weights, or they do not fit the configuration.
    """
    name = config.pretrained
    if not name:
        return
    check_heads(name, "encoder.heads", config.heads)
    gelu = "tanh" if "tanh" in str(described(name).get("hidden_act")) else "exact"
    if gelu != config.gelu and described(name).get("hidden_act"):
        raise ValueError(f"{name} needs encoder.gelu={gelu}, got {config.gelu}")
    found = read_vision(name, grid, config.depth)
    if not isinstance(encoder, ImageEncoder):
        _start_mae(encoder, found, name)
        return
    has_token = found.class_token is not None
    if has_token != config.class_token:
        raise ValueError(
            f"{name} has {'a' if has_token else 'no'} class token: it needs encoder.class_token="
            f"{str(has_token).lower()}"
        )
    assert isinstance(encoder.trunk.norm, nn.LayerNorm)
    _copy_ends(encoder.patches, encoder.trunk.norm, found, name)
    if found.class_token is not None:
        assert encoder.class_token is not None
        token = found.class_token + found.positions[:, :1]
        copy(encoder.class_token, token, name, "the class token")
    copy(encoder.trunk.positions, found.positions[:, 1:], name, "the positions")
    _copy_blocks(encoder.trunk.blocks, found, name)


def _copy_ends(patches: nn.Conv2d, norm: nn.LayerNorm, found: VisionWeights, name: str) -> None:
    assert patches.bias is not None
    for target, source in zip((patches.weight, patches.bias), found.patches, strict=True):
        copy(target, source, name, "the patch embedding")
    for target, source in zip((norm.weight, norm.bias), found.norm, strict=True):
        copy(target, source, name, "the last norm")


def _copy_blocks(blocks: nn.ModuleList, found: VisionWeights, name: str) -> None:
    for block, layer in zip(blocks, found.layers, strict=True):
        assert isinstance(block, Block)
        for key, source in layer.items():
            copy(block.get_parameter(key), source, name, key)


def _start_mae(vit: nn.Module, found: VisionWeights, name: str) -> None:
    """Copy into transformers' own network, where queries, keys and values are three maps."""
    projection, norm = (
        vit.get_submodule("embeddings.patch_embeddings.projection"),
        vit.get_submodule("layernorm"),
    )
    assert isinstance(projection, nn.Conv2d)
    assert isinstance(norm, nn.LayerNorm)
    _copy_ends(projection, norm, found, name)
    if found.class_token is not None:
        copy(vit.get_parameter("embeddings.cls_token"), found.class_token, name, "the class token")
    copy(vit.get_buffer("embeddings.position_embeddings"), found.positions, name, "the positions")
    for number, layer in enumerate(found.layers):
        for ours, theirs in _LAYER.items():
            for one in ("weight", "bias"):
                parts = layer[f"{ours}.{one}"].chunk(len(theirs[_NEW]))
                for part, source in zip(theirs[_NEW], parts, strict=True):
                    copy(vit.get_parameter(f"layers.{number}.{part}.{one}"), source, name, part)
