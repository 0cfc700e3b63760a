"""What pretraining of CB-ViLA has reached: its terms, its codebook, what it rebuilds, on pairs it has not seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from pixlex.batch import ImageTextBatch, Skipped, Words
from pixlex.eval.passes import evaluating
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
        originals: pixels in [0, 1].
        visible: what the image encoder saw of them, the rest gray.
        rebuilt: from that and the caption.
        rebuilt_otherwise: from that and the caption of the next example.
    """

    keys: tuple[str, ...]
    texts: tuple[str, ...]
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

    Args:
        objective: with the model, where it is.
        batches: the pairs, each once.
        seed: of what is hidden, 0 or more.
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
    bar = tqdm(total=total, unit=" images", desc="evaluate", disable=not progress)
    with evaluating(objective), bar, torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
        for number, batch in enumerate(batches):
            sums.update(number, batch.to(place))
            bar.update(len(batch.images))
        return sums.result(previous_codes)


@dataclass
class _Sums:
    """Sums and examples of the pairs seen so far."""

    objective: CBViLAObjective
    seed: int
    save_examples: int
    count: int = 0
    compared: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    errors: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    indices: list[Tensor] = field(default_factory=list)
    codes: list[Tensor] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    examples: list[RebuiltExamples] = field(default_factory=list)

    @property
    def model(self) -> CBViLA:
        return self.objective.model

    def update(self, number: int, batch: ImageTextBatch) -> None:
        """Take in a batch."""
        self.skipped.extend(batch.skipped)
        size = len(batch.images)
        if size == 0:
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        if size > 1:  # one pair alone has nothing to be compared with
            found = self.objective(batch, Phase(JOINT, 0), Step(self.objective.steps, generator))
            for name, value in {**found.terms, **found.measures}.items():
                self.sums[name] = self.sums.get(name, 0.0) + size * float(value)
            self.compared += size
        self.indices.append(batch.indices.cpu())
        self.count += size
        config = self.objective.config
        if config.has_codebook_terms:
            self.codes.append(self.model.tokenize(batch.images).cpu())
        if not config.pixel_weight:
            return
        split = split_patches(size, self.model.grid**2, self.objective.num_visible, generator)
        self._rebuild(batch, split.to(batch.images.device))

    def _rebuild(self, batch: ImageTextBatch, split: SplitPatches) -> None:
        """Rebuild the images; add up the errors of hidden and visible patches, and of a flat color."""
        side = self.model.config.patch_size
        rebuilt = self.model.rebuild(batch.images, Words(batch.word_ids, batch.key_padding), split)
        seen = torch.zeros(len(batch.images), self.model.grid**2, device=batch.images.device)
        on_grid = seen.scatter(1, split.visible, 1.0).view(-1, 1, self.model.grid, self.model.grid)
        shown = F.interpolate(on_grid, scale_factor=side)  # 1 where pixels are visible
        mean_color = (shown * batch.images).sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True)
        hidden_share, visible_share = (1 - shown).mean(), shown.mean()
        squares = (rebuilt - batch.images).square()
        flat = (mean_color - batch.images).square()
        found = (
            (squares * (1 - shown)).mean() / hidden_share,
            (squares * shown).mean() / visible_share,
            (flat * (1 - shown)).mean() / hidden_share,
        )
        self.errors = [sum_ + len(seen) * float(one) for sum_, one in zip(self.errors, found, strict=True)]
        if room := self.save_examples - sum(len(one.keys) for one in self.examples):
            others = Words(batch.word_ids.roll(-1, 0), batch.key_padding.roll(-1, 0))
            otherwise = self.model.rebuild(batch.images, others, split)
            gray = shown * batch.images + 0.5 * (1 - shown)
            pictures = (one[:room].cpu() for one in (batch.images, gray, rebuilt, otherwise))
            self.examples.append(RebuiltExamples(batch.keys[:room], batch.texts[:room], *pictures))

    def result(self, previous_codes: Tensor | None) -> PretrainingResult:
        """Return the means."""
        if self.count == 0:
            raise ValueError(f"no image to evaluate ({len(self.skipped)} could not be read)")
        means = {name: value / self.compared for name, value in self.sums.items()}
        codes = torch.cat(self.codes) if self.codes else None
        churn = None
        if codes is not None and previous_codes is not None and previous_codes.shape == codes.shape:
            churn = float((codes != previous_codes).double().mean())
        hidden, visible, flat = (
            error / self.count if self.objective.config.pixel_weight else None for error in self.errors
        )
        return PretrainingResult(
            num_images=self.count,
            means=means,
            indices=torch.cat(self.indices),
            codes=codes,
            num_codewords=self.model.num_codewords,
            churn=churn,
            hidden_mse=hidden,
            visible_mse=visible,
            mean_color_mse=flat,
            examples=_joined(self.examples) if self.examples else None,
            skipped=tuple(self.skipped),
        )


def _joined(parts: Sequence[RebuiltExamples]) -> RebuiltExamples:
    names = ("originals", "visible", "rebuilt", "rebuilt_otherwise")
    return RebuiltExamples(
        tuple(key for part in parts for key in part.keys),
        tuple(text for part in parts for text in part.texts),
        *(torch.cat([getattr(part, name) for part in parts]) for name in names),
    )
