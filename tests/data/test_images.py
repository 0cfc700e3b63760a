"""Descriptions of sources: which kind they open, and what they say when there is nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pixlex.data.images import open_source
from pixlex.data.items import open_items
from pixlex.data.pairs import open_pairs
from pixlex.data.tables import ParquetSource

Picture = Callable[..., bytes]


def write_parquet(path: Path, images: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images}), path)


def test_a_folder_of_parquet_files_is_read_in_the_order_of_names(tmp_path: Path, picture: Picture) -> None:
    write_parquet(tmp_path / "part-1.parquet", [picture(2)])
    write_parquet(tmp_path / "part-0.parquet", [picture(0), picture(1)])
    (tmp_path / "README.md").write_text("not looked at")
    source = open_source(str(tmp_path))
    assert isinstance(source, ParquetSource)
    assert [source.read(index).data for index in range(3)] == [picture(number) for number in range(3)]
    assert [source.key(index) for index in (0, 2)] == ["part-0.parquet#0", "part-1.parquet#0"]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("part-*.parquet", 12),
        ("part-{000..009}.parquet", 10),
        ("part-{3..5}.parquet", None),
        ("part-{000,011}.parquet", 2),
        ("part-0{0,1}{0..1}.parquet", 4),
        ("part-00[12].parquet", 2),
        ("**/*.parquet", 13),
    ],
)
def test_patterns(tmp_path: Path, picture: Picture, pattern: str, count: int | None) -> None:
    for number in range(12):
        write_parquet(tmp_path / f"part-{number:03d}.parquet", [picture(number)])
    write_parquet(tmp_path / "deeper" / "part-000.parquet", [picture(12)])
    if count is None:
        with pytest.raises(ValueError, match=r"no file matches .*part-3\.parquet"):
            open_source(str(tmp_path / pattern))
        return
    source = open_source(str(tmp_path / pattern))
    keys = [source.key(index) for index in range(len(source))]
    assert len(set(keys)) == len(keys) == count
    assert keys == sorted(keys)


def test_ranges_run_forwards() -> None:
    with pytest.raises(ValueError, match=r"the range \{5\.\.2\} in .* runs backwards"):
        open_source("a-{5..2}.parquet")


def test_a_path_that_exists_is_no_pattern(tmp_path: Path, picture: Picture) -> None:
    folder = tmp_path / "set [1] {a,b}"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(0))
    assert len(open_source(f"  {folder} ")) == 1


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ("", "the description of the images is empty"),
        (
            "nowhere/at/all",
            r"nowhere/at/all does not exist \(looked for /.*nowhere/at/all\); expected a folder",
        ),
        ("data\\images", "does not exist .*; paths are written with /, not with backslashes"),
        ("embedded:digits", "expected embedded:digits:train.*got 'embedded:digits'"),
        ("embedded:faces:train", "expected embedded:digits:train"),
        ("embedded:photographs:validation", "expected embedded:digits:train"),
    ],
)
def test_descriptions_of_nothing(description: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_source(description)


def test_unknown_suffixes_and_mixtures(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    (tmp_path / "noname").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.zip ends in \.zip; expected a folder of images"):
        open_source(str(tmp_path / "a.zip"))
    with pytest.raises(ValueError, match="noname ends in no suffix"):
        open_source(str(tmp_path / "noname"))
    with pytest.raises(ValueError, match=r"must name \.parquet or \.tar files alone, .* names , \.zip"):
        open_source(str(tmp_path / "*"))


@pytest.mark.parametrize("opened", [open_source, open_pairs, lambda name: open_items(name, "vqa")])
def test_a_name_that_is_too_long_does_not_exist(opened: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        opened("x" * 999)


def test_a_folder_of_two_kinds_is_refused_and_metadata_is_not_a_kind(
    tmp_path: Path, picture: Picture
) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    write_parquet(tmp_path / "metadata.parquet", [picture(1)])
    assert [open_source(str(tmp_path)).key(0)] == ["a.png"]
    write_parquet(tmp_path / "train.parquet", [picture(1)])
    with pytest.raises(ValueError, match=r"holds images and \.parquet files, and it is not clear which"):
        open_source(str(tmp_path))
