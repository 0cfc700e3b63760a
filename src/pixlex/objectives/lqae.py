"""The losses of LQAE and of its VQ-VAE baseline."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ImageBatch, send
from pixlex.config.lqae import LQAEObjectiveConfig, VQVAEObjectiveConfig
from pixlex.losses.cross_entropy import masked_word_loss
from pixlex.losses.quantization import codebook_loss, commitment_loss, entropy_regularization
from pixlex.losses.reconstruction import pixel_loss
from pixlex.models.lqae import LQAE, LQAEOutput
from pixlex.models.vqvae import VQVAE
from pixlex.nn.codebook import Quantized, count_codes, perplexity
from pixlex.nn.masking import random_mask
from pixlex.nn.transformer import take_rows
from pixlex.objectives.codebook_care import revive
from pixlex.objectives.phase import LossTerms, Objective, Phase, Step


class LQAEObjective(Objective):
    """L = reconstruction + beta * commitment + alpha * masked words (LQAE, equation 2), one phase.

    Terms whose weight is 0 are not computed.

    Args:
        model: the autoencoder.
        config: weights and mask ratios.
        steps: length of the training.
    """

    model: LQAE

    def __init__(self, model: LQAE, config: LQAEObjectiveConfig, steps: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.phases = (Phase("train", steps),)
        self._last: Quantized | None = None
        if config.masked_language_weight and not model.language.has_head:
            raise ValueError(
                f"{model.language.name} has no masked-language-model head; set "
                "objective.masked_language_weight=0 or name a language model that has one"
            )
        if model.config.quantizer.search == "whitened":
            model.quantizer.whitening.all_mean = distributed.all_mean

    def forward(self, batch: ImageBatch, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of one process's part of a batch; masks are drawn for the whole batch everywhere."""
        config = self.config
        everyone = random_mask(
            len(batch.images) * distributed.world_size(),
            self.model.grid**2,
            config.mask_ratio_min,
            config.mask_ratio_max,
            step.generator,
        )
        own = everyone.chunk(distributed.world_size())[distributed.rank()]
        output = self.model(batch.images, send(own, batch.images.device), step.generator)
        self._last = output.quantized
        terms = {"reconstruction": pixel_loss(output.reconstruction, batch.images)}
        total = config.reconstruction_weight * terms["reconstruction"]
        if config.commitment_weight:
            terms["commitment"] = commitment_loss(output.quantized.z, output.quantized.codewords)
            total = total + config.commitment_weight * terms["commitment"]
        if self.model.config.quantizer.search == "assigned":
            terms["codebook"] = codebook_loss(output.quantized.z, output.quantized.codewords)
            total = total + terms["codebook"]
        if config.raw_commitment_weight:
            vectors = output.quantized.vectors
            assert vectors is not None
            terms["raw_commitment"] = commitment_loss(vectors, output.quantized.values)
            total = total + config.raw_commitment_weight * terms["raw_commitment"]
        if config.masked_language_weight:
            hidden = send(own.flatten().nonzero()[:, 0], batch.images.device)
            terms["masked_language"] = self._masked_language(output, hidden, int(everyone.sum()))
            total = total + config.masked_language_weight * terms["masked_language"]
        if config.entropy_weight:
            terms["entropy"] = entropy_regularization(
                output.quantized.z.flatten(0, 1),
                self.model.quantizer.search_codebook(),
                config.entropy_temperature,
                self.model.config.quantizer.metric,
                distributed.all_mean,
            )
            total = total + config.entropy_weight * terms["entropy"]
        return LossTerms(total, terms, _scales(output.quantized))

    def _masked_language(self, output: LQAEOutput, hidden: Int[Tensor, " M"], num_hidden: int) -> Tensor:
        """Return the cross-entropy of the hidden words, those positions only.

        Args:
            output: of the model.
            hidden: positions of this process's hidden words, counted through its images.
            num_hidden: hidden words of all processes.
        """
        language = self.model.language
        weight, bias = language.head_weight_and_bias()
        return masked_word_loss(
            take_rows(language.predict(output.language.last).flatten(0, 1), hidden),
            self.model.word_ids(output.quantized.codes.flatten()[hidden]),
            weight,
            bias,
            total=num_hidden / distributed.world_size(),
        )

    @torch.no_grad()
    def after_step(self, step: Step) -> Mapping[str, Tensor | float]:
        """Move the running statistics of the whitening; return how many codewords the batch used."""
        assert self._last is not None
        if self._last.moments is not None:
            self.model.quantizer.whitening.update(self._last.moments)
        return _usage(self._last, self.model.num_codewords)[1]


class VQVAEObjective(Objective):
    """L = reconstruction + codebook + beta * commitment (LQAE, equation 1), one phase.

    Args:
        model: the autoencoder.
        config: weights, and when a codeword counts as dead.
        steps: length of the training.
    """

    model: VQVAE

    def __init__(self, model: VQVAE, config: VQVAEObjectiveConfig, steps: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.phases = (Phase("train", steps),)
        self._last: Quantized | None = None

    def forward(self, batch: ImageBatch, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of one process's part of a batch."""
        output = self.model(batch.images)
        self._last = output.quantized
        terms = {
            "reconstruction": pixel_loss(output.reconstruction, batch.images),
            "codebook": codebook_loss(output.quantized.z, output.quantized.codewords),
            "commitment": commitment_loss(output.quantized.z, output.quantized.codewords),
        }
        total = sum(
            (weight * terms[name] for name, weight in (
                ("reconstruction", self.config.reconstruction_weight),
                ("codebook", self.config.codebook_weight),
                ("commitment", self.config.commitment_weight),
            )),
            start=torch.zeros((), device=batch.images.device),
        )  # fmt: skip
        return LossTerms(total, terms, _scales(output.quantized))

    @torch.no_grad()
    def after_step(self, step: Step) -> Mapping[str, Tensor | float]:
        """Restart codewords that no batch used for long; return how many the last one used."""
        assert self._last is not None
        counts, measures = _usage(self._last, self.model.num_codewords)
        if self.config.restart_after:
            self.model.codebook.note_usage(counts > 0)
            _, measures["restarted"] = revive(
                self.model.codebook, self._last, self.config.restart_after, step.generator
            )
        return measures


def _usage(quantized: Quantized, num_codewords: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return how often the whole batch, over all processes, used each codeword, and its summary."""
    counts = count_codes(distributed.all_gather(quantized.codes), num_codewords)
    return counts, {"distinct_codewords": (counts > 0).sum(), "perplexity": perplexity(counts)}


@torch.no_grad()
def _scales(quantized: Quantized) -> dict[str, Tensor]:
    """Return lengths and angle of patch vectors and their codewords: the first signs of a collapse."""
    z, codewords = quantized.z.float(), quantized.codewords.float()
    return {
        "norm_z": z.norm(dim=-1).mean(),
        "norm_codeword": codewords.norm(dim=-1).mean(),
        "cosine": torch.cosine_similarity(z, codewords, dim=-1).mean(),
    }
