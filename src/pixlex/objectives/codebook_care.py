"""What a learned codebook needs outside autograd: a start, moving averages, new places for dead codewords."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixlex import distributed
from pixlex.batch import send
from pixlex.config.cbvila import CBViLAObjectiveConfig
from pixlex.nn.codebook import Quantized, count_codes, perplexity
from pixlex.nn.learned_codebook import LearnedCodebook, MovingAverages, k_means
from pixlex.objectives.phase import Step

# Patch vectors clustered for each codeword, at most.
_ROWS_PER_CODEWORD = 20
# Share of the patch vectors, the farthest from their codewords, that dead codewords are placed on.
_FARTHEST = 0.01


class CodebookCare(nn.Module):
    """Looks after the codebook of CB-ViLA; the same on every process.

    Args:
        codebook: its codewords.
        config: how they start and move, and when one counts as dead.
    """

    def __init__(self, codebook: LearnedCodebook, config: CBViLAObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        moving = config.codebook_update == "ema"
        self.averages = MovingAverages(codebook, config.ema_decay) if moving else None
        self._last: Quantized | None = None
        self._masked_image: Tensor | None = None

    def observe(self, quantized: Quantized, masked_image: Tensor | None) -> None:
        """Keep what the images of a step became, and how well hidden codes were foretold."""
        self._last = quantized
        self._masked_image = None if masked_image is None else distributed.all_mean(masked_image.detach())

    @torch.no_grad()
    def after_step(
        self, codebook: LearnedCodebook, step: Step, *, moves: bool = True
    ) -> Mapping[str, Tensor | float]:
        """Start, move and revive codewords; return their health.

        Args:
            codebook: the codewords.
            step: the step that was taken.
            moves: whether this phase trains the codebook.

        Returns:
            Of the codes of the whole batch: distinct codewords, perplexity; dead and revived codewords; entropy of
            the codes less cross-entropy of the hidden ones, in nats, which a collapse cannot raise.
        """
        if self._last is None:
            return {}
        rows, codes = self._last.z.detach().flatten(0, 1), self._last.codes.flatten()
        counts = distributed.all_sum(count_codes(codes, codebook.num_codewords))
        spread = perplexity(counts)
        health = {"distinct_codewords": (counts > 0).sum(), "perplexity": spread}
        if self._masked_image is not None:
            health["masked_image_gain"] = spread.log() - self._masked_image
        codebook.note_usage(counts > 0)
        if not moves:
            return health
        if step.number == 0 and self.config.codebook_start == "k_means":
            self._start(codebook, rows, step.generator)
        elif self.averages is not None:
            sums = torch.zeros_like(codebook.weight, dtype=torch.float32).index_add_(0, codes, rows.float())
            self.averages.move(codebook, counts, distributed.all_sum(sums))
        if self.config.restart_after:
            placed, health["restarted"] = revive(
                codebook, self._last, self.config.restart_after, step.generator, _FARTHEST
            )
            if self.averages is not None:
                self.averages.forget(placed)
        return health

    def _start(
        self, codebook: LearnedCodebook, rows: Float[Tensor, "M S"], generator: torch.Generator
    ) -> None:
        """Place all codewords by k-means."""
        total = len(rows) * distributed.world_size()
        most = min(total, _ROWS_PER_CODEWORD * codebook.num_codewords)
        numbers = torch.randperm(total, generator=generator)[:most].to(rows.device)
        chosen = distributed.pick_rows(rows.float(), numbers)
        centers = torch.zeros_like(codebook.weight, dtype=torch.float32)
        seed = int(torch.randint(2**62, (1,), generator=generator))
        if distributed.rank() == 0:  # sums on a GPU round otherwise on every one
            own = torch.Generator().manual_seed(seed)
            centers = k_means(chosen, codebook.num_codewords, codebook.metric, own)
        centers = distributed.all_sum(centers)
        codebook.place(torch.arange(codebook.num_codewords, device=rows.device), centers)
        if self.averages is not None:
            self.averages.start(centers)


@torch.no_grad()
def revive(
    codebook: LearnedCodebook,
    quantized: Quantized,
    idle_limit: int,
    generator: torch.Generator,
    farthest: float = 1.0,
) -> tuple[Bool[Tensor, " K"], Int[Tensor, ""]]:
    """Place codewords idle for `idle_limit` steps on patch vectors of all processes, each taken once.

    At random among those farthest from their codewords; dead codewords beyond their number wait for the next
    step. Placed on any patch vector, most would lie where codewords lie already, take over what belongs to them
    and keep the codes from settling where something has to foretell them (docs/decisions.md).

    Args:
        codebook: the codewords.
        quantized: what this process's images became; as many patches on every process.
        idle_limit: steps without use after which a codeword counts as dead.
        generator: on the CPU, the same on every process.
        farthest: share of the patch vectors, in (0, 1], that are far enough; 16 are in any case.

    Returns:
        Which codewords were placed anew, and how many.
    """
    rows, codewords = quantized.z.detach().flatten(0, 1), quantized.codewords.detach().flatten(0, 1)
    distances = distributed.all_gather((rows.float() - codewords.float()).square().sum(-1))
    far = distances.topk(min(len(distances), max(16, round(farthest * len(distances))))).indices
    # As many places as there can be at most, taken by dead codewords as far as there are some: how many
    # there are is known to the device alone.
    num_places = min(len(far), codebook.num_codewords)
    order = send(torch.randperm(len(far), generator=generator), rows.device)
    dead = codebook.dead(idle_limit)
    codes = torch.argsort(~dead, stable=True)[:num_places]
    moves = dead[codes]
    codebook.place(codes, distributed.pick_rows(rows.float(), far[order][:num_places]), moves)
    return torch.zeros_like(dead).index_put_((codes,), moves), moves.sum()
