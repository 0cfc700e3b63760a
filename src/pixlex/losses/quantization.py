"""Losses between patch vectors and codewords."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def commitment_loss(z: Float[Tensor, "B N S"], codewords: Float[Tensor, "B N S"]) -> Float[Tensor, ""]:
    """Return mean((z - sg(codeword))^2): moves patch vectors only (LQAE, equation 1, third term).

    Args:
        z: patch vectors in the space of the search.
        codewords: their nearest codewords in the same space.
    """
    return (z.float() - codewords.detach().float()).square().mean()


def codebook_loss(z: Float[Tensor, "B N S"], codewords: Float[Tensor, "B N S"]) -> Float[Tensor, ""]:
    """Return mean((sg(z) - codeword)^2): moves codewords only (LQAE, equation 1, second term).

    Args:
        z: patch vectors in the space of the search.
        codewords: their nearest codewords in the same space, with gradient.
    """
    return (z.detach().float() - codewords.float()).square().mean()


def entropy_regularization(
    z: Float[Tensor, "M S"],
    codebook: Float[Tensor, "K S"],
    temperature: float,
    metric: Literal["cosine", "euclidean"] = "cosine",
    all_mean: Callable[[Tensor], Tensor] | None = None,
    block: int = 512,
) -> Float[Tensor, ""]:
    """Return the mean entropy of the soft codes less the entropy of their mean (LQAE, Table 3, row D).

    p = softmax(-|z - codebook|^2 / temperature) over vectors of length 1 where the search is by angle, as in the
    released code: twice the cosine over the temperature. The value is E[H(p)] - H(E[p]) in nats: low when each
    patch is sure of its codeword and all codewords are in use. The released code counts the term twice; we do not.

    Args:
        z: patch vectors in the space of the search.
        codebook: all K codewords in the same space.
        temperature: divides the distances; above 0.
        metric: of the search.
        all_mean: mean of a tensor over all processes, keeping gradients; the identity when None.
        block: Number of rows per block; each is recomputed in the backward pass.
    """

    def located(vectors: Tensor) -> Tensor:
        return F.normalize(vectors.float(), dim=-1) if metric == "cosine" else vectors.float()

    codewords = located(codebook)
    lengths = codewords.square().sum(-1)

    def sums(rows: Tensor) -> tuple[Tensor, Tensor]:
        # Of the squared distance, what is the same for all codewords of a row is left out.
        log_p = F.log_softmax((2 * located(rows) @ codewords.T - lengths) / temperature, dim=-1)
        p = log_p.exp()
        return -(p * log_p).sum(), p.sum(0)

    entropies, sums_of_p = zip(
        *(checkpoint(sums, rows, use_reentrant=False) for rows in torch.split(z, block)), strict=True
    )
    mean_p = torch.stack(sums_of_p).sum(0) / len(z)
    if all_mean is not None:
        mean_p = all_mean(mean_p)
    of_mean = -(mean_p * mean_p.clamp_min(1e-12).log()).sum()
    return torch.stack(entropies).sum() / len(z) - of_mean
