"""How well a language model that sees foretells captions, and what it says itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ImageTextBatch, Skipped
from pixlex.eval.passes import evaluating, progress_bar
from pixlex.losses.cross_entropy import caption_loss
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
    """Measure a model on images with captions; several processes share the batches and return the same result.

    Args:
        model: what is evaluated, where it is.
        batches: the pairs, each once; of several processes each brings its own (see `evaluation_batches`).
        precision: bf16 computes networks under autocast, losses always in float32.
        max_words: length of the captions that the model writes itself.
        total: how many images are expected, for the time left on the progress bar.
        save_examples: how many images to return with captions.
        progress: show a bar.

    Raises:
        ValueError: no readable image.
    """
    found: list[_Sums] = []
    place, room = next(model.parameters()).device, save_examples
    with evaluating(model), progress_bar(total, "images", "evaluate", shown=progress) as bar:
        for batch in batches:
            with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
                found.append(_measured(model, batch.to(place), room, max_words))
            room -= len(found[-1].keys)
            bar.update(len(batch.images))
    return _result(distributed.in_turn(found), save_examples)


@dataclass(frozen=True)
class _Sums:
    """What a batch adds up to, with the captions of its images and with others', and examples of it."""

    skipped: tuple[Skipped, ...]
    count: int = 0
    losses: tuple[float, float] = (0.0, 0.0)
    words: tuple[float, float] = (0.0, 0.0)
    keys: tuple[str, ...] = ()
    originals: tuple[Tensor, ...] = ()
    texts: tuple[str, ...] = ()
    written: tuple[str, ...] = ()


def _measured(model: Frozen, batch: ImageTextBatch, room: int, max_words: int) -> _Sums:
    """Measure a batch; `room` is for how many examples there is room."""
    size = len(batch.images)
    if size == 0:
        return _Sums(batch.skipped)
    num_words = float((~batch.key_padding).sum())
    others = size > 1
    return _Sums(
        skipped=batch.skipped,
        count=size,
        losses=(
            _loss(model, batch.images, batch),
            _loss(model, batch.images.roll(1, dims=0), batch) if others else 0.0,
        ),
        words=(num_words, num_words if others else 0.0),
        keys=batch.keys[:room],
        originals=tuple(batch.images[:room].cpu()),
        texts=batch.texts[:room],
        written=tuple(model.caption(batch.images[:room], max_words)) if room else (),
    )


def _loss(model: Frozen, images: Tensor, batch: ImageTextBatch) -> float:
    logits = model(images, batch.word_ids, batch.key_padding)
    return float(caption_loss(logits, batch.word_ids, batch.key_padding, total=1.0))


def _result(batches: Sequence[_Sums], save_examples: int) -> CaptionsResult:
    """Return the means over batches, and the first examples."""
    count = sum(one.count for one in batches)
    skipped = tuple(broken for one in batches for broken in one.skipped)
    if count == 0:
        raise ValueError(f"no image to evaluate ({len(skipped)} could not be read)")
    loss, other_loss = (sum(one.losses[place] for one in batches) for place in (0, 1))
    words, other_words = (sum(one.words[place] for one in batches) for place in (0, 1))
    shown = slice(save_examples)
    return CaptionsResult(
        num_images=count,
        caption=loss / words,
        other_image_caption=other_loss / other_words if other_words else None,
        skipped=skipped,
        keys=tuple(key for one in batches for key in one.keys)[shown],
        originals=torch.stack([image for one in batches for image in one.originals][shown]),
        texts=tuple(text for one in batches for text in one.texts)[shown],
        written=tuple(text for one in batches for text in one.written)[shown],
    )
