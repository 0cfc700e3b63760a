"""The losses of LQAE and of its baselines: VQ-VAE, the masked autoencoder, Frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ImageBatch, ImageTextBatch
from pixlex.config.lqae import (
    LQAEObjectiveConfig,
    MAEObjectiveConfig,
    VQVAEObjectiveConfig,
)
from pixlex.distributed import ALONE
from pixlex.losses import (
    caption_loss,
    codebook_loss,
    commitment_loss,
    entropy_regularization,
    feature_loss,
    masked_patch_loss,
    masked_word_loss,
    normalized_patches,
    pixel_loss,
    relation_loss,
)
from pixlex.models.baselines import MAE, VQVAE, Frozen
from pixlex.models.lqae import LQAE
from pixlex.nn.codebook import Quantized, count_usage
from pixlex.nn.transformer import random_mask, send, take_rows
from pixlex.nn.vision import ContrastiveHead, alone
from pixlex.objectives.codebook import restart
from pixlex.objectives.phase import (
    TEACHER,
    LossTerms,
    Objective,
    Phase,
    Step,
    contrast_views,
    draw_compared_views,
    measure_norms,
    over_batch,
    teacher_phase,
)

WORDS = "words"
# Images whose features concepts are found by, at most.
_IMAGES = 20_000


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
        all_mean = processes.all_mean if processes.size > 1 else alone
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
        all_sum = distributed.all_sum if self.processes.size > 1 else alone
        return count_usage(loss.quantized.codes, self.model.num_codewords, all_sum)[1]


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


class WordsObjective(Objective):
    """Phase teacher: contrast of views (SimCLR); phase words: pixels and the teacher's features, from words alone.

    Between the two the model's concepts are found, from features of the training images. In the second phase the
    teacher, concepts and words stay what they are: what learns is to read them. With a published teacher there is
    no first phase. See `Objective` for the arguments.

    Raises:
        ValueError: steps of the first phase that do not fit the run, or the teacher.
    """

    model: LQAE
    config: LQAEObjectiveConfig

    def __init__(self, model: LQAE, config: LQAEObjectiveConfig, steps: int) -> None:
        super().__init__(model, config, steps)
        first, own = config.teacher.steps, model.teacher is None
        if not (0 < first < steps if own else first == 0):
            expected = (
                f"in (0, {steps}), the steps of the run"
                if own
                else f"0 with the teacher {model.config.teacher}"
            )
            raise ValueError(f"objective.teacher.steps must be {expected}, got {first}")
        reads = ("model.decoder.", "model.feature_head.", "model.layer_weights")
        self.phases = (Phase(WORDS, steps, reads, first, None),)
        if first:
            self.contrastive_head = ContrastiveHead(model.config.encoder.width)
            teacher = teacher_phase(config.teacher, model.config, model.config.encoder, ("model.encoder.",))
            self.phases = (teacher, *self.phases)

    def forward(self, batch: ImageBatch, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of this process's part of a batch."""
        processes = self.processes if self.training else ALONE
        if phase.name == TEACHER:
            over, teacher = over_batch(processes), self.config.teacher
            views = draw_compared_views(batch.images, teacher, processes, step)
            vectors = self.contrastive_head(self.model.features(views, over), over)
            return contrast_views(vectors, teacher, processes)
        model, config, device = self.model, self.config, batch.images.device
        size, ratios = len(batch.images) * processes.size, (config.mask_ratio_min, config.mask_ratio_max)
        masks = random_mask(size, model.num_words, *ratios, step.generator)
        mask = masks.chunk(processes.size)[processes.rank]
        with torch.no_grad():
            features = model.features(batch.images)
            quantized = model.quantizer(features, model.num_words)
            # What images have in common would make all cosines large.
            features = features - model.quantizer.center
        language = model.encode_text(quantized.values, send(mask, device))
        predicted = model.predicted_features(language)
        terms = {
            "reconstruction": pixel_loss(model.reconstruct(language), batch.images),
            "feature": feature_loss(predicted, features),
            "relation": relation_loss(*map(processes.gather_rows, (predicted, features))),
        }
        weights = {name: getattr(config, f"{name}_weight") for name in terms}
        return LossTerms(weighted_sum(terms, weights), terms, {}, quantized)

    @torch.no_grad()
    def prepare(self, phase: Phase, batches: Callable[[], Iterator[Any]]) -> None:
        """Find the concepts and their words before the phase in which they are read."""
        if phase.name != WORDS:
            return
        if self.model.teacher is None:
            measure_norms(self.model.encoder, batches(), self.processes)
        rows: list[Tensor] = []
        for batch in batches():
            rows.append(self.processes.gather_rows(self.model.features(batch.images)))
            if sum(map(len, rows)) >= _IMAGES or distributed.anywhere(bool(batch.epochs.max() > 0)):
                break
        self.model.fit_concepts(torch.cat(rows))

    @torch.no_grad()
    def after_step(self, step: Step, loss: LossTerms) -> Mapping[str, Tensor | float]:
        """Return the usage of words."""
        if loss.quantized is None:
            return {}
        return count_usage(loss.quantized.codes, self.model.num_codewords, distributed.all_sum)[1]


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
