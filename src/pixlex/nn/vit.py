"""The vision transformer on both sides of the words: image encoder and pixel decoder."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixlex.config.lqae import VisionConfig
from pixlex.nn.transformer import Block, OfficialBlock, initialize


class Trunk(nn.Module):
    """Learned 2-D positions, then blocks: what encoder and decoder share.

    Args:
        config: width, depth, heads and kind of block.
        grid: patches along one side.
    """

    def __init__(self, config: VisionConfig, grid: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, grid * grid, config.width))
        self.blocks = nn.ModuleList(
            OfficialBlock(config.width, config.heads, config.mlp_ratio, grid)
            if config.block == "official"
            else Block(config.width, config.heads, config.mlp_ratio)
            for _ in range(config.depth)
        )
        # The released code ends its trunks without a norm; the standard pre-norm ViT ends with one.
        self.norm = nn.Identity() if config.block == "official" else nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, sequence: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Return the sequence after positions, blocks and the final norm."""
        sequence = sequence + self.positions
        for block in self.blocks:
            sequence = block(sequence)
        normed: Tensor = self.norm(sequence)
        return normed


class ImageEncoder(nn.Module):
    """Image to one vector per patch (Dosovitskiy et al. 2020, without class token).

    Args:
        config: width, depth, heads and kind of block.
        image_size: side of the image in pixels.
        patch_size: side of a patch in pixels.
    """

    def __init__(self, config: VisionConfig, image_size: int, patch_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.patches = nn.Conv2d(
            3, config.width, patch_size, stride=patch_size, bias=config.block == "standard"
        )
        self.trunk = Trunk(config, image_size // patch_size)
        self.apply(initialize)
        nn.init.normal_(self.trunk.positions, std=0.02)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Return one vector per patch, rows of the grid first.

        Args:
            images: RGB pixels in [0, 1].

        Raises:
            ValueError: when the images are not of the configured size.
        """
        if images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"expected images of 3 x {self.image_size} x {self.image_size}, got {tuple(images.shape[1:])}"
            )
        sequence: Tensor = self.trunk(self.patches(images).flatten(2).transpose(1, 2))
        return sequence


class PixelDecoder(nn.Module):
    """One vector per patch to an image, by a transformer and a transposed convolution with bias.

    Args:
        config: width, depth, heads and kind of block.
        image_size: side of the image in pixels.
        patch_size: side of a patch in pixels.
        input_dim: width of the vectors that come in; a linear map bridges it where it is not config.width.
    """

    def __init__(self, config: VisionConfig, image_size: int, patch_size: int, input_dim: int) -> None:
        super().__init__()
        self.grid = image_size // patch_size
        self.projector = nn.Identity() if input_dim == config.width else nn.Linear(input_dim, config.width)
        self.trunk = Trunk(config, self.grid)
        self.pixels = nn.ConvTranspose2d(config.width, 3, patch_size, stride=patch_size)
        self.apply(initialize)
        nn.init.normal_(self.trunk.positions, std=0.02)

    def forward(self, sequence: Float[Tensor, "B N D"]) -> Float[Tensor, "B 3 H W"]:
        """Return the image; values are not clipped to [0, 1]."""
        sequence = self.trunk(self.projector(sequence))
        on_grid = sequence.transpose(1, 2).reshape(len(sequence), -1, self.grid, self.grid)
        images: Tensor = self.pixels(on_grid)
        return images
