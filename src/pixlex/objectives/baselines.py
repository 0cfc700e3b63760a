"""The losses of the baselines: VQ-VAE, the masked autoencoder, Frozen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ImageBatch, ImageTextBatch
from pixlex.config.lqae import MAEObjectiveConfig, VQVAEObjectiveConfig
from pixlex.distributed import ALONE
from pixlex.losses import (
    caption_loss,
    codebook_loss,
    commitment_loss,
    masked_patch_loss,
    normalized_patches,
    pixel_loss,
)
from pixlex.models.baselines import MAE, VQVAE, Frozen
from pixlex.nn.codebook import count_usage
from pixlex.nn.transformer import send
from pixlex.objectives.codebook import restart
from pixlex.objectives.lqae import quantization_norms, weighted_sum
from pixlex.objectives.phase import LossTerms, Objective, Phase, Step


class VQVAEObjective(Objective):
    """L = reconstruction + codebook + beta * commitment (LQAE, equation 1), one phase."""

    model: VQVAE
    config: VQVAEObjectiveConfig

    def forward(self, batch: ImageBatch, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of this process's part of a batch."""
        quantized = self.model.quantize(batch.images)
        terms = {
            "reconstruction": pixel_loss(self.model.decoder(quantized.values), batch.images),
            "codebook": codebook_loss(quantized.z, quantized.codewords),
            "commitment": commitment_loss(quantized.z, quantized.codewords),
        }
        weights = {name: getattr(self.config, f"{name}_weight") for name in terms}
        return LossTerms(weighted_sum(terms, weights), terms, quantization_norms(quantized), quantized)

    @torch.no_grad()
    def after_step(self, step: Step, loss: LossTerms) -> Mapping[str, Tensor | float]:
        """Restart codewords that no batch used for long; return the usage of codewords."""
        assert loss.quantized is not None
        codebook, limit = self.model.codebook, self.config.restart_after
        codes, number = loss.quantized.codes, self.model.num_codewords
        counts, measures = count_usage(codes, number, distributed.all_sum)
        if limit:
            codebook.note_usage(counts > 0)
            measures["restarted"] = restart(codebook, loss.quantized, limit, step.generator).sum()
        return measures


class MAEObjective(Objective):
    """L = mean squared error of the hidden patches (He et al. 2021, section 3), one phase."""

    model: MAE
    config: MAEObjectiveConfig

    def forward(self, batch: ImageBatch, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of this process's part of a batch; masks are drawn for the batch of all."""
        model, processes = self.model, self.processes if self.training else ALONE
        total = len(batch.images) * processes.size
        noise = torch.rand(total, model.grid**2, generator=step.generator)
        own = noise.chunk(processes.size)[processes.rank]
        output = model(batch.images, send(own, batch.images.device))
        targets = model.patches(batch.images)
        if self.config.normalize_targets:
            targets = normalized_patches(targets)
        loss = masked_patch_loss(output.predicted, targets, output.mask)
        return LossTerms(loss, {"masked_patches": loss})


class FrozenObjective(Objective):
    """L = cross-entropy of the caption given the image (Tsimpoukelli et al. 2021, section 3), one phase."""

    model: Frozen

    def __init__(self, model: Frozen, steps: int) -> None:
        super().__init__(model, None, steps)

    def forward(self, batch: ImageTextBatch, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of this process's part of a batch, the mean over the words of all processes."""
        logits = self.model(batch.images, batch.word_ids, batch.key_padding)
        processes = self.processes if self.training else ALONE
        count = processes.all_mean((~batch.key_padding).sum().float())
        loss = caption_loss(logits, batch.word_ids, batch.key_padding, total=count)
        return LossTerms(loss, {"caption": loss})
