"""Whitening: unit covariance in training, running statistics at inference, housekeeping apart."""

from __future__ import annotations

import copy

import torch

from pixlex.nn.whitening import Whitening


def test_batches_leave_with_zero_mean_and_unit_covariance() -> None:
    """Whatever the scale and correlation of what comes in, also with a mean far larger than the spread."""
    for scale in (1e-1, 1.0, 1e3):
        z = torch.randn(16, 8, 4) @ (torch.eye(4) + 0.3 * torch.randn(4, 4)) * scale + 7 * scale
        whitened, moments = Whitening(4)(z)
        rows = whitened.flatten(0, 1)
        torch.testing.assert_close(rows.mean(0), torch.zeros(4), rtol=0, atol=1e-3)
        torch.testing.assert_close(rows.T @ rows / 128, torch.eye(4), rtol=0, atol=0.05)
        assert moments is not None


def test_identical_vectors_stay_finite() -> None:
    """An encoder that says the same everywhere has no covariance; the ridge keeps the factor alive."""
    z = torch.full((4, 8, 3), 0.5, requires_grad=True)
    whitened, _ = Whitening(3)(z)
    whitened.sum().backward()
    assert torch.isfinite(whitened).all()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_forward_changes_nothing_and_update_does() -> None:
    """Running statistics move only by `update`: first to those of the batch, then by the momentum."""
    layer = Whitening(3, momentum=0.25)
    before = copy.deepcopy(layer.state_dict())
    _, first = layer(torch.randn(8, 4, 3) + 1)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
    _, second = layer(torch.randn(8, 4, 3) - 1)
    assert first is not None
    assert second is not None
    layer.update(first)
    torch.testing.assert_close(layer.mean, first.mean)
    layer.update(second)
    torch.testing.assert_close(layer.mean, 0.75 * first.mean + 0.25 * second.mean)
    torch.testing.assert_close(layer.covariance, 0.75 * first.covariance + 0.25 * second.covariance)


def test_inference_does_not_depend_on_neighbors() -> None:
    """At inference an image becomes the same alone and in any batch."""
    layer = Whitening(3)
    _, moments = layer(torch.randn(8, 4, 3) * 2 + 1)
    assert moments is not None
    layer.update(moments)
    layer.eval()
    z = torch.randn(5, 4, 3)
    together, none = layer(z)
    assert none is None
    torch.testing.assert_close(torch.cat([layer(one[None])[0] for one in z]), together)
