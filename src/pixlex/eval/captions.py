"""How well a language model that sees foretells captions, and what it says itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from pixlex.batch import ImageTextBatch, Skipped
from pixlex.eval.passes import evaluating
from pixlex.losses.captions import caption_loss
from pixlex.models.frozen import Frozen


@dataclass(frozen=True, kw_only=True)
class CaptionsResult:
    """What an evaluation found.

    Attributes:
        num_images: images evaluated, each with one caption.
        caption: mean cross-entropy of caption words with their ends, in nats.
        other_image_caption: the same with the image of another caption of the same batch: what is above
            `caption` is what the image tells; None where no batch has two images.
        skipped: images that could not be read.
        keys: names of the first images, as many as examples were asked for.
        originals: these images, pixels in [0, 1].
        texts: their captions.
        written: what the model says of them, greedily.
    """

    num_images: int
    caption: float
    other_image_caption: float | None
    skipped: tuple[Skipped, ...]
    keys: tuple[str, ...]
    originals: Float[Tensor, "E 3 H W"]
    texts: tuple[str, ...]
    written: tuple[str, ...]

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers by their names in the log."""
        values = {name: getattr(self, name) for name in ("num_images", "caption", "other_image_caption")}
        return {f"eval/{name}": float(value) for name, value in values.items() if value is not None}


@torch.no_grad()
def evaluate_captions(
    model: Frozen,
    batches: Iterable[ImageTextBatch],
    *,
    precision: Literal["bf16", "fp32"] = "fp32",
    max_words: int = 20,
    total: int | None = None,
    save_examples: int = 8,
    progress: bool = True,
) -> CaptionsResult:
    """Measure a model on images with captions.

    Args:
        model: what is evaluated, where it is.
        batches: the pairs, each once.
        precision: bf16 computes networks under autocast, losses always in float32.
        max_words: length of the captions that the model writes itself.
        total: how many images are expected, for the time left on the progress bar.
        save_examples: how many images to return with captions.
        progress: show a bar.

    Raises:
        ValueError: no readable image.
    """
    sums = _Sums()
    with evaluating(model), tqdm(total=total, unit=" images", desc="evaluate", disable=not progress) as bar:
        for batch in batches:
            place = next(model.parameters()).device
            with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
                sums.update(model, batch.to(place), save_examples, max_words)
            bar.update(len(batch.images))
    return sums.result()


@dataclass
class _Sums:
    """Sums and examples of the images seen so far."""

    count: int = 0
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0])
    words: list[float] = field(default_factory=lambda: [0.0, 0.0])
    skipped: list[Skipped] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    originals: list[Tensor] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)

    def update(self, model: Frozen, batch: ImageTextBatch, save_examples: int, max_words: int) -> None:
        """Take in a batch."""
        self.skipped.extend(batch.skipped)
        if len(batch.images) == 0:
            return
        self._add(0, model, batch.images, batch)
        if len(batch.images) > 1:
            self._add(1, model, batch.images.roll(1, dims=0), batch)
        self.count += len(batch.images)
        if room := save_examples - len(self.keys):
            self.keys += batch.keys[:room]
            self.texts += batch.texts[:room]
            self.originals.append(batch.images[:room].cpu())
            self.written += model.caption(batch.images[:room], max_words)

    def _add(self, place: int, model: Frozen, images: Tensor, batch: ImageTextBatch) -> None:
        logits = model(images, batch.word_ids, batch.key_padding)
        self.losses[place] += float(caption_loss(logits, batch.word_ids, batch.key_padding, total=1.0))
        self.words[place] += float((~batch.key_padding).sum())

    def result(self) -> CaptionsResult:
        """Return the means."""
        if self.count == 0:
            raise ValueError(f"no image to evaluate ({len(self.skipped)} could not be read)")
        return CaptionsResult(
            num_images=self.count,
            caption=self.losses[0] / self.words[0],
            other_image_caption=self.losses[1] / self.words[1] if self.words[1] else None,
            skipped=tuple(self.skipped),
            keys=tuple(self.keys),
            originals=torch.cat(self.originals),
            texts=tuple(self.texts),
            written=tuple(self.written),
        )
