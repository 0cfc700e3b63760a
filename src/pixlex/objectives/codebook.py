"""What a learned codebook needs outside autograd: k-means, moving averages, restarts of dead codewords."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixlex import distributed
from pixlex.config.cbvila import CBViLAObjectiveConfig
from pixlex.nn.codebook import LearnedCodebook, Quantized, count_codes, count_usage
from pixlex.nn.nearest import Metric, nearest_codeword
from pixlex.nn.transformer import send
from pixlex.objectives.phase import Step

# Patch vectors clustered for each codeword, at most.
_ROWS_PER_CODEWORD = 20
# Fraction of the patch vectors, the farthest from their codewords, that dead codewords restart on.
_FARTHEST = 0.01


class CodebookMaintenance(nn.Module):
    """Initializes, moves and restarts the codewords of CB-ViLA; the same on every process."""

    def __init__(self, codebook: LearnedCodebook, config: CBViLAObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        moving = config.codebook_update == "ema"
        self.averages = MovingAverages(codebook, config.ema_decay) if moving else None

    @torch.no_grad()
    def after_step(
        self, codebook: LearnedCodebook, quantized: Quantized, step: Step, *, trained: bool
    ) -> dict[str, Tensor | float]:
        """Initialize, move and restart codewords, or, where a phase does not train them, count their usage alone.

        Returns `distinct_codewords` and `perplexity`, and how many codewords were restarted.
        """
        rows, codes = quantized.z.detach().flatten(0, 1), quantized.codes.flatten()
        counts, measures = count_usage(codes, codebook.num_codewords, distributed.all_sum)
        codebook.note_usage(counts > 0)
        if not trained:
            return measures
        if step.number == self.config.teacher.steps and self.config.codebook_start == "k_means":
            self._initialize(codebook, rows, step.generator)
        elif self.averages is not None:
            sums = torch.zeros_like(codebook.weight, dtype=torch.float32).index_add_(0, codes, rows.float())
            self.averages.move(codebook, counts, distributed.all_sum(sums))
        if self.config.restart_after:
            restarted = restart(codebook, quantized, self.config.restart_after, step.generator, _FARTHEST)
            measures["restarted"] = restarted.sum()
            if self.averages is not None:
                self.averages.forget(restarted)
        return measures

    def _initialize(
        self, codebook: LearnedCodebook, rows: Float[Tensor, "M S"], generator: torch.Generator
    ) -> None:
        """Put all codewords on the centers of k-means."""
        total = len(rows) * distributed.world_size()
        count = min(total, _ROWS_PER_CODEWORD * codebook.num_codewords)
        numbers = torch.randperm(total, generator=generator)[:count].to(rows.device)
        sample = distributed.pick_rows(rows.float(), numbers)
        centers = torch.zeros_like(codebook.weight, dtype=torch.float32)
        seed = int(torch.randint(2**62, (1,), generator=generator))
        if distributed.is_first():  # sums on a GPU are rounded differently on every process
            own = torch.Generator().manual_seed(seed)
            centers = k_means(sample, codebook.num_codewords, codebook.metric, own)
        centers = distributed.all_sum(centers)
        codebook.place(torch.arange(codebook.num_codewords, device=rows.device), centers)
        if self.averages is not None:
            self.averages.start(centers)


@torch.no_grad()
def restart(
    codebook: LearnedCodebook,
    quantized: Quantized,
    idle_limit: int,
    generator: torch.Generator,
    farthest: float = 1.0,
) -> Bool[Tensor, " K"]:
    """Put codewords idle for `idle_limit` steps on patch vectors of all processes, each vector used once.

    At random among those farthest from their codewords; dead codewords beyond their number wait for the next
    step. On any patch vector, most would lie beside other codewords, take over what belongs to them, and keep the
    codes from settling (docs/decisions.md). Returns which codewords were restarted.

    Args:
        generator: on the CPU, the same on every process.
        farthest: fraction of the patch vectors, in (0, 1], that are far enough; at least 16 are.
    """
    rows, codewords = quantized.z.detach().flatten(0, 1), quantized.codewords.detach().flatten(0, 1)
    distances = distributed.all_gather((rows.float() - codewords.float()).square().sum(-1))
    far = distances.topk(min(len(distances), max(16, round(farthest * len(distances))))).indices
    # Only the device knows how many are dead: as many rows as could be needed, of which the dead ones take some.
    count = min(len(far), codebook.num_codewords)
    order = send(torch.randperm(len(far), generator=generator), rows.device)
    dead = codebook.dead(idle_limit)
    codes = torch.argsort(~dead, stable=True)[:count]
    moves = dead[codes]
    codebook.place(codes, distributed.pick_rows(rows.float(), far[order][:count]), moves)
    return torch.zeros_like(dead).index_put_((codes,), moves)


class MovingAverages(nn.Module):
    """Moving averages of the patch vectors of each codeword, in place of its gradient.

    Source: van den Oord et al. 2017, appendix A.1; `decay` is the fraction of the old average that a step keeps.
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
        """Add counts and sums of a batch; put codewords on the means of their patch vectors, if any."""
        self.counts.mul_(self.decay).add_(counts.to(self.counts), alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums.to(self.sums), alpha=1 - self.decay)
        has_any = self.counts > 1e-6
        means = (self.sums / self.counts.unsqueeze(-1)).to(codebook.weight.dtype)
        codebook.weight.copy_(torch.where(has_any.unsqueeze(-1), means, codebook.weight))

    @torch.no_grad()
    def start(self, centers: Float[Tensor, "K S"]) -> None:
        """Begin as if every codeword had had one patch vector, itself."""
        self.counts.fill_(1.0)
        self.sums.copy_(centers)

    @torch.no_grad()
    def forget(self, restarted: Bool[Tensor, " K"]) -> None:
        """Drop the averages of codewords that were restarted."""
        self.counts.masked_fill_(restarted, 0.0)
        self.sums.masked_fill_(restarted.unsqueeze(-1), 0.0)


@torch.no_grad()
def k_means(
    rows: Float[Tensor, "M S"],
    num_clusters: int,
    metric: Metric,
    generator: torch.Generator,
    iterations: int = 10,
) -> Float[Tensor, "K S"]:
    """Return the centers that Lloyd's algorithm finds from rows drawn without replacement.

    Empty clusters get a row drawn at random in each iteration. With fewer rows than clusters, rows are taken
    more than once, moved a little so that no two centers are alike. Cosine clusters directions; the centers then
    have the mean length of their rows. The generator is on the CPU.
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
