"""Records: images with captions (pairs), or with a question, statement or hypothesis and its answers (items)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Int64

from pixlex.config.cbvila import ReasoningTask
from pixlex.data.decoding import ImageRecord
from pixlex.data.sources import ImageSource, ImageSubset, concatenate, remark_left_out, subset
from pixlex.data.text import clean_caption, clean_question
from pixlex.messages import quoted

Task = ReasoningTask
# Those whose items lie in files; those of text assignment are made of captions.
ListedTask = Literal["vqa", "nlvr2", "entailment"]

# The classes of the tasks that have some.
CLASSES: Mapping[Task, tuple[str, ...]] = {
    "nlvr2": ("false", "true"),
    "entailment": ("entailment", "neutral", "contradiction"),
    "assignment": ("first", "second", "neither"),
}

# Sets the generator of an image's caption apart from that of its augmentation, (seed, epoch, index).
_CAPTION = 1 << 62
# A set that is taken more often than this was given a weight by mistake.
_MAX_REPEATS = 1000
_SUBSET_SEED = 2208
# What pairs and items have a value of for each record, or for none.
_COLUMNS = ("captions", "texts", "answers", "ids", "scales", "sentences", "kinds")


class NoCaptions(ValueError):
    """Images that have no captions."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record as a file lists it.

    Attributes:
        images: what its images are called: paths or ids, or places in the table that is read.
        texts: captions; or a question, statement or hypothesis.
        answers: as given, repeats included; empty where unknown.
        id: the data set's own name; empty for the number of the row.
        split: of Karpathy's files.
        scale: what the weights of its answers add up to in training.
        sentence: equal where items put the same sentence to other images; empty where unknown.
        kind: kind of a question; empty where unknown.
    """

    images: tuple[str | int, ...]
    texts: tuple[str, ...]
    answers: tuple[str, ...] = ()
    id: str = ""
    split: str = ""
    scale: float = 1.0
    sentence: str = ""
    kind: str = ""


@dataclass(frozen=True)
class AnnotatedSplits:
    """How an annotation file divides its images.

    Attributes:
        dataset: what the file calls the data set, such as "coco".
        sizes: name of a split -> number of its images, with captions or without.
    """

    dataset: str
    sizes: Mapping[str, int]


Records = TypeVar("Records", "PairSource", "ReasoningSource")


def take(records: Records, rows: Sequence[int] | Int64[np.ndarray, " rows"], num_images: int = 1) -> Records:
    """Return some records, of so many images each, in the order given."""
    wanted = np.asarray(rows, dtype=np.int64)
    places = (wanted[:, None] * num_images + np.arange(num_images)).ravel()
    columns = {name: getattr(records, name, ()) for name in _COLUMNS}
    changes: dict[str, Any] = {
        name: tuple(column[row] for row in wanted.tolist()) for name, column in columns.items() if column
    }
    return replace(records, images=subset(records.images, places), **changes)


@dataclass(frozen=True)
class PairSource:
    """Images each of which has one or more captions; is an `ImageSource` itself.

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
        cleaned = ((clean_caption(text, max_words) for text in texts) for texts in self.captions)
        captions = tuple(tuple(filter(None, texts)) for texts in cleaned)
        if not any(captions):
            raise _nothing_left(self.name, "a caption of some image", self.captions[0][0])
        kept = with_captions(replace(self, captions=captions, ignored=()))
        remark_left_out(self.name, kept.ignored, "images without a word in their captions")
        return replace(kept, ignored=self.ignored + kept.ignored)

    def by_caption(self) -> PairSource:
        """Return a row for each caption; rows of one image share `image_of`."""
        rows = np.repeat(np.arange(len(self)), [len(texts) for texts in self.captions])
        captions = tuple((text,) for texts in self.captions for text in texts)
        return replace(take(self, rows), captions=captions)


def with_captions(pairs: PairSource) -> PairSource:
    """Return the images that have a caption; the others are named in `ignored`.

    Raises:
        ValueError: if no image has a caption.
    """
    rows = [row for row, texts in enumerate(pairs.captions) if texts]
    if not rows:
        raise ValueError(
            f"{pairs.name}: none of {len(pairs)} images has a caption of one character or more, "
            f"the first is {pairs.key(0)}"
        )
    ignored = (pairs.key(row) for row, texts in enumerate(pairs.captions) if not texts)
    return replace(take(pairs, rows), ignored=pairs.ignored + tuple(ignored))


