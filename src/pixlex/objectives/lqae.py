"""The loss of LQAE, and what it shares with that of VQ-VAE."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ImageBatch
from pixlex.config.lqae import LQAEObjectiveConfig
from pixlex.distributed import ALONE
from pixlex.losses import codebook_loss, commitment_loss, entropy_regularization, masked_word_loss, pixel_loss
from pixlex.models.lqae import LQAE
from pixlex.nn.codebook import Quantized, count_usage
from pixlex.nn.transformer import random_mask, send, take_rows
from pixlex.objectives.phase import LossTerms, Objective, Phase, Step


class LQAEObjective(Objective):
    """L = reconstruction + beta * commitment + alpha * masked words (LQAE, equation 2), one phase.

    Terms of weight 0 are not computed. See `Objective` for the arguments.
    """

    model: LQAE
    config: LQAEObjectiveConfig

    def __init__(self, model: LQAE, config: LQAEObjectiveConfig, steps: int) -> None:
        super().__init__(model, config, steps)
        self.num_patches = model.grid**2
        if config.masked_language_weight and not model.language.has_head:
            raise ValueError(
                f"{model.language.name} has no masked-language-model head; set "
                "objective.masked_language_weight=0 or name a language model that has one"
            )

    def forward(self, batch: ImageBatch, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of this process's part of a batch; masks are drawn for the batch of all."""
        model, config, device = self.model, self.config, batch.images.device
        processes = self.processes if self.training else ALONE
        all_mean = processes.all_mean if processes.size > 1 else _alone
        size, ratios = len(batch.images) * processes.size, (config.mask_ratio_min, config.mask_ratio_max)
        every_mask = random_mask(size, self.num_patches, *ratios, step.generator)
        mask = every_mask.chunk(processes.size)[processes.rank]

        quantized = model.quantize(batch.images, step.generator, all_mean)
        language = model.encode_text(quantized.values, send(mask, device))
        terms = {"reconstruction": pixel_loss(model.reconstruct(language), batch.images)}
        weights = {"reconstruction": config.reconstruction_weight}
        if weight := config.commitment_weight:
            weights["commitment"] = weight
            terms["commitment"] = commitment_loss(quantized.z, quantized.codewords)
        if model.config.quantizer.search == "assigned":
            weights["codebook"] = 1.0
            terms["codebook"] = codebook_loss(quantized.z, quantized.codewords)
        if weight := config.raw_commitment_weight:
            assert quantized.vectors is not None
            weights["raw_commitment"] = weight
            terms["raw_commitment"] = commitment_loss(quantized.vectors, quantized.values)
        if weight := config.masked_language_weight:
            positions = send(mask.flatten().nonzero()[:, 0], device)
            weights["masked_language"] = weight
            terms["masked_language"] = masked_word_loss(
                take_rows(model.language.predict(language.last).flatten(0, 1), positions),
                model.word_ids(quantized.codes.flatten()[positions]),
                *model.language.head_weight_and_bias(),
                total=int(every_mask.sum()) / processes.size,
            )
        if weight := config.entropy_weight:
            weights["entropy"] = weight
            terms["entropy"] = entropy_regularization(
                quantized.z.flatten(0, 1),
                model.quantizer.search_codebook(),
                config.entropy_temperature,
                model.config.quantizer.metric,
                all_mean,
            )
        return LossTerms(weighted_sum(terms, weights), terms, quantization_norms(quantized), quantized)

    @torch.no_grad()
    def after_step(self, step: Step, loss: LossTerms) -> Mapping[str, Tensor | float]:
        """Move the running statistics of the whitening; return the usage of codewords."""
        assert loss.quantized is not None
        if loss.quantized.moments is not None:
            self.model.quantizer.whitening.update(loss.quantized.moments)
        all_sum = distributed.all_sum if self.processes.size > 1 else _alone
        return count_usage(loss.quantized.codes, self.model.num_codewords, all_sum)[1]


def _alone(tensor: Tensor) -> Tensor:
    """Return the mean or sum over the processes where there is one."""
    return tensor


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of the terms, in their order."""
    first = next(iter(terms.values()))
    return sum((weights[name] * term for name, term in terms.items()), start=torch.zeros_like(first))


@torch.no_grad()
def quantization_norms(quantized: Quantized) -> dict[str, Tensor | float]:
    """Return lengths and angle of patch vectors and their codewords: the first signs of a collapse."""
    z, codewords = quantized.z.float(), quantized.codewords.float()
    return {
        "norm_z": z.norm(dim=-1).mean(),
        "norm_codeword": codewords.norm(dim=-1).mean(),
        "cosine": torch.cosine_similarity(z, codewords, dim=-1).mean(),
    }
