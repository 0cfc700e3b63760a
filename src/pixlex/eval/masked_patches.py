"""How well a masked autoencoder foretells hidden patches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ImageBatch, Skipped
from pixlex.eval.passes import evaluating, progress_bar
from pixlex.losses.reconstruction import masked_patch_loss, normalized_patches, restored_patches
from pixlex.models.mae import MAE


@dataclass(frozen=True, kw_only=True)
class MaskedPatchesResult:
    """What an evaluation found.

    Attributes:
        num_images: images evaluated.
        masked_patches: mean squared error of the hidden patches, in the space that was trained.
        flat_patches: the same error when each hidden patch is painted in its own mean, which takes knowing it:
            a model far below has found structure.
        skipped: images that could not be read.
        keys: names of the first images, as many as examples were asked for.
        originals: these images, pixels in [0, 1].
        seen: what the encoder saw of them, the rest gray.
        rebuilt: with the hidden patches as predicted; where targets are normalized, with each hidden patch's
            own mean and standard deviation put back, as its authors draw it.
    """

    num_images: int
    masked_patches: float
    flat_patches: float
    skipped: tuple[Skipped, ...]
    keys: tuple[str, ...]
    originals: Float[Tensor, "E 3 H W"]
    seen: Float[Tensor, "E 3 H W"]
    rebuilt: Float[Tensor, "E 3 H W"]

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers by their names in the log."""
        names = ("num_images", "masked_patches", "flat_patches")
        return {f"eval/{name}": float(getattr(self, name)) for name in names}


@torch.no_grad()
def evaluate_masked_patches(
    model: MAE,
    batches: Iterable[ImageBatch],
    *,
    normalize: bool,
    seed: int = 0,
    precision: Literal["bf16", "fp32"] = "fp32",
    total: int | None = None,
    save_examples: int = 8,
    progress: bool = True,
) -> MaskedPatchesResult:
    """Measure a masked autoencoder on a set of images; masks depend on seed and position, not on the batch.

    Several processes share the batches and all return the numbers of the whole.

    Args:
        model: what is evaluated, where it is.
        batches: the images, each once; of several processes each brings its own (see `evaluation_batches`).
        normalize: whether the model predicts normalized patches.
        seed: of the masks, 0 or more.
        precision: bf16 computes the network under autocast, errors always in float32.
        total: how many images are expected, for the time left on the progress bar.
        save_examples: how many images to return with what was seen and rebuilt.
        progress: show a bar.

    Raises:
        ValueError: no readable image.
    """
    evaluation = _Evaluation(model, normalize, seed, precision, save_examples)
    with evaluating(model), progress_bar(total, "images", "evaluate", shown=progress) as bar:
        for batch in batches:
            evaluation.update(batch.to(next(model.parameters()).device))
            bar.update(len(batch.images))
    return evaluation.result()


@dataclass(frozen=True)
class _Sums:
    """What the images of a batch add up to, and the examples among them."""

    skipped: tuple[Skipped, ...]
    count: int = 0
    masked_patches: float = 0.0
    flat_patches: float = 0.0
    keys: tuple[str, ...] = ()
    pictures: tuple[Tensor, ...] = ()


@dataclass
class _Evaluation:
    """What was found in each batch so far."""

    model: MAE
    normalize: bool
    seed: int
    precision: str
    save_examples: int
    batches: list[_Sums] = field(default_factory=list)

    def update(self, batch: ImageBatch) -> None:
        """Take in a batch."""
        if len(batch.images) == 0:
            self.batches.append(_Sums(batch.skipped))
            return
        noise = self._noise(batch.indices.tolist()).to(batch.images.device)
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.model(batch.images, noise)
        patches = self.model.patches(batch.images)
        targets = normalized_patches(patches) if self.normalize else patches
        flat = targets.mean(-1, keepdim=True).expand_as(targets)
        room = max(0, self.save_examples - sum(len(one.keys) for one in self.batches))
        drawn = (
            self._draw(batch.images[:room], patches[:room], output.predicted[:room], output.mask[:room])
            if room
            else ()
        )
        self.batches.append(
            _Sums(
                skipped=batch.skipped,
                count=len(patches),
                # Every image hides as many patches, so the mean over images is that over patches.
                masked_patches=len(patches)
                * float(masked_patch_loss(output.predicted, targets, output.mask)),
                flat_patches=len(patches) * float(masked_patch_loss(flat, targets, output.mask)),
                keys=batch.keys[:room],
                pictures=drawn,
            )
        )

    def _draw(self, images: Tensor, patches: Tensor, predicted: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Return images as they are, as they were seen, and rebuilt."""
        pixels = restored_patches(predicted, patches) if self.normalize else predicted.float()
        hidden = mask.unsqueeze(-1)
        seen = self.model.images(patches.masked_fill(hidden, 0.0))
        rebuilt = self.model.images(torch.where(hidden, pixels, patches))
        return images.cpu(), seen.clamp(0, 1).cpu(), rebuilt.clamp(0, 1).cpu()

    def _noise(self, indices: Sequence[int]) -> Float[Tensor, "B N"]:
        """Return noise for each image from a generator of its own."""
        count = self.model.grid**2
        rows = [np.random.default_rng((self.seed, 0, index)).random(count) for index in indices]
        return torch.from_numpy(np.stack(rows)).float()

    def result(self) -> MaskedPatchesResult:
        """Return the means over what all processes found."""
        batches = distributed.in_turn(self.batches)
        count = sum(one.count for one in batches)
        skipped = tuple(broken for one in batches for broken in one.skipped)
        if count == 0:
            raise ValueError(f"no image to evaluate ({len(skipped)} could not be read)")
        pictures = zip(*(one.pictures for one in batches if one.pictures), strict=True)
        originals, seen, rebuilt = (torch.cat(parts)[: self.save_examples] for parts in pictures)
        return MaskedPatchesResult(
            num_images=count,
            masked_patches=sum(one.masked_patches for one in batches) / count,
            flat_patches=sum(one.flat_patches for one in batches) / count,
            skipped=skipped,
            keys=tuple(key for one in batches for key in one.keys)[: self.save_examples],
            originals=originals,
            seen=seen,
            rebuilt=rebuilt,
        )
