"""Whole networks, each built of a configuration; `checkpoint` stores and loads them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixlex.nn.transformer import initializing

_SomeModel = TypeVar("_SomeModel", bound=nn.Module)


class ImageModel(nn.Module):
    """What all networks have in common.

    A language model that is not trained is held outside the module tree, in `_frozen`: it is not saved, and moves
    with the model between devices.

    Attributes:
        family: as recipes name it.
        has_codes: whether it writes images as codes.
        fuses: whether its texts look at images in a fusion encoder.
        speaks: whether a language model goes on behind its images.
        mismatch: what another language model or tokenizer differs in, and what that means.
        config: its configuration.
    """

    family: ClassVar[str]
    mismatch: ClassVar[tuple[str, str]] = (
        "the vocabulary",
        "word vectors mean nothing under another vocabulary",
    )
    config: Any
    _frozen: tuple[Any, ...] = ()

    @classmethod
    def build(cls: type[_SomeModel], config: Any, *, initialize: bool = True) -> _SomeModel:
        """Build the model from its configuration.

        Args:
            config: shapes and switches.
            initialize: False where weights are read at once: none are drawn or computed.
        """
        with initializing(initialize):
            return cls(config)

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        grid: int = self.config.grid
        return grid

    @property
    def text_identity(self) -> tuple[str, str] | None:
        """Name and fingerprint of what its words are those of; None where it has no words."""
        return None

    @torch.no_grad()
    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return the mean of the encoder's patch vectors, in float32; `images` holds pixels in [0, 1]."""
        encoder: Any = self.encoder
        vectors: Tensor = encoder(images)
        return vectors.float().mean(1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move what is frozen along when the model moves."""
        for frozen in self._frozen:
            if isinstance(frozen, nn.Module):
                frozen._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def __getattr__(name: str) -> Any:
    """Return the module that was called `pretrained`, as model cards name it."""
    if name != "pretrained":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "pixlex.models.checkpoint is now pixlex.models.checkpoint", DeprecationWarning, stacklevel=2
    )
    return import_module("pixlex.models.checkpoint")
