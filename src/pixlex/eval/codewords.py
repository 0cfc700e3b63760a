"""Whether codewords mean something: how well a patch's codeword tells the class of its image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

_SHUFFLES = 5


@dataclass(frozen=True)
class CodewordPurity:
    """What a set of labeled images says of a codebook.

    Attributes:
        purity: share of the patches whose image has the most frequent class of their codeword.
        shuffled_purity: the same after classes were dealt anew to the images, the mean of five times: codewords
            that occur rarely look pure by chance.
        information: mutual information of codeword and class, in nats.
        shuffled_information: the same after dealing.
        num_images: images with a class.
    """

    purity: float
    shuffled_purity: float
    information: float
    shuffled_information: float
    num_images: int

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers by their names in the log."""
        names = ("purity", "shuffled_purity", "information", "shuffled_information")
        return {f"eval/codeword_{name}": float(getattr(self, name)) for name in names}


def codeword_purity(codes: Int[Tensor, "I N"], labels: Int[Tensor, " I"], seed: int = 0) -> CodewordPurity:
    """Measure a codebook against classes.

    Args:
        codes: of each image.
        labels: class of each image; -1 where unknown, which leaves the image out.
        seed: of the dealing of classes, 0 or more.

    Raises:
        ValueError: no image has a class.
    """
    known = labels >= 0
    codes, labels = codes[known], labels[known]
    if len(labels) == 0:
        raise ValueError("no image has a class: purity needs labels")
    generator = torch.Generator().manual_seed(seed)
    purity, information = _measured(codes, labels)
    dealt = [
        _measured(codes, labels[torch.randperm(len(labels), generator=generator)]) for _ in range(_SHUFFLES)
    ]
    return CodewordPurity(
        purity=purity,
        shuffled_purity=sum(one for one, _ in dealt) / _SHUFFLES,
        information=information,
        shuffled_information=sum(one for _, one in dealt) / _SHUFFLES,
        num_images=len(labels),
    )


def _measured(codes: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return purity and mutual information."""
    num_classes = int(labels.max()) + 1
    pairs = codes * num_classes + labels.unsqueeze(1)
    table = torch.bincount(pairs.flatten(), minlength=(int(codes.max()) + 1) * num_classes)
    joint = table.view(-1, num_classes).double() / codes.numel()
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    seen = joint > 0
    return float(joint.amax(1).sum()), float((joint[seen] * (joint[seen] / apart[seen]).log()).sum())
