"""A learned codebook: moved by gradient or moving averages, started by clustering, dead codewords revived."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixlex.nn.codebook import Quantized, count_codes, straight_through
from pixlex.nn.nearest import Metric, nearest_codeword
from pixlex.nn.transformer import take_rows

_ITERATIONS = 10


class LearnedCodebook(nn.Module):
    """Codewords learned from patch vectors (van den Oord et al. 2017), with restart of dead ones.

    Args:
        num_codewords: K.
        width: S, the width of a codeword.
        metric: nearest by angle or by distance.
    """

    idle_steps: Tensor

    def __init__(self, num_codewords: int, width: int, metric: Metric) -> None:
        super().__init__()
        self.metric: Metric = metric
        self.weight = nn.Parameter(torch.randn(num_codewords, width) / width**0.5)
        self.register_buffer("idle_steps", torch.zeros(num_codewords, dtype=torch.long))

    @property
    def num_codewords(self) -> int:
        """K, the number of codewords."""
        return len(self.weight)

    def forward(self, z: Float[Tensor, "B N S"]) -> Quantized:
        """Return the nearest codewords; `values` carries the gradient of `z`."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            codes = nearest_codeword(z.detach().flatten(0, 1), self.weight.detach(), self.metric)
            codes = codes.view(z.shape[:2])
            codewords = take_rows(self.weight, codes)
            return Quantized(straight_through(z, codewords), codes, z, codewords)

    def sample(
        self, z: Float[Tensor, "B N S"], temperature: float, noise: Float[Tensor, "B N K"]
    ) -> tuple[Float[Tensor, "B N S"], Float[Tensor, "B N S"]]:
        """Return codewords drawn by the Gumbel-softmax of the distances (Jang et al. 2017), twice.

        The logits are -|z - c|^2 / sqrt(S). The pass forward is hard, a codeword; the gradient is that of the
        soft mixture at the temperature. The square root is ours: without it the draw is an argmin at temperature
        1 already.

        Args:
            z: patch vectors.
            temperature: above 0.
            noise: draws from Gumbel(0, 1).

        Returns:
            The drawn codewords with gradient to patch vectors and codewords; the same numbers with gradient to the
            patch vectors alone.
        """
        with torch.autocast(z.device.type, enabled=False):
            z, codebook = z.float(), self.weight

            def weights(codewords: Tensor) -> Tensor:
                square = z.square().sum(-1, keepdim=True) + codewords.square().sum(-1)
                logits = (2 * z @ codewords.T - square) / z.shape[-1] ** 0.5
                soft = F.softmax((logits + noise) / temperature, dim=-1)
                hard = F.one_hot(soft.argmax(-1), len(codewords)).to(soft.dtype)
                return straight_through(soft, hard)

            return weights(codebook) @ codebook, weights(codebook.detach()) @ codebook.detach()

    @torch.no_grad()
    def note_usage(self, used: Bool[Tensor, " K"]) -> None:
        """Count one more idle step for each codeword that the last batch did not use."""
        self.idle_steps.add_(1).masked_fill_(used, 0)

    def dead(self, idle_limit: int) -> Bool[Tensor, " K"]:
        """Return which codewords no batch has used for `idle_limit` steps."""
        return self.idle_steps >= idle_limit

    @torch.no_grad()
    def place(
        self, codes: Int[Tensor, " R"], rows: Float[Tensor, "R S"], moves: Bool[Tensor, " R"] | None = None
    ) -> None:
        """Put codewords on patch vectors; they count as used.

        Args:
            codes: which, each once.
            rows: where to.
            moves: those that are False stay as they are; None moves all.
        """
        rows = rows.to(self.weight.dtype)
        idle = torch.zeros_like(codes)
        if moves is not None:
            rows = torch.where(moves.unsqueeze(-1), rows, self.weight[codes])
            idle = torch.where(moves, idle, self.idle_steps[codes])
        self.weight[codes] = rows
        self.idle_steps[codes] = idle


class MovingAverages(nn.Module):
    """Moving averages of the patch vectors of each codeword, in place of its gradient.

    Source: van den Oord et al. 2017, appendix A.1.

    Args:
        codebook: the codewords that will be moved.
        decay: share of the old average that a step keeps, in [0, 1).
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, codebook: LearnedCodebook, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("counts", torch.zeros(codebook.num_codewords))
        self.register_buffer("sums", torch.zeros_like(codebook.weight.detach()))

    @torch.no_grad()
    def move(self, codebook: LearnedCodebook, counts: Int[Tensor, " K"], sums: Float[Tensor, "K S"]) -> None:
        """Take in a batch and put each codeword on the mean of its own patch vectors.

        A codeword that has had none stays where it is.

        Args:
            codebook: the codewords.
            counts: patch vectors of each codeword in the batch, over all processes.
            sums: their sums.
        """
        self.counts.mul_(self.decay).add_(counts.to(self.counts), alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums.to(self.sums), alpha=1 - self.decay)
        seen = self.counts > 1e-6
        means = (self.sums / self.counts.unsqueeze(-1)).to(codebook.weight.dtype)
        codebook.weight.copy_(torch.where(seen.unsqueeze(-1), means, codebook.weight))

    @torch.no_grad()
    def start(self, centers: Float[Tensor, "K S"]) -> None:
        """Begin as if every codeword had had one patch vector, itself."""
        self.counts.fill_(1.0)
        self.sums.copy_(centers)

    @torch.no_grad()
    def forget(self, placed: Bool[Tensor, " K"]) -> None:
        """Drop the averages of codewords that were placed anew."""
        self.counts.masked_fill_(placed, 0.0)
        self.sums.masked_fill_(placed.unsqueeze(-1), 0.0)


@torch.no_grad()
def k_means(
    rows: Float[Tensor, "M S"],
    num_clusters: int,
    metric: Metric,
    generator: torch.Generator,
    iterations: int = _ITERATIONS,
) -> Float[Tensor, "K S"]:
    """Return the centers that Lloyd's algorithm finds from rows drawn without replacement.

    Empty clusters get a row drawn at random in each iteration. With fewer rows than clusters, rows are taken
    more than once, moved a little so that no two centers are alike.

    Args:
        rows: what is clustered.
        num_clusters: K.
        metric: cosine clusters directions; the centers then have the mean length of their rows.
        generator: on the CPU.
        iterations: passes over the rows.
    """
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    centers = rows[order[torch.arange(num_clusters, device=rows.device) % len(rows)]].clone()
    if len(rows) < num_clusters:
        spread = rows.std(0) if len(rows) > 1 else torch.ones_like(rows[0])
        shift = torch.randn(centers.shape, generator=generator).to(rows.device)
        centers[len(rows) :] += 0.1 * (spread * shift)[len(rows) :]
        return centers
    for _ in range(iterations):
        nearest = nearest_codeword(rows, centers, metric)
        counts = count_codes(nearest, num_clusters)
        sums = torch.zeros_like(centers).index_add_(0, nearest, rows)
        filled = counts > 0
        centers[filled] = sums[filled] / counts[filled].unsqueeze(-1)
        num_empty = int((~filled).sum())
        if num_empty:
            drawn = torch.randint(len(rows), (num_empty,), generator=generator).to(rows.device)
            centers[~filled] = rows[drawn]
    return centers
