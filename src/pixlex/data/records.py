"""Records: images with captions, or with a question, statement or hypothesis and its answers; batches of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from pixlex.batch import ImageBatch, ImageTextBatch, ReasoningBatch
from pixlex.data.sources import ImageSource, ImageSubset, concatenate, remark_left_out, subset
from pixlex.data.text import clean_caption
from pixlex.messages import quoted
from pixlex.nn.bert import Words

Encode = Callable[[Sequence[str]], Words]
Found = tuple[ImageSource, Int64[np.ndarray, " names"]]

# Set the generators of an image's caption and of a group's order apart from that of an augmentation.
_CAPTION = _ITEMS = 1 << 62
_TEMPLATE = _CAPTION + 1
# What has a value for each record, or for none.
_COLUMNS = ("texts", "answers", "ids", "scales", "sentences", "kinds")


class NoCaptions(ValueError):
    """Images that have no captions."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record as a file lists it, with what `Records` has of each; texts are empty where unknown.

    Its images are called by paths or ids, or by their places in the table that is read; only Karpathy's files have
    splits; a record without an id gets the number of its row.
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
    """What an annotation file calls its data set, such as "coco"; the number of images of each of its splits."""

    dataset: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Records:
    """Images with texts: captions of each image, or a text about each image or pair and what people answered.

    Attributes:
        name: the description that opens them.
        images: those of the first record, then those of the second, and so on.
        texts: of each record: captions, or one question, statement or hypothesis.
        answers: of each record, as given, repeats included; empty where unknown. Captions have none.
        ids: the data set's own names, or none.
        scales: what the weights of a record's answers add up to in training; ALBEF counts a question of Visual
            Genome half. None for 1 everywhere.
        sentences: equal where records put the same sentence to other images, or none.
        kinds: of questions, such as "count", or none.
        ignored: what was left out: keys of images without a caption; items, a line each that says why.
        splits: of the whole annotation file, where it has some.
    """

    name: str
    images: ImageSource
    texts: tuple[tuple[str, ...], ...]
    num_images: int = 1
    answers: tuple[tuple[str, ...], ...] = ()
    ids: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    sentences: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    splits: AnnotatedSplits | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Every record has its images."""
        assert len(self.images) == self.num_images * len(self.texts), (self.name, len(self.images))

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def first_texts(self) -> tuple[str, ...]:
        """The first text of each record: the only one of an item."""
        return tuple(texts[0] for texts in self.texts)

    @cached_property
    def identity(self) -> str:
        """A fingerprint of images, texts and answers."""
        digest = hashlib.sha256(self.images.identity.encode())
        if self.answers:
            digest.update(repr((self.num_images, self.first_texts, self.answers, self.ids)).encode())
        else:
            for texts in self.texts:
                digest.update(repr(texts).encode())
        return digest.hexdigest()

    def key(self, row: int) -> str:
        """Return the name of a record's (first) image."""
        return self.images.key(row * self.num_images)

    def image_id(self, row: int) -> str:
        """Return the data set's own name of a record, or the key of its image."""
        return self.ids[row] if self.ids else self.key(row)

    def image_of(self, row: int) -> int:
        """Return the number of a row's image among the distinct images: rows of one image share it."""
        return int(self.images.distinct[row]) if isinstance(self.images, ImageSubset) else row

    def draw(self, row: int, epoch: int, seed: int, first_rate: float = 0.0, stretch: int = 0) -> str:
        """Return the caption of an image in an epoch, drawn from (seed, epoch, row).

        Args:
            epoch: counted from 0.
            first_rate: how often it is the first one, whole; else any of all.
            stretch: at most so many words in a row are taken of any other; 0 for all.
        """
        texts, random = self.texts[row], np.random.default_rng((seed, epoch, row, _CAPTION))
        if first_rate and random.random() < first_rate:
            return texts[0]
        text = texts[int(random.integers(len(texts)))]
        if not stretch:
            return text
        words = text.split()
        length = min(len(words), int(random.integers(1, stretch + 1)))
        start = int(random.integers(len(words) - length + 1))
        return " ".join(words[start : start + length])

    def targets(self, row: int) -> Mapping[str, float]:
        """Return the distinct answers of a record with their weights: how often each was given (ALBEF)."""
        given = self.answers[row]
        scale = self.scales[row] if self.scales else 1.0
        return {answer: scale * count / len(given) for answer, count in Counter(given).items()}

    def take(self, rows: Sequence[int] | Int64[np.ndarray, " rows"]) -> Records:
        """Return some records, in the order given."""
        wanted = np.asarray(rows, dtype=np.int64)
        changes: dict[str, Any] = {
            name: tuple(map(column.__getitem__, wanted.tolist()))
            for name in _COLUMNS
            if (column := getattr(self, name))
        }
        images = subset(self.images, _rows_of_groups(wanted, self.num_images))
        return replace(self, images=images, **changes)

    def by_caption(self) -> Records:
        """Return a row for each caption; rows of one image share `image_of`."""
        rows = np.repeat(np.arange(len(self)), [len(texts) for texts in self.texts])
        return replace(self.take(rows), texts=tuple((text,) for texts in self.texts for text in texts))

    def answered(self) -> Records:
        """Return the records that have an answer; raises `ValueError` where none has one."""
        rows = [row for row, given in enumerate(self.answers) if given]
        if not rows:
            raise ValueError(f"{self.name}: none of {len(self)} items has an answer to learn from")
        return self.take(rows)

    def captioned(self) -> Records:
        """Return the images that have a caption, the others named in `ignored`; `ValueError` if none has one."""
        if not any(self.texts):
            raise ValueError(
                f"{self.name}: none of {len(self)} images has a caption of one character or more, "
                f"the first is {self.key(0)}"
            )
        return self._with_text(self.key)

    def cleaned(self, max_words: int = 30, clean: Callable[[str, int], str] = clean_caption) -> Records:
        """Return the records with every text as `clean` writes it; those without a word left are `ignored`.

        Raises `ValueError` for max_words below 1, or if nothing is left of all texts.
        """
        texts = tuple(tuple(filter(None, (clean(one, max_words) for one in some))) for some in self.texts)
        cleaned = replace(self, texts=texts)
        if not any(texts):
            raise ValueError(
                f"{self.name}: expected a word in some text, nothing is left of all of them after cleaning, the "
                f"first {quoted(self.texts[0][0], 40)}"
            )
        if self.answers:
            return cleaned._with_text(
                lambda row: (
                    f"{self.ids[row]:.80}: nothing is left of the text {quoted(self.texts[row][0], 40)} "
                    "after cleaning"
                )
            )
        kept = cleaned._with_text(self.key)
        remark_left_out(
            self.name, kept.ignored[len(self.ignored) :], "images without a word in their captions"
        )
        return kept

    def _with_text(self, says: Callable[[int], str]) -> Records:
        """Return the records that have a text; of each other one `ignored` has what is said of it."""
        rows = [row for row, texts in enumerate(self.texts) if texts]
        ignored = tuple(says(row) for row, texts in enumerate(self.texts) if not texts)
        return replace(self.take(rows), ignored=self.ignored + ignored)


