"""Words of a frozen vocabulary as codewords, and what every codebook has in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixlex.batch import send
from pixlex.config.lqae import QuantizerConfig
from pixlex.nn.fused import available
from pixlex.nn.nearest import PreparedCodebook, nearest_codeword, nearest_codewords
from pixlex.nn.transformer import take_rows
from pixlex.nn.whitening import AllMean, Moments, Whitening


@dataclass(frozen=True)
class Quantized:
    """What a codebook made of patch vectors.

    Attributes:
        values: codewords as they are passed on; their gradient goes to the patch vectors unchanged.
        codes: index of the nearest codeword, in [0, K).
        z: patch vectors in the space of the search, with gradient.
        codewords: their codewords in the same space, with gradient where codewords are learned.
        moments: statistics of the batch for `Whitening.update`, where the search is whitened.
        vectors: patch vectors in the space of the values, where these are word embeddings, with gradient.
    """

    values: Float[Tensor, "B N D"]
    codes: Int[Tensor, "B N"]
    z: Float[Tensor, "B N S"]
    codewords: Float[Tensor, "B N S"]
    moments: Moments | None = None
    vectors: Float[Tensor, "B N D"] | None = None


def straight_through(z: Float[Tensor, "B N D"], values: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
    """Return `values` exactly, with the gradient of `z` (van den Oord et al. 2017, section 3.2).

    Args:
        z: where the gradient goes.
        values: what is passed on; receives no gradient.
    """
    return values.detach() + (z - z.detach())


class WordQuantizer(nn.Module):
    """Replaces patch vectors by their nearest word embeddings; the embeddings stay frozen and unsaved.

    `raw` search compares patch vectors with word embeddings (LQAE, section 3.2). `whitened` search compares
    them in the leading principal directions of the embeddings, both sides at unit covariance, which keeps the
    codebook alive; straight-through then returns along the linear map from those directions to the embedding.
    `assigned` search lets a learned codebook pick the index of the word (LQAE, Table 3, row I).

    Args:
        embedding: the word embeddings that may be codewords.
        config: the search.
        initialize: False where principal directions are read at once: none are computed.
    """

    embedding: Tensor
    center: Tensor
    directions: Tensor
    scales: Tensor

    def __init__(
        self, embedding: Float[Tensor, "K D"], config: QuantizerConfig, *, initialize: bool = True
    ) -> None:
        super().__init__()
        num_codewords, width = embedding.shape
        if config.search == "whitened" and config.search_dim > min(num_codewords, width):
            raise ValueError(
                f"quantizer.search_dim must be at most {min(num_codewords, width)}, the smaller side of the "
                f"{num_codewords} x {width} codebook, got {config.search_dim}"
            )
        if config.top_k > num_codewords:
            raise ValueError(
                f"quantizer.top_k must be at most the {num_codewords} codewords, got {config.top_k}"
            )
        self.config = config
        self._last: PreparedCodebook | None = None
        self.register_buffer("embedding", embedding.detach().float().clone(), persistent=False)
        self.input_dim = config.search_dim if config.search == "whitened" else width
        if config.search == "whitened":
            self.whitening = Whitening(config.search_dim)
            center, directions, scales = (
                _principal_directions(self.embedding, config.search_dim)
                if initialize
                else (
                    torch.zeros(width),
                    torch.zeros(width, config.search_dim),
                    torch.ones(config.search_dim),
                )
            )
            # Saved with the model: signs of principal directions differ between machines, codes must not.
            self.register_buffer("center", center)
            self.register_buffer("directions", directions)
            self.register_buffer("scales", scales)
        elif config.search == "assigned":
            self.to_search = nn.Linear(width, config.search_dim)
            self.learned = nn.Parameter(torch.randn(num_codewords, config.search_dim))

    @property
    def num_codewords(self) -> int:
        """K, the number of words that may be codewords."""
        return len(self.embedding)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WordQuantizer:
        """Forget what was prepared of the embeddings where they were."""
        self._last = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies prepare their own."""
        return {**self.__dict__, "_last": None}

    def search_codebook(self) -> Float[Tensor, "K S"]:
        """Return the codewords in the space of the search."""
        if self.config.search == "whitened":
            return (self.embedding - self.center) @ self.directions / self.scales
        return self.learned if self.config.search == "assigned" else self.embedding

    def forward(
        self,
        vectors: Float[Tensor, "B N D"],
        generator: torch.Generator | None = None,
        all_mean: AllMean = lambda tensor: tensor,
    ) -> Quantized:
        """Return the nearest words of patch vectors.

        Args:
            vectors: patch vectors of width `input_dim`.
            generator: draws among the k nearest where the configuration asks for it.
            all_mean: mean over the processes that share the batch, keeping gradients.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            moments, z = None, vectors
            if self.config.search == "whitened":
                z, moments = self.whitening(vectors, all_mean)
                back = (z * self.scales) @ self.directions.T + self.center
            elif self.config.search == "assigned":
                z, back = self.to_search(vectors), vectors
            else:
                back = vectors
            codebook = self.search_codebook()
            candidates = self._search(z.detach(), codebook.detach(), generator)
            codes = candidates[..., 0]
            values = self.embedding[candidates].mean(2)
            codewords = take_rows(codebook, candidates).mean(2)
            return Quantized(straight_through(back, values), codes, z, codewords, moments, back)

    def _search(self, z: Tensor, codebook: Tensor, generator: torch.Generator | None) -> Int[Tensor, "B N k"]:
        """Return the codes whose embeddings are averaged: one, or k with top-k averaging."""
        rows, metric, top_k = z.flatten(0, 1), self.config.metric, self.config.top_k
        if top_k == 1:
            return nearest_codeword(rows, self._prepared(codebook), metric).view(*z.shape[:2], 1)
        nearest = nearest_codewords(rows, codebook, metric, top_k)
        if self.config.top_k_mode == "random" and self.training:
            # One draw for each patch; the released code draws one rank for the whole batch.
            rank = send(torch.randint(top_k, (len(rows), 1), generator=generator), nearest.device)
            nearest = nearest.gather(1, rank)
        elif self.config.top_k_mode == "random":
            nearest = nearest[:, :1]
        return nearest.view(*z.shape[:2], -1)

    def _prepared(self, codebook: Tensor) -> Tensor | PreparedCodebook:
        """Return the codebook, on a GPU as its kernels read it, if it is always the same one."""
        if self.config.search != "raw" or not available(codebook.device):
            return codebook
        last = self._last
        if last is None or (last.codebook.device, last.codebook.data_ptr()) != (
            codebook.device, codebook.data_ptr(),
        ):  # fmt: skip
            self._last = last = PreparedCodebook(codebook, self.config.metric)
        return last


def _principal_directions(embedding: Tensor, num_directions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return center (D), leading directions (D, S) and standard deviations along them (S)."""
    rows = embedding.double()
    center = rows.mean(0)
    covariance = (rows - center).T @ (rows - center) / len(rows)
    variances, directions = torch.linalg.eigh(covariance)
    leading = torch.arange(len(variances) - 1, len(variances) - 1 - num_directions, -1)
    scales = variances[leading].clamp_min(1e-12).sqrt()
    return center.float(), directions[:, leading].float().contiguous(), scales.float()


@torch.no_grad()
def count_codes(codes: Int[Tensor, "..."], num_codewords: int) -> Int[Tensor, " K"]:
    """Return how often each codeword occurs."""
    codes = codes.flatten()  # bincount would read the largest code, for which a GPU has to be waited for
    return codes.new_zeros(num_codewords).scatter_add_(0, codes, torch.ones_like(codes))


@torch.no_grad()
def perplexity(counts: Int[Tensor, " K"] | Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """Return exp of the entropy of a usage distribution: the number of codewords in even use."""
    share = counts.double() / counts.sum().clamp_min(1)
    return torch.exp(-(share * share.clamp_min(1e-30).log()).sum())
