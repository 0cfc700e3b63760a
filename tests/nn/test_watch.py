"""The fusion encoder with one layer's attention laid open: the same numbers, and gradients that can be checked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pixlex.nn.bert import CrossAttention, FusionEncoder

WIDTH, HEADS, DEPTH = 16, 4, 3


@pytest.fixture
def fusion() -> FusionEncoder:
    fusion = FusionEncoder(WIDTH, DEPTH, HEADS)
    for parameter in fusion.parameters():
        nn.init.normal_(parameter, std=0.3)
    return fusion.eval().requires_grad_(False)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_both_ways_give_the_same(fusion: FusionEncoder, layer: int) -> None:
    """With padding on both sides and three groups of texts over two contexts."""
    queries = torch.randn(6, 5, WIDTH)
    key_padding = torch.arange(5) >= torch.tensor([5, 4, 3, 5, 2, 5]).unsqueeze(1)
    context = fusion.project(torch.randn(2, 7, WIDTH), torch.arange(7) >= torch.tensor([[7], [4]]))
    watched = fusion.watch(queries, context, key_padding, layer=layer)
    torch.testing.assert_close(watched.fused, fusion(queries, context, key_padding), rtol=1e-5, atol=1e-5)
    assert watched.shares.shape == (2, HEADS, 15, 7)
    torch.testing.assert_close(watched.shares.sum(-1), torch.ones(2, HEADS, 15))
    assert (watched.shares[1, ..., 4:] == 0).all()


def test_shares_are_those_of_the_layer_asked_for() -> None:
    """One head written out by hand, behind a layer that is passed first."""
    fusion = FusionEncoder(WIDTH, 2, 1).eval().requires_grad_(False)
    queries, states = torch.randn(1, 3, WIDTH), torch.randn(1, 4, WIDTH)
    context = fusion.project(states)
    first, second = fusion.layers
    read = first(queries, None, context.layers[0])
    read = second.attention_norm(read + second.attention(read))
    cross = second.cross_attention
    assert isinstance(cross, CrossAttention)
    keys = cross.key_value(states)[..., :WIDTH]
    expected = (cross.query(read) @ keys.transpose(1, 2) / WIDTH**0.5).softmax(-1)
    found = fusion.watch(queries, context, layer=2).shares.squeeze(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_watching_leaves_nothing_behind(fusion: FusionEncoder) -> None:
    """No gradient, no attribute: what comes afterwards is to the bit what came before."""
    queries, context = torch.randn(2, 5, WIDTH), fusion.project(torch.randn(2, 7, WIDTH))
    names = [sorted(vars(module)) for module in fusion.modules()]
    before = fusion(queries, context)
    watched = fusion.watch(queries, context, layer=2)
    torch.autograd.grad(watched.fused.square().sum(), watched.shares)
    assert torch.equal(fusion(queries, context), before)
    assert not fusion(queries, context).requires_grad
    assert [sorted(vars(module)) for module in fusion.modules()] == names
    assert all(parameter.grad is None for parameter in fusion.parameters())
