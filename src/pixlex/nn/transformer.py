"""Vision transformers: attention and blocks, encoders of images, the decoder to pixels, and masks of patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from pixlex.config.lqae import VisionConfig

# Mean and standard deviation of each channel of normalized pixels.
PIXELS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


WITHOUT_FLOAT64 = {"mps"}  # kinds of devices


def where_exact(tensor: Tensor) -> Tensor:
    """Return a tensor where float64 exists: on its own device, or on the CPU, for Apple's GPUs have none."""
    return tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on `device` without waiting for what a GPU of CUDA is busy with."""
    to_cuda = torch.device(device).type == "cuda"
    if to_cuda and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # from other memory the copy would wait for all that was asked before
    return tensor.to(device, non_blocking=to_cuda)


def register_pixels(module: nn.Module, kind: str) -> None:
    """Give a module the buffers `mean` and `std` of a way to normalize pixels; they are not saved."""
    for name, values in zip(("mean", "std"), PIXELS[kind], strict=True):
        module.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)


def take_rows(rows: Float[Tensor, "N *shape"], numbers: Int[Tensor, "*places"]) -> Tensor:
    """Return rows by index, (*places, *shape); gradients of a row taken twice are summed in a fixed order.

    Advanced indexing adds them by atomics on a CPU, so that sums differ from run to run; `index_select` does on
    a GPU. Each is used where it is repeatable (docs/decisions.md).
    """
    if rows.device.type != "cpu":
        return rows[numbers]
    return rows.index_select(0, numbers.flatten()).view(*numbers.shape, *rows.shape[1:])


def take(sequence: Float[Tensor, "B N D"], places: Int[Tensor, "B n"]) -> Float[Tensor, "B n D"]:
    """Return the vectors at the given indices of each sequence."""
    return sequence.gather(1, places.unsqueeze(-1).expand(-1, -1, sequence.shape[-1]))


def multiplies_bfloat16(device: torch.device, units: Sequence[str] = ("amx_bf16", "avx512_bf16")) -> bool:
    """Return whether a device has units for products of bfloat16; without, these are slower than in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities() if device.type == "cpu" and torch.backends.mkldnn.enabled else {}
    return any(has.get(unit) for unit in units)


def attend(
    queries: Float[Tensor, "B h N d"],
    keys: Float[Tensor, "B h M d"],
    values: Float[Tensor, "B h M d"],
    bias: Float[Tensor, "..."] | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
) -> Float[Tensor, "B h N d"]:
    """Return softmax(q k^T * scale + bias) v.

    torch's fused attention, except for bfloat16 on the CPU, where its backward pass is several times slower than
    two matrix products around a softmax (docs/benchmarks.md).

    The bias is broadcast, minus infinity hides a position; a scale of None is 1 / sqrt(d); probabilities are
    dropped in evaluation too.
    """
    if queries.device.type != "cpu" or queries.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=bias, dropout_p=dropout_rate, scale=scale
        )
    scores = (queries * (queries.shape[-1] ** -0.5 if scale is None else scale)) @ keys.transpose(-1, -2)
    # The dtype is stated because autocast would otherwise compute and keep the scores in float32.
    with torch.autocast("cpu", enabled=False):
        attention = torch.softmax(scores if bias is None else scores + bias.to(scores.dtype), dim=-1)
        return F.dropout(attention, dropout_rate) @ values


