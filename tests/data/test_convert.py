"""Anything with captions becomes one file that is read back as it was."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pixlex.data import convert
from pixlex.data.convert import convert_pairs
from pixlex.data.images import TooManyBroken
from pixlex.data.pairs import open_pairs

Picture = Callable[..., bytes]


@pytest.fixture
def albef(tmp_path: Path, picture: Picture) -> Path:
    """Five images, of which one is missing, one damaged and one without caption."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    rows = [{"image": f"deep/{number}.jpg", "caption": [f"ä {number}", "b"]} for number in range(4)]
    rows.append({"image": "deep/4.jpg", "caption": ""})
    for number in (0, 2, 4):
        (tmp_path / "in" / "deep" / f"{number}.jpg").write_bytes(picture(number, "JPEG", width=90, height=60))
    (tmp_path / "in" / "deep" / "3.jpg").write_bytes(picture(3, "JPEG")[:300])
    path = tmp_path / "in" / "set.json"
    path.write_text(json.dumps(rows))
    return path


def test_parquet_holds_the_bytes(albef: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "set.parquet"
    result = convert_pairs(open_pairs(str(albef)), out, progress=False)
    assert (result.num_images, result.num_captions) == (2, 4)
    assert [one.key for one in result.skipped] == ["deep/1.jpg", "deep/3.jpg"]
    assert pq.read_schema(out).names == ["image", "image_id", "captions"]
    source = open_pairs(str(out))
    assert source.captions == (("ä 0", "b"), ("ä 2", "b"))
    assert source.ids == ("deep/0.jpg", "deep/2.jpg")
    assert source.read(1).data == (albef.parent / "deep" / "2.jpg").read_bytes()
    lines = (tmp_path / "new" / "set.parquet.skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["deep/1.jpg", "deep/3.jpg"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["set.parquet", "set.parquet.skipped.jsonl"]
    again = convert_pairs(source, tmp_path / "again.parquet", progress=False)
    assert again.skipped == ()
    assert open_pairs(str(again.path)).ids == source.ids
    assert (tmp_path / "again.parquet").read_bytes() == out.read_bytes()


def test_jsonl_names_the_files(albef: Path, tmp_path: Path) -> None:
    """Paths are relative to the new file, through selections and mixtures too."""
    out = tmp_path / "lists" / "set.jsonl"
    result = convert_pairs(open_pairs(f"2 * {albef} + {albef}"), out, progress=False)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {"path": "../in/deep/0.jpg", "captions": ["ä 0", "b"]}
    assert [row["path"][-5] for row in rows] == ["0", "2"] * 3
    assert result.num_images == 6
    assert len(result.skipped) == 4  # two keys in each of two sets
    source = open_pairs(str(out))
    assert source.read(0).data == (albef.parent / "deep" / "0.jpg").read_bytes()


def test_images_get_another_size(albef: Path, tmp_path: Path, picture: Picture) -> None:
    """The short side is N at most; small images are not enlarged."""
    out = tmp_path / "set.parquet"
    for size, expected in ((30, (45, 30)), (200, (90, 60))):
        convert_pairs(open_pairs(str(albef)), out, image_size=size, overwrite=True, progress=False)
        image = Image.open(io.BytesIO(open_pairs(str(out)).read(0).data))
        assert (image.size, image.format, image.mode) == (expected, "JPEG", "RGB")


def test_pixels_without_a_file_become_png(tmp_path: Path) -> None:
    source = open_pairs("embedded:scenes:test:2")
    convert_pairs(source, tmp_path / "set.parquet", progress=False)
    converted = open_pairs(str(tmp_path / "set.parquet"))
    assert converted.captions == source.captions
    image = Image.open(io.BytesIO(converted.read(1).data))
    assert image.format == "PNG"
    assert image.tobytes() == source.read(1).data.tobytes()
    with pytest.raises(ValueError, match=r"are no files of their own: convert to a\.parquet"):
        convert_pairs(source, tmp_path / "a.jsonl")


def test_row_groups_are_bounded(tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_WINDOW", 3)
    (tmp_path / "images").mkdir()
    lines = ["path,caption"]
    for number in range(10):
        (tmp_path / "images" / f"{number}.png").write_bytes(picture(number))
        lines.append(f"{number}.png,{number}")
    (tmp_path / "images" / "set.csv").write_text("\n".join(lines))
    monkeypatch.setattr(convert, "ROW_GROUP_BYTES", int(2.5 * len(picture(0))))
    out = tmp_path / "set.parquet"
    convert_pairs(open_pairs(str(tmp_path / "images" / "set.csv")), out, progress=False)
    metadata = pq.ParquetFile(out).metadata
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert sum(sizes) == 10
    assert set(sizes) <= {1, 2, 3}
    assert len(sizes) >= 4
    assert [text for (text,) in open_pairs(str(out)).captions] == [str(number) for number in range(10)]
    monkeypatch.setattr(convert, "ROW_GROUP_BYTES", 1)
    convert_pairs(open_pairs(str(out)), tmp_path / "ones.parquet", progress=False)
    assert pq.ParquetFile(tmp_path / "ones.parquet").num_row_groups == 10


def test_what_is_refused(albef: Path, tmp_path: Path) -> None:
    source = open_pairs(str(albef))
    out = tmp_path / "set.parquet"
    out.write_text("old")
    with pytest.raises(ValueError, match="exists; choose another name, or replace it with --overwrite"):
        convert_pairs(source, out, progress=False)
    with pytest.raises(ValueError, match=r"must end in \.parquet or \.jsonl, got .*set\.csv"):
        convert_pairs(source, tmp_path / "set.csv")
    with pytest.raises(ValueError, match=r"they cannot get another size: convert to a.parquet"):
        convert_pairs(source, tmp_path / "a.jsonl", image_size=3)
    with pytest.raises(ValueError, match="image_size must be 1 or more, got 0"):
        convert_pairs(source, tmp_path / "a.parquet", image_size=0)
    for path in (albef.parent / "deep").iterdir():
        path.unlink()
    with pytest.raises(
        TooManyBroken, match=r"none of 4 images can be read, the first is deep/0\.jpg \(the file"
    ):
        convert_pairs(source, out, overwrite=True, progress=False)
    assert out.read_text() == "old"
    assert not list(tmp_path.glob(".*"))


def test_a_kill_leaves_no_half_file(albef: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "_stored", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_pairs(open_pairs(str(albef)), tmp_path / "set.parquet", progress=False)
    assert not list(tmp_path.glob("*.parquet*"))
    assert not list(tmp_path.glob(".*"))


def test_flickr8k_there_and_back(shared_data: Path, tmp_path: Path) -> None:
    """A thousand photographs keep bytes, names and captions."""
    path = shared_data / "captions" / "val.parquet"
    if not path.is_file():
        pytest.skip("no captions among the shared data")
    source = open_pairs(str(path))
    result = convert_pairs(source, tmp_path / "set.parquet", progress=False)
    converted = open_pairs(str(result.path))
    assert (result.num_images, result.num_captions, result.skipped) == (1000, 5000, ())
    assert (converted.captions, converted.ids) == (source.captions, source.ids)
    assert all(converted.read(row).data == source.read(row).data for row in (0, 500, 999))
