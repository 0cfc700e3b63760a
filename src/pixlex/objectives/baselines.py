"""The losses of the masked autoencoder and of Frozen."""

from __future__ import annotations

import torch

from pixlex.batch import ImageBatch, ImageTextBatch, send
from pixlex.config.lqae import MAEObjectiveConfig
from pixlex.losses.cross_entropy import caption_loss
from pixlex.losses.reconstruction import masked_patch_loss, normalized_patches
from pixlex.models.frozen import Frozen
from pixlex.models.mae import MAE
from pixlex.objectives.phase import LossTerms, Objective, Phase, Step


class MAEObjective(Objective):
    """L = mean squared error of the hidden patches (He et al. 2021, section 3), one phase.

    Args:
        model: the autoencoder.
        config: in which space patches are predicted.
        steps: length of the training.
    """

    model: MAE

    def __init__(self, model: MAE, config: MAEObjectiveConfig, steps: int) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.phases = (Phase("train", steps),)

    def forward(self, batch: ImageBatch, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of this process's part of a batch; masks are drawn for the batch of all."""
        model, processes = self.model, self.processes
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
    """L = cross-entropy of the caption given the image (Tsimpoukelli et al. 2021, section 3), one phase.

    Args:
        model: vision encoder and frozen language model.
        steps: length of the training.
    """

    model: Frozen

    def __init__(self, model: Frozen, steps: int) -> None:
        super().__init__()
        self.model = model
        self.phases = (Phase("train", steps),)

    def forward(self, batch: ImageTextBatch, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of this process's part of a batch, the mean over the words of all processes."""
        logits = self.model(batch.images, batch.word_ids, batch.key_padding)
        count = self.processes.all_mean((~batch.key_padding).sum().float())
        loss = caption_loss(logits, batch.word_ids, batch.key_padding, total=count)
        return LossTerms(loss, {"caption": loss})
