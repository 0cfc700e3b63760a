"""Less memory for the same numbers: layers that compute again in the backward pass what they did not keep."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from pixlex.nn.bert import BertLayer
from pixlex.nn.transformer import Block, OfficialBlock

LAYERS = (Block, OfficialBlock, BertLayer, GradientCheckpointingLayer)


def checkpoint_layers(model: nn.Module) -> int:
    """Let every transformer layer keep its input alone, and compute the rest again when gradients come back.

    Losses compare within a whole batch (contrast, matching, statistics of codes), so a batch cannot be cut into
    parts whose gradients are added; this makes room for a large one and changes no number. Source: Chen et al.
    2016. Layers of a frozen language model count too: gradients pass through them.

    Args:
        model: changed in place; names of parameters stay.

    Returns:
        The number of layers.
    """
    layers = list(_layers(model))
    for layer in layers:
        if "forward" not in vars(layer):  # not done before
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return len(layers)


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """Return the layers of a model, and of a language model that it holds outside its own modules."""
    language = getattr(model, "language", None)
    seen = dict.fromkeys(model.modules())
    if isinstance(language, nn.Module):
        seen |= dict.fromkeys(language.modules())
    yield from (module for module in seen if isinstance(module, LAYERS))