def mix(name: str, sources: Sequence[PairSource], weights: Sequence[float]) -> PairSource:
    """Return the rows of all sets, each set as often as its weight says.

    Weights are divided by the smallest: a set of weight 1 comes once, one of weight 2.5 twice and then half
    of it, which half is drawn once and for all. Rows of a repeated image share `image_of`.

    Args:
        name: what to call the mixture.
        sources: the sets; images of different sets count as different.
        weights: above 0; only their proportions matter.

    Raises:
        ValueError: if a set would come more than 1000 times.
    """
    if len(sources) == 1:
        return sources[0]
    smallest = min(weights)
    if max(weights) > _MAX_REPEATS * smallest:
        raise ValueError(
            f"the weights of sets may differ by a factor of {_MAX_REPEATS}, got {smallest:g} and {max(weights):g}"
        )
    has_ids = any(source.ids for source in sources)
    parts = []
    for number, (source, weight) in enumerate(zip(sources, weights, strict=True)):
        size, repeats = len(source), int(weight / smallest)
        rest = round((weight / smallest - repeats) * size)
        some = np.random.default_rng((_SUBSET_SEED, number)).choice(size, rest, replace=False)
        ids = tuple(map(source.image_id, range(size))) if has_ids else ()
        rows = np.concatenate([np.tile(np.arange(size), repeats), np.sort(some)])
        parts.append(take(replace(source, ids=ids), rows))
    return PairSource(
        concatenate(name, [part.images for part in parts]),
        tuple(texts for part in parts for texts in part.captions),
        tuple(one for part in parts for one in part.ids),
        tuple(key for source in sources for key in source.ignored),
    )


