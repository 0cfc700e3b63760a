"""The loss of the masked autoencoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ImageBatch, send
from pixlex.config.mae import MAEObjectiveConfig
from pixlex.losses.reconstruction import masked_patch_loss, normalized_patches
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
        self.model = model
        self.config = config
        self.phases = (Phase("train", steps),)

    def forward(self, batch: ImageBatch, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of one process's part of a batch; masks are drawn for the whole batch everywhere."""
        world_size = distributed.world_size()
        everyone = torch.rand(len(batch.images) * world_size, self.model.grid**2, generator=step.generator)
        noise = send(everyone.chunk(world_size)[distributed.rank()], batch.images.device)
        output = self.model(batch.images, noise)
        patches = self.model.patches(batch.images)
        targets = normalized_patches(patches) if self.config.normalize_targets else patches
        loss = masked_patch_loss(output.predicted, targets, output.mask)
        return LossTerms(loss, {"masked_patches": loss})

    def after_step(self, step: Step) -> Mapping[str, Tensor | float]:
        """Do nothing: all of it lies inside autograd."""
        return {}
