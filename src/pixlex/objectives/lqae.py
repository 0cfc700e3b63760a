"""The losses of LQAE and of its VQ-VAE baseline."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ImageBatch
from pixlex.config.lqae import LQAEObjectiveConfig, VQVAEObjectiveConfig
from pixlex.losses.masked import masked_word_loss
from pixlex.losses.quantization import codebook_loss, commitment_loss, entropy_regularization
from pixlex.losses.reconstruction import pixel_loss
from pixlex.models.lqae import LQAE, LQAEOutput
from pixlex.models.vqvae import VQVAE
from pixlex.nn.codebook import Quantized, count_codes, perplexity
from pixlex.nn.masking import random_mask
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
        mask = everyone.chunk(distributed.world_size())[distributed.rank()].to(batch.images.device)
        output = self.model(batch.images, mask, step.generator)
        self._last = output.quantized
        terms = {"reconstruction": pixel_loss(output.reconstruction, batch.images)}
        total = config.reconstruction_weight * terms["reconstruction"]
        if config.commitment_weight:
            terms["commitment"] = commitment_loss(output.quantized.z, output.quantized.codewords)
            total = total + config.commitment_weight * terms["commitment"]
        if self.model.config.quantizer.search == "assigned":
            terms["codebook"] = codebook_loss(output.quantized.z, output.quantized.codewords)
            total = total + terms["codebook"]
        if config.masked_language_weight:
            terms["masked_language"] = self._masked_language(output, everyone)
            total = total + config.masked_language_weight * terms["masked_language"]
        if config.entropy_weight:
            terms["entropy"] = entropy_regularization(
                output.quantized.z.flatten(0, 1),
                self.model.quantizer.search_codebook(),
                config.entropy_temperature,
                distributed.all_mean,
            )
            total = total + config.entropy_weight * terms["entropy"]
        return LossTerms(total, terms, _scales(output.quantized))

    def _masked_language(self, output: LQAEOutput, everyone: Bool[Tensor, "A N"]) -> Tensor:
        """Return the cross-entropy of the hidden words, those positions only."""
        mask, language = output.mask, self.model.language
        assert mask is not None
        weight, bias = language.head_weight_and_bias()
        return masked_word_loss(
            language.predict(output.language.last)[mask],
            self.model.word_ids(output.quantized.codes[mask]),
            weight,
            bias,
            total=float(everyone.sum()) / distributed.world_size(),
        )

    @torch.no_grad()
    def after_step(self, step: Step) -> dict[str, float]:
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
    def after_step(self, step: Step) -> dict[str, float]:
        """Restart codewords that no batch used for long; return how many the last one used."""
        assert self._last is not None
        counts, measures = _usage(self._last, self.model.num_codewords)
        if self.config.restart_after:
            self.model.codebook.note_usage(counts > 0)
            restarted = revive(self.model.codebook, self._last, self.config.restart_after, step.generator)
            measures["restarted"] = float(len(restarted))
        return measures


def _usage(quantized: Quantized, num_codewords: int) -> tuple[Tensor, dict[str, float]]:
    """Return how often the whole batch, over all processes, used each codeword, and its summary."""
    counts = count_codes(distributed.all_gather(quantized.codes), num_codewords)
    return counts, {
        "distinct_codewords": float((counts > 0).sum()),
        "perplexity": perplexity(counts),
    }


@torch.no_grad()
def _scales(quantized: Quantized) -> dict[str, Tensor]:
    """Return lengths and angle of patch vectors and their codewords: the first signs of a collapse."""
    z, codewords = quantized.z.float(), quantized.codewords.float()
    return {
        "norm_z": z.norm(dim=-1).mean(),
        "norm_codeword": codewords.norm(dim=-1).mean(),
        "cosine": torch.cosine_similarity(z, codewords, dim=-1).mean(),
    }
