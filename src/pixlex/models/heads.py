"""What is predicted from fused vectors: hidden words, codewords of hidden patches, pixels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixlex.nn.transformer import initialize, initializer, take_rows
from pixlex.nn.vit import sine_positions


class MaskedWordHead(nn.Module):
    """BERT's head for hidden words; its output matrix is the word embedding (Devlin et al. 2018).

    Args:
        width: D, the width of the vectors.
        vocab_size: V.
    """

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.apply(initializer(width))

    def forward(self, vectors: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Return vectors to be compared with word embeddings."""
        predicted: Tensor = self.norm(F.gelu(self.transform(vectors)))
        return predicted


class MaskedPatchHead(nn.Module):
    """Names the codewords of hidden patches: BERT's transform, then an output matrix of its own.

    Args:
        width: D, the width of the vectors.
        output_width: width of the vectors compared with the output matrix.
        num_codewords: rows of the output matrix; None where the codewords themselves are compared.
    """

    def __init__(self, width: int, output_width: int, num_codewords: int | None) -> None:
        super().__init__()
        self.transform = nn.Linear(width, output_width)
        self.norm = nn.LayerNorm(output_width, eps=1e-12)
        self.apply(initializer(width))
        self.codewords = None if num_codewords is None else nn.Linear(output_width, num_codewords)
        # Cosines of what is random differ by 1 / sqrt(width): untrained logits have a spread of about 1.
        self.log_scale = (
            nn.Parameter(torch.tensor(0.5 * math.log(output_width))) if num_codewords is None else None
        )
        if self.codewords is not None:
            initialize(self.codewords)  # small: an untrained head finds all codewords alike likely

    def forward(self, vectors: Float[Tensor, "M D"]) -> Float[Tensor, "M S"]:
        """Return vectors to be compared with the output matrix; with codewords, by angle times a learned scale."""
        predicted: Tensor = self.norm(F.gelu(self.transform(vectors)))
        if self.log_scale is not None:
            predicted = self.log_scale.exp() * F.normalize(predicted.float(), dim=-1)
        return predicted


class ClassPatchHead(nn.Module):
    """Makes a vector for each hidden patch of the class vector and the patch's position (CB-ViLA, figure 1).

    Args:
        width: D, the width of the vectors.
        num_patches: N.
    """

    def __init__(self, width: int, num_patches: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(sine_positions(math.isqrt(num_patches), width)[0, 1:])
        self.mix = nn.Linear(2 * width, width)
        self.apply(initializer(width))

    def forward(
        self, class_vectors: Float[Tensor, "B D"], hidden: Int[Tensor, "B m"]
    ) -> Float[Tensor, "B m D"]:
        """Return one vector for each hidden patch."""
        whole = class_vectors.unsqueeze(1).expand(-1, hidden.shape[1], -1)
        mixed: Tensor = self.mix(
            torch.cat([whole, take_rows(self.positions, hidden).to(whole.dtype)], dim=-1)
        )
        return mixed
