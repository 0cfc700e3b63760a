"""The loss of CB-ViLA: one training step on image-text pairs, from top to bottom."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixlex.batch import ImageTextBatch
from pixlex.config.cbvila import CBViLAObjectiveConfig
from pixlex.distributed import ALONE, Processes
from pixlex.losses import (
    IGNORED,
    codebook_loss,
    commitment_loss,
    hard_negatives,
    image_text_contrastive_loss,
    image_text_matching_loss,
    masked_patch_loss,
    masked_word_loss,
)
from pixlex.models.cbvila import START_TEMPERATURE, CBViLA, SplitPatches, split_patches
from pixlex.nn.bert import WordDraws, mask_words
from pixlex.nn.codebook import Quantized
from pixlex.nn.transformer import send, take, take_rows, where_exact
from pixlex.nn.vision import ContrastiveHead, forget_statistics, needs_statistics
from pixlex.objectives.codebook import CodebookMaintenance
from pixlex.objectives.phase import (
    NUM_BATCHES,
    TEACHER,
    LossTerms,
    Objective,
    Phase,
    Step,
    contrast_views,
    draw_compared_views,
    draw_views,
    measure_norms,
    over_batch,
    teacher_phase,
)

BURN_IN, JOINT, CODEBOOK, ENCODERS = "burn_in", "joint", "codebook", "encoders"
_ITC, _ITM, _MLM, _MIM = "image_text_contrastive", "image_text_matching", "masked_language", "masked_image"

_IMAGE, _TEXT, _FUSED = "image_encoder", "text_encoder", ("image_projector", "fusion")
# What each term trains: the table of docs/equations.md, checked by tests/objectives/test_cbvila.py.
TRAINS: Mapping[str, tuple[str, ...]] = {
    _ITC: (_IMAGE, _TEXT, "image_contrast", "text_contrast", "log_scale"),
    _ITM: (_IMAGE, _TEXT, *_FUSED, "matching_head"),
    _MLM: (_IMAGE, _TEXT, *_FUSED, "masked_word_head"),
    "pixel": (_IMAGE, _TEXT, *_FUSED, "code_projector", "query", "pixel_head"),
    _MIM: (_IMAGE, _TEXT, *_FUSED, "code_projector", "query", "masked_patch_head", "class_patch_head"),
    "codebook": ("codebook",),
    "commitment": (_IMAGE, "code_projector"),
}
# Bounds of the learned temperature (ALBEF's code).
_MAX_TEMPERATURE, _MIN_TEMPERATURE = 0.5, 0.001


class CBViLAObjective(Objective):
    """L = codebook + masked codes + matching + masked words (Guo et al. 2022, equation 7) + contrastive (ALBEF).

    Phases: burn-in without the masked terms, then all terms jointly, or codebook and encoders in turn. Terms of
    weight 0 are not computed; without the pixel and masked-image terms nothing is quantized.

    Args:
        config: weights, mask ratios, codebook maintenance.
        max_words: longest text, in words (tokens).
    """

    model: CBViLA
    config: CBViLAObjectiveConfig

    def __init__(self, model: CBViLA, config: CBViLAObjectiveConfig, steps: int, max_words: int) -> None:
        super().__init__(model, config, steps)
        self.steps, self.max_words, self.num_patches = steps, max_words, model.grid**2
        self.care = CodebookMaintenance(model.codebook, config)  # named so in checkpoints
        self.num_visible = self.num_patches - round(self.num_patches * config.mask_ratio)
        self._quantizes = config.has_codebook_terms
        first = config.teacher.steps
        if first >= steps:
            raise ValueError(f"objective.teacher.steps must be less than train.steps, {steps}, got {first}")
        after = _schedule(config, steps - first)
        self.phases = tuple(Phase(name, first + end, self.trained_in(name), first) for name, end in after)
        for phase in self.phases:
            if not self.terms_of(phase.name):
                raise ValueError(
                    f"the phase {phase.name} has nothing to minimize: give one of its terms a weight above 0, or "
                    "set objective.burn_in_steps or objective.alternate_every to 0"
                )
        if first:
            if config.image_contrastive_weight:
                self.contrastive_head = ContrastiveHead(model.config.image.width)
            parts = TRAINS[_ITC] if config.image_text_contrastive_weight else (_IMAGE,)
            teacher = teacher_phase(config.teacher, model.config, model.config.image, _names(parts))
            self.phases = (teacher, *self.phases)

    def forward(self, batch: ImageTextBatch, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of this process's part of a batch."""
        model, config = self.model, self.config
        processes = self.processes if self.training else ALONE
        if phase.name == TEACHER:
            return self._contrast_views(batch, processes, step)
        active = self.terms_of(phase.name)
        predicts_patches = "pixel" in active or _MIM in active
        random = StepRandom.draw(self, batch, processes, step.generator)
        if config.views != "none" and self.training:
            views = draw_views(batch.images, config.views, processes, step)
            batch = dataclasses.replace(batch, images=views)
        terms: dict[str, Tensor] = {}
        measures: dict[str, Tensor | float] = {}

        image = model.encode_image(batch.images)
        if predicts_patches or _ITC in active or _ITM in active or _MLM in active:
            positions, text, masked_text = self._encode_texts(batch, random, mask=_MLM in active)
        if _ITC in active or _ITM in active:
            same = same_pairs(batch, processes)
            scores = similarities(model, image, text, batch.key_padding, processes, learned=_ITC in active)
        if _ITC in active:
            terms[_ITC] = image_text_contrastive_loss(*scores, same)
            measures["temperature"] = torch.exp(-model.log_scale.detach())
        if _ITM in active:
            sides = ((scores[i].detach(), same, random.negatives[:, i]) for i in (0, 1))
            drawn = (hard_negatives(*map(where_exact, side)) for side in sides)
            texts, images = (send(one, same.device) for one in drawn)
            padding = batch.key_padding
            logits, fused = match(model, image, text, masked_text, padding, texts, images, processes)
            labels = torch.where(torch.cat([texts, images]) < 0, IGNORED, 0)
            labels = torch.cat([torch.ones_like(texts), labels])
            count = processes.all_mean((labels != IGNORED).sum().float())
            terms[_ITM] = image_text_matching_loss(logits, labels, total=count)
        elif _MLM in active:
            fused = model.fusion(masked_text, model.image_context(image), batch.key_padding)
        if _MLM in active:
            terms[_MLM] = self._masked_language(batch, fused, positions, processes)

        quantized = None
        if self._quantizes:
            quantized = model.quantize_vectors(image[:, 1:])
            z, codewords = quantized.z, quantized.codewords
            if predicts_patches:
                visible, found = self._predict_patches(batch, image, text, quantized, random, active, step)
                z, codewords = torch.cat([z, visible.z], 1), torch.cat([codewords, visible.codewords], 1)
                terms |= found
            if "codebook" in active:
                terms["codebook"] = codebook_loss(z, codewords)
            if "commitment" in active:
                terms["commitment"] = commitment_loss(z, codewords)
            measures["quantization_error_share"] = relative_error(quantized)
        total = torch.stack([getattr(config, f"{name}_weight") * terms[name] for name in active]).sum()
        return LossTerms(total, terms, measures, quantized, trains_codebook=phase.name != ENCODERS)

    def _contrast_views(self, batch: ImageTextBatch, processes: Processes, step: Step) -> LossTerms:
        """Return the contrast of views, images of one caption being alike, and that of each view with captions."""
        model, teacher, over = self.model, self.config.teacher, over_batch(processes)
        weights = (self.config.image_contrastive_weight, self.config.image_text_contrastive_weight)
        views = draw_compared_views(batch.images, teacher, processes, step, 2 if weights[0] else 1)
        image, same = model.encode_image(views, None, over)[:, :1], same_pairs(batch, processes)
        terms: dict[str, Tensor] = {}
        if weights[0]:
            vectors = self.contrastive_head(image[:, 0], over)
            terms |= contrast_views(vectors, teacher, processes, same).terms
        if weights[1]:
            text, padding = model.encode_text(batch.word_ids, batch.key_padding), batch.key_padding
            scores = [
                similarities(model, one, text, padding, processes, learned=True)
                for one in image.chunk(2 if weights[0] else 1)
            ]
            terms[_ITC] = torch.stack([image_text_contrastive_loss(*one, same) for one in scores]).mean()
        active = [weight for weight in weights if weight]
        total = sum(weight * term for weight, term in zip(active, terms.values(), strict=True))
        return LossTerms(torch.as_tensor(total), terms)

    @torch.no_grad()
    def prepare(self, phase: Phase, batches: Callable[[], Iterator[Any]]) -> None:
        """Measure the statistics of the image encoder's norms, once, before texts are compared with it; whiten."""
        encoder = self.model.image_encoder
        if phase.name == TEACHER:
            forget_statistics(encoder)  # of a model that this run goes on from
            return
        if needs_statistics(encoder):
            measure_norms(encoder, batches(), self.processes)
        if self.config.lock_images:
            some = (self.model.encode_image(batch.images)[:, 0] for batch in islice(batches(), NUM_BATCHES))
            self.model.whiten_images(torch.cat([self.processes.all_gather(seen) for seen in some]))

    @torch.no_grad()
    def after_step(self, step: Step, loss: LossTerms) -> Mapping[str, Tensor | float]:
        """Clamp the temperature; initialize, move and restart codewords; return the codebook's health.

        `masked_image_gain` is the entropy of the codes less the cross-entropy of the hidden ones, in nats, which a
        collapse cannot raise.
        """
        self.model.log_scale.clamp_(-math.log(_MAX_TEMPERATURE), -math.log(_MIN_TEMPERATURE))
        if loss.quantized is None:
            return {}
        health = self.care.after_step(self.model.codebook, loss.quantized, step, trained=loss.trains_codebook)
        if _MIM in loss.terms:
            entropy = torch.as_tensor(health["perplexity"]).log()
            error = self.processes.all_mean(loss.terms[_MIM].detach())
            health["masked_image_gain"] = entropy - where_exact(error)
        return health

    def _encode_texts(
        self, batch: ImageTextBatch, random: StepRandom, *, mask: bool
    ) -> tuple[Int[Tensor, " m"], Float[Tensor, "B T D"], Float[Tensor, "M T D"]]:
        """Return the positions of masked words, the texts, and the texts with masked words: M = B, or 0 without.

        One pass of the text encoder serves both. Words are masked on the CPU: how many there are decides shapes.
        """
        host, tokenizer, device = batch.origin or batch, self.model.tokenizer, batch.images.device
        if not mask:
            text = self.model.encode_text(batch.word_ids, batch.key_padding)
            return torch.zeros(0, dtype=torch.long), text, text[:0]
        special = tokenizer.special(host.word_ids, host.key_padding)
        ratio = self.config.masked_language_ratio
        masked = mask_words(host.word_ids, special, ratio, tokenizer.mask_id, random.words)
        word_ids = torch.cat([batch.word_ids, send(masked.word_ids, device)])
        both = self.model.encode_text(word_ids, torch.cat([batch.key_padding] * 2))
        text, masked_text = both.chunk(2)
        return send(masked.mask.flatten().nonzero()[:, 0], device), text, masked_text

    def _masked_language(
        self,
        batch: ImageTextBatch,
        fused: Float[Tensor, "B T D"],
        positions: Int[Tensor, " m"],
        processes: Processes,
    ) -> Tensor:
        """Return the cross-entropy of masked words (equation 6), the mean over the words of all processes."""
        head = self.model.masked_word_head
        count = torch.full((), float(len(positions)), device=fused.device)
        return masked_word_loss(
            head(take_rows(fused.flatten(0, 1), positions)),
            batch.word_ids.flatten()[positions],
            self.model.text_encoder.words.weight,
            head.bias,
            total=processes.all_mean(count),
        )

    def _predict_patches(
        self,
        batch: ImageTextBatch,
        image: Float[Tensor, "B N1 I"],
        text: Float[Tensor, "B T D"],
        quantized: Quantized,
        random: StepRandom,
        active: tuple[str, ...],
        step: Step,
    ) -> tuple[Quantized, dict[str, Tensor]]:
        """Return the quantized visible patches; pixel loss (equation 3), cross-entropy of hidden codes (4).

        One pass of the fusion encoder serves both terms; two with the Gumbel-softmax, whose codewords learn from
        pixels and not from codes.
        """
        model, config, patches = self.model, self.config, random.patches
        if config.mask_stage == "input":
            seen = model.encode_image(batch.images, patches.visible)
        else:
            seen = torch.cat([image[:, :1], take(image[:, 1:], patches.visible)], dim=1)
        visible = model.quantize_vectors(seen[:, 1:])
        class_vectors = model.image_projector(seen[:, 0])
        values = {"pixel": visible.values, _MIM: visible.values}
        # Sampled in training only: an evaluation measures what the codes stand for.
        if model.config.codebook.estimator == "gumbel" and model.training:
            noise = random.gumbel(patches.visible.shape[1], model.num_codewords, image.device)
            values["pixel"], values[_MIM] = model.codebook.sample(visible.z, self._temperature(step), noise)
        distinct = dict.fromkeys(value for name, value in values.items() if name in active)
        context = model.text_context(text, batch.key_padding)
        queries = [model.query(value, class_vectors, patches.visible) for value in distinct]
        fused = model.fusion(torch.cat(queries), context)
        terms = {}
        if "pixel" in active:
            targets = model.patches(batch.images.float())
            counted = torch.ones(targets.shape[:2], dtype=torch.bool, device=image.device)
            if config.pixel_patches != "all":
                left_out = patches.visible if config.pixel_patches == "masked" else patches.hidden
                counted.scatter_(1, left_out, False)
            terms["pixel"] = masked_patch_loss(model.pixel_head(fused[: len(image), 1:]), targets, counted)
        if _MIM in active:
            vectors, weight, bias = model.masked_codes_head(fused[-len(image) :], patches.hidden)
            codes = quantized.codes.gather(1, patches.hidden).flatten()
            terms[_MIM] = masked_word_loss(vectors, codes, weight, bias)
        return visible, terms

    def terms_of(self, phase: str) -> tuple[str, ...]:
        """Return the terms that a phase minimizes."""
        config = self.config
        active = [name for name in TRAINS if getattr(config, f"{name}_weight")]
        if not self._quantizes:
            active = [name for name in active if name not in ("codebook", "commitment")]
        if config.codebook_update == "ema" or phase == ENCODERS:
            active = [name for name in active if name != "codebook"]
        if phase == BURN_IN:
            active = [name for name in active if name not in (_MLM, _MIM)]
        if phase == CODEBOOK:  # nothing else reaches the codewords
            reach = ("codebook", "pixel") if self._pixels_reach_codewords(phase) else ("codebook",)
            active = [name for name in active if name in reach]
        return tuple(active)

    def trained_in(self, phase: str) -> tuple[str, ...]:
        """Return the name prefixes of the parameters that a phase trains."""
        active, config = self.terms_of(phase), self.config
        parts = {"codebook"} if phase == CODEBOOK else {part for term in active for part in TRAINS[term]}
        if "pixel" in active and self._pixels_reach_codewords(phase):
            parts.add("codebook")
        if config.codebook_update == "ema":
            parts.discard("codebook")
        if config.lock_images:
            parts -= {_IMAGE, "image_contrast"}
        return _names(sorted(parts))

    def _pixels_reach_codewords(self, phase: str) -> bool:
        return self.model.config.codebook.estimator == "gumbel" and phase != ENCODERS

    def _temperature(self, step: Step) -> float:
        config = self.config
        progress = min(1.0, step.number / max(1, self.steps - 1))
        return float(config.temperature_start ** (1 - progress) * config.temperature_end**progress)


