"""Transformer blocks over sequences of patch vectors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def take_rows(rows: Float[Tensor, "N *shape"], numbers: Int[Tensor, "*places"]) -> Tensor:
    """Return rows by index, (*places, *shape); gradients of a row taken twice are summed in a fixed order.

    Advanced indexing adds them by atomics on a CPU, so that sums differ from run to run; `index_select` does on
    a GPU. Each is used where it is repeatable (docs/decisions.md).
    """
    if rows.device.type != "cpu":
        return rows[numbers]
    return rows.index_select(0, numbers.flatten()).view(*numbers.shape, *rows.shape[1:])


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device has units for products of bfloat16; without, these are slower than in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities() if device.type == "cpu" and torch.backends.mkldnn.enabled else {}
    return bool(has.get("amx_bf16") or has.get("avx512_bf16"))


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

    Args:
        queries: h heads of width d.
        keys: As many heads.
        values: As many heads.
        bias: Added to the scores, broadcast; minus infinity hides a position.
        scale: None = 1 / sqrt(d).
        dropout_rate: Of the probabilities, in [0, 1); in evaluation too.
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
    """Bidirectional multi-head self-attention, softmax(q k / sqrt(D / heads)) v.

    Args:
        width: D.
        heads: Number of heads; must divide the width.
        bias: Whether the four linear maps carry biases.
        dropout_rate: Of the probabilities in training, in [0, 1).
    """

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
    """Pre-norm block of the vision transformer (Dosovitskiy et al. 2020): attention, then a GELU network.

    Args:
        width: D.
        heads: Number of attention heads.
        mlp_ratio: Width of the hidden layer over D.
        gelu: The activation; "tanh" approximates it.
    """

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

    Args:
        width: D.
        heads: Number of attention heads.
        mlp_ratio: Width of the hidden layer over D.
        grid: Patches along one side of the square grid.
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
    network of 128 is nearly even, and what it adds after a norm nearly nothing.

    Args:
        width: D, of the vectors that come in.
    """

    def draw(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.02 * (768 / width) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    return draw


def initialize(module: nn.Module) -> None:
    """Draw weights of linear maps and convolutions from N(0, 0.02), set biases to zero.

    Meant for `nn.Module.apply`; norms keep their own start. Source: ViT, LQAE's code.
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
