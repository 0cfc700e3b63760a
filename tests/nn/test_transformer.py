"""Blocks against references: transformers' ViT with copied weights, and the equations written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from pixlex.config.lqae import VisionConfig
from pixlex.models.cbvila import split_patches
from pixlex.nn.transformer import ImageEncoder, OfficialBlock, PixelDecoder, attend, random_mask


def _copy_linear(target: nn.Linear, *sources: nn.Linear) -> None:
    target.weight.data = torch.cat([one.weight.data for one in sources])
    target.bias.data = torch.cat([one.bias.data for one in sources])


def test_encoder_equals_the_vit_of_transformers() -> None:
    """Same weights, same patch vectors; ViT's class token is cut off by leaving it out of the attention."""
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=32,
        patch_size=8, layer_norm_eps=1e-6, attn_implementation="eager",
    )  # fmt: skip
    reference = ViTModel(config, add_pooling_layer=False).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = ImageEncoder(VisionConfig(width=32, depth=3, heads=4), 32, 8)
    projection = reference.embeddings.patch_embeddings.projection
    ours.patches.load_state_dict(projection.state_dict())
    ours.trunk.positions.data = reference.embeddings.position_embeddings.data[:, 1:]
    layers = [module for module in reference.modules() if type(module).__name__ == "ViTLayer"]
    assert len(layers) == 3
    for block, layer in zip(ours.trunk.blocks, layers, strict=True):
        linears = {name: one for name, one in layer.named_modules() if isinstance(one, nn.Linear)}
        queries, keys, values, output, expand, contract = linears.values()
        _copy_linear(block.attention.query_key_value, queries, keys, values)
        _copy_linear(block.attention.output, output)
        _copy_linear(block.expand, expand)
        _copy_linear(block.contract, contract)
        block.attention_norm.load_state_dict(layer.layernorm_before.state_dict())
        block.feed_forward_norm.load_state_dict(layer.layernorm_after.state_dict())
    ours.trunk.norm.load_state_dict(reference.layernorm.state_dict())

    images = torch.rand(2, 3, 32, 32)
    sequence = projection(images).flatten(2).transpose(1, 2) + ours.trunk.positions
    for layer in layers:
        hidden = layer(sequence)
        sequence = hidden[0] if isinstance(hidden, tuple) else hidden
    torch.testing.assert_close(ours(images), reference.layernorm(sequence), rtol=1e-4, atol=1e-4)