def _names(parts: Iterable[str]) -> tuple[str, ...]:
    """Return the name prefixes of the parameters of some parts of the network."""
    return tuple(f"model.{part}" if part == "log_scale" else f"model.{part}." for part in parts)


@dataclass(frozen=True)
class StepRandom:
    """The random numbers of a step for this process's pairs; the same for any number of processes.

    Attributes:
        words: which words are masked, and by what; on the CPU.
        negatives: uniform in [0, 1): the negative text of each image, the negative image of each text.
        noise_seeds: seed of the Gumbel noise of each image.
    """

    patches: SplitPatches
    words: WordDraws
    negatives: Float[Tensor, "B 2"]
    noise_seeds: Int[Tensor, " B"]

    @classmethod
    def draw(
        cls,
        objective: CBViLAObjective,
        batch: ImageTextBatch,
        processes: Processes,
        generator: torch.Generator,
    ) -> StepRandom:
        """Draw for the batch of all processes, keep this process's part."""
        size, device = len(batch.images), batch.images.device
        total, first = size * processes.size, size * processes.rank
        own = slice(first, first + size)
        patches = split_patches(total, objective.num_patches, objective.num_visible, generator)
        words = WordDraws.draw(total, objective.max_words, objective.model.tokenizer.vocab_size, generator)
        negatives = torch.rand(total, 2, generator=generator)
        seeds = torch.randint(2**62, (total,), generator=generator)
        return cls(
            SplitPatches(patches.visible[own], patches.hidden[own]).to(device),
            words.part(first, size, batch.word_ids.shape[1]),
            send(negatives[own], device),
            seeds[own],
        )

    def gumbel(self, num_rows: int, num_codewords: int, device: torch.device) -> Float[Tensor, "B n K"]:
        """Return Gumbel(0, 1) noise for `num_rows` patches of each image."""
        noise = []
        for seed in self.noise_seeds.tolist():
            generator = torch.Generator(device).manual_seed(seed)
            uniform = torch.rand(num_rows, num_codewords, generator=generator, device=device)
            noise.append(-torch.log(-torch.log(uniform.clamp(1e-10, 1 - 1e-7))))
        return torch.stack(noise)


