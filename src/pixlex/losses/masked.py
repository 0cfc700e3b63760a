"""Cross-entropy of hidden words."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def masked_word_loss(
    vectors: Float[Tensor, "M D"],
    word_ids: Int[Tensor, " M"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    *,
    total: float | None = None,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of hidden words in nats, -log p(z | z_m) (LQAE, equation 2).

    The paper prints `+ alpha log p`, which would maximize surprise; this is the cross-entropy. The V logits of
    each position are never all held at once: torch's chunked linear cross-entropy takes a few at a time.

    Args:
        vectors: what the language model's head compares with word embeddings, hidden positions only.
        word_ids: the words that were hidden, in [0, V).
        weight: output matrix.
        bias: output bias.
        total: what the sum is divided by; the number of hidden words here when None. With several processes,
            the hidden words of the whole batch over the number of processes makes their mean exact.

    Returns:
        The loss; 0 where nothing is hidden.
    """
    if len(word_ids) == 0:
        return vectors.sum()
    with torch.autocast(vectors.device.type, enabled=False):
        summed = F.linear_cross_entropy(
            vectors.float(), weight, word_ids, linear_bias=bias, reduction="sum",
            options=torch.nn.LinearCrossEntropyOptions(),
        )  # fmt: skip
    return summed / (len(word_ids) if total is None else total)
