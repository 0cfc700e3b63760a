"""What a batch is made of: images alone, image-text pairs, or questions about images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from pixlex.batch import ImageBatch, ImageTextBatch, ReasoningBatch, Words
from pixlex.data.records import PairSource, ReasoningSource
from pixlex.data.sources import ImageSource, ImageSubset, subset

Encode = Callable[[Sequence[str]], Words]
BatchOut = TypeVar("BatchOut", covariant=True)

# Sets the generator of a group's order apart from those of an epoch's order and of its images.
_ITEMS = 1 << 62


@runtime_checkable
class Rows(Protocol[BatchOut]):
    """What a batch is made of: images in groups, and what is added to those that were read.

    Attributes:
        images: the source; `num_images` that follow each other are one group, which is read or replaced whole.
        num_images: images of a group.
        texts_per_group: most texts that come with a group in training.
    """

    images: ImageSource
    num_images: int
    texts_per_group: int

    def training(self, batch: ImageBatch, seed: int) -> BatchOut:
        """Return a training batch."""

    def evaluation(self, batch: ImageBatch) -> BatchOut:
        """Return a batch of an evaluation."""


@dataclass
class Images:
    """Images alone, or in groups of `num_images`."""

    images: ImageSource
    num_images: int = 1
    texts_per_group: int = 1

    def training(self, batch: ImageBatch, seed: int) -> ImageBatch:
        """Return the batch as it is."""
        return batch

    def evaluation(self, batch: ImageBatch) -> ImageBatch:
        """Return the batch as it is."""
        return batch


class Pairs:
    """Images, each with one of its captions: drawn from (seed, epoch, index) in training, else the first.

    Texts are encoded in this process: workers need neither captions nor tokenizer.

    Args:
        source: images and captions.
        encode: texts to padded word ids.
    """

    num_images = texts_per_group = 1

    def __init__(self, source: PairSource, encode: Encode) -> None:
        self.source, self.images, self.encode = source, source.images, encode

    def training(self, batch: ImageBatch, seed: int) -> ImageTextBatch:
        """Add a caption of each image in its epoch."""
        assert batch.epochs is not None
        drawn = zip(batch.indices.tolist(), batch.epochs.tolist(), strict=True)
        return self._with_texts(batch, [self.source.draw(index, epoch, seed) for index, epoch in drawn])

    def evaluation(self, batch: ImageBatch) -> ImageTextBatch:
        """Add the first caption of each image."""
        return self._with_texts(batch, [self.source.captions[index][0] for index in batch.indices.tolist()])

    def _with_texts(self, batch: ImageBatch, texts: Sequence[str]) -> ImageTextBatch:
        ids = [self.source.image_of(index) for index in batch.indices.tolist()]
        return ImageTextBatch(
            **_fields(batch), **_encoded(texts, self.encode), image_ids=torch.tensor(ids, dtype=torch.int64)
        )


class Questions:
    """Questions (statements, hypotheses) about one image or several, with their answers.

    With several texts for an image training is a stream of images (of pairs, where items have two): an epoch shows
    each once, and each time it brings the next of its items. In evaluation images that several items of a batch
    speak of stand in it once.

    Args:
        source: the items.
        encode: texts to padded word ids.
        texts_per_image: most items that come with the same images; 1 draws items one by one.

    Raises:
        ValueError: texts_per_image is below 1.
    """

    def __init__(self, source: ReasoningSource, encode: Encode, texts_per_image: int = 1) -> None:
        if texts_per_image < 1:
            raise ValueError(f"texts_per_image must be 1 or more, got {texts_per_image}")
        self.source, self.encode, self.num_images = source, encode, source.num_images
        self.texts_per_group = texts_per_image
        self.groups = group_items(source) if texts_per_image > 1 else None
        self.images = source.images if self.groups is None else self.groups.images

    def training(self, batch: ImageBatch, seed: int) -> ReasoningBatch:
        """Add the items whose turn it is."""
        numbers = self._numbers(batch)
        if self.groups is None:
            return self._with_items(batch, numbers, None)
        assert batch.epochs is not None
        turns = zip(numbers.tolist(), batch.epochs[:: self.num_images].tolist(), strict=True)
        taken = [self.groups.taken(group, turn, self.texts_per_group, seed) for group, turn in turns]
        looks_at = np.repeat(np.arange(len(taken)), [len(items) for items in taken])
        indices = torch.from_numpy(self.groups.places[batch.indices.numpy()])
        return self._with_items(replace(batch, indices=indices), np.concatenate(taken), looks_at)

    def evaluation(self, batch: ImageBatch) -> ReasoningBatch:
        """Add the items of the images."""
        numbers = self._numbers(batch)
        if not isinstance(self.images, ImageSubset) or not batch.keys:
            return self._with_items(batch, numbers, None)
        groups = self.images.distinct[batch.indices.numpy()].reshape(-1, self.num_images)
        _, firsts, looks_at = np.unique(groups, axis=0, return_index=True, return_inverse=True)
        rows = (firsts[:, None] * self.num_images + np.arange(self.num_images)).ravel()
        kept = torch.from_numpy(rows)
        tensors: dict[str, Any] = {
            name: value[kept] for name, value in _fields(batch).items() if isinstance(value, Tensor)
        }
        distinct = replace(batch, **tensors, keys=tuple(batch.keys[row] for row in rows))
        return self._with_items(distinct, numbers, looks_at.ravel())

    def _numbers(self, batch: ImageBatch) -> Int64[np.ndarray, " groups"]:
        numbers: np.ndarray = batch.indices.numpy()[:: self.num_images] // self.num_images
        return numbers

    def _with_items(
        self,
        batch: ImageBatch,
        items: Int64[np.ndarray, " items"],
        looks_at: Int64[np.ndarray, " items"] | None,
    ) -> ReasoningBatch:
        source, rows = self.source, items.tolist()
        return ReasoningBatch(
            **_fields(batch),
            **_encoded([source.texts[row] for row in rows], self.encode),
            items=torch.from_numpy(items),
            answers=tuple(source.answers[row] for row in rows),
            targets=tuple(source.targets(row) for row in rows),
            looks_at=None if looks_at is None else torch.from_numpy(looks_at),
        )


def _fields(batch: ImageBatch) -> dict[str, Any]:
    return {one.name: getattr(batch, one.name) for one in fields(ImageBatch)}


def _encoded(texts: Sequence[str], encode: Encode) -> dict[str, Any]:
    """Return texts with their word ids; no rows of no texts (a batch may be empty)."""
    words = Words(torch.empty(0, 0, dtype=torch.int64), torch.empty(0, 0, dtype=torch.bool))
    words = encode(texts) if texts else words
    return {"texts": tuple(texts), "word_ids": words.word_ids, "key_padding": words.key_padding}


@dataclass(frozen=True)
class Groups:
    """The items of a source by the images that they speak of.

    Attributes:
        images: those of the first group, then those of the second, and so on.
        places: the position of each of these images in the source of the items.
        items: positions of the items, those of a group one after the other.
        ends: where the items of each group end.
    """

    images: ImageSource
    places: Int64[np.ndarray, " images"]
    items: Int64[np.ndarray, " items"]
    ends: Int64[np.ndarray, " groups"]

    def __len__(self) -> int:
        return len(self.ends)

    def taken(self, group: int, turn: int, most: int, seed: int) -> Int64[np.ndarray, " taken"]:
        """Return the items of a group that come at a turn: all in one turn, or so many, the next ones at the next.

        Turns go through the items in an order drawn from (seed, group), round and round: none comes more than once
        more often than another.

        Args:
            group: its number.
            turn: how often the group came before.
            most: items at a turn, 1 or more.
            seed: 0 or more.
        """
        first = int(self.ends[group - 1]) if group else 0
        items = self.items[first : int(self.ends[group])]
        if len(items) <= most:
            return items
        order = np.random.default_rng((seed, group, _ITEMS)).permutation(len(items))
        return items[order[(turn * most + np.arange(most)) % len(items)]]


def group_items(source: ReasoningSource) -> Groups:
    """Bring items of the same images, in the same order, together; groups are in the order of their images."""
    images, together = source.images, source.num_images
    distinct = images.distinct if isinstance(images, ImageSubset) else np.arange(len(images))
    rows = distinct.reshape(-1, together)
    _, first, group, counts = np.unique(
        rows, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    places = (first[:, None] * together + np.arange(together)).ravel().astype(np.int64)
    return Groups(
        images=subset(images, places),
        places=places,
        items=np.argsort(group.ravel(), kind="stable").astype(np.int64),
        ends=np.cumsum(counts).astype(np.int64),
    )