def test_official_block_equals_its_equations() -> None:
    """x + LN(Attn(LN x)), then the gated convolutional feed-forward part, written with loops over the grid."""
    torch.manual_seed(0)
    block = OfficialBlock(16, 2, 2.0, grid=3)
    sequence = torch.randn(2, 9, 16)
    names = [name for name, _ in block.named_parameters()]
    assert not [name for name in names if name.endswith("bias") and "norm" not in name]

    def norm(vectors: Tensor, layer: nn.LayerNorm) -> Tensor:
        centered = vectors - vectors.mean(-1, keepdim=True)
        return centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    normed = norm(sequence, block.attention_norm)
    q, k, v = (normed @ block.attention.query_key_value.weight.T).split(16, dim=-1)
    heads = []
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        shares = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / 8**0.5, -1)
        heads.append(shares @ v[..., part])
    attended = torch.cat(heads, -1) @ block.attention.output.weight.T
    middle = sequence + norm(attended, block.attended_norm)
    normed = norm(middle, block.feed_forward_norm)
    gate = normed @ block.gate.weight.T
    gelu = 0.5 * gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
    hidden = (gelu * (normed @ block.expand.weight.T)).view(2, 3, 3, 32)
    mixed = torch.zeros_like(hidden)
    for row in range(3):
        for column in range(3):
            for i in range(3):
                for j in range(3):
                    r, c = row + i - 1, column + j - 1
                    if 0 <= r < 3 and 0 <= c < 3:
                        mixed[:, row, column] += hidden[:, r, c] * block.neighbors.weight[:, 0, i, j]
    expected = middle + norm(mixed.view(2, 9, 32), block.hidden_norm) @ block.contract.weight.T
    torch.testing.assert_close(block(sequence), expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_attention_on_the_cpu_matches_the_fused_one() -> None:
    """The explicit path that replaces the fused one in bfloat16 computes the same, with bias and scale."""
    q, k, v = torch.randn(3, 2, 4, 10, 8)
    bias = torch.zeros(2, 1, 1, 10)
    bias[0, ..., 7:] = -torch.inf
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.5)
    torch.testing.assert_close(attend(q, k, v, bias, 0.5), expected)
    explicit = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias, 0.5)
    assert explicit.dtype == torch.bfloat16
    torch.testing.assert_close(explicit.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_attention_is_attention_on_the_average(dtype: torch.dtype) -> None:
    """Probabilities are dropped and the others grow, in the fused path and in the explicit one."""
    q, k, v = torch.randn(3, 1, 2, 5, 8).to(dtype)
    expected = attend(q, k, v)
    draws = torch.stack([attend(q, k, v, dropout_rate=0.3).float() for _ in range(1000)])
    assert not torch.equal(draws[0], draws[1])
    torch.testing.assert_close(draws.mean(0), expected.float(), rtol=0.1, atol=0.15)


def test_patches_and_pixels_share_one_order() -> None:
    """Row-major on both sides: with everything between cut out, patch n of the input is patch n of the output."""
    config = VisionConfig(width=12, depth=1, heads=2)
    encoder, decoder = ImageEncoder(config, 8, 2), PixelDecoder(config, 8, 2, 12)
    for trunk in (encoder.trunk, decoder.trunk):
        trunk.blocks, trunk.norm = nn.ModuleList(), nn.Identity()
        nn.init.zeros_(trunk.positions)
    identity = torch.eye(12).view(12, 3, 2, 2)
    encoder.patches.weight.data, decoder.pixels.weight.data = identity, identity.clone()
    nn.init.zeros_(encoder.patches.bias)
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(decoder(encoder(images)), images)


def test_wrong_image_size_is_named() -> None:
    """An image of another size is an error with both sizes."""
    with pytest.raises(ValueError, match=r"3 x 16 x 16, got \(3, 8, 8\)"):
        ImageEncoder(VisionConfig(width=8, depth=1, heads=2), 16, 4)(torch.rand(1, 3, 8, 8))


def _mask(count: int, patches: int, least: float, most: float, seed: int = 0) -> Tensor:
    return random_mask(count, patches, least, most, torch.Generator().manual_seed(seed))


def test_one_ratio_is_bernoulli_per_word() -> None:
    """The fraction over many words is the ratio, within five standard errors; 0 and 1 hide nothing and all."""
    mask = _mask(1000, 64, 0.5, 0.5)
    assert abs(mask.double().mean() - 0.5) < 5 * 0.5 / 64000**0.5
    assert abs(mask.double().mean(1).var() - 0.25 / 64) < 0.001
    assert torch.equal(mask, _mask(1000, 64, 0.5, 0.5))
    assert not torch.equal(mask, _mask(1000, 64, 0.5, 0.5, seed=1))
    assert not _mask(4, 50, 0.0, 0.0).any()
    assert _mask(4, 50, 1.0, 1.0).all()


def test_a_range_gives_each_image_its_own_ratio() -> None:
    """Fractions spread over the range: their variance is that of a uniform ratio, not of a fixed mean."""
    fractions = _mask(2000, 400, 0.2, 0.8).double().mean(1)
    assert fractions.min() < 0.3
    assert fractions.max() > 0.7
    assert abs(fractions.var() - 0.6**2 / 12) < 0.005


def test_patches_are_split_exactly_and_in_order() -> None:
    """A quarter seen, the rest hidden, together each patch once; every patch is seen alike often."""
    split = split_patches(4000, 16, 4, torch.Generator().manual_seed(0))
    both = torch.cat([split.visible, split.hidden], dim=1)
    assert split.visible.shape == (4000, 4)
    assert torch.equal(both.sort(dim=1).values, torch.arange(16).expand(4000, -1))
    for part in (split.visible, split.hidden):
        assert (part.diff(dim=1) > 0).all()
    fraction = torch.bincount(split.visible.flatten(), minlength=16) / 4000
    assert (fraction - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5