def join(name: str, parts: Sequence[Records]) -> Records:
    """Return records one after the other, each with as many images; columns that some parts lack are filled up."""

    def column(of: str, filled: Callable[[Records], Sequence[Any]]) -> tuple[Any, ...]:
        if not any(getattr(part, of) for part in parts):
            return ()
        return tuple(one for part in parts for one in getattr(part, of) or filled(part))

    return Records(
        name,
        concatenate(name, [part.images for part in parts]),
        column("texts", lambda part: part.texts),
        parts[0].num_images,
        column("answers", lambda part: part.answers),
        column("ids", lambda part: [part.key(row) for row in range(len(part))]),
        column("scales", lambda part: [1.0] * len(part)),
        column("sentences", lambda part: part.ids),  # one that is not known to recur stands alone
        column("kinds", lambda part: [""] * len(part)),
        tuple(one for part in parts for one in part.ignored),
    )


def items_of(
    name: str,
    records: Sequence[Record],
    find: Callable[[Sequence[str | int]], Found],
    ignored: Iterable[str] = (),
) -> Records:
    """Return records, each with as many images, as items; raises `ValueError` where none has all of its images.

    `find` returns images of some names, and their rows there; -1 for none: its item is left out.
    """
    num_images = len(records[0].images)
    images, rows = find([name for record in records for name in record.images])
    places = rows.reshape(-1, num_images)
    present: list[bool] = np.all(places >= 0, axis=1).tolist()
    missing = [
        f"{record.id:.80}: {images.name} has no image {record.images[int(np.argmin(place))]!s:.80}"
        for record, place, there in zip(records, places, present, strict=True)
        if not there
    ]
    if not any(present):
        raise ValueError(f"{name}: no item has its images; {missing[0]}")
    kept = [record for record, there in zip(records, present, strict=True) if there]
    has_scales, has_kinds = any(one.scale != 1 for one in records), any(one.kind for one in records)
    has_sentences = all(one.sentence for one in records)
    return Records(
        name,
        subset(images, places[present].ravel()),
        tuple(record.texts for record in kept),
        num_images,
        tuple(record.answers for record in kept),
        tuple(record.id for record in kept),
        tuple(record.scale for record in kept if has_scales),
        tuple(record.sentence for record in kept if has_sentences),
        tuple(record.kind for record in kept if has_kinds),
        (*ignored, *missing),
    )


