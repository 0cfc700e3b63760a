"""Which of two images a caption belongs to: items made of images with captions (text assignment)."""

from __future__ import annotations

import numpy as np

from pixlex.data.captioned import PairSource
from pixlex.data.reasoning import CLASSES, ReasoningSource
from pixlex.data.sources import subset
from pixlex.messages import quoted

# Sets the generator of an item's partners apart from others that are seeded with a number.
_PARTNERS = 1 << 61
# How often a partner is drawn before one is given up that does not have the caption itself.
_MOST_DRAWS = 100


def assignment_items(pairs: PairSource) -> ReasoningSource:
    """Return an item for each caption: two images, to the first of which it belongs, the second, or neither.

    The three are equally likely. Partners are drawn at random from all images but those that have the same
    caption; ALBEF draws them by similarity in a batch (Li et al. 2021, section 4.2, NLVR2). The draws hang on the
    number of the caption alone, so an item is the same in every epoch and process.

    Args:
        pairs: three distinct images or more.

    Raises:
        ValueError: fewer images, or a caption that all of them share.
    """
    if len({pairs.image_of(row) for row in range(len(pairs))}) < 3:
        raise ValueError(f"{pairs.name}: expected three images or more to assign texts to, got fewer")
    classes = CLASSES["assignment"]
    images: list[int] = []
    texts: list[str] = []
    answers: list[tuple[str]] = []
    ids: list[str] = []
    for row, captions in enumerate(pairs.captions):
        for place, text in enumerate(captions):
            generator = np.random.default_rng((len(texts), _PARTNERS))
            label = int(generator.integers(len(classes)))
            one = _partner(pairs, text, [row], generator)
            other = _partner(pairs, text, [row, one], generator)
            images += ([row, one], [one, row], [one, other])[label]
            texts.append(text)
            answers.append((classes[label],))
            ids.append(f"{pairs.image_id(row)}#{place}")
    return ReasoningSource(
        name=pairs.name,
        images=subset(pairs.images, images),
        num_images=2,
        texts=tuple(texts),
        answers=tuple(answers),
        ids=tuple(ids),
        ignored=pairs.ignored,
    )


def _partner(pairs: PairSource, text: str, taken: list[int], generator: np.random.Generator) -> int:
    """Return the row of an image that is none of those taken and has another caption."""
    seen = {pairs.image_of(row) for row in taken}
    for _ in range(_MOST_DRAWS):
        row = int(generator.integers(len(pairs)))
        if pairs.image_of(row) not in seen and text not in pairs.captions[row]:
            return row
    raise ValueError(
        f"{pairs.name}: nearly every image has the caption {quoted(text, 60)}: it can be assigned to none"
    )
