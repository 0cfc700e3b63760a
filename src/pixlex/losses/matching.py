"""Does a text belong to an image?"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100


def image_text_matching_loss(
    logits: Float[Tensor, "R 2"], labels: Int[Tensor, " R"], *, total: float | Float[Tensor, ""] | None = None
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of "does not belong" and "belongs" in nats (CB-ViLA, equation 5).

    Args:
        logits: for each image with a text.
        labels: 1 where they belong together, 0 where not, -100 where a row does not count; one or more count.
        total: what the sum is divided by; the number of rows that count here when None. With several processes,
            those of all over the number of processes makes their mean exact.
    """
    summed = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return summed / ((labels != IGNORED).sum() if total is None else total)
