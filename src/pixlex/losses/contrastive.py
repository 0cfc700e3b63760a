"""Contrast of images and texts, and whether the two belong together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORED = -100  # label of a row that does not count in matching


def image_text_contrastive_loss(
    image_to_text: Float[Tensor, "B A"], text_to_image: Float[Tensor, "B A"], same: Bool[Tensor, "B A"]
) -> Float[Tensor, ""]:
    """Return the mean of both cross-entropies over the batch in nats (Li et al. 2021, ALBEF, equation 2).

    Without the momentum encoders and queue of ALBEF; the target is spread evenly over all pairs that are the same.

    Args:
        image_to_text: similarity of each image of this process to each text of all, over the temperature.
        text_to_image: similarity of each text of this process to each image of all, over the temperature.
        same: True where they belong together: the pair itself, other captions of the image, the same caption.
    """
    targets = same.float() / same.float().sum(1, keepdim=True)
    forward = -(targets * F.log_softmax(image_to_text.float(), dim=1)).sum(1).mean()
    backward = -(targets * F.log_softmax(text_to_image.float(), dim=1)).sum(1).mean()
    return (forward + backward) / 2


@torch.no_grad()
def hard_negatives(
    similarity: Float[Tensor, "B A"], same: Bool[Tensor, "B A"], chance: Float[Tensor, " B"]
) -> Int[Tensor, " B"]:
    """Return for each row one column that is not the same, more similar ones more often, by its number.

    Drawn from softmax(similarity) plus 1e-4 (CB-ViLA, section III-C: "based on the contrastive similarity
    distribution"), evenly where similarities are not finite.

    Args:
        similarity: over the temperature.
        same: True where a column may not be drawn.
        chance: uniform in [0, 1), one draw for each row.

    Returns:
        Column numbers; -1 for a row all of whose columns are the same.
    """
    weights = F.softmax(similarity.float(), dim=1) + 1e-4
    weights = torch.where(weights.isfinite().all(1, keepdim=True), weights, torch.ones_like(weights))
    weights = weights.masked_fill(same, 0.0).double()
    total = weights.cumsum(1)
    drawn = torch.searchsorted(total, chance.double().unsqueeze(1) * total[:, -1:], right=True).squeeze(1)
    # Rounding may lead behind the last column that can be drawn.
    last = weights.shape[1] - 1 - (weights > 0).flip(1).int().argmax(1)
    return torch.where((~same).any(1), torch.minimum(drawn, last), -1)


def image_text_matching_loss(
    logits: Float[Tensor, "R 2"], labels: Int[Tensor, " R"], *, total: float | Float[Tensor, ""] | None = None
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of "does not belong" and "belongs" in nats (CB-ViLA, equation 5).

    Args:
        logits: for each image with a text.
        labels: 1 where they belong together, 0 where not, `IGNORED` where a row does not count; not all.
        total: divides the sum; None = the rows that count here. With several processes, those of all over the
            number of processes makes their mean exact.
    """
    summed = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return summed / ((labels != IGNORED).sum() if total is None else total)
