"""The two sets that need no download: fixed, disjoint, in range."""

from __future__ import annotations

import pickle
import sys
from collections import Counter

import numpy as np
import pytest

from pixlex.data import embedded
from pixlex.data.embedded import PHOTOGRAPHS, photograph
from pixlex.data.images import open_source

pytest.importorskip("skimage")
pytest.importorskip("sklearn")


def test_the_splits_of_the_photographs_share_no_pixel_of_the_files() -> None:
    seen = {name: {"train": np.zeros(photograph(name).shape[:2], bool)} for name in PHOTOGRAPHS}
    for masks in seen.values():
        masks["test"] = np.zeros_like(masks["train"])
    for split in ("train", "test"):
        source = open_source(f"embedded:photographs:{split}")
        for index in range(len(source)):
            place = source.region(index)
            rows, columns = (slice(first, first + place.side) for first in (place.top, place.left))
            assert min(place.left, place.top) >= 0
            assert 96 <= place.side <= 160
            seen[place.name][split][rows, columns] = True
            if index % 41 == 0:  # the crop that is read is the place that is named
                record = source.read(index)
                assert record.data.shape == (place.side, place.side, 3)
                assert np.array_equal(record.data, photograph(place.name)[rows, columns])
                assert source.class_names[record.label] == place.name
    for name, masks in seen.items():
        assert not (masks["train"] & masks["test"]).any(), name
        # Nearly all of each region is used, so neither split is a corner of its photograph.
        assert masks["train"].sum() > 0.7 * masks["train"].size, name
        assert masks["test"].sum() > 0.2 * masks["test"].size, name


def test_photographs_that_are_halved_average_pixels_of_their_own_side() -> None:
    # Halving averages 2x2 blocks that start at even columns, so a border between columns of the small
    # photograph is a border between columns of the file.
    import skimage

    path = f"{skimage.__path__[0]}/data/retina.jpg"
    full = np.asarray(embedded.Image.open(path).convert("RGB")).astype(float)
    half = photograph("retina").astype(float)
    blocks = full[:1410, :1410].reshape(705, 2, 705, 2, 3).mean(axis=(1, 3))
    assert np.abs(half[:705, :705] - blocks).max() <= 0.5


@pytest.mark.parametrize(("split", "count"), [("train", 4000), ("test", 320)])
def test_classes_are_balanced_and_crops_differ(split: str, count: int) -> None:
    source = open_source(f"embedded:photographs:{split}")
    assert len(source) == count
    keys = {source.key(index) for index in range(count)}
    assert len(keys) == count
    assert len({source.region(index) for index in range(count)}) == count
    labels = Counter(source.read(index).label for index in range(0, 80))
    assert set(labels.values()) == {10}
    copy = pickle.loads(pickle.dumps(source))
    assert copy.identity == source.identity
    assert np.array_equal(copy.read(5).data, source.read(5).data)


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
    records = [train.read(index) for index in range(len(train))] + [
        test.read(index) for index in range(len(test))
    ]
    assert len({record.key for record in records}) == 1797
    # No image occurs twice in the set, so the splits are disjoint in pixels.
    assert len({record.data.tobytes() for record in records}) == 1797
    for record, image, target in zip(records, stored.images, stored.target, strict=True):
        assert record.label == target
        assert np.abs(record.data - image[..., None] * 255 / 16).max() <= 0.5
    assert train.class_names == test.class_names == tuple("0123456789")
    assert train.identity != test.identity


def test_missing_packages_are_named_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded._digits.cache_clear()
    photograph.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs scikit-learn: pip install 'pixlex\[embedded\]'"):
        open_source("embedded:digits:train")
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs scikit-image: pip install 'pixlex\[embedded\]'"):
        open_source("embedded:photographs:test")


def test_a_photograph_that_is_not_bundled_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PHOTOGRAPHS, "cat", "lily.tif")
    photograph.cache_clear()
    with pytest.raises(ValueError, match=r"does not bundle the photograph lily\.tif"):
        photograph("cat")
