"""Whole networks, each built of a configuration; `checkpoint` stores and loads them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixlex.nn.transformer import initializing

if TYPE_CHECKING:
    from pixlex.nn.codebook import Quantized

_SomeModel = TypeVar("_SomeModel", bound=nn.Module)


class ImageModel(nn.Module):
    """What all networks have in common.

    Attributes:
        family: As recipes name it.
        has_codes: Whether it writes images as codes.
        fuses: Whether its texts look at images in a fusion encoder.
        speaks: Whether a language model goes on behind its images.
        mismatch: What another language model or tokenizer differs in, and what that means; None without words.
        config: Its configuration.
        grid: Patches along one side of the image.
        _frozen: The language model that is not trained, or the tokenizer: outside the module tree, so that it is
            not saved, and moved along between devices.
    """

    family: ClassVar[str]
    mismatch: ClassVar[tuple[str, str] | None] = None
    config: Any
    _frozen: tuple[Any, ...] = ()

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.grid: int = config.grid

    @classmethod
    def build(cls: type[_SomeModel], config: Any, *, initialize: bool = True) -> _SomeModel:
        """Build the model from its configuration; without `initialize`, weights will be read: none are drawn."""
        with initializing(initialize):
            return cls(config)

    @property
    def text_identity(self) -> tuple[str, str] | None:
        """Name and fingerprint of what its words are those of; None where it has no words."""
        return (self._frozen[0].name, self._frozen[0].fingerprint) if self._frozen else None

    @torch.no_grad()
    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return the mean of the encoder's patch vectors, in float32; `images` holds pixels in [0, 1]."""
        encoder: Any = self.encoder
        vectors: Tensor = encoder(images)
        return vectors.float().mean(1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for frozen in self._frozen:
            if isinstance(frozen, nn.Module):
                frozen._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class CodeModel(ImageModel):
    """An image tokenizer: a network that writes images as codes in [0, K), K being `num_codewords`."""

    has_codes: ClassVar[Literal[True]] = True
    num_codewords: int

    def quantize(self, images: Float[Tensor, "B 3 H W"]) -> Quantized:
        """Return the nearest codeword of each patch; `images` holds pixels in [0, 1]."""
        raise NotImplementedError

    @torch.no_grad()
    def tokenize(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B N"]:
        """Return codes in [0, K), rows of the grid first; `images` holds pixels in [0, 1]."""
        return self.quantize(images).codes


def __getattr__(name: str) -> Any:
    """Return the module that was called `pretrained`, as model cards name it."""
    if name != "pretrained":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "pixlex.models.pretrained is now pixlex.models.checkpoint", DeprecationWarning, stacklevel=2
    )
    return import_module("pixlex.models.checkpoint")