class Attention(nn.Module):
    """Bidirectional multi-head self-attention, softmax(q k / sqrt(D / heads)) v, with dropout of the softmax."""

    def __init__(self, width: int, heads: int, *, bias: bool = True, dropout_rate: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout_rate = heads, dropout_rate
        self.query_key_value = nn.Linear(width, 3 * width, bias=bias)
        self.output = nn.Linear(width, width, bias=bias)

    def forward(
        self, sequence: Float[Tensor, "B N D"], bias: Float[Tensor, "B 1 _ N"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """Return the attended sequence, without residual; `bias` is added to the scores (see `attend`)."""
        queries, keys, values = self.query_key_value(sequence).unflatten(-1, (3, self.heads, -1)).unbind(2)
        queries, keys, values = queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        rate = self.dropout_rate if self.training else 0.0
        attended = attend(queries, keys, values, bias, dropout_rate=rate)
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output


class Block(nn.Module):
    """Pre-norm block of the vision transformer (Dosovitskiy et al. 2020): attention, then a GELU network."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, *, gelu: Literal["exact", "tanh"] = "exact"
    ) -> None:
        super().__init__()
        self.approximate = "tanh" if gelu == "tanh" else "none"
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, int(width * mlp_ratio))
        self.contract = nn.Linear(int(width * mlp_ratio), width)

    def forward(self, sequence: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Return the transformed sequence."""
        sequence = sequence + self.attention(self.attention_norm(sequence))
        hidden = F.gelu(self.expand(self.feed_forward_norm(sequence)), approximate=self.approximate)
        output: Tensor = sequence + self.contract(hidden)
        return output


class OfficialBlock(nn.Module):
    """The block of the released LQAE code: x + LN(Attn(LN(x))), then a gated, convolutional feed-forward part.

    Feed-forward: LN, gelu(fc1) * fc2 with the tanh approximation, depthwise 3x3 convolution over the square
    grid of patches, LN, contraction. Linear maps and convolution carry no bias; norms have epsilon 1e-5.
    Source: the LQAE code; NormFormer (Shleifer et al. 2021) for the norm after attention.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, grid: int) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.grid = grid
        self.attention_norm = nn.LayerNorm(width, eps=1e-5)
        self.attention = Attention(width, heads, bias=False)
        self.attended_norm = nn.LayerNorm(width, eps=1e-5)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-5)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.expand = nn.Linear(width, hidden, bias=False)
        self.neighbors = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.hidden_norm = nn.LayerNorm(hidden, eps=1e-5)
        self.contract = nn.Linear(hidden, width, bias=False)

    def forward(self, sequence: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Return the transformed sequence of N = grid * grid patches."""
        sequence = sequence + self.attended_norm(self.attention(self.attention_norm(sequence)))
        normed = self.feed_forward_norm(sequence)
        hidden = F.gelu(self.gate(normed), approximate="tanh") * self.expand(normed)
        on_grid = hidden.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        hidden = self.neighbors(on_grid).flatten(2).transpose(1, 2)
        output: Tensor = sequence + self.contract(self.hidden_norm(hidden))
        return output


class Trunk(nn.Module):
    """Learned 2-D positions, then blocks: what encoder and decoder share; `grid` is the patches along one side."""

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
        self, sequence: Float[Tensor, "B N D"], before: Float[Tensor, "_ n D"] | None = None
    ) -> Float[Tensor, "B M D"]:
        """Return the sequence, behind vectors without position if some are given, after blocks and norm."""
        sequence = sequence + self.positions
        if before is not None:
            # len() would fix the number of images in a graph.
            several = before.to(sequence.dtype).expand(sequence.shape[0], -1, -1)
            sequence = torch.cat([several, sequence], dim=1)
        for block in self.blocks:
            sequence = block(sequence)
        normed: Tensor = self.norm(sequence)
        return normed


class ImageEncoder(nn.Module):
    """Image to one vector per patch (Dosovitskiy et al. 2020, where asked for with a class token among them)."""

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
        register_pixels(self, config.pixels)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Return one vector per patch of RGB pixels in [0, 1], rows of the grid first."""
        check_images(images, self.image_size)
        if self.normalizes:
            images = (images - self.mean) / self.std
        patches = self.patches(images).flatten(2).transpose(1, 2)
        sequence: Tensor = self.trunk(patches, self.class_token)
        return sequence if self.class_token is None else sequence[:, 1:]


class ClassTokenEncoder(nn.Module):
    """Image to one vector for the whole and one per patch, of all patches or of the visible ones.

    The standard pre-norm vision transformer (Dosovitskiy et al. 2020). Positions are learned, from sines and
    cosines on (docs/decisions.md, 24). Hidden patches are dropped before the first block, after positions were
    added (He et al. 2021, section 3). Sizes are in pixels.
    """

    def __init__(
        self, image_size: int, patch_size: int, width: int, depth: int, heads: int, mlp_ratio: float = 4.0
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

        Pixels are normalized; `visible` holds indices of patches.
        """
        check_images(images, self.image_size)
        sequence = self.patches(images).flatten(2).transpose(1, 2) + self.positions[:, 1:]
        if visible is not None:
            sequence = take(sequence, visible)
        first = (self.class_token + self.positions[:, :1]).expand(images.shape[0], -1, -1)
        sequence = torch.cat([first.to(sequence.dtype), sequence], dim=1)
        for block in self.blocks:
            sequence = block(sequence)
        normed: Tensor = self.norm(sequence)
        return normed


def check_images(images: Tensor, size: int) -> None:
    """Raise a ValueError for images of another size."""
    if images.shape[1:] != (3, size, size):
        raise ValueError(f"expected images of 3 x {size} x {size}, got {tuple(images.shape[1:])}")


def sine_positions(grid: int, width: int) -> Float[Tensor, "1 N1 D"]:
    """Return positions of a square grid after a row of zeros for the class token (He et al. 2021).

    A quarter each of sines and cosines of the column, then of the row, wavelengths from 2 pi to 20,000 pi.
    """
    if width % 4:
        raise ValueError(f"positions of sines and cosines need a width that is a multiple of 4, got {width}")
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64).outer(frequencies)
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    both = torch.cat([along.repeat(grid, 1), along.repeat_interleave(grid, dim=0)], dim=1)
    return torch.cat([torch.zeros(1, width), both.float()]).unsqueeze(0)


def bridge(before: int, after: int) -> nn.Module:
    """Return a linear map where widths differ."""
    return nn.Identity() if before == after else nn.Linear(before, after)


class PixelDecoder(nn.Module):
    """One vector per patch to an image, by a transformer and a transposed convolution with bias.

    A linear map bridges `input_dim`, the width of the vectors that come in, where the configuration has another.
    Vectors without a place (`num_words` of them, 0 for one per patch) stand before patches that are their
    positions alone (Yu et al. 2024, TiTok, section 3.2).
    """

    def __init__(
        self, config: VisionConfig, image_size: int, patch_size: int, input_dim: int, num_words: int = 0
    ) -> None:
        super().__init__()
        self.num_words = num_words
        self.grid = image_size // patch_size
        self.projector = bridge(input_dim, config.width)
        self.trunk = Trunk(config, self.grid)
        self.pixels = nn.ConvTranspose2d(config.width, 3, patch_size, stride=patch_size)
        self.apply(initialize)
        nn.init.normal_(self.trunk.positions, std=0.02)

    def forward(self, sequence: Float[Tensor, "B N D"]) -> Float[Tensor, "B 3 H W"]:
        """Return the image; values are not clipped to [0, 1]."""
        sequence = self.projector(sequence)
        if self.num_words:
            nothing = sequence.new_zeros(len(sequence), self.grid**2, sequence.shape[-1])
            sequence = self.trunk(nothing, sequence)[:, self.num_words :]
        else:
            sequence = self.trunk(sequence)
        on_grid = sequence.transpose(1, 2).reshape(len(sequence), -1, self.grid, self.grid)
        images: Tensor = self.pixels(on_grid)
        return images


def random_mask(
    num_images: int, num_patches: int, ratio_min: float, ratio_max: float, generator: torch.Generator
) -> Bool[Tensor, "B N"]:
    """Return a mask, True = hidden, on the CPU: i.i.d. with a probability drawn per image between two ratios.

    LQAE hides with ratio 0.5; the released code draws the ratio for every word, which equals the mean ratio
    throughout, so a range there has no effect. The generator is on the CPU: every device draws the same masks.
    """
    span = torch.rand(num_images, 1, generator=generator)
    ratio = ratio_min + (ratio_max - ratio_min) * span
    return torch.rand(num_images, num_patches, generator=generator) < ratio


# By name: transformers puts functions of its own in the place of torch's.
_DRAWS = {
    f"{name}_"
    for name in ("normal", "uniform", "trunc_normal", "kaiming_uniform", "kaiming_normal", "xavier_uniform")
}


class _NoDraws(TorchFunctionMode):
    """Tensors keep what their memory held, where random numbers would have been drawn."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in _DRAWS:
            return args[0] if args else given["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **given)


def initializing(initialize: bool) -> AbstractContextManager[object]:
    """Let modules that are built inside draw their weights, or not, where stored ones will replace them."""
    return nullcontext() if initialize else _NoDraws()


def initializer(width: int) -> Callable[[nn.Module], None]:
    """Return an initialization by N(0, 0.02 * sqrt(768 / width)): 0.02 at BERT-base's width, wider below.

    What a linear map makes of a normed vector then varies alike at any width. With 0.02 throughout, attention in a
    network of 128 is nearly even, and what it adds after a norm nearly nothing. Biases become 0, norms stay.
    """

    def draw(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02 * (768 / width) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    return draw


# N(0, 0.02) at any width (ViT, LQAE's code).
initialize = initializer(768)
