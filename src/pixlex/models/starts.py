"""Pretrained parts to start from: a BERT for text and fusion encoder, a vision transformer for images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pixlex.config.cbvila import CBViLAConfig
from pixlex.models.vision_starts import start_class_token_encoder
from pixlex.models.weights import Weights, check_depth, check_heads, copy, read_weights, taker
from pixlex.nn.bert import BertLayer, FusionEncoder, TextEncoder
from pixlex.nn.vit import ClassTokenEncoder

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
            check_heads(name, part, heads)
    if name := config.image.pretrained:
        start_class_token_encoder(image_encoder, name, config.grid)
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


def _start_embeddings(encoder: TextEncoder, weights: Weights, name: str) -> None:
    take = taker(weights, name)
    # Some tables have more rows than there are words, to be divisible by 64.
    words = take("embeddings.word_embeddings.weight")[: len(encoder.words.weight)]
    copy(encoder.words.weight, words, name, "the word embedding")
    positions = take("embeddings.position_embeddings.weight")
    num_positions = encoder.positions.shape[1]
    if len(positions) < num_positions:
        raise ValueError(f"{name} has {len(positions)} positions, text.positions is {num_positions}")
    first_segment = take("embeddings.token_type_embeddings.weight")[0]
    copy(encoder.positions, (positions[:num_positions] + first_segment).unsqueeze(0), name, "the positions")
    copy(encoder.norm.weight, take("embeddings.LayerNorm.weight"), name, "the embeddings' norm")
    copy(encoder.norm.bias, take("embeddings.LayerNorm.bias"), name, "the embeddings' norm")


def _start_layers(layers: nn.ModuleList, weights: Weights, first: int, name: str) -> None:
    """Copy layers of a BERT, from the one numbered `first` on."""
    check_depth(weights, "encoder.layer", first + len(layers), name)
    for number, layer in enumerate(layers, first):
        assert isinstance(layer, BertLayer)
        _copy_layer(layer, _BERT_LAYER, f"encoder.layer.{number}.", taker(weights, name), name)


def _start_head(head: nn.Module, weights: Weights, name: str) -> None:
    """Copy BERT's head for hidden words; without one it stays as it is."""
    if f"cls.predictions.{_HEAD['transform.weight']}" not in weights:
        return
    take = taker(weights, name)
    for ours, theirs in _HEAD.items():
        target = head.get_parameter(ours)
        copy(target, take(f"cls.predictions.{theirs}")[: len(target)], name, "the head for hidden words")


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
            copy(layer.get_parameter(f"{ours}.{kind}"), source, origin, f"{prefix}{theirs[0]}")
