"""What fine-tuning to questions, statements and hypotheses minimizes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ReasoningBatch, send
from pixlex.config.reasoning import ReasoningObjectiveConfig
from pixlex.data.answers import agreement_targets
from pixlex.losses.cross_entropy import masked_word_loss
from pixlex.messages import quoted
from pixlex.models.reasoner import Reasoner
from pixlex.nn.transformer import take_rows
from pixlex.objectives.phase import LossTerms, Objective, Phase, Step

_READ = ("image_encoder.", "text_encoder.", "image_projector.", "fusion.")


class ReasoningObjective(Objective):
    """Cross-entropy of classes, or of the words of answers weighted by how often people gave them; one phase.

    Args:
        model: the network with its head.
        config: how answers are weighted.
        steps: length of the training.
    """

    model: Reasoner

    def __init__(self, model: Reasoner, config: ReasoningObjectiveConfig, steps: int) -> None:
        super().__init__()
        self.model, self.config = model, config
        heads = ("model.class_head.", "model.decoder.", "model.word_head.")
        self.phases = (Phase("finetune", steps, (*(f"model.body.{name}" for name in _READ), *heads)),)
        self._classes = {answer: number for number, answer in enumerate(model.config.answers)}

    def forward(self, batch: ReasoningBatch, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of one process's part of a batch.

        Raises:
            ValueError: an item without an answer, or with one that is no class.
        """
        if self.model.decoder is not None:
            loss = self._written(batch)
            return LossTerms(loss, {"answer": loss})
        numbers = torch.tensor([self._class_of(given) for given in batch.answers])
        labels = send(numbers, batch.images.device)
        logits = self.model.class_logits(batch.images, batch.word_ids, batch.key_padding, batch.looks_at)
        loss = F.cross_entropy(logits, labels, reduction="sum") / _per_process(batch)
        right = (logits.detach().argmax(1) == labels).float().mean()
        return LossTerms(loss, {"answer": loss}, {"accuracy": right})

    def after_step(self, step: Step) -> Mapping[str, Tensor | float]:
        """Do nothing: all of it lies inside autograd."""
        return {}

    def _class_of(self, given: tuple[str, ...]) -> int:
        if len(set(given)) != 1 or given[0] not in self._classes:
            raise ValueError(f"expected one of {', '.join(self._classes)} as the answer, got {quoted(given)}")
        return self._classes[given[0]]

    def _written(self, batch: ReasoningBatch) -> Tensor:
        """Return the weighted cross-entropy of all answers, the mean over questions."""
        model = self.model
        device = batch.images.device
        weights = [
            self._weights(given, counted) for given, counted in zip(batch.answers, batch.targets, strict=True)
        ]
        flat = [(row, text, weight) for row, found in enumerate(weights) for text, weight in found.items()]
        context = model.look_at_question(batch.images, batch.word_ids, batch.key_padding, batch.looks_at)
        words = model.tokenize_texts([text for _, text, _ in flat], model.config.max_answer_words)
        rows = send(torch.tensor([row for row, _, _ in flat]), device)
        vectors = model.write(send(words.word_ids[:, :-1], device), context.rows(rows))
        targets, shown = words.word_ids[:, 1:], ~words.key_padding[:, 1:]
        factors = torch.tensor([weight for _, _, weight in flat]).unsqueeze(1).expand_as(targets)
        assert model.word_head is not None
        return masked_word_loss(
            take_rows(vectors.flatten(0, 1), send(shown.flatten().nonzero()[:, 0], device)),
            send(targets[shown], device),
            model.body.text_encoder.words.weight,
            model.word_head.bias,
            factors=send(factors[shown], device),
            total=_per_process(batch),
        )

    def _weights(self, given: tuple[str, ...], counted: Mapping[str, float]) -> Mapping[str, float]:
        if not given:
            raise ValueError("expected an answer for each question, got a question without any")
        if self.config.answer_weights == "count":
            return counted
        return agreement_targets(given)


def _per_process(batch: ReasoningBatch) -> Tensor:
    """Return the items of the whole batch over the processes: what makes a mean over the whole batch exact."""
    return distributed.all_mean(torch.full((), float(len(batch.texts)), device=batch.images.device))
