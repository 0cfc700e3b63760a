"""Cross-entropy of captions."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

_IGNORED = -100


def caption_loss(
    logits: Float[Tensor, "B T V"],
    word_ids: Int[Tensor, "B T"],
    key_padding: Bool[Tensor, "B T"],
    *,
    total: float | Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of caption words in nats (Tsimpoukelli et al. 2021, section 3).

    The paper sums over a caption's words; this is the mean over all words of the batch, the end included.

    Args:
        logits: of each word, given the image and the words before it.
        word_ids: the words, in [0, V); anything where padded.
        key_padding: True = padding, which does not count.
        total: what the sum is divided by; the number of words here when None. With several processes, the words
            of the whole batch over the number of processes makes their mean exact.
    """
    targets = word_ids.masked_fill(key_padding, _IGNORED)
    summed = F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=_IGNORED
    )
    return summed / ((~key_padding).sum() if total is None else total)
