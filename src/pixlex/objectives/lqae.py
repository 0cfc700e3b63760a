"""The losses of LQAE and of its baselines: VQ-VAE, the masked autoencoder, Frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ImageBatch, ImageTextBatch
from pixlex.config.lqae import (
    LQAEObjectiveConfig,
    MAEObjectiveConfig,
    TeacherConfig,
    VQVAEObjectiveConfig,
)
from pixlex.distributed import ALONE, Processes
from pixlex.losses import (
    caption_loss,
    codebook_loss,
    commitment_loss,
    entropy_regularization,
    feature_loss,
    image_contrastive_loss,
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
from pixlex.nn.vision import NUM_DRAWS, ContrastiveHead, alone, measure_statistics, random_views
from pixlex.objectives.codebook import restart
from pixlex.objectives.phase import LossTerms, Objective, Phase, Step

TEACHER, WORDS = "teacher", "words"
# Images whose features concepts are found by, at most.
_IMAGES = 20_000
# Batches that statistics of norms are measured on.
_BATCHES = 20


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
        size, sizes = config.teacher.view_size, model.config
        if size and (
            sizes.encoder.block != "convolutional" or size % sizes.patch_size or size > sizes.image_size
        ):
            raise ValueError(
                f"objective.teacher.view_size must be a multiple of {sizes.patch_size}, at most "
                f"{sizes.image_size}, with convolutions, and 0 without, got {size}"
            )
        reads = ("model.decoder.", "model.feature_head.", "model.layer_weights")
        self.phases = (Phase(WORDS, steps, reads, first, None),)
        if first:
            self.contrastive_head = ContrastiveHead(model.config.encoder.width)
            trained = ("model.encoder.", "contrastive_head.")
            teacher = Phase(TEACHER, first, trained, 0, config.teacher.learning_rate)
            self.phases = (teacher, *self.phases)

    def forward(self, batch: ImageBatch, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of this process's part of a batch."""
        processes = self.processes if self.training else ALONE
        if phase.name == TEACHER:
            over = processes.all_mean if processes.size > 1 else alone

            def encode(views: Tensor) -> Tensor:
                vectors: Tensor = self.contrastive_head(self.model.features(views, over), over)
                return vectors

            return contrast_views(batch.images, encode, self.config.teacher, processes, step)
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
            some = islice(batches(), _BATCHES)
            over = self.processes.all_mean if self.processes.size > 1 else alone
            measure_statistics(
                self.model.encoder, (partial(self.model.features, batch.images, over) for batch in some)
            )
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


def contrast_views(
    images: Float[Tensor, "B 3 H W"],
    encode: Callable[[Tensor], Float[Tensor, "V D"]],
    config: TeacherConfig,
    processes: Processes,
    step: Step,
    same: Tensor | None = None,
) -> LossTerms:
    """Return the contrast of two random views of each image with those of all others (SimCLR, algorithm 1).

    Args:
        images: pixels in [0, 1].
        encode: makes a vector of each view.
        config: of the views and the loss.
        processes: that share the batch.
        step: whose generator draws.
        same: (B, A), True where images of this process and of all belong together; None where each stands alone.
    """
    size = len(images)
    draws = torch.rand(2, size * processes.size, NUM_DRAWS, generator=step.generator)
    own = draws.chunk(processes.size, dim=1)[processes.rank]
    with torch.autocast(images.device.type, enabled=False):
        views = torch.cat([random_views(images, config.views, one, config.view_size or None) for one in own])
    vectors = encode(views)
    # Of every process its first views, then its second ones.
    every = processes.gather_rows(vectors)
    numbers = torch.arange(size, device=images.device).repeat(2)
    others = torch.arange(size * processes.size, device=images.device).view(processes.size, 1, size)
    others = others.expand(-1, 2, -1).flatten()
    mine = numbers + size * processes.rank
    alike = mine[:, None] == others if same is None else same[numbers][:, others]
    first = 2 * size * processes.rank
    itself = torch.arange(first, first + 2 * size, device=images.device)[:, None] == torch.arange(
        len(every), device=images.device
    )
    loss = image_contrastive_loss(vectors, every, alike, itself, config.temperature)
    return LossTerms(loss, {"contrast": loss})


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
