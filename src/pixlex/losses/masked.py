"""Cross-entropy of hidden words."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_ROWS = 128
_IGNORED = -100


def masked_word_loss(
    vectors: Float[Tensor, "M D"],
    word_ids: Int[Tensor, " M"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    *,
    total: float | None = None,
    factors: Float[Tensor, " M"] | None = None,
    block: int = 512,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of hidden words in nats, -log p(z | z_m) (LQAE, equation 2).

    The paper prints `+ alpha log p`, which would maximize surprise; this is the cross-entropy. Logits exist for
    one block of positions at a time and are computed again in the backward pass. Under autocast their matrix
    product is in low precision, the softmax always in float32. torch's own chunked linear cross-entropy bounds
    memory too, but was over ten times as slow here, where the output matrix is frozen (docs/decisions.md).

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
    total = (len(word_ids) if total is None else total) or 1  # nothing hidden: a sum of nothing over one
    device = vectors.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)

    # Rows are filled up to a few fixed numbers: the CPU's matrix library keeps a packed copy of the matrix for
    # every shape it has seen, and the number of hidden words is another one at every step. Where nothing is
    # hidden, rows that do not count keep every weight in the graph, as several processes need it.
    missing = -len(word_ids) % _ROWS if len(word_ids) else _ROWS
    vectors = F.pad(vectors.to(dtype), (0, 0, 0, missing))
    word_ids = F.pad(word_ids, (0, missing), value=_IGNORED)
    counted = torch.ones(len(word_ids), device=vectors.device)
    if factors is not None:
        counted = F.pad(factors, (0, missing))

    def summed(rows: Tensor, targets: Tensor, factors: Tensor) -> Tensor:
        logits = F.linear(rows, matrix, offset).float()
        return (factors * F.cross_entropy(logits, targets, reduction="none", ignore_index=_IGNORED)).sum()

    blocks = zip(*(torch.split(one, block) for one in (vectors, word_ids, counted)), strict=True)
    parts = [checkpoint(summed, *one, use_reentrant=False) for one in blocks]
    return torch.stack(parts).sum() / total
