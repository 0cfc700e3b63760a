"""Images with questions, statements or hypotheses, and their answers: what reasoning is learned from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np

from pixlex.config.reasoning import ReasoningTask
from pixlex.data.scenes.entailment import LABELS
from pixlex.data.sources import ImageSource, subset

Task = ReasoningTask
# Those whose items lie in files; those of text assignment are made of captions.
ListedTask = Literal["vqa", "nlvr2", "entailment"]
One = TypeVar("One")

# The classes of the tasks that have some.
CLASSES: Mapping[Task, tuple[str, ...]] = {
    "nlvr2": ("false", "true"),
    "entailment": LABELS,
    "assignment": ("first", "second", "neither"),
}


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
        if not self.texts:
            raise ValueError(f"{self.name} has no items")
        if len(self.images) != self.num_images * len(self.texts):
            raise ValueError(
                f"{self.name}: expected {self.num_images} images for each of {len(self.texts)} items, got "
                f"{len(self.images)}"
            )
        for what, values in (("answers", self.answers), ("ids", self.ids)):
            if len(values) != len(self.texts):
                raise ValueError(
                    f"{self.name}: expected {what} for each of {len(self.texts)} items, got {len(values)}"
                )

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
        places = np.array(items, dtype=np.int64)[:, None] * self.num_images + np.arange(self.num_images)
        return replace(
            self,
            images=subset(self.images, places.ravel()),
            texts=_taken(self.texts, items),
            answers=_taken(self.answers, items),
            ids=_taken(self.ids, items),
            scales=_taken(self.scales, items),
            sentences=_taken(self.sentences, items),
            kinds=_taken(self.kinds, items),
        )


def _taken(values: tuple[One, ...], items: Sequence[int]) -> tuple[One, ...]:
    return tuple(values[item] for item in items) if values else ()
