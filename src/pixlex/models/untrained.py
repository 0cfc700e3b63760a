"""The same model without training: the opponent that shows what training brought."""

from __future__ import annotations

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from pixlex.models.pretrained import Model, build

SomeModel = TypeVar("SomeModel", bound=Model)


def untrained_copy(model: SomeModel, images: Float[Tensor, "B 3 H W"], seed: int = 0) -> SomeModel:
    """Return the same model with fresh weights, in evaluation mode, on the CPU.

    The language model stays what it is. Where the search is whitened, its statistics are measured on the
    given images: no weight learns by that, and without it an untrained encoder would write nearly the same
    word everywhere, which makes a weaker opponent than need be.

    Args:
        model: whose configuration is taken.
        images: some images, pixels in [0, 1].
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        fresh = build(model.config)
        fresh.requires_grad_(False)
        if fresh.has_codes and fresh.vocabulary is not None and fresh.config.quantizer.search == "whitened":
            moments = fresh.train().quantize(images).moments
            assert moments is not None
            fresh.quantizer.whitening.update(moments)
    assert isinstance(fresh, type(model))
    return fresh.eval()
