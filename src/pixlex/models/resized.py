"""A trained CB-ViLA at another image size: positions resampled (ALBEF), all other weights as they are."""

from __future__ import annotations

import dataclasses
from typing import overload

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pixlex.config.cbvila import CBViLAConfig
from pixlex.config.data import Cut
from pixlex.config.run import describe_fields, value_at
from pixlex.messages import quoted
from pixlex.models.cbvila import CBViLA
from pixlex.models.reasoner import Reasoner
from pixlex.nn.transformer import initializing

# Parameters with a row for each patch -> the number of rows in front of those.
_ON_GRID = {"image_encoder.positions": 1, "query.positions": 0, "class_patch_head.positions": 0}
# What a configuration may say otherwise than the model's that it starts from.
_FREE = ("image_size", "cut", "dropout_rate")


@overload
def resized(model: CBViLA, image_size: int | None = None, cut: Cut | None = None) -> CBViLA: ...
@overload
def resized(model: Reasoner, image_size: int | None = None, cut: Cut | None = None) -> Reasoner: ...
def resized(
    model: CBViLA | Reasoner, image_size: int | None = None, cut: Cut | None = None
) -> CBViLA | Reasoner:
    """Return a model for images of another size or resize mode, in evaluation mode; itself where nothing changes.

    Args:
        model: the network, pretrained or fine-tuned.
        image_size: side of the images in pixels; the patches keep theirs, which must divide it. None keeps it.
        cut: how images become square; None keeps it.

    Raises:
        ValueError: the patch size does not divide the image size.
    """
    body = model if model.task is None else model.body
    config = dataclasses.replace(body.config, image_size=image_size or body.config.image_size,
                                 cut=cut or body.config.cut)  # fmt: skip
    if config == body.config:
        return model
    fresh = started(config, body)
    moved = (
        fresh
        if model.task is None
        else Reasoner.start(dataclasses.replace(model.config, body=config), fresh, model)
    )
    place = next(model.parameters())
    return moved.to(place.device).eval().requires_grad_(place.requires_grad)


def started(config: CBViLAConfig, model: CBViLA) -> CBViLA:
    """Return a network of a configuration with the weights of a trained model.

    Args:
        config: that of the model but for the size of the images and dropout.
        model: the trained model.

    Raises:
        ValueError: they differ in something else.
    """
    wanted, there = _shape(config), _shape(model.config)
    if wanted != there:
        names = ", ".join(
            f"{key} {quoted(there[key])} -> {quoted(wanted[key])}"
            for key in wanted
            if wanted[key] != there[key]
        )
        raise ValueError(f"the model to start from is of another shape: {names}")
    with initializing(False):
        fresh = CBViLA(config, model.tokenizer)
    weights = model.state_dict()
    if config.grid != model.grid:
        for name, before in _ON_GRID.items():
            if name in weights:
                weights[name] = _on_grid(weights[name], before, config.grid)
    fresh.load_state_dict(weights)
    return fresh


def _shape(config: CBViLAConfig) -> dict[str, object]:
    """Return what the shapes of the weights depend on, by dotted names."""
    values = dataclasses.asdict(config)
    names = [name for name, _, _ in describe_fields(type(config)) if name.split(".")[0] not in _FREE]
    return {
        name: value_at(values, name) for name in names if not name.endswith((".pretrained", ".tokenizer"))
    }


def _on_grid(weights: Float[Tensor, "..."], before: int, grid: int) -> Float[Tensor, "..."]:
    """Return rows of a square grid bicubically resampled to another; the first rows stay."""
    rows = weights.view(-1, weights.shape[-1])
    side = round((len(rows) - before) ** 0.5)
    on_grid = rows[before:].T.reshape(1, -1, side, side)
    moved = F.interpolate(on_grid, size=(grid, grid), mode="bicubic", align_corners=False)
    joined = [rows[:before], moved.flatten(2)[0].T]
    return torch.cat(joined).view(*weights.shape[:-2], -1, weights.shape[-1])
