"""What pretraining of CB-ViLA has reached: its terms, its codebook, what it rebuilds, on pairs it has not seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ImageTextBatch, Skipped, Words
from pixlex.eval.passes import evaluating, progress_bar
from pixlex.models.cbvila import CBViLA
from pixlex.nn.codebook import count_codes, perplexity
from pixlex.nn.masking import SplitPatches, split_patches
from pixlex.objectives.cbvila import JOINT, CBViLAObjective
from pixlex.objectives.phase import Phase, Step


@dataclass(frozen=True)
class RebuiltExamples:
    """Images with what became of them.

    Attributes:
        keys: names of the images.
        texts: their captions.
        other_texts: what else they were rebuilt with: the caption of the next one, nothing where there is none.
        originals: pixels in [0, 1].
        visible: what the image encoder saw of them, the rest gray.
        rebuilt: from that and the caption.
        rebuilt_otherwise: from that and the other text.
    """

    keys: tuple[str, ...]
    texts: tuple[str, ...]
    other_texts: tuple[str, ...]
    originals: Float[Tensor, "E 3 H W"]
    visible: Float[Tensor, "E 3 H W"]
    rebuilt: Float[Tensor, "E 3 H W"]
    rebuilt_otherwise: Float[Tensor, "E 3 H W"]


@dataclass(frozen=True, kw_only=True)
class PretrainingResult:
    """What an evaluation found.

    Attributes:
        num_images: images evaluated, each with one caption.
        means: of each term of the loss and of its measures, by name; pairs are compared within batches.
        indices: where the images lie in their source.
        codes: of each image, nothing hidden; None where the objective quantizes nothing.
        num_codewords: K.
        churn: share of the patches whose code has changed since the codes given; None without any.
        hidden_mse: error of hidden patches in [0, 1] pixels; this, the next two and `examples` are None where the
            objective has no pixels.
        visible_mse: error of visible patches.
        mean_color_mse: for comparison: hidden patches in the mean color of the visible ones of their image.
        examples: to look at.
        skipped: images that could not be read.
    """

    num_images: int
    means: dict[str, float]
    indices: Int[Tensor, " I"]
    codes: Int[Tensor, "I N"] | None
    num_codewords: int
    churn: float | None
    hidden_mse: float | None
    visible_mse: float | None
    mean_color_mse: float | None
    examples: RebuiltExamples | None
    skipped: tuple[Skipped, ...]

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers by their names in the log."""
        found = {"num_images": float(self.num_images), **self.means}
        if self.codes is not None:
            counts = count_codes(self.codes, self.num_codewords)
            found |= {
                "distinct_codewords": float((counts > 0).sum()),
                "perplexity": float(perplexity(counts)),
            }
            if "masked_image" in self.means:
                # Of the whole set: no collapse of the codes can raise it.
                found["masked_image_gain"] = math.log(found["perplexity"]) - self.means["masked_image"]
        for name in ("churn", "hidden_mse", "visible_mse", "mean_color_mse"):
            value = getattr(self, name)
            if value is not None:
                found[name] = value
        return {f"eval/{name}": value for name, value in found.items()}


