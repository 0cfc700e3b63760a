"""Does a text belong to an image?"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100


def image_text_matching_loss(logits: Float[Tensor, "R 2"], labels: Int[Tensor, " R"]) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of "does not belong" and "belongs" in nats (CB-ViLA, equation 5).

    Args:
        logits: for each image with a text.
        labels: 1 where they belong together, 0 where not, -100 where a row does not count; one or more count.
    """
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED)
