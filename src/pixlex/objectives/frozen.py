"""The loss of Frozen."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pixlex import distributed
from pixlex.batch import ImageTextBatch
from pixlex.losses.cross_entropy import caption_loss
from pixlex.models.frozen import Frozen
from pixlex.objectives.phase import LossTerms, Objective, Phase, Step


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
        """Return the loss of one process's part of a batch."""
        logits = self.model(batch.images, batch.word_ids, batch.key_padding)
        # Captions differ in length: each process divides by the mean number of words of all of them.
        num_words = distributed.all_mean((~batch.key_padding).sum().float())
        loss = caption_loss(logits, batch.word_ids, batch.key_padding, total=num_words)
        return LossTerms(loss, {"caption": loss})

    def after_step(self, step: Step) -> Mapping[str, Tensor | float]:
        """Do nothing: all of it lies inside autograd."""
        return {}
