"""What the captions of a source are like: their part of `pixlex doctor`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pixlex.data.captioned import PairSource
from pixlex.data.doctor import Spread, spread

# Images of each split of Karpathy and Fei-Fei 2015, "Deep Visual-Semantic Alignments".
EXPECTED_SPLITS: Mapping[str, Mapping[str, int]] = {
    "coco": {"train": 82_783, "restval": 30_504, "val": 5_000, "test": 5_000},
    "flickr30k": {"train": 29_000, "val": 1_014, "test": 1_000},
    "flickr8k": {"train": 6_000, "val": 1_000, "test": 1_000},
}
_TITLES = {"coco": "COCO", "flickr30k": "Flickr30k", "flickr8k": "Flickr8k"}
_MOST_REPEATED = 10


@dataclass(frozen=True)
class CaptionReport:
    """What the captions of a source are like.

    Attributes:
        num_captions: captions of all images.
        captions_per_image: how many an image has.
        words_per_caption: words of a caption, between blanks.
        num_duplicates: captions whose text, but for case and blanks, is that of an earlier one.
        most_repeated: the texts that occur most often, at most ten -> how often.
        without_captions: keys of images that have none and are left out.
        splits: images in each split of the annotation file; empty without splits.
        expected_splits: images that the split should have; empty where that is not known.
        remarks: a sentence for each split that has other images than expected.
    """

    num_captions: int
    captions_per_image: Spread
    words_per_caption: Spread
    num_duplicates: int
    most_repeated: dict[str, int]
    without_captions: tuple[str, ...]
    splits: dict[str, int]
    expected_splits: dict[str, int]
    remarks: tuple[str, ...]


def inspect_captions(source: PairSource) -> CaptionReport:
    """Count the captions of a source; rows that repeat an image with the same captions count once."""
    rows_of: dict[int, dict[tuple[str, ...], None]] = {}
    for row, texts in enumerate(source.captions):
        rows_of.setdefault(source.image_of(row), {})[texts] = None
    captions = [text for rows in rows_of.values() for texts in rows for text in texts]
    words = spread([len(text.split()) for text in captions])
    per_image = spread([sum(map(len, rows)) for rows in rows_of.values()])
    assert words is not None  # a source of pairs has captions
    assert per_image is not None
    counts = Counter(" ".join(text.lower().split()) for text in captions)
    sizes = {} if source.splits is None else dict(source.splits.sizes)
    dataset = "" if source.splits is None else source.splits.dataset
    expected = dict(EXPECTED_SPLITS.get(dataset, {}))
    return CaptionReport(
        num_captions=len(captions),
        captions_per_image=per_image,
        words_per_caption=words,
        num_duplicates=len(captions) - len(counts),
        most_repeated={text: count for text, count in counts.most_common(_MOST_REPEATED) if count > 1},
        without_captions=source.ignored,
        splits=sizes,
        expected_splits=expected,
        remarks=tuple(_remarks(dataset, sizes, expected)),
    )


def _remarks(dataset: str, sizes: dict[str, int], expected: dict[str, int]) -> Iterator[str]:
    """Say of each split in how far it is not the expected one."""
    for split in [*expected, *sorted(sizes.keys() - expected.keys())] if expected else ():
        found, wanted = sizes.get(split, 0), expected.get(split, 0)
        if found != wanted:
            yield (
                f"Karpathy's split of {_TITLES[dataset]} has {wanted:,} images in {split}, this file {found:,}."
            )
