"""The two sets that need no download: fixed, disjoint, in range."""

from __future__ import annotations

import pickle
import sys
from collections import Counter

import numpy as np
import pytest

from pixlex.data import images
from pixlex.data.images import PHOTOGRAPHS, open_source, photograph

pytest.importorskip("skimage")
pytest.importorskip("sklearn")


def test_the_splits_of_the_photographs_share_no_pixel_of_the_files() -> None:
    seen = {name: np.zeros((2, *photograph(name).shape[:2]), bool) for name in PHOTOGRAPHS}
    for number, split in enumerate(("train", "test")):
        source = open_source(f"embedded:photographs:{split}")
        for index in range(len(source)):
            place = source.region(index)
            rows, columns = (slice(first, first + place.side) for first in (place.top, place.left))
            assert min(place.left, place.top) >= 0
            assert 96 <= place.side <= 160
            seen[place.name][number, rows, columns] = True
            if index % 41 == 0:  # the crop that is read is the place that is named
                record = source.read(index)
                assert np.array_equal(record.data, photograph(place.name)[rows, columns])
                assert source.class_names[record.label] == place.name
    for name, (train, test) in seen.items():
        assert not (train & test).any(), name
        # Nearly all of each region is used, so neither split is a corner of its photograph.
        assert (train.mean() > 0.7, test.mean() > 0.2) == (True, True), name


@pytest.mark.parametrize(("split", "count"), [("train", 4000), ("test", 320)])
def test_classes_are_balanced_and_crops_differ(split: str, count: int) -> None:
    source = open_source(f"embedded:photographs:{split}")
    assert len({source.key(index) for index in range(count)}) == len(source) == count
    assert len({source.region(index) for index in range(count)}) == count
    assert set(Counter(source.read(index).label for index in range(80)).values()) == {10}
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.identity, copy.read(5).data.tolist()) == (source.identity, source.read(5).data.tolist())


def test_the_crops_are_those_of_every_version() -> None:
    # Written down once: a change would make published numbers on this set incomparable.
    places = [open_source("embedded:photographs:train").region(index) for index in (0, 1, 3999)]
    found = [(place.name, place.left, place.top, place.side) for place in places]
    assert found == [("astronaut", 91, 70, 99), ("cat", 76, 34, 99), ("tissue", 23, 8, 118)]


def test_digits() -> None:
    from sklearn.datasets import load_digits

    stored = load_digits()
    train, test = open_source("embedded:digits:train"), open_source("embedded:digits:test")
    assert (len(train), len(test)) == (1437, 360)
    records = [source.read(index) for source in (train, test) for index in range(len(source))]
    assert len({record.key for record in records}) == 1797
    # No image occurs twice in the set, so the splits are disjoint in pixels.
    assert len({record.data.tobytes() for record in records}) == 1797
    assert [record.label for record in records] == stored.target.tolist()
    for record, image in zip(records, stored.images, strict=True):
        assert np.abs(record.data - image[..., None] * 255 / 16).max() <= 0.5
    assert train.class_names == test.class_names == tuple("0123456789")
    assert train.identity != test.identity


def test_missing_packages_are_named_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    images._digits.cache_clear()
    photograph.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs scikit-learn: pip install 'pixlex\[words\]'"):
        open_source("embedded:digits:train")
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs scikit-image: pip install 'pixlex\[words\]'"):
        open_source("embedded:photographs:test")


def test_a_photograph_that_is_not_bundled_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PHOTOGRAPHS, "cat", "lily.tif")
    photograph.cache_clear()
    with pytest.raises(ValueError, match=r"does not bundle the photograph lily\.tif"):
        photograph("cat")
