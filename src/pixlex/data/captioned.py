"""What images with captions are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from pixlex.data.decoding import ImageRecord
from pixlex.data.sources import ImageSource, ImageSubset, remark_left_out, subset
from pixlex.data.text import clean_caption
from pixlex.messages import quoted

# Sets the generator of an image's caption apart from that of its augmentation, (seed, epoch, index).
_CAPTION = 1 << 62


class NoCaptions(ValueError):
    """Images that have no captions."""


@dataclass(frozen=True)
class AnnotatedSplits:
    """How an annotation file divides its images.

    Attributes:
        dataset: what the file calls the data set, such as "coco".
        sizes: name of a split -> number of its images, with captions or without.
    """

    dataset: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class PairSource:
    """A source of images each of which has one or more captions; is an `ImageSource` itself.

    Args:
        images: the images.
        captions: the texts of each image, in the order of the images.
        ids: the data set's own name of each image; empty where it has none.
        ignored: keys of images that are left out because they have no caption.
        splits: the splits of the whole annotation file, where it has some.
    """

    images: ImageSource
    captions: tuple[tuple[str, ...], ...]
    ids: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    splits: AnnotatedSplits | None = field(default=None, compare=False)

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

    def image_of(self, index: int) -> int:
        """Return the number of a row's image among the distinct images: rows of one image share it."""
        return int(self.images.distinct[index]) if isinstance(self.images, ImageSubset) else index

    def image_id(self, index: int) -> str:
        """Return the data set's own name of an image, or its key."""
        return self.ids[index] if self.ids else self.key(index)

    def draw(self, index: int, epoch: int, seed: int) -> str:
        """Return the caption of an image in an epoch, drawn from (seed, epoch, index)."""
        texts = self.captions[index]
        return texts[int(np.random.default_rng((seed, epoch, index, _CAPTION)).integers(len(texts)))]

    def cleaned(self, max_words: int = 30) -> PairSource:
        """Return the source with every caption as `clean_caption` writes it; empty ones are dropped.

        Images that have none left are left out, and named in `ignored`.

        Args:
            max_words: most words kept of a caption, 1 or more.

        Raises:
            ValueError: if max_words is below 1, or no image has a word left.
        """
        captions = [
            tuple(filter(None, (clean_caption(text, max_words) for text in texts))) for texts in self.captions
        ]
        if not any(captions):
            raise ValueError(
                f"{self.name}: expected a word in a caption of some image, nothing is left of all of them after "
                f"cleaning, the first {quoted(self.captions[0][0], 40)}"
            )
        kept = pair(self.images, captions, ids=self.ids, splits=self.splits)
        remark_left_out(self.name, kept.ignored, "images without a word in their captions")
        return replace(kept, ignored=self.ignored + kept.ignored)

    def by_caption(self) -> PairSource:
        """Return a row for each caption; rows of one image share `image_of`."""
        counts = [len(texts) for texts in self.captions]
        rows = np.repeat(np.arange(len(self)), counts)
        captions = tuple((text,) for texts in self.captions for text in texts)
        return replace(
            self, images=subset(self.images, rows), captions=captions, ids=_taken(self.ids, rows.tolist())
        )


def pair(
    images: ImageSource,
    captions: Sequence[tuple[str, ...]],
    *,
    ids: Sequence[str] = (),
    splits: AnnotatedSplits | None = None,
) -> PairSource:
    """Put images and captions together, leaving out images without any.

    Args:
        images: the images.
        captions: the texts of each, in the order of the images; may be empty.
        ids: the data set's own name of each image.
        splits: the splits of the annotation file.

    Raises:
        ValueError: if no image has a caption.
    """
    rows = [row for row, texts in enumerate(captions) if texts]
    if not rows:
        raise ValueError(
            f"{images.name}: none of {len(images)} images has a caption of one character or more, "
            f"the first is {images.key(0)}"
        )
    kept = set(rows) if len(rows) < len(captions) else None
    ignored = (
        () if kept is None else tuple(images.key(row) for row in range(len(captions)) if row not in kept)
    )
    return PairSource(
        subset(images, rows), tuple(captions[row] for row in rows), _taken(ids, rows), ignored, splits
    )


def _taken(values: Sequence[str], rows: Sequence[int]) -> tuple[str, ...]:
    return tuple(values[row] for row in rows) if values else ()
