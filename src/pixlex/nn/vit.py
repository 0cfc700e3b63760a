"""The vision transformer on both sides of the words: image encoders and pixel decoder."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixlex.config.lqae import VisionConfig
from pixlex.nn.transformer import Block, OfficialBlock, initialize, initializer

# Mean and standard deviation of each channel of ImageNet's pixels.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The same of all ways to normalize pixels.
PIXELS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class Trunk(nn.Module):
    """Learned 2-D positions, then blocks: what encoder and decoder share.

    Args:
        config: Width, depth, heads and kind of block.
        grid: Patches along one side.
    """

    def __init__(self, config: VisionConfig, grid: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, grid * grid, config.width))
        self.blocks = nn.ModuleList(
            OfficialBlock(config.width, config.heads, config.mlp_ratio, grid)
            if config.block == "official"
            else Block(config.width, config.heads, config.mlp_ratio, gelu=config.gelu)
            for _ in range(config.depth)
        )
        # The released code ends its trunks without a norm; the standard pre-norm ViT ends with one.
        self.norm = nn.Identity() if config.block == "official" else nn.LayerNorm(config.width, eps=1e-6)

    def forward(
        self, sequence: Float[Tensor, "B N D"], before: Float[Tensor, "1 1 D"] | None = None
    ) -> Float[Tensor, "B M D"]:
        """Return the sequence after positions, blocks and the final norm.

        Args:
            sequence: Patch vectors.
            before: A vector without position to stand in front of them.
        """
        sequence = sequence + self.positions
        if before is not None:
            sequence = torch.cat([before.to(sequence.dtype).expand(len(sequence), -1, -1), sequence], dim=1)
        for block in self.blocks:
            sequence = block(sequence)
        normed: Tensor = self.norm(sequence)
        return normed


class ImageEncoder(nn.Module):
    """Image to one vector per patch (Dosovitskiy et al. 2020, where asked for with a class token among them).

    Args:
        config: Width, depth, heads and kind of block.
        image_size: Side of the image in pixels.
        patch_size: Side of a patch in pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: VisionConfig, image_size: int, patch_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.patches = nn.Conv2d(
            3, config.width, patch_size, stride=patch_size, bias=config.block == "standard"
        )
        self.trunk = Trunk(config, image_size // patch_size)
        self.apply(initialize)
        nn.init.normal_(self.trunk.positions, std=0.02)
        # With its position.
        self.class_token = (
            nn.Parameter(0.02 * torch.randn(1, 1, config.width)) if config.class_token else None
        )
        self.normalizes = config.pixels != "none"
        mean, std = PIXELS[config.pixels]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Return one vector per patch of RGB pixels in [0, 1], rows of the grid first.

        Raises:
            ValueError: Images of another size than configured.
        """
        _check_size(images, self.image_size)
        if self.normalizes:
            images = (images - self.mean) / self.std
        patches = self.patches(images).flatten(2).transpose(1, 2)
        sequence: Tensor = self.trunk(patches, self.class_token)
        return sequence if self.class_token is None else sequence[:, 1:]


class ClassTokenEncoder(nn.Module):
    """Image to one vector for the whole and one per patch, of all patches or of the visible ones.

    The standard pre-norm vision transformer (Dosovitskiy et al. 2020). Positions are learned, from sines and
    cosines on (docs/decisions.md, 24). Hidden patches are dropped before the first block, after positions were
    added (He et al. 2021, section 3).

    Args:
        image_size: Side of the image in pixels.
        patch_size: Side of a patch in pixels.
        width: D.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Width of the feed-forward part over D.
    """

    def __init__(
        self, image_size: int, patch_size: int, width: int, depth: int, heads: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.patches = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(sine_positions(image_size // patch_size, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.apply(initializer(width))
        nn.init.normal_(self.class_token, std=0.02)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], visible: Int[Tensor, "B n"] | None = None
    ) -> Float[Tensor, "B n1 D"]:
        """Return the class vector, then the patch vectors in the order of the grid, or of `visible`.

        Args:
            images: Normalized pixels.
            visible: Indices of the visible patches; None = all.

        Raises:
            ValueError: Images of another size than configured.
        """
        _check_size(images, self.image_size)
        sequence = self.patches(images).flatten(2).transpose(1, 2) + self.positions[:, 1:]
        if visible is not None:
            sequence = take(sequence, visible)
        first = (self.class_token + self.positions[:, :1]).expand(len(images), -1, -1)
        sequence = torch.cat([first.to(sequence.dtype), sequence], dim=1)
        for block in self.blocks:
            sequence = block(sequence)
        normed: Tensor = self.norm(sequence)
        return normed


def take(sequence: Float[Tensor, "B N D"], places: Int[Tensor, "B n"]) -> Float[Tensor, "B n D"]:
    """Return the vectors at the given indices of each sequence."""
    return sequence.gather(1, places.unsqueeze(-1).expand(-1, -1, sequence.shape[-1]))


def sine_positions(grid: int, width: int) -> Float[Tensor, "1 N1 D"]:
    """Return positions of a square grid after a row of zeros for the class token (He et al. 2021).

    A quarter each of sines and cosines of the column, then of the row, wavelengths from 2 pi to 20,000 pi.

    Args:
        grid: Patches along one side.
        width: D, a multiple of 4.

    Raises:
        ValueError: Another width.
    """
    if width % 4:
        raise ValueError(f"positions of sines and cosines need a width that is a multiple of 4, got {width}")
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64).outer(frequencies)
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    both = torch.cat([along.repeat(grid, 1), along.repeat_interleave(grid, dim=0)], dim=1)
    return torch.cat([torch.zeros(1, width), both.float()]).unsqueeze(0)


def _check_size(images: Tensor, size: int) -> None:
    if images.shape[1:] != (3, size, size):
        raise ValueError(f"expected images of 3 x {size} x {size}, got {tuple(images.shape[1:])}")


class PixelDecoder(nn.Module):
    """One vector per patch to an image, by a transformer and a transposed convolution with bias.

    Args:
        config: Width, depth, heads and kind of block.
        image_size: Side of the image in pixels.
        patch_size: Side of a patch in pixels.
        input_dim: Width of the vectors that come in; a linear map bridges it where it is not config.width.
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
