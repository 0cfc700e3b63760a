"""Bringing a cloud of vectors to zero mean and unit covariance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

AllMean = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of one batch of vectors."""

    mean: Float[Tensor, " S"]
    covariance: Float[Tensor, "S S"]


class Whitening(nn.Module):
    """Batch whitening by the Cholesky factor of the covariance: z -> L^-1 (z - mean), covariance = L L^T.

    Batch statistics while training, running ones at inference, so that what an image becomes there does not
    depend on its neighbors. `forward` changes nothing: running statistics move when `update` is called.

    Args:
        width: S.
        momentum: share of the newest batch in the running statistics.
    """

    mean: Tensor
    covariance: Tensor
    updates: Tensor

    def __init__(self, width: int, momentum: float = 0.2) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("covariance", torch.eye(width))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(
        self, z: Float[Tensor, "B N S"], all_mean: AllMean = lambda tensor: tensor
    ) -> tuple[Float[Tensor, "B N S"], Moments | None]:
        """Return the whitened vectors, and the moments of the batch when training.

        Args:
            z: patch vectors.
            all_mean: mean over the processes that share the batch, keeping gradients.
        """
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            if not self.training:
                return _whiten(z, self.mean, self.covariance), None
            rows = z.flatten(0, 1)
            mean = all_mean(rows.mean(0))
            centered = rows - mean
            covariance = all_mean(centered.T @ centered / len(rows))
            return _whiten(z, mean, covariance), Moments(mean.detach(), covariance.detach())

    @torch.no_grad()
    def update(self, moments: Moments) -> None:
        """Move the running statistics towards those of a batch; the first batch replaces their start."""
        share = torch.where(self.updates == 0, torch.ones_like(self.mean[0]), self.momentum)
        self.mean.lerp_(moments.mean, share)
        self.covariance.lerp_(moments.covariance, share)
        self.updates += 1


def _whiten(z: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Return L^-1 (z - mean), with a ridge relative to the mean variance so that L always exists."""
    width = len(mean)
    ridge = 1e-4 * covariance.diagonal().mean() + 1e-8
    factor, failed = torch.linalg.cholesky_ex(covariance + ridge * torch.eye(width, device=z.device))
    # Values that are not finite have no factor: the loss will say so, and nobody waits for a GPU to ask here.
    factor = factor.masked_fill(failed != 0, torch.nan)
    flat = (z - mean).flatten(0, -2)
    solved: Tensor = torch.linalg.solve_triangular(factor, flat.T, upper=False)
    return solved.T.view_as(z)
