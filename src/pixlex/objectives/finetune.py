"""What fine-tuning to questions, statements and hypotheses minimizes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pixlex.batch import ReasoningBatch
from pixlex.config.cbvila import ReasoningObjectiveConfig
from pixlex.data.text import agreement_targets
from pixlex.distributed import ALONE
from pixlex.losses import masked_word_loss
from pixlex.messages import quoted
from pixlex.models.finetuned import Reasoner
from pixlex.nn.transformer import send, take_rows
from pixlex.objectives.phase import LossTerms, Objective, Phase, Step

_BODY = ("image_encoder.", "text_encoder.", "image_projector.", "fusion.")
_TRAINED = (
    *(f"model.body.{part}" for part in _BODY),
    "model.class_head.",
    "model.decoder.",
    "model.word_head.",
)


class ReasoningObjective(Objective):
    """Cross-entropy of classes, or of the words of answers weighted by how often people gave them; one phase.

    Args:
        model: the network with its head.
        config: how answers are weighted.
        steps: length of the training.
    """

    model: Reasoner
    config: ReasoningObjectiveConfig

    def __init__(self, model: Reasoner, config: ReasoningObjectiveConfig, steps: int) -> None:
        super().__init__(model, config, steps)
        self.phases = (Phase("finetune", steps, _TRAINED),)
        self._classes = {answer: number for number, answer in enumerate(model.config.answers)}

    def forward(self, batch: ReasoningBatch, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of this process's part of a batch, the mean over the items of all processes.

        Args:
            batch: items with answers; for `vqa` with the fraction of people who gave each.
            phase: the only one.
            step: unused, nothing is drawn.

        Raises:
            ValueError: an item without an answer, or with one that is no class.
        """
        count = torch.full((), float(len(batch.texts)), device=batch.images.device)
        total = (self.processes if self.training else ALONE).all_mean(count)
        if self.model.decoder is not None:
            loss = self._written(batch, total)
            return LossTerms(loss, {"answer": loss})
        labels = send(torch.tensor([self._class_of(given) for given in batch.answers]), batch.images.device)
        logits = self.model.class_logits(self.model.fuse(batch.images, batch, batch.image_index))
        loss = F.cross_entropy(logits, labels, reduction="sum") / total
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        return LossTerms(loss, {"answer": loss}, {"accuracy": accuracy})

    def _class_of(self, given: tuple[str, ...]) -> int:
        """Return the number of the one answer of an item."""
        if len(set(given)) != 1 or given[0] not in self._classes:
            raise ValueError(f"expected one of {', '.join(self._classes)} as the answer, got {quoted(given)}")
        return self._classes[given[0]]

    def _written(self, batch: ReasoningBatch, total: Tensor) -> Tensor:
        """Return the weighted cross-entropy of all answers, word by word, their ends included, over `total`."""
        model, device = self.model, batch.images.device
        assert model.word_head is not None
        weighted = [
            (row, text, weight)
            for row, (given, targets) in enumerate(zip(batch.answers, batch.targets, strict=True))
            for text, weight in self._weights(given, targets).items()
        ]
        rows = send(torch.tensor([row for row, _, _ in weighted]), device)
        weights = torch.tensor([weight for _, _, weight in weighted])
        context = model.look_at_question(batch.images, batch, batch.image_index)
        words = model.tokenize_texts([text for _, text, _ in weighted], model.config.max_answer_words)
        vectors = model.write(send(words.word_ids[:, :-1], device), context.rows(rows))
        targets, shown = words.word_ids[:, 1:], ~words.key_padding[:, 1:]
        return masked_word_loss(
            take_rows(vectors.flatten(0, 1), send(shown.flatten().nonzero()[:, 0], device)),
            send(targets[shown], device),
            model.body.text_encoder.words.weight,
            model.word_head.bias,
            factors=send(weights.unsqueeze(1).expand_as(targets)[shown], device),
            total=total,
        )

    def _weights(self, given: tuple[str, ...], targets: Mapping[str, float]) -> Mapping[str, float]:
        if not given:
            raise ValueError("expected an answer for each question, got a question without any")
        return targets if self.config.answer_weights == "count" else agreement_targets(given)