def same_pairs(batch: ImageTextBatch, processes: Processes) -> Bool[Tensor, "B A"]:
    """Return which pairs of all processes share the image or the caption of each pair of this process."""
    digests = (hashlib.sha256(text.encode()).digest()[:8] for text in batch.texts)
    captions = torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests])
    own = send(torch.stack([(batch.origin or batch).image_ids, captions], dim=1), batch.images.device)
    return (own.unsqueeze(1) == processes.all_gather(own).unsqueeze(0)).any(-1)


def similarities(
    model: CBViLA,
    image: Float[Tensor, "B N1 I"],
    text: Float[Tensor, "B T D"],
    key_padding: Bool[Tensor, "B T"],
    processes: Processes,
    *,
    learned: bool,
) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B A"]]:
    """Return image-to-text and text-to-image similarities over the temperature, in float32.

    Without a contrastive term nothing learns the projections: the class vectors then choose the negatives.
    """
    if learned:
        images, texts = model.image_vectors(image), model.text_vectors(text, key_padding)
        scale: Tensor | float = model.log_scale.exp()
    else:
        images = F.normalize(model.image_projector(image[:, 0]).detach().float(), dim=-1)
        texts = F.normalize(text[:, 0].detach().float(), dim=-1)
        scale = 1 / START_TEMPERATURE
    every_image, every_text = processes.gather_rows(images), processes.gather_rows(texts)
    with torch.autocast(images.device.type, enabled=False):
        return scale * images @ every_text.T, scale * texts @ every_image.T


