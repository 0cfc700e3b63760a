"""Cross-entropy of hidden words."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

_ROWS = 128


def masked_word_loss(
    vectors: Float[Tensor, "M D"],
    word_ids: Int[Tensor, " M"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    *,
    total: float | Float[Tensor, ""] | None = None,
    factors: Float[Tensor, " M"] | None = None,
    block: int = 512,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of hidden words in nats, -log p(z | z_m) (LQAE, equation 2).

    The paper prints `+ alpha log p`, which would maximize surprise; this is the cross-entropy. Logits exist for
    one block of positions at a time, and once: gradients are made of them in the forward pass and wait in the size
    of vectors and weights. Under autocast matrix products are in low precision, the softmax always in float32.
    torch's own chunked linear cross-entropy was several times as slow here (docs/decisions.md).

    Args:
        vectors: what the language model's head compares with word embeddings, hidden positions only.
        word_ids: the words that were hidden, in [0, V).
        weight: output matrix.
        bias: output bias.
        total: what the sum is divided by; the number of hidden words here when None. With several processes,
            the hidden words of the whole batch over the number of processes makes their mean exact.
        factors: what the cross-entropy of each word counts; 1 when None.
        block: positions whose logits exist at the same time.

    Returns:
        The loss; 0 where nothing is hidden.
    """
    total = len(word_ids) if total is None else total
    # Nothing hidden: a sum of nothing over one.
    total = total.masked_fill(total == 0, 1.0) if isinstance(total, Tensor) else total or 1
    device = vectors.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    if factors is None:
        factors = torch.ones(len(word_ids), device=vectors.device)
    # Rows are filled up to a few fixed numbers: the CPU's matrix library keeps a packed copy of the matrix for
    # every shape it has seen, and the number of hidden words is another one at every step.
    missing = -len(word_ids) % _ROWS
    vectors = F.pad(vectors.float(), (0, 0, 0, missing))
    word_ids, factors = F.pad(word_ids, (0, missing)), F.pad(factors, (0, missing))
    with torch.autocast(device, enabled=False):
        summed: Tensor = _SummedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            vectors, weight, bias, word_ids, factors, block, dtype, torch.is_grad_enabled()
        )
    return summed / total


class _SummedCrossEntropy(torch.autograd.Function):
    """The sum of weighted cross-entropies, whose gradients are computed beside it, block by block.

    With p the softmax of a row's logits and y the word behind it, the gradient with respect to the logits is
    factor * (p - y): two more products give those of vectors and weights, and the logits can go.
    """

    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        word_ids: Tensor,
        factors: Tensor,
        block: int,
        dtype: torch.dtype,
        has_gradient: bool,
    ) -> Tensor:
        wanted = [has_gradient and one for one in ctx.needs_input_grad[:3]]
        matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
        total = vectors.new_zeros(())
        of_vectors, of_weight, of_bias = (
            torch.zeros_like(one, dtype=torch.float32) if wants and one is not None else None
            for one, wants in zip((vectors, weight, bias), wanted, strict=True)
        )
        for start in range(0, len(vectors), block):
            part = slice(start, start + block)
            rows, targets = vectors[part].to(dtype), word_ids[part].unsqueeze(1)
            logits = F.linear(rows, matrix, offset).float()
            sums = logits.logsumexp(1, keepdim=True)
            total += (factors[part] * (sums - logits.gather(1, targets)).squeeze(1)).sum()
            if not any(wanted):
                continue
            # In place: nothing else holds the logits.
            slopes = logits.sub_(sums).exp_()
            slopes.scatter_add_(1, targets, slopes.new_full(targets.shape, -1.0))
            slopes.mul_(factors[part].unsqueeze(1))
            if of_bias is not None:
                of_bias += slopes.sum(0)
            slopes = slopes.to(dtype)
            if of_vectors is not None:
                of_vectors[part] = slopes @ matrix
            if of_weight is not None and dtype == torch.float32:
                of_weight.addmm_(slopes.T, rows)
            elif of_weight is not None:
                of_weight += slopes.T @ rows
        ctx.save_for_backward(of_vectors, of_weight, of_bias)
        ctx.dtypes = [None if one is None else one.dtype for one in (vectors, weight, bias)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = (
            None if one is None else (gradient * one).to(dtype)
            for one, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*found, None, None, None, None, None)
