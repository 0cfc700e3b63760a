"""The source of scenes: opened by its description, read in any process."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from pixlex.data.images import open_source
from pixlex.data.pairs import open_pairs
from pixlex.data.scenes.drawing import draw
from pixlex.data.scenes.scene import make_scene
from pixlex.data.scenes.source import ScenesSource
from pixlex.data.sources import ImageSource


@pytest.mark.parametrize(
    ("description", "size"),
    [
        ("embedded:scenes:train", 20_000),
        ("embedded:scenes:test", 1_000),
        ("embedded:scenes:train:7", 7),
        ("embedded:scenes:test:5000", 5_000),
    ],
)
def test_opened_by_description(description: str, size: int) -> None:
    source = open_source(description)
    assert isinstance(source, ImageSource)
    assert len(source) == size
    assert source.name == description


def test_records() -> None:
    source = open_source("embedded:scenes:test")
    assert isinstance(source, ScenesSource)
    assert source.class_names == ("1", "2", "3", "4")
    assert source.key(17) == "scenes/test-000017"
    seen = set()
    for index in range(60):
        record, scene = source.read(index), make_scene("test", index)
        assert record.key == source.key(index)
        assert isinstance(record.data, np.ndarray)
        assert np.array_equal(record.data, draw(scene))
        assert source.class_names[record.label] == str(len(scene.objects))
        seen.add(record.data.tobytes())
    assert len(seen) == 60


def test_a_larger_source_begins_with_the_smaller() -> None:
    small, large = ScenesSource("train", 5), ScenesSource("train", 50)
    assert [small.captions(index) for index in range(5)] == [large.captions(index) for index in range(5)]
    assert small.identity != large.identity
    assert ScenesSource("test", 5).identity != small.identity == ScenesSource("train", 5).identity


def test_captions_are_five_and_fixed() -> None:
    source = ScenesSource("train", 30)
    copy = pickle.loads(pickle.dumps(source))
    for index in range(30):
        texts = source.captions(index)
        assert len(texts) == 5
        assert copy.captions(index) == texts
        assert np.array_equal(copy.read(index).data, source.read(index).data)
    assert copy.identity == source.identity


def test_opened_with_captions() -> None:
    pairs, source = open_pairs("embedded:scenes:test:40"), ScenesSource("test", 40)
    assert pairs.name == source.name
    assert list(pairs.captions) == [source.captions(index) for index in range(40)]
    assert np.array_equal(pairs.read(7).data, source.read(7).data)
    assert pairs.identity != open_pairs("embedded:scenes:test:41").identity


def test_indices_end_at_the_size() -> None:
    source = ScenesSource("train", 3)
    for index in (-1, 3):
        for read in (source.read, source.key, source.captions, source.scene):
            with pytest.raises(
                IndexError, match=f"embedded:scenes:train:3 has the images 0 to 2, got {index}"
            ):
                read(index)


@pytest.mark.parametrize("count", ["0", "-1", "many", "", "1.5", "²"])
def test_counts_of_nothing(count: str) -> None:
    sentence = rf"embedded:scenes:train:COUNT expects a whole number of 1 or more as COUNT, got '{count}'"
    with pytest.raises(ValueError, match=sentence):
        open_source(f"embedded:scenes:train:{count}")


@pytest.mark.parametrize("rest", ["scenes", "scenes:validation", "scenes:train:5:6", "scenes:validation:5"])
def test_descriptions_of_nothing(rest: str) -> None:
    sentence = rf"embedded:scenes:test\[:COUNT\], got 'embedded:{rest}'"
    with pytest.raises(ValueError, match=sentence):
        open_source(f"embedded:{rest}")


@pytest.mark.usefixtures("unchecked_shapes")
def test_sources_of_nothing() -> None:
    with pytest.raises(ValueError, match="split must be train or test, got 'validation'"):
        ScenesSource("validation", 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size must be 1 or more, got 0"):
        ScenesSource("train", 0)