@dataclass(frozen=True)
class ReasoningSource:
    """Items: one image or several, a text about them, and the answers that people gave.

    Args:
        name: the description that opens the source.
        images: those of the first item, then those of the second, and so on.
        num_images: images of each item.
        texts: questions, statements or hypotheses, one for each item.
        answers: of each item, as given, repeats included; empty where unknown.
        ids: the data set's own name of each item.
        scales: what the weights of an item's answers add up to in training; ALBEF counts a question of Visual
            Genome half.
        sentences: equal where items put the same sentence to other images, for consistency; empty where unknown.
        kinds: kind of each item, such as "count"; empty where unknown.
        ignored: what was left out, and why, a line each.

    Raises:
        ValueError: the parts do not belong together, or there are no items.
    """

    name: str
    images: ImageSource
    num_images: int
    texts: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    ids: tuple[str, ...]
    scales: tuple[float, ...] = ()
    sentences: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise `ValueError` naming what does not fit."""
        count = len(self.texts)
        if not count:
            raise ValueError(f"{self.name} has no items")
        images = (f"{self.num_images} images", len(self.images), self.num_images)
        for what, number, each in (images, ("answers", len(self.answers), 1), ("ids", len(self.ids), 1)):
            if number != each * count:
                raise ValueError(f"{self.name}: expected {what} for each of {count} items, got {number}")

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def identity(self) -> str:
        """A fingerprint of images, texts and answers."""
        digest = hashlib.sha256(self.images.identity.encode())
        digest.update(repr((self.num_images, self.texts, self.answers, self.ids)).encode())
        return digest.hexdigest()

    def targets(self, item: int) -> Mapping[str, float]:
        """Return the distinct answers of an item with their weights: how often each was given (ALBEF)."""
        given = self.answers[item]
        scale = self.scales[item] if self.scales else 1.0
        return {answer: scale * count / len(given) for answer, count in Counter(given).items()}

    def answered(self) -> ReasoningSource:
        """Return the items that have an answer.

        Raises:
            ValueError: none has one.
        """
        rows = [item for item, given in enumerate(self.answers) if given]
        if not rows:
            raise ValueError(f"{self.name}: none of {len(self)} items has an answer to learn from")
        return self if len(rows) == len(self) else self.take(rows)

    def take(self, items: Sequence[int]) -> ReasoningSource:
        """Return some items, in the order given."""
        return take(self, items, self.num_images)

    def cleaned(self, task: Task, max_words: int = 30) -> ReasoningSource:
        """Return the items with their texts as ALBEF cleans them; those with no word left are left out.

        Raises:
            ValueError: max_words is below 1, or nothing is left of all texts.
        """
        clean = clean_question if task == "vqa" else clean_caption
        texts = tuple(clean(text, max_words) for text in self.texts)
        kept = [item for item, text in enumerate(texts) if text]
        if not kept:
            raise _nothing_left(self.name, "some text", self.texts[0])
        left_out = tuple(
            f"{self.ids[item]:.80}: nothing is left of the text {quoted(self.texts[item], 40)} after cleaning"
            for item, text in enumerate(texts)
            if not text
        )
        whole = replace(self, texts=texts, ignored=self.ignored + left_out)
        return whole.take(kept) if left_out else whole


def _nothing_left(name: str, where: str, first: str) -> ValueError:
    return ValueError(
        f"{name}: expected a word in {where}, nothing is left of all of them after cleaning, the first "
        f"{quoted(first, 40)}"
    )


def items_of(
    name: str,
    records: Sequence[Record],
    images: ImageSource,
    rows: Int64[np.ndarray, " names"],
    ignored: Iterable[str] = (),
) -> ReasoningSource:
    """Return records as items with their images.

    Args:
        name: the description that opens the source.
        records: one or more, each with as many images.
        images: the distinct images.
        rows: which of them each image of each record is; -1 where there is none: its item is left out.
        ignored: what was left out already, and why.

    Raises:
        ValueError: no item has all of its images.
    """
    num_images = len(records[0].images)
    places = rows.reshape(-1, num_images)
    present = np.asarray((places >= 0).all(axis=1))
    missing = [
        f"{records[item].id:.80}: {images.name} has no image "
        f"{records[item].images[int(np.argmin(places[item]))]!s:.80}"
        for item in np.flatnonzero(~present).tolist()
    ]
    if not present.any():
        raise ValueError(f"{name}: no item has its images; {missing[0]}")
    scales, sentences, kinds = (
        [getattr(record, what) for record in records] for what in ("scale", "sentence", "kind")
    )
    kept = [record for record, there in zip(records, present.tolist(), strict=True) if there]
    return ReasoningSource(
        name=name,
        images=subset(images, places[present].ravel()),
        num_images=num_images,
        texts=tuple(record.texts[0] for record in kept),
        answers=tuple(record.answers for record in kept),
        ids=tuple(record.id for record in kept),
        scales=tuple(record.scale for record in kept) if set(scales) != {1.0} else (),
        sentences=tuple(record.sentence for record in kept) if all(sentences) else (),
        kinds=tuple(record.kind for record in kept) if any(kinds) else (),
        ignored=(*ignored, *missing),
    )


def join_items(name: str, sources: Sequence[ReasoningSource]) -> ReasoningSource:
    """Return items one after the other; ids are numbered by source if one occurs in two of them.

    Raises:
        ValueError: they do not agree in images per item.
    """
    first = sources[0]
    if len(sources) == 1:
        return first
    for other in sources:
        if other.num_images != first.num_images:
            raise ValueError(
                f"items that are joined must have as many images each: {first.name} has "
                f"{first.num_images}, {other.name} has {other.num_images}"
            )
    ids = [name for source in sources for name in source.ids]
    if len(set(ids)) < len(ids):
        ids = [f"{number}:{name}" for number, source in enumerate(sources, 1) for name in source.ids]
    scaled, said, kinds = (
        any(getattr(one, what) for one in sources) for what in ("scales", "sentences", "kinds")
    )
    return ReasoningSource(
        name=name,
        images=concatenate(name, [source.images for source in sources]),
        num_images=first.num_images,
        texts=tuple(text for source in sources for text in source.texts),
        answers=tuple(given for source in sources for given in source.answers),
        ids=tuple(ids),
        scales=tuple(one for each in sources for one in each.scales or (1.0,) * len(each)) if scaled else (),
        # A sentence that is not known to recur stands alone.
        sentences=tuple(one for each in sources for one in each.sentences or each.ids) if said else (),
        kinds=tuple(one for each in sources for one in each.kinds or ("",) * len(each)) if kinds else (),
        ignored=tuple(one for source in sources for one in source.ignored),
    )
