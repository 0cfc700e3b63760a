"""Comparing vectors with codewords in float64, where it must be right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Metric = Literal["cosine", "euclidean"]

# Rounding of a float64 sum, relative, for each of its terms; the constant is for norms and quotients.
_ROUNDING = 2.0**-52
_FURTHER_TERMS = 16


@dataclass(frozen=True)
class Compared:
    """Codewords compared with some rows, in the order of their codes (n, c).

    Attributes:
        scores: the larger the nearer; -infinity where there is no codeword.
        tolerance: how far each score can be off. Scores no further apart than that are a tie.
        codes: the codewords.
    """

    scores: Tensor
    tolerance: Tensor
    codes: Tensor

    @classmethod
    def empty(cls, num_rows: int, num_codes: int, device: torch.device) -> Compared:
        """Return room for codewords, with none in it."""
        scores = torch.full((num_rows, num_codes), -torch.inf, dtype=torch.float64, device=device)
        return cls(scores, torch.zeros_like(scores), torch.zeros_like(scores, dtype=torch.long))

    def joined(self, other: Compared) -> Compared:
        """Return these codewords followed by others of higher codes."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Compared(*(torch.cat(pair, 1) for pair in pairs))

    def kept(self, top_k: int) -> Compared:
        """Return only the nearest ones, still in the order of their codes."""
        places = self._places(top_k).sort(1).values
        return Compared(*(values.gather(1, places) for values in vars(self).values()))

    def nearest(self, top_k: int) -> tuple[Tensor, Tensor]:
        """Return codes and scores (n, top_k), nearest first; of equally near ones the lowest code first."""
        places = self._places(top_k)
        return self.codes.gather(1, places), self.scores.gather(1, places)

    def _places(self, top_k: int) -> Tensor:
        scores, chosen = self.scores.clone(), []
        for _ in range(min(top_k, scores.shape[1])):
            least = (scores - self.tolerance).amax(1, keepdim=True)
            equal = scores + self.tolerance >= least
            chosen.append(equal.to(torch.uint8).argmax(1, keepdim=True))
            scores.scatter_(1, chosen[-1], -torch.inf)
        return torch.cat(chosen, 1)


def compare_pairs(z: Tensor, codewords: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """Return the score of each pair of rows, and its tolerance (n,)."""
    z, codewords = z.double(), codewords.double()
    rounding = (z.shape[1] + _FURTHER_TERMS) * _ROUNDING
    if metric == "cosine":
        norms = torch.linalg.vector_norm(z, dim=1) * torch.linalg.vector_norm(codewords, dim=1)
        scores = (z * codewords).sum(1) / norms
        return scores, torch.full_like(scores, rounding)
    scores = -(z - codewords).square().sum(1)
    return scores, -rounding * scores


def compare_all(z: Tensor, codewords: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """Return the score of every row of z (n, D) with every codeword (c, D), and its tolerance (n, c)."""
    z, codewords = z.double(), codewords.double()
    rounding = (z.shape[1] + _FURTHER_TERMS) * _ROUNDING
    if metric == "cosine":
        norms = torch.linalg.vector_norm(codewords, dim=1)
        row_norms = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        scores = torch.where(row_norms > 0, z / row_norms, 0.0) @ (codewords / norms[:, None]).T
        return scores.masked_fill(norms == 0, -torch.inf), torch.full_like(scores, rounding)
    # From differences: distances far below the length of the vectors would drown in their product.
    scores = -torch.cdist(z, codewords, compute_mode="donot_use_mm_for_euclid_dist").square()
    return scores, -rounding * scores