@torch.no_grad()
def evaluate_pretraining(
    objective: CBViLAObjective,
    batches: Iterable[ImageTextBatch],
    *,
    seed: int = 0,
    precision: Literal["bf16", "fp32"] = "fp32",
    previous_codes: Int[Tensor, "I N"] | None = None,
    total: int | None = None,
    save_examples: int = 8,
    progress: bool = True,
) -> PretrainingResult:
    """Measure a model on images with captions, by the terms that its objective minimizes in its last phases.

    Several processes share the batches and all return the numbers of the whole.

    Args:
        objective: with the model, where it is.
        batches: the pairs, each once; of several processes each brings its own (see `evaluation_batches`).
        seed: with the position of a batch's first image, of what is hidden; 0 or more.
        precision: bf16 computes networks under autocast, losses always in float32.
        previous_codes: of the same images, from an earlier evaluation.
        total: how many images are expected, for the time left on the progress bar.
        save_examples: how many images to return with what was rebuilt of them.
        progress: show a bar.

    Raises:
        ValueError: no readable image.
    """
    sums = _Sums(objective, seed, save_examples)
    place = next(objective.parameters()).device
    bar = progress_bar(total, "images", "evaluate", shown=progress)
    # An objective that is not training compares pairs within its own batch: processes may have fewer batches.
    with (
        evaluating(objective),
        bar,
        torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        for batch in batches:
            sums.update(batch.to(place))
            bar.update(len(batch.images))
    return sums.result(previous_codes)


@torch.no_grad()
def rebuilt_examples(
    model: CBViLA,
    batch: ImageTextBatch,
    split: SplitPatches,
    most: int,
    rebuilt: Float[Tensor, "B 3 H W"] | None = None,
) -> RebuiltExamples:
    """Return the first images of a batch, masked, and rebuilt with their own text and with another one (figure 2).

    Args:
        model: the network, where the batch is.
        batch: images with texts.
        split: which of their patches are visible.
        most: how many are returned.
        rebuilt: with their own texts, where that was done already.
    """
    if rebuilt is None:
        rebuilt = model.reconstruct(batch.images, Words(batch.word_ids, batch.key_padding), split)
    other_texts = (*batch.texts[1:], batch.texts[0]) if len(batch.texts) > 1 else ("",)
    words = model.tokenize_texts(other_texts, batch.word_ids.shape[1])
    others = Words(words.word_ids.to(batch.images.device), words.key_padding.to(batch.images.device))
    shown = _visible_pixels(model, split)
    gray = shown * batch.images + 0.5 * (1 - shown)
    pictures = (batch.images, gray, rebuilt, model.reconstruct(batch.images, others, split))
    return RebuiltExamples(
        batch.keys[:most], batch.texts[:most], other_texts[:most], *(one[:most].cpu() for one in pictures)
    )


def _visible_pixels(model: CBViLA, split: SplitPatches) -> Float[Tensor, "B 1 H W"]:
    """Return 1 where pixels are visible, else 0."""
    seen = torch.zeros(len(split.visible), model.grid**2, device=split.visible.device)
    on_grid = seen.scatter(1, split.visible, 1.0).view(-1, 1, model.grid, model.grid)
    return F.interpolate(on_grid, scale_factor=model.config.patch_size)


@dataclass(frozen=True)
class _Found:
    """What was found in a batch.

    Attributes:
        skipped: images that could not be read.
        indices: where the others lie in their source.
        terms: of the objective; none of a single pair, which has nothing to be compared with.
        codes: of each image.
        errors: of hidden and visible patches, and of a flat color.
        examples: to look at.
    """

    skipped: tuple[Skipped, ...]
    indices: Tensor
    terms: Mapping[str, float] = field(default_factory=dict)
    codes: Tensor | None = None
    errors: tuple[float, ...] = ()
    examples: RebuiltExamples | None = None


@dataclass
class _Sums:
    """What was found in each batch so far."""

    objective: CBViLAObjective
    seed: int
    save_examples: int
    found: list[_Found] = field(default_factory=list)

    @property
    def model(self) -> CBViLA:
        return self.objective.model

    def update(self, batch: ImageTextBatch) -> None:
        """Take in a batch."""
        size, indices = len(batch.images), batch.indices.cpu()
        if size == 0:
            self.found.append(_Found(batch.skipped, indices))
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(indices[0]))
        terms: dict[str, float] = {}
        if size > 1:
            loss = self.objective(batch, Phase(JOINT, 0), Step(self.objective.steps, generator))
            terms = {name: float(value) for name, value in {**loss.terms, **loss.measures}.items()}
        config = self.objective.config
        codes = self.model.tokenize(batch.images).cpu() if config.has_codebook_terms else None
        found = _Found(batch.skipped, indices, terms, codes)
        if config.pixel_weight:
            split = split_patches(size, self.model.grid**2, self.objective.num_visible, generator)
            errors, examples = self._rebuild(batch, split.to(batch.images.device))
            found = replace(found, errors=errors, examples=examples)
        self.found.append(found)

    def _rebuild(
        self, batch: ImageTextBatch, split: SplitPatches
    ) -> tuple[tuple[float, ...], RebuiltExamples | None]:
        """Rebuild images; return the errors of hidden and visible patches and of a flat color, and examples."""
        rebuilt = self.model.reconstruct(batch.images, Words(batch.word_ids, batch.key_padding), split)
        shown = _visible_pixels(self.model, split)
        mean_color = (shown * batch.images).sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True)
        hidden_share, visible_share = (1 - shown).mean(), shown.mean()
        squares = (rebuilt - batch.images).square()
        flat = (mean_color - batch.images).square()
        found = (
            (squares * (1 - shown)).mean() / hidden_share,
            (squares * shown).mean() / visible_share,
            (flat * (1 - shown)).mean() / hidden_share,
        )
        errors = tuple(float(one) for one in found)
        shown_already = sum(len(one.examples.keys) for one in self.found if one.examples is not None)
        room = self.save_examples - shown_already
        if room <= 0:
            return errors, None
        return errors, rebuilt_examples(self.model, batch, split, room, rebuilt)

    def result(self, previous_codes: Tensor | None) -> PretrainingResult:
        """Return the means over what all processes found."""
        batches = distributed.in_turn(self.found)
        skipped = tuple(broken for one in batches for broken in one.skipped)
        count = sum(len(one.indices) for one in batches)
        if count == 0:
            raise ValueError(f"no image to evaluate ({len(skipped)} could not be read)")
        compared = [one for one in batches if one.terms]
        num_compared = sum(len(one.indices) for one in compared)
        means = {
            name: sum(len(one.indices) * one.terms[name] for one in compared) / num_compared
            for name in (compared[0].terms if compared else ())
        }
        quantized = [one.codes for one in batches if one.codes is not None]
        codes = torch.cat(quantized) if quantized else None
        churn = None
        if codes is not None and previous_codes is not None and previous_codes.shape == codes.shape:
            churn = float((codes != previous_codes).double().mean())
        rebuilt = [one for one in batches if one.errors]
        hidden, visible, flat = (
            sum(len(one.indices) * one.errors[place] for one in rebuilt) / count if rebuilt else None
            for place in range(3)
        )
        examples = [one.examples for one in batches if one.examples is not None]
        return PretrainingResult(
            num_images=count,
            means=means,
            indices=torch.cat([one.indices for one in batches]),
            codes=codes,
            num_codewords=self.model.num_codewords,
            churn=churn,
            hidden_mse=hidden,
            visible_mse=visible,
            mean_color_mse=flat,
            examples=_joined(examples, self.save_examples) if examples else None,
            skipped=skipped,
        )


def _joined(parts: Sequence[RebuiltExamples], most: int) -> RebuiltExamples:
    names = ("originals", "visible", "rebuilt", "rebuilt_otherwise")
    return RebuiltExamples(
        tuple(key for part in parts for key in part.keys)[:most],
        tuple(text for part in parts for text in part.texts)[:most],
        tuple(text for part in parts for text in part.other_texts)[:most],
        *(torch.cat([getattr(part, name) for part in parts])[:most] for name in names),
    )
