"""Images with captions -> batches, in an order that is a function of the seed and the step alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from pixlex.batch import ImageBatch, ImageTextBatch, Words
from pixlex.config.data import DataConfig
from pixlex.data.decoding import ImageRecord
from pixlex.data.images import open_source
from pixlex.data.lists import list_rows
from pixlex.data.loader import evaluation_batches, training_batches
from pixlex.data.sources import ImageSource
from pixlex.data.tables import ParquetSource

# Sets the generator of an image's caption apart from that of its augmentation, (seed, epoch, index).
_CAPTION = 1 << 62
_COLUMNS = ("captions", "caption")

Encode = Callable[[Sequence[str]], Words]


@dataclass(frozen=True)
class PairSource:
    """A source of images each of which has one or more captions; is an `ImageSource` itself.

    Args:
        images: the images.
        captions: the texts of each image, in the order of the images.
    """

    images: ImageSource
    captions: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def name(self) -> str:
        """What to call the source."""
        return self.images.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index; empty without labels."""
        return self.images.class_names

    @cached_property
    def identity(self) -> str:
        """A fingerprint of the listing and of all captions."""
        digest = hashlib.sha256(self.images.identity.encode())
        for texts in self.captions:
            digest.update(repr(texts).encode())
        return digest.hexdigest()

    def key(self, index: int) -> str:
        """Return the stable name of an image."""
        return self.images.key(index)

    def read(self, index: int) -> ImageRecord:
        """Return a stored image; raises `UnreadableImage` if it cannot be fetched."""
        return self.images.read(index)

    def draw(self, index: int, epoch: int, seed: int) -> str:
        """Return the caption of an image in an epoch, drawn from (seed, epoch, index)."""
        texts = self.captions[index]
        return texts[int(np.random.default_rng((seed, epoch, index, _CAPTION)).integers(len(texts)))]


def open_pairs(description: str) -> PairSource:
    """Open a source of images with captions.

    Args:
        description: one or more .parquet files (see `open_source`) with a column of image bytes, or a .csv or
            .jsonl list with `path`; besides, `captions`, a list of texts, or `caption`, one text.

    Raises:
        ValueError: a source of another kind, without such a column, or with an image that has no caption.
    """
    images = open_source(description)
    path = Path(description.strip()).expanduser()
    if isinstance(images, ParquetSource):
        values = images.column(_COLUMNS)
    elif path.suffix.lower() in (".csv", ".jsonl"):
        rows = [row for _, row in list_rows(path)]
        column = next((name for name in _COLUMNS if name in rows[0]), None)
        if column is None:
            raise ValueError(f"{path}: expected {' or '.join(_COLUMNS)}, found {', '.join(rows[0])}")
        values = [row.get(column) for row in rows]
    else:
        raise ValueError(
            f"{images.name} has no captions: expected .parquet with image bytes, or .csv or .jsonl with a path, "
            "and a column `captions` or `caption`"
        )
    return PairSource(images, tuple(_texts(value, images.key(row)) for row, value in enumerate(values)))


def _texts(value: object, key: str) -> tuple[str, ...]:
    """Return the captions in a cell: a text, or a list of texts."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key}: expected a caption or a list of captions, got {value!r:.80}")
    kept = tuple(text.strip() for text in texts if text.strip())
    if not kept:
        raise ValueError(f"{key}: expected a caption of one character or more, got {value!r:.80}")
    return kept


def training_pairs(
    source: PairSource,
    *,
    encode: Encode,
    config: DataConfig,
    image_size: int,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[ImageTextBatch]:
    """Return this process's share of an endless stream of training batches, starting at a step.

    Images come as `training_batches` gives them; each has one of its captions, drawn from (seed, epoch, index).
    Texts are encoded in this process, for which workers need no tokenizer.

    Args:
        source: images and captions.
        encode: texts to padded word ids.
        config: how images are cut, and by how many worker processes.
        image_size: side of the images, in pixels.
        batch_size: images in a batch over all processes.
        seed: 0 or more.
        first_step: the first step to return, 0 or more.
        rank: number of this process, in [0, world_size).
        world_size: number of processes.

    Raises:
        ValueError: as `training_batches`.
        TooManyBroken: as `training_batches`.
    """
    batches = training_batches(
        source,
        config=config,
        image_size=image_size,
        batch_size=batch_size,
        seed=seed,
        first_step=first_step,
        rank=rank,
        world_size=world_size,
    )
    num_rows = batch_size // world_size
    for step, batch in enumerate(batches, first_step):
        first = step * batch_size + rank * num_rows
        # Training batches are always full: row and position in the order of all epochs belong together.
        epochs = ((first + row) // len(source) for row in range(num_rows))
        yield _paired(
            batch,
            [
                source.draw(index, epoch, seed)
                for index, epoch in zip(batch.indices.tolist(), epochs, strict=True)
            ],
            encode,
        )


def evaluation_pairs(
    source: PairSource,
    *,
    encode: Encode,
    image_size: int,
    batch_size: int,
    limit: int | None = None,
    workers: int = 0,
) -> Iterator[ImageTextBatch]:
    """Return one pass over the images, each with its first caption; the rest as `evaluation_batches`."""
    batches = evaluation_batches(
        source, image_size=image_size, batch_size=batch_size, limit=limit, workers=workers
    )
    for batch in batches:
        yield _paired(batch, [source.captions[index][0] for index in batch.indices.tolist()], encode)


def _paired(batch: ImageBatch, texts: Sequence[str], encode: Encode) -> ImageTextBatch:
    words = encode(texts)
    parts = {field.name: getattr(batch, field.name) for field in fields(ImageBatch)}
    return ImageTextBatch(**parts, texts=tuple(texts), word_ids=words.word_ids, key_padding=words.key_padding)