def match(
    model: CBViLA,
    image: Float[Tensor, "B N1 I"],
    text: Float[Tensor, "B T D"],
    masked_text: Float[Tensor, "m T D"],
    padding: Bool[Tensor, "B T"],
    other_texts: Int[Tensor, " B"],
    other_images: Int[Tensor, " B"],
    processes: Processes,
) -> tuple[Float[Tensor, "R 2"], Float[Tensor, "m T D"]]:
    """Return the logits of pairs, images with other texts, texts with other images; and masked texts after fusion.

    All texts of one image share a pass of the fusion encoder, so its keys and values are computed once.

    Args:
        masked_text: the texts with masked words; m = B, or 0 without.
        other_texts: for each image, a text of all processes; -1 for none.
        other_images: for each text, an image of all processes; -1 for none.
    """
    size, length = padding.shape
    context, numbers = model.image_context(image), other_texts.clamp_min(0)
    every_text, every_padding, missing = text, padding, 0
    if processes.size > 1:  # texts of other processes may be longer
        missing = int(processes.all_gather(torch.tensor([length])).max()) - length
        every_text = processes.gather_rows(F.pad(text, (0, 0, 0, missing)))
        every_padding = processes.all_gather(F.pad(padding, (0, missing), value=True).long()).bool()
    negatives = take_rows(every_text, numbers)
    own, masked = (F.pad(one, (0, 0, 0, missing)) for one in (text, masked_text))
    own_padding = F.pad(padding, (0, missing), value=True)
    paddings = torch.cat([own_padding, every_padding[numbers], own_padding[: len(masked)]])
    fused = model.fusion(torch.cat([own, negatives, masked]), context, paddings)
    numbers = other_images.clamp_min(0)
    if processes.size == 1:
        context = context.rows(numbers)
    else:
        context = model.image_context(take_rows(processes.gather_rows(image), numbers))
    elsewhere = model.fusion(text, context, padding)
    logits = model.matching_head(torch.cat([fused[: 2 * size, 0], elsewhere[:, 0]]))
    return logits, fused[2 * size :, :length]


@torch.no_grad()
def relative_error(quantized: Quantized) -> Float[Tensor, ""]:
    """Return the quantization error over the variance of z: 1 means codewords tell no more than the mean."""
    rows = quantized.z.float().flatten(0, 1)
    error = (quantized.z.float() - quantized.codewords.float()).square().mean()
    return error / rows.var(0, unbiased=False).mean().clamp_min(1e-12)


def _schedule(config: CBViLAObjectiveConfig, steps: int) -> list[tuple[str, int]]:
    """Return the name of each phase with the first step after it."""
    first = min(config.burn_in_steps, steps)
    phases = [(BURN_IN, first)] if first else []
    if first == steps:
        return phases
    if not config.alternate_every or not config.has_codebook_terms:
        return [*phases, (JOINT, steps)]
    names = (CODEBOOK, ENCODERS)
    ends = range(first + config.alternate_every, steps + config.alternate_every, config.alternate_every)
    return phases + [(names[number % 2], min(end, steps)) for number, end in enumerate(ends)]
