"""The account of broken images: each listed once, a stop when they are too many, no stop by chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pixlex.batch import BrokenImages, ImageBatch, Skipped, TooManyBroken
from pixlex.data.folders import FileSource
from pixlex.data.labels import no_labels
from pixlex.data.sources import ImageSource
from pixlex.files import unsealed


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    return FileSource(
        "images", tmp_path, tuple(f"{number:04d}.png" for number in range(1000)), no_labels(1000)
    )


def skipped(*numbers: int) -> tuple[Skipped, ...]:
    return tuple(Skipped(f"{number:04d}.png", f"reason {number}") for number in numbers)


def lines(folder: Path) -> list[dict[str, str]]:
    return [unsealed(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def test_each_image_is_listed_once_over_resumed_runs(tmp_path: Path, source: ImageSource) -> None:
    run = tmp_path / "run"
    broken = BrokenImages(run, source, 0.05)
    broken.record((), 8)
    assert not run.exists()
    broken.record(skipped(3, 4), 6)
    broken.record(skipped(3), 7)
    other = FileSource("other", tmp_path, ("0003.png",), no_labels(1))
    BrokenImages(run, other, 1.0).record(skipped(3), 6)
    resumed = BrokenImages(run, source, 0.05)
    resumed.record(skipped(4, 5), 6)
    assert lines(run) == [
        {"source": name, "key": f"{number:04d}.png", "reason": f"reason {number}"}
        for name, number in ((source.name, 3), (source.name, 4), (other.name, 3), (source.name, 5))
    ]
    assert resumed.broken == {"0004.png": "reason 4", "0005.png": "reason 5"}


def test_a_line_cut_off_by_a_kill_is_written_again(tmp_path: Path, source: ImageSource) -> None:
    BrokenImages(tmp_path, source, 0.05).record(skipped(1, 2), 6)
    path = tmp_path / "skipped.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    BrokenImages(tmp_path, source, 0.05).record(skipped(1, 2), 6)
    first, _, second = path.read_text().splitlines()
    assert [json.loads(line)["key"] for line in (first, second)] == ["0001.png", "0002.png"]


def test_more_different_ones_than_the_fraction_of_the_source_stop(
    tmp_path: Path, source: ImageSource
) -> None:
    broken = BrokenImages(tmp_path, source, 0.05)
    for number in range(50):
        broken.record(skipped(number, number), 98)  # the same image again is not another one
    with pytest.raises(TooManyBroken) as caught:
        broken.record(skipped(50), 99)
    for part in (
        "51 different images of 1000 cannot be read (101 of 5100 visits, 2.0%)", "max_broken_fraction is 5.0%",
        "0000.png (reason 0); 0001.png (reason 1); 0002.png (reason 2)", str(tmp_path / "skipped.jsonl"),
    ):  # fmt: skip
        assert part in str(caught.value)
    assert len(lines(tmp_path)) == 51  # the one that stops the run is listed too


def test_the_fraction_of_the_visits_counts_from_a_hundred_on(source: ImageSource) -> None:
    """And of all images: none allowed, all allowed."""
    broken = BrokenImages(None, source, 0.05)
    broken.record(skipped(*range(40)), 59)
    with pytest.raises(TooManyBroken, match=r"41 of 100 visits, 41\.0%"):
        broken.record(skipped(0), 0)
    BrokenImages(None, source, 1.0).record(skipped(*range(1000)), 0)
    with pytest.raises(TooManyBroken, match="1 different images of 1000"):
        BrokenImages(None, source, 0.0).record(skipped(7), 9)


def test_a_source_below_the_limit_is_not_stopped_by_chance(source: ImageSource) -> None:
    for seed in range(4):
        damaged = set(np.random.default_rng(seed).choice(1000, 48, replace=False).tolist())
        broken = BrokenImages(None, source, 0.05)
        for number in np.random.default_rng(seed + 100).permutation(1000).tolist() * 2:
            broken.record(skipped(number) if number in damaged else (), number not in damaged)


def test_batches_are_counted_and_the_limit_is_checked(source: ImageSource) -> None:
    batch = ImageBatch(
        torch.zeros(2, 3, 4, 4), torch.tensor([0, 0]), ("a", "b"), torch.tensor([0, 1]), skipped(5)
    )
    broken = BrokenImages(None, source, 0.05)
    broken.add(batch)
    assert (broken.visited, list(broken.broken)) == (3, ["0005.png"])
    with pytest.raises(ValueError, match=r"max_broken_fraction must lie in \[0, 1\], got 5\.0"):
        BrokenImages(None, source, 5.0)