class Pairs:
    """Images, each with one of its captions: drawn from (seed, epoch, index) in training, else the first.

    Texts become word ids in this process: workers need neither captions nor tokenizer. `first_rate` and `stretch`
    say how captions are drawn, see `Records.draw`; with the former images of one first caption are the same one.
    Of `templates` one is drawn for each caption and read around it; pairs are told apart by the caption alone.
    """

    num_images = texts_per_group = 1

    def __init__(
        self,
        source: Records,
        encode: Encode,
        first_rate: float = 0.0,
        stretch: int = 0,
        templates: Sequence[str] = (),
    ) -> None:
        self.source, self.images, self.encode = source, source.images, encode
        self._drawn, self._templates = (first_rate, stretch), templates
        self._names: dict[str, int] = {}
        if first_rate:
            for text in source.first_texts:
                self._names.setdefault(text, len(self._names))

    def training(self, batch: ImageBatch, seed: int) -> ImageTextBatch:
        """Add a caption of each image in its epoch."""
        assert batch.epochs is not None
        drawn = list(zip(batch.indices.tolist(), batch.epochs.tolist(), strict=True))
        texts = [self.source.draw(index, epoch, seed, *self._drawn) for index, epoch in drawn]
        if not self._templates:
            return self._with_texts(batch, texts)
        randoms = (np.random.default_rng((seed, epoch, index, _TEMPLATE)) for index, epoch in drawn)
        around = (self._templates[int(random.integers(len(self._templates)))] for random in randoms)
        phrases = [one.replace("{}", text) for one, text in zip(around, texts, strict=True)]
        return replace(self._with_texts(batch, phrases), texts=tuple(texts))

    def evaluation(self, batch: ImageBatch) -> ImageTextBatch:
        """Add the first caption of each image."""
        return self._with_texts(batch, [self.source.texts[index][0] for index in batch.indices.tolist()])

    def _with_texts(self, batch: ImageBatch, texts: Sequence[str]) -> ImageTextBatch:
        texts_of, image_of = self.source.texts, self.source.image_of
        named = self._names
        ids = torch.tensor(
            [named[texts_of[row][0]] if named else image_of(row) for row in batch.indices.tolist()]
        )
        return ImageTextBatch(**_fields(batch), **_encoded(texts, self.encode), image_ids=ids)


class Questions:
    """Questions (statements, hypotheses) about one image or several, with their answers.

    With several texts for an image training is a stream of images (of pairs, where items have two): an epoch shows
    each once, and each time it brings the next of its items. In evaluation images that several items of a batch
    speak of stand in it once.

    At most `texts_per_image` items, 1 or more, come with the same images; 1 draws items one by one.
    """

    def __init__(self, source: Records, encode: Encode, texts_per_image: int = 1) -> None:
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
        image_index = np.repeat(np.arange(len(taken)), [len(items) for items in taken])
        indices = torch.from_numpy(self.groups.places[batch.indices.numpy()])
        return self._with_items(replace(batch, indices=indices), np.concatenate(taken), image_index)

    def evaluation(self, batch: ImageBatch) -> ReasoningBatch:
        """Add the items of the images."""
        numbers = self._numbers(batch)
        if not isinstance(self.images, ImageSubset) or not batch.keys:
            return self._with_items(batch, numbers, None)
        groups = self.images.distinct[batch.indices.numpy()].reshape(-1, self.num_images)
        _, firsts, image_index = np.unique(groups, axis=0, return_index=True, return_inverse=True)
        rows = _rows_of_groups(firsts, self.num_images)
        tensors: dict[str, Any] = {
            name: value[torch.from_numpy(rows)]
            for name, value in _fields(batch).items()
            if isinstance(value, Tensor)
        }
        distinct = replace(batch, **tensors, keys=tuple(batch.keys[row] for row in rows))
        return self._with_items(distinct, numbers, image_index.ravel())

    def _numbers(self, batch: ImageBatch) -> np.ndarray:
        return batch.indices.numpy()[:: self.num_images] // self.num_images

    def _with_items(
        self, batch: ImageBatch, items: np.ndarray, image_index: np.ndarray | None
    ) -> ReasoningBatch:
        source, rows = self.source, items.tolist()
        return ReasoningBatch(
            **_fields(batch),
            **_encoded([source.texts[row][0] for row in rows], self.encode),
            items=torch.from_numpy(items),
            answers=tuple(source.answers[row] for row in rows),
            targets=tuple(map(source.targets, rows)),
            image_index=None if image_index is None else torch.from_numpy(image_index),
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

    The images of the groups follow each other, with the position of each in the source of the items; so do the
    positions of the items, those of a group up to its end.
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
        """
        first = int(self.ends[group - 1]) if group else 0
        items = self.items[first : int(self.ends[group])]
        if len(items) <= most:
            return items
        order = np.random.default_rng((seed, group, _ITEMS)).permutation(len(items))
        return items[order[(turn * most + np.arange(most)) % len(items)]]


def group_items(source: Records) -> Groups:
    """Bring items of the same images, in the same order, together; groups are in the order of their images."""
    images, together = source.images, source.num_images
    distinct = images.distinct if isinstance(images, ImageSubset) else np.arange(len(images))
    _, first, group, counts = np.unique(
        distinct.reshape(-1, together), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    places = _rows_of_groups(first, together)
    items = np.argsort(group.ravel(), kind="stable").astype(np.int64)
    return Groups(subset(images, places), places, items, np.cumsum(counts).astype(np.int64))


def _rows_of_groups(groups: Int64[np.ndarray, " groups"], together: int) -> Int64[np.ndarray, " images"]:
    """Return the rows of the images of some groups, so many of each."""
    return (groups[:, None] * together + np.arange(together)).ravel().astype(np.int64)
