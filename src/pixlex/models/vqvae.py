"""VQ-VAE: the baseline with a learned codebook and no language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixlex.config.lqae import VQVAEConfig
from pixlex.models import ImageModel
from pixlex.nn.codebook import LearnedCodebook, Quantized
from pixlex.nn.vit import ImageEncoder, PixelDecoder


@dataclass(frozen=True)
class VQVAEOutput:
    """One pass from image to image; `reconstruction` is not clipped."""

    reconstruction: Float[Tensor, "B 3 H W"]
    quantized: Quantized


class VQVAE(ImageModel):
    """Vector quantized autoencoder (van den Oord et al. 2017) with LQAE's encoder and decoder.

    Args:
        config: shapes of the networks and of the codebook.
    """

    family: ClassVar[str] = "vqvae"
    has_codes: ClassVar[Literal[True]] = True
    speaks: ClassVar[Literal[False]] = False
    fuses: ClassVar[Literal[False]] = False
    vocabulary: ClassVar[None] = None  # its codes are no words
    config: VQVAEConfig

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ImageEncoder(config.encoder, config.image_size, config.patch_size)
        self.projector = (
            nn.Identity()
            if config.encoder.width == config.codebook_dim
            else nn.Linear(config.encoder.width, config.codebook_dim)
        )
        self.codebook = LearnedCodebook(config.num_codewords, config.codebook_dim, config.metric)
        self.decoder = PixelDecoder(config.decoder, config.image_size, config.patch_size, config.codebook_dim)

    @property
    def num_codewords(self) -> int:
        """K, the number of codewords."""
        return self.codebook.num_codewords

    def quantize(self, images: Float[Tensor, "B 3 H W"]) -> Quantized:
        """Return the nearest codeword of each patch; `images` holds pixels in [0, 1]."""
        quantized: Quantized = self.codebook(self.projector(self.encoder(images)))
        return quantized

    @property
    def feature_widths(self) -> dict[str, int]:
        """Widths of what `patch_features` returns."""
        return {"encoder": self.config.encoder.width, "codes": self.config.codebook_dim}

    def patch_features(self, images: Float[Tensor, "B 3 H W"]) -> dict[str, Float[Tensor, "B N columns"]]:
        """Return one vector for each patch: `encoder`, then `codes`, its codeword."""
        vectors = self.encoder(images)
        return {"encoder": vectors, "codes": self.codebook(self.projector(vectors)).values}

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> VQVAEOutput:
        """Image to codewords and back; `images` holds pixels in [0, 1]."""
        quantized = self.quantize(images)
        return VQVAEOutput(self.decoder(quantized.values), quantized)

    @torch.no_grad()
    def tokenize(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B N"]:
        """Return codes in [0, K), rows of the grid first."""
        return self.quantize(images).codes

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "B N"]) -> Float[Tensor, "B 3 H W"]:
        """Return the images that codes stand for, in [0, 1]."""
        images: Tensor = self.decoder(self.codebook.weight[codes])
        return images.float().clamp(0, 1)
