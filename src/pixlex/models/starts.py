"""Pretrained parts to start from: a BERT for text and fusion encoder, a vision transformer for images.

Weights are read by their names in the files, which have been the same for years, unlike the classes around them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pixlex.config.cbvila import CBViLAConfig
from pixlex.models.hub import find_model
from pixlex.nn.bert import BertLayer, FusionEncoder, TextEncoder
from pixlex.nn.embedded import EMBEDDED, EMBEDDED_HEAD, embedded_directory
from pixlex.nn.transformer import Block
from pixlex.nn.vit import ClassTokenEncoder, sine_positions

Weights = Mapping[str, Tensor]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
# Where a body's weights begin, whatever it is part of; our own masked autoencoder's begin with network.vit.
_PREFIX = re.compile(r"^(network\.)?(bert|vit|deit|siglip|vision_model|model)\.(vision_model\.)?")

# Our names of a vision transformer's layer -> theirs, in the order of the three known kinds of file.
_VISION_LAYER = {
    "attention.query_key_value": (
        ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    ),
    "attention.output": (("attention.output.dense",), ("self_attn.out_proj",), ("attention.o_proj",)),
    "attention_norm": (("layernorm_before",), ("layer_norm1",), ("layernorm_before",)),
    "feed_forward_norm": (("layernorm_after",), ("layer_norm2",), ("layernorm_after",)),
    "expand": (("intermediate.dense",), ("mlp.fc1",), ("mlp.fc1",)),
    "contract": (("output.dense",), ("mlp.fc2",), ("mlp.fc2",)),
}
_VISION_LAYERS = ("encoder.layer", "encoder.layers", "layers")

_BERT_LAYER = {
    "attention.query_key_value": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "expand": ("intermediate.dense",),
    "contract": ("output.dense",),
    "feed_forward_norm": ("output.LayerNorm",),
}


_HEAD = {
    "transform.weight": "transform.dense.weight",
    "transform.bias": "transform.dense.bias",
    "norm.weight": "transform.LayerNorm.weight",
    "norm.bias": "transform.LayerNorm.bias",
    "bias": "bias",
}


def start_from_pretrained(
    image_encoder: ClassTokenEncoder,
    text_encoder: TextEncoder,
    fusion: FusionEncoder,
    masked_word_head: nn.Module,
    config: CBViLAConfig,
) -> None:
    """Copy pretrained weights into the parts for which the configuration names any.

    Args:
        image_encoder: receives a vision transformer, its positions resampled.
        text_encoder: receives embeddings and first layers of a BERT.
        fusion: receives the layers behind those, all but the cross-attention.
        masked_word_head: receives the head behind the last of them, where the weights have one.
        config: the names.

    Raises:
        ValueError: weights that cannot be found or read, or are of other shapes than the configuration's.
    """
    for part, name, heads in (
        ("image.heads", config.image.pretrained, config.image.heads),
        ("text.heads", config.text.pretrained, config.text.heads),
        ("text.heads", config.fusion.pretrained, config.text.heads),
    ):
        if name:
            _check_heads(name, part, heads)
    if name := config.image.pretrained:
        _start_image(image_encoder, read_weights(name), name, config.grid)
    weights: Weights = {}
    if name := config.text.pretrained:
        weights = read_weights(name)
        _start_embeddings(text_encoder, weights, name)
        _start_layers(text_encoder.layers, weights, 0, name)
    if name := config.fusion.pretrained:
        if name != config.text.pretrained:
            weights = read_weights(name)
        _start_layers(fusion.layers, weights, config.text.depth, name)
        _start_head(masked_word_head, weights, name)


def read_weights(name: str) -> Weights:
    """Return the weights in a directory's or repository's safetensors, the names without what the body is part of.

    Args:
        name: a directory, a run folder of ours, a repository on the hub, or "embedded".

    Raises:
        ValueError: there are none, or they are damaged.
    """
    folder = _folder_of(name)
    more = load_file(EMBEDDED_HEAD) if name == EMBEDDED else {}
    index = folder / _INDEX
    files = [_SINGLE]
    try:
        if index.is_file():
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        weights = {**more, **{key: one for file in files for key, one in load_file(folder / file).items()}}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{name}: its weights cannot be read: {error}") from error
    bare = {_PREFIX.sub("", key): tensor for key, tensor in weights.items()}
    # TensorFlow's names of a norm's weights, in the oldest files.
    return {key.replace(".gamma", ".weight").replace(".beta", ".bias"): bare[key].float() for key in bare}


def _folder_of(name: str) -> Path:
    if name == EMBEDDED:
        return embedded_directory()
    needs = (_SINGLE, _INDEX)
    return find_model(name, "pretrained weights", needs=needs, files=("*.safetensors", _INDEX, "config.json"))


def _check_heads(name: str, part: str, heads: int) -> None:
    """Compare the number of heads, on which the shapes of the weights do not depend, with what the files say."""
    path = _folder_of(name) / "config.json"
    if not path.is_file():
        return
    described = json.loads(path.read_text(encoding="utf-8"))
    for inner in ("vision_config", "model", "encoder"):  # SigLIP's; a model directory of ours
        described = described.get(inner, described)
    found = described.get("num_attention_heads", described.get("heads", heads))
    if found != heads:
        raise ValueError(f"{name} has {found} attention heads, but {part} is {heads}")


def _start_image(encoder: ClassTokenEncoder, weights: Weights, name: str, grid: int) -> None:
    first = (f"{key}.0." for key in _VISION_LAYERS)
    kind = next((k for k, key in enumerate(first) if any(one.startswith(key) for one in weights)), None)
    patches = "embeddings.patch_embedding" if kind == 1 else "embeddings.patch_embeddings.projection"
    if kind is None or f"{patches}.weight" not in weights:
        raise ValueError(
            f"{name}: expected a ViT, DeiT, ViTMAE or SigLIP, found {', '.join(sorted(weights)[:3])}, ..."
        )
    take = _taker(weights, name)
    _copy(encoder.patches.weight, take(f"{patches}.weight"), name, "the patch embedding")
    assert encoder.patches.bias is not None
    _copy(encoder.patches.bias, take(f"{patches}.bias"), name, "the patch embedding")
    if "embeddings.cls_token" in weights:  # SigLIP has none
        _copy(encoder.class_token, weights["embeddings.cls_token"], name, "the class token")
    _copy(encoder.positions, _positions(weights, encoder, grid), name, "the positions")
    _check_depth(weights, _VISION_LAYERS[kind], len(encoder.blocks), name)
    for number, block in enumerate(encoder.blocks):
        assert isinstance(block, Block)
        names = {ours: theirs[kind] for ours, theirs in _VISION_LAYER.items()}
        _copy_layer(block, names, f"{_VISION_LAYERS[kind]}.{number}.", take, name)
    norm = "post_layernorm" if kind == 1 else "layernorm"
    _copy(encoder.norm.weight, take(f"{norm}.weight"), name, "the last norm")
    _copy(encoder.norm.bias, take(f"{norm}.bias"), name, "the last norm")


def _positions(weights: Weights, encoder: ClassTokenEncoder, grid: int) -> Float[Tensor, "1 N1 D"]:
    """Return positions for class token and patches, bicubically resampled where the grid is another one."""
    if "embeddings.position_embedding.weight" in weights:
        patches = weights["embeddings.position_embedding.weight"].unsqueeze(0)
        first = encoder.positions.detach()[:, :1]
    elif "embeddings.position_embeddings" in weights:
        found = weights["embeddings.position_embeddings"]
        # DeiT's distilled ones have a second token before the patches.
        before = found.shape[1] - int(found.shape[1] ** 0.5) ** 2
        first, patches = found[:, :1], found[:, before:]
    else:  # our masked autoencoder's are fixed
        return sine_positions(grid, encoder.positions.shape[-1])
    side = round(patches.shape[1] ** 0.5)
    on_grid = patches.transpose(1, 2).reshape(1, -1, side, side)
    if side != grid:
        on_grid = F.interpolate(on_grid, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([first, on_grid.flatten(2).transpose(1, 2)], dim=1)


def _start_embeddings(encoder: TextEncoder, weights: Weights, name: str) -> None:
    take = _taker(weights, name)
    # Some tables have more rows than there are words, to be divisible by 64.
    words = take("embeddings.word_embeddings.weight")[: len(encoder.words.weight)]
    _copy(encoder.words.weight, words, name, "the word embedding")
    positions = take("embeddings.position_embeddings.weight")
    num_positions = encoder.positions.shape[1]
    if len(positions) < num_positions:
        raise ValueError(f"{name} has {len(positions)} positions, text.positions is {num_positions}")
    first_segment = take("embeddings.token_type_embeddings.weight")[0]
    _copy(encoder.positions, (positions[:num_positions] + first_segment).unsqueeze(0), name, "the positions")
    _copy(encoder.norm.weight, take("embeddings.LayerNorm.weight"), name, "the embeddings' norm")
    _copy(encoder.norm.bias, take("embeddings.LayerNorm.bias"), name, "the embeddings' norm")


def _start_layers(layers: nn.ModuleList, weights: Weights, first: int, name: str) -> None:
    """Copy layers of a BERT, from the one numbered `first` on."""
    _check_depth(weights, "encoder.layer", first + len(layers), name)
    for number, layer in enumerate(layers, first):
        assert isinstance(layer, BertLayer)
        _copy_layer(layer, _BERT_LAYER, f"encoder.layer.{number}.", _taker(weights, name), name)


def _start_head(head: nn.Module, weights: Weights, name: str) -> None:
    """Copy BERT's head for hidden words; without one it stays as it is."""
    if f"cls.predictions.{_HEAD['transform.weight']}" not in weights:
        return
    take = _taker(weights, name)
    for ours, theirs in _HEAD.items():
        target = head.get_parameter(ours)
        _copy(target, take(f"cls.predictions.{theirs}")[: len(target)], name, "the head for hidden words")


