"""What a learned codebook needs outside autograd: k-means, moving averages, restarts of dead codewords."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixlex import distributed
from pixlex.batch import send
from pixlex.config.cbvila import CBViLAObjectiveConfig
from pixlex.nn.codebook import LearnedCodebook, MovingAverages, Quantized, count_codes, k_means, perplexity
from pixlex.objectives.phase import Step

# Patch vectors clustered for each codeword, at most.
_ROWS_PER_CODEWORD = 20
# Fraction of the patch vectors, the farthest from their codewords, that dead codewords restart on.
_FARTHEST = 0.01


class CodebookMaintenance(nn.Module):
    """Initializes, moves and restarts the codewords of CB-ViLA; the same on every process.

    Args:
        codebook: its codewords.
        config: how they are initialized and moved, and when one counts as dead.
    """

    def __init__(self, codebook: LearnedCodebook, config: CBViLAObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        moving = config.codebook_update == "ema"
        self.averages = MovingAverages(codebook, config.ema_decay) if moving else None

    @torch.no_grad()
    def after_step(
        self, codebook: LearnedCodebook, quantized: Quantized, step: Step, *, trained: bool
    ) -> dict[str, Tensor | float]:
        """Initialize, move and restart codewords.

        Args:
            codebook: the codewords.
            quantized: this process's patches of the step.
            step: the step that was taken.
            trained: whether its phase trains the codebook; if not, usage is counted alone.

        Returns:
            See `count_usage`; and how many codewords were restarted.
        """
        rows, codes = quantized.z.detach().flatten(0, 1), quantized.codes.flatten()
        counts, measures = count_usage(quantized, codebook.num_codewords)
        codebook.note_usage(counts > 0)
        if not trained:
            return measures
        if step.number == 0 and self.config.codebook_start == "k_means":
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
    codes from settling (docs/decisions.md).

    Args:
        codebook: the codewords.
        quantized: this process's patches, as many as on every process.
        idle_limit: steps without use after which a codeword counts as dead.
        generator: on the CPU, the same on every process.
        farthest: fraction of the patch vectors, in (0, 1], that are far enough; at least 16 are.

    Returns:
        Which codewords were restarted.
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


@torch.no_grad()
def count_usage(
    quantized: Quantized, num_codewords: int
) -> tuple[Int[Tensor, " K"], dict[str, Tensor | float]]:
    """Return how often the batch of all processes used each codeword; distinct codewords and perplexity."""
    counts = distributed.all_sum(count_codes(quantized.codes, num_codewords))
    return counts, {"distinct_codewords": (counts > 0).sum(), "perplexity": perplexity(counts)}
