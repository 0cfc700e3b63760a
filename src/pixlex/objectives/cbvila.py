"""The loss of CB-ViLA: which terms a phase minimizes, and what each of them trains."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pixlex.batch import ImageTextBatch
from pixlex.config.cbvila import CBViLAObjectiveConfig
from pixlex.models.cbvila import CBViLA
from pixlex.objectives.codebook_care import CodebookCare
from pixlex.objectives.compared import compared_terms, same_pairs
from pixlex.objectives.draws import Draws
from pixlex.objectives.phase import LossTerms, Objective, Phase, Step
from pixlex.objectives.visual import codebook_terms, predicted_terms

BURN_IN, JOINT, CODEBOOK, ENCODERS = "burn_in", "joint", "codebook", "encoders"

_IMAGE, _TEXT, _FUSED = "image_encoder", "text_encoder", ("image_projector", "fusion")
# What each term trains: the table of docs/equations.md, held to the gradients by tests/objectives/test_cbvila.py.
TRAINS: Mapping[str, tuple[str, ...]] = {
    "image_text_contrastive": (_IMAGE, _TEXT, "image_contrast", "text_contrast", "log_scale"),
    "image_text_matching": (_IMAGE, _TEXT, *_FUSED, "matching_head"),
    "masked_language": (_IMAGE, _TEXT, *_FUSED, "masked_word_head"),
    "pixel": (_IMAGE, _TEXT, *_FUSED, "code_projector", "query", "pixel_head"),
    "masked_image": (
        _IMAGE, _TEXT, *_FUSED, "code_projector", "query", "masked_patch_head", "class_patch_head",
    ),
    "codebook": ("codebook",),
    "commitment": (_IMAGE, "code_projector"),
}  # fmt: skip
_COMPARED = ("image_text_contrastive", "image_text_matching", "masked_language")
_PREDICTED = ("pixel", "masked_image")
# The learned temperature stays between these (ALBEF's code).
_MOST, _LEAST = 0.5, 0.001


class CBViLAObjective(Objective):
    """L = codebook + masked codes + matching + masked words (Guo et al. 2022, equation 7) + contrast (ALBEF).

    Phases: burn-in without the masked terms, then all terms jointly, or codebook and encoders in turn. Terms whose
    weight is 0 are not computed; without pixels and masked codes nothing is quantized.

    Args:
        model: the network.
        config: weights, what is hidden, the care of the codebook.
        steps: length of the training.
        max_words: longest text, in words (tokens).
    """

    model: CBViLA

    def __init__(self, model: CBViLA, config: CBViLAObjectiveConfig, steps: int, max_words: int) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.steps, self.max_words = steps, max_words
        self.care = CodebookCare(model.codebook, config)
        self.num_visible = model.grid**2 - round(model.grid**2 * config.mask_ratio)
        self.phases = tuple(
            Phase(name, end, self.trained_in(name)) for name, end in _stretches(config, steps)
        )
        for phase in self.phases:
            if not self.terms_of(phase.name):
                raise ValueError(
                    f"the phase {phase.name} has nothing to minimize: give one of its terms a weight above 0, or "
                    "set objective.burn_in_steps or objective.alternate_every to 0"
                )

    def terms_of(self, phase: str) -> tuple[str, ...]:
        """Return the terms that a phase minimizes."""
        config = self.config
        active = [name for name in TRAINS if getattr(config, f"{name}_weight")]
        if not config.has_codebook_terms:
            active = [name for name in active if name not in ("codebook", "commitment")]
        if config.codebook_update == "ema" or phase == ENCODERS:
            active = [name for name in active if name != "codebook"]
        if phase == BURN_IN:
            active = [name for name in active if name not in ("masked_language", "masked_image")]
        if phase == CODEBOOK:  # nothing else reaches the codewords
            reach = ("codebook", "pixel") if self._pixels_reach_codewords(phase) else ("codebook",)
            active = [name for name in active if name in reach]
        return tuple(active)

    def trained_in(self, phase: str) -> tuple[str, ...]:
        """Return how the names of the parameters begin that a phase trains."""
        active, config = self.terms_of(phase), self.config
        parts = {"codebook"} if phase == CODEBOOK else {part for term in active for part in TRAINS[term]}
        if "pixel" in active and self._pixels_reach_codewords(phase):
            parts.add("codebook")
        if config.codebook_update == "ema":
            parts.discard("codebook")
        return tuple(f"model.{part}" if part == "log_scale" else f"model.{part}." for part in sorted(parts))

    def _pixels_reach_codewords(self, phase: str) -> bool:
        return self.model.config.codebook.estimator == "gumbel" and phase != ENCODERS

    def forward(self, batch: ImageTextBatch, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of one process's part of a batch."""
        model, config = self.model, self.config
        active = self.terms_of(phase.name)
        draws = Draws.draw(
            num_pairs=len(batch.images),
            num_patches=model.grid**2,
            num_visible=self.num_visible,
            max_words=self.max_words,
            num_words=batch.word_ids.shape[1],
            vocab_size=model.tokenizer.vocab_size,
            generator=step.generator,
            device=batch.images.device,
        )
        terms: dict[str, Tensor] = {}
        measures: dict[str, Tensor | float] = {}
        seen = model.encode_image(batch.images)
        text = None
        predicts = any(name in active for name in _PREDICTED)
        if predicts or any(name in active for name in _COMPARED):
            found, text = compared_terms(model, config, active, batch, seen, draws, same_pairs(batch))
            terms |= found
        if "image_text_contrastive" in terms:
            measures["temperature"] = torch.exp(-model.log_scale.detach())
        if config.has_codebook_terms:
            full = model.quantize_vectors(seen[:, 1:])
            visible = None
            if predicts:
                assert text is not None
                found, visible = predicted_terms(
                    model, config, active, batch, (seen, text), full.codes, draws, self._temperature(step)
                )
                terms |= found
            found, shown = codebook_terms(active, full, visible)
            terms, measures = terms | found, measures | shown
            self.care.observe(full, terms.get("masked_image"))
        total = torch.stack([getattr(config, f"{name}_weight") * terms[name] for name in active]).sum()
        return LossTerms(total, terms, measures)

    @torch.no_grad()
    def after_step(self, step: Step) -> Mapping[str, Tensor | float]:
        """Keep the temperature in bounds; start, move and revive codewords; return the codebook's health."""
        self.model.log_scale.clamp_(-math.log(_MOST), -math.log(_LEAST))
        moves = self.phase_at(step.number).name != ENCODERS
        return self.care.after_step(self.model.codebook, step, moves=moves)

    def _temperature(self, step: Step) -> float:
        """Return the temperature of the Gumbel-softmax at a step."""
        config = self.config
        share = min(1.0, step.number / max(1, self.steps - 1))
        return float(config.temperature_start ** (1 - share) * config.temperature_end**share)


def _stretches(config: CBViLAObjectiveConfig, steps: int) -> list[tuple[str, int]]:
    """Return the name of each phase with the step that is no longer part of it."""
    first = min(config.burn_in_steps, steps)
    stretches = [(BURN_IN, first)] if first else []
    if first == steps:
        return stretches
    if not config.alternate_every or not config.has_codebook_terms:
        return [*stretches, (JOINT, steps)]
    names = (CODEBOOK, ENCODERS)
    ends = range(first + config.alternate_every, steps + config.alternate_every, config.alternate_every)
    return stretches + [(names[number % 2], min(end, steps)) for number, end in enumerate(ends)]