def _check_depth(weights: Weights, key: str, needed: int, name: str) -> None:
    pattern = re.compile(rf"^{re.escape(key)}\.(\d+)\.")
    found = {int(match[1]) for match in map(pattern.match, weights) if match}
    if len(found) < needed:
        raise ValueError(
            f"{name} has {len(found)} layers, but {needed} are asked for: the first ones for the text (or image) "
            "encoder, those behind it for the fusion encoder"
        )


def _copy_layer(
    layer: nn.Module,
    names: Mapping[str, tuple[str, ...]],
    prefix: str,
    take: Callable[[str], Tensor],
    origin: str,
) -> None:
    for ours, theirs in names.items():
        for kind in ("weight", "bias"):
            source = torch.cat([take(f"{prefix}{one}.{kind}") for one in theirs])
            _copy(layer.get_parameter(f"{ours}.{kind}"), source, origin, f"{prefix}{theirs[0]}")


def _taker(weights: Weights, name: str) -> Callable[[str], Tensor]:
    def take(key: str) -> Tensor:
        if key not in weights:
            raise ValueError(f"{name} has no weight {key}, found {', '.join(sorted(weights)[:3])}, ...")
        return weights[key]

    return take


@torch.no_grad()
def _copy(target: Tensor, source: Tensor, origin: str, what: str) -> None:
    if target.shape != source.shape:
        raise ValueError(
            f"{origin}: {what} is {tuple(source.shape)}, the configuration asks for {tuple(target.shape)}"
        )
    target.copy_(source)
