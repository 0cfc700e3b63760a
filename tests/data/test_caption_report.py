"""What doctor says of captions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pixlex.cli.data_reports import caption_text
from pixlex.data.captioned import AnnotatedSplits
from pixlex.data.convert import EXPECTED_SPLITS, Spread, inspect_captions
from pixlex.data.pairs import open_pairs


def test_captions_are_counted(tmp_path: Path) -> None:
    rows = [
        {"image": "a.png", "caption": ["a dog", "A  Dog", "one two three"]},
        {"image": "b.png", "caption": "a dog"},
        {"image": "c.png", "caption": "x"},
        {"image": "d.png", "caption": ""},
    ]
    (tmp_path / "set.json").write_text(json.dumps(rows))
    report = inspect_captions(open_pairs(str(tmp_path / "set.json")))
    assert report.num_captions == 5
    assert report.captions_per_image == Spread(1, 1, 3)
    assert report.words_per_caption == Spread(1, 2, 3)
    assert (report.num_duplicates, report.most_repeated) == (2, {"a dog": 3})
    assert report.without_captions == ("d.png",)
    assert (report.splits, report.expected_splits, report.remarks) == ({}, {}, ())
    text = caption_text(report)
    assert "per image   1 to 3, middle 1" in text
    assert "duplicates  2 (40.0%)" in text
    assert "images without a caption (1)\n  d.png" in text
    json.dumps(dataclasses.asdict(report))
    for same in ("?rows=captions", " + 1 * {}"):
        description = f"{tmp_path / 'set.json'}{same}".format(tmp_path / "set.json")
        other = inspect_captions(open_pairs(description))
        assert other.captions_per_image == report.captions_per_image
    repeated = f"2 * {tmp_path / 'set.json'} + {tmp_path / 'set.json'}"
    assert inspect_captions(open_pairs(repeated)).num_captions == 10


@pytest.mark.parametrize("dataset", ["coco", "flickr30k", "flickr8k"])
def test_official_splits(tmp_path: Path, dataset: str) -> None:
    """Complete files are as expected; one image less, and a foreign split, are said."""
    path = tmp_path / "dataset.json"
    images = [{"filename": "a.jpg", "split": "test", "sentences": [{"raw": "a"}]}]
    path.write_text(json.dumps({"dataset": dataset, "images": images}))
    source = open_pairs(f"{path}?split=test")
    assert source.splits == AnnotatedSplits(dataset, {"test": 1})
    complete = AnnotatedSplits(dataset, EXPECTED_SPLITS[dataset])
    report = inspect_captions(dataclasses.replace(source, splits=complete))
    assert report.splits == report.expected_splits == EXPECTED_SPLITS[dataset]
    assert report.remarks == ()
    assert "images, as expected" in caption_text(report)
    size = EXPECTED_SPLITS[dataset]["test"]
    other = AnnotatedSplits(dataset, {**EXPECTED_SPLITS[dataset], "test": size - 1, "extra": 1})
    report = inspect_captions(dataclasses.replace(source, splits=other))
    title = {"coco": "COCO", "flickr30k": "Flickr30k", "flickr8k": "Flickr8k"}[dataset]
    assert report.remarks == (
        f"Karpathy's split of {title} has {size:,} images in test, this file {size - 1:,}.",
        f"Karpathy's split of {title} has 0 images in extra, this file 1.",
    )
    assert f"{size - 1:,} images, {size:,} expected" in caption_text(report)


def test_the_expected_counts() -> None:
    """Of the usual sentence: 113,287 images of COCO train, 5,000 validate, 5,000 test."""
    coco = EXPECTED_SPLITS["coco"]
    assert coco["train"] + coco["restval"] == 113_287
    assert sum(coco.values()) == 123_287
    assert sum(EXPECTED_SPLITS["flickr30k"].values()) == 31_014
    assert sum(EXPECTED_SPLITS["flickr8k"].values()) == 8_000


def test_another_data_set_has_no_expectation(tmp_path: Path) -> None:
    images = [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "a"}]}]
    (tmp_path / "own.json").write_text(json.dumps({"dataset": "own", "images": images}))
    report = inspect_captions(open_pairs(str(tmp_path / "own.json"), every_split=True))
    assert (report.splits, report.expected_splits, report.remarks) == ({"train": 1}, {}, ())
    assert "split train  1 images" in caption_text(report)
