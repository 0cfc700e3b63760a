"""Items -> batches: texts about images, with what people answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import torch
from jaxtyping import Int64

from pixlex.batch import ImageBatch, ReasoningBatch
from pixlex.config.data import Cut, DataConfig
from pixlex.data.grouped import group_items
from pixlex.data.loader import evaluation_batches, training_batches
from pixlex.data.pairs import Encode, encoded
from pixlex.data.reasoning import ReasoningSource
from pixlex.data.sources import ImageSubset


def training_items(
    source: ReasoningSource,
    *,
    encode: Encode,
    config: DataConfig,
    image_size: int,
    batch_size: int,
    seed: int,
    texts_per_image: int = 1,
    first_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    cut: Cut = "center",
) -> Iterator[ReasoningBatch]:
    """Return this process's share of an endless stream of training batches, starting at a step.

    An item one of whose images cannot be read is replaced by the next one; the rest as `training_batches`. With
    several texts for an image the stream is one of images (of pairs, where items have two): an epoch shows each
    once, and each time it brings the next of its items.

    Args:
        source: the items, each with an answer.
        encode: texts to padded word ids.
        config: how images are cut, and by how many worker processes.
        image_size: side of the images, in pixels.
        batch_size: items in a batch over all processes; fewer where images have fewer than `texts_per_image`.
        seed: 0 or more.
        texts_per_image: most items that come with the same images, of which the batch has one copy; 1 draws items
            one by one.
        first_step: the first step to return, 0 or more.
        rank: number of this process, in [0, world_size).
        world_size: number of processes.
        cut: how images become square.

    Raises:
        ValueError: as `training_batches`, and for a batch that is no multiple of the texts for an image.
        TooManyBroken: as `training_batches`.
    """
    if texts_per_image < 1 or batch_size % (texts_per_image * world_size):
        raise ValueError(
            f"batch_size must be a multiple of texts_per_image, 1 or more, times the processes, got {batch_size}, "
            f"{texts_per_image} and {world_size}"
        )
    groups = group_items(source) if texts_per_image > 1 else None
    num_images = batch_size // texts_per_image
    batches = training_batches(
        source.images if groups is None else groups.images,
        config=config, image_size=image_size, batch_size=num_images, seed=seed, first_step=first_step,
        rank=rank, world_size=world_size, together=source.num_images, cut=cut,
    )  # fmt: skip
    for batch in batches:
        numbers = _numbers(source, batch)
        if groups is None:
            yield _of_items(source, batch, numbers, encode)
            continue
        assert batch.epochs is not None
        turns = batch.epochs[:: source.num_images].tolist()
        taken = [
            groups.taken(int(group), turn, texts_per_image, seed)
            for group, turn in zip(numbers, turns, strict=True)
        ]
        looks_at = np.repeat(np.arange(len(taken)), [len(items) for items in taken])
        indices = torch.from_numpy(groups.places[batch.indices.numpy()])
        together = _of_items(source, replace(batch, indices=indices), np.concatenate(taken), encode)
        yield replace(together, looks_at=torch.from_numpy(looks_at))


def evaluation_items(
    source: ReasoningSource,
    *,
    encode: Encode,
    image_size: int,
    batch_size: int,
    limit: int | None = None,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    cut: Cut = "center",
) -> Iterator[ReasoningBatch]:
    """Return one pass over the items as `evaluation_batches` does; one with a broken image is left out.

    Images that several items of a batch speak of stand in it once.
    """
    batches = evaluation_batches(
        source.images, image_size=image_size, batch_size=batch_size, limit=limit, workers=workers,
        rank=rank, world_size=world_size, together=source.num_images, cut=cut,
    )  # fmt: skip
    images, together = source.images, source.num_images
    for batch in batches:
        whole = _of_items(source, batch, _numbers(source, batch), encode)
        if not isinstance(images, ImageSubset) or not batch.keys:
            yield whole
            continue
        groups = images.distinct[batch.indices.numpy()].reshape(-1, together)
        _, firsts, looks_at = np.unique(groups, axis=0, return_index=True, return_inverse=True)
        rows = (firsts[:, None] * together + np.arange(together)).ravel()
        yield replace(_with_images(whole, rows), looks_at=torch.from_numpy(looks_at.ravel()))


def _with_images(batch: ReasoningBatch, rows: Int64[np.ndarray, " images"]) -> ReasoningBatch:
    chosen = torch.from_numpy(rows)
    return replace(
        batch,
        images=batch.images[chosen],
        labels=batch.labels[chosen],
        epochs=None if batch.epochs is None else batch.epochs[chosen],
        keys=tuple(batch.keys[row] for row in rows),
        indices=batch.indices[chosen],
    )


def _numbers(source: ReasoningSource, batch: ImageBatch) -> Int64[np.ndarray, " groups"]:
    """Return which of the groups of images, as many as an item has, a batch holds."""
    numbers: np.ndarray = batch.indices.numpy()[:: source.num_images] // source.num_images
    return numbers


def _of_items(
    source: ReasoningSource, batch: ImageBatch, items: Int64[np.ndarray, " items"], encode: Encode
) -> ReasoningBatch:
    rows = items.tolist()
    texts = tuple(source.texts[row] for row in rows)
    words = encoded(texts, encode)
    return ReasoningBatch(
        **{field.name: getattr(batch, field.name) for field in fields(ImageBatch)},
        items=torch.from_numpy(items),
        texts=texts,
        word_ids=words.word_ids,
        key_padding=words.key_padding,
        answers=tuple(source.answers[row] for row in rows),
        targets=tuple(source.targets(row) for row in rows),
    )
