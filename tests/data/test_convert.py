"""Anything with captions becomes one file that is read back as it was; reports name all that is in a source."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.data.conftest import encoded

from pixlex.batch import TooManyBroken
from pixlex.data import convert
from pixlex.data.captions import open_pairs
from pixlex.data.convert import EXPECTED_SPLITS, Spread, convert_images, inspect_captions, inspect_source
from pixlex.data.images import open_source
from pixlex.data.records import AnnotatedSplits

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
    result = convert_images(open_pairs(str(albef)), out, progress=False)
    assert (result.num_images, result.num_captions) == (2, 4)
    assert [one.key for one in result.skipped] == ["deep/1.jpg", "deep/3.jpg"]
    assert pq.read_schema(out).names == ["image", "image_id", "captions"]
    source = open_pairs(str(out))
    assert source.texts == (("ä 0", "b"), ("ä 2", "b"))
    assert source.ids == ("deep/0.jpg", "deep/2.jpg")
    assert source.images.read(1).data == (albef.parent / "deep" / "2.jpg").read_bytes()
    lines = (tmp_path / "new" / "set.parquet.skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["deep/1.jpg", "deep/3.jpg"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["set.parquet", "set.parquet.skipped.jsonl"]
    again = convert_images(source, tmp_path / "again.parquet", progress=False)
    assert again.skipped == ()
    assert open_pairs(str(again.path)).ids == source.ids
    assert (tmp_path / "again.parquet").read_bytes() == out.read_bytes()


def test_jsonl_names_the_files(albef: Path, tmp_path: Path) -> None:
    """Paths are relative to the new file, through selections and mixtures too."""
    out = tmp_path / "lists" / "set.jsonl"
    result = convert_images(open_pairs(f"2 * {albef} + {albef}"), out, progress=False)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {"path": "../in/deep/0.jpg", "captions": ["ä 0", "b"]}
    assert [row["path"][-5] for row in rows] == ["0", "2"] * 3
    assert result.num_images == 6
    assert len(result.skipped) == 4  # two keys in each of two sets
    source = open_pairs(str(out))
    assert source.images.read(0).data == (albef.parent / "deep" / "0.jpg").read_bytes()


def test_images_get_another_size(albef: Path, tmp_path: Path, picture: Picture) -> None:
    """The short side is N at most; small images are not enlarged."""
    out = tmp_path / "set.parquet"
    for size, expected in ((30, (45, 30)), (200, (90, 60))):
        convert_images(open_pairs(str(albef)), out, image_size=size, overwrite=True, progress=False)
        image = Image.open(io.BytesIO(open_pairs(str(out)).images.read(0).data))
        assert (image.size, image.format, image.mode) == (expected, "JPEG", "RGB")


def test_pixels_without_a_file_become_png(tmp_path: Path) -> None:
    source = open_pairs("embedded:scenes:test:2")
    convert_images(source, tmp_path / "set.parquet", progress=False)
    converted = open_pairs(str(tmp_path / "set.parquet"))
    assert converted.texts == source.texts
    image = Image.open(io.BytesIO(converted.images.read(1).data))
    assert image.format == "PNG"
    assert image.tobytes() == source.images.read(1).data.tobytes()


@pytest.mark.parametrize("kind", ["folder", "list", "table"])
@pytest.mark.parametrize("suffix", [".parquet", ".tar", ".jsonl"])
def test_images_alone_keep_their_classes(tmp_path: Path, picture: Picture, kind: str, suffix: str) -> None:
    """Of a folder, a list or a table; some without a class, one unreadable; small copies but for lists."""
    pictures, rows = tmp_path / "in", ["path,label,class_name"]
    for number, name in enumerate(("cat", "owl", "cat")):
        (pictures / name).mkdir(parents=True, exist_ok=True)
        (pictures / name / f"{number}.png").write_bytes(picture(number))
        rows.append(f"{name}/{number}.png,{3 * (name == 'owl')},{name}")
    (pictures / "owl" / "9.png").write_bytes(b"no picture")
    if kind != "folder":
        (pictures / "set.csv").write_text("\n".join([*rows, "owl/9.png,,", "owl/1.png,,"]))
    source = open_source(str(pictures if kind == "folder" else pictures / "set.csv"))
    if kind == "table":
        source = open_source(str(convert_images(source, tmp_path / "t.parquet", progress=False).path))
    out, size = tmp_path / f"out{suffix}", None if suffix == ".jsonl" else 5
    if (kind, suffix) == ("table", ".jsonl"):
        with pytest.raises(ValueError, match=r"are no files of their own: convert to out\.parquet"):
            convert_images(source, out, progress=False)
        return
    result = convert_images(source, out, image_size=size, progress=False)
    assert (result.num_captions, len(result.skipped)) == (0, kind != "table")
    found = open_source(str(out))
    records = [record for index in range(len(source)) if (record := source.read(index)).data != b"no picture"]
    expected = [(one.label, source.class_names[one.label] if one.label >= 0 else "") for one in records]
    labels = [found.read(index).label for index in range(len(found))]
    assert [(one, found.class_names[one] if one >= 0 else "") for one in labels] == expected
    for index, record in enumerate(records):
        data = found.read(index).data
        assert data == record.data if size is None else Image.open(io.BytesIO(data)).size == (6, 5)


def test_captions_in_a_shard(albef: Path, tmp_path: Path) -> None:
    result = convert_images(open_pairs(str(albef)), tmp_path / "set.tar", progress=False)
    source = open_pairs(str(result.path))
    assert source.texts == (("ä 0", "b"), ("ä 2", "b"))
    assert source.images.read(1).data == (albef.parent / "deep" / "2.jpg").read_bytes()
    assert source.key(1) == "set.tar/00000001.jpeg"
    again = convert_images(source, tmp_path / "again.tar", progress=False).path
    assert open_pairs(str(again)).texts == source.texts


def test_row_groups_are_bounded(tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_WINDOW", 3)
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    rows = (f"{number}.png,{number}" for number in range(10))
    (tmp_path / "set.csv").write_text("\n".join(["path,caption", *rows]))
    description = str(tmp_path / "set.csv")
    for limit, expected in ((int(2.5 * len(picture(0))), {1, 2, 3}), (1, {1})):
        monkeypatch.setattr(convert, "ROW_GROUP_BYTES", limit)
        out = tmp_path / f"{limit}.parquet"
        convert_images(open_pairs(description), out, progress=False)
        metadata = pq.ParquetFile(out).metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        assert (sum(sizes), set(sizes) <= expected, len(sizes) >= 4) == (10, True, True)
        assert [text for (text,) in open_pairs(str(out)).texts] == [str(number) for number in range(10)]


def test_what_is_refused(albef: Path, tmp_path: Path) -> None:
    source = open_pairs(str(albef))
    out = tmp_path / "set.parquet"
    out.write_text("old")
    with pytest.raises(ValueError, match="exists; choose another name, or replace it with --overwrite"):
        convert_images(source, out, progress=False)
    with pytest.raises(ValueError, match=r"must end in \.parquet, \.tar or \.jsonl, got .*set\.csv"):
        convert_images(source, tmp_path / "set.csv")
    with pytest.raises(ValueError, match=r"they cannot get another size: convert to a.parquet"):
        convert_images(source, tmp_path / "a.jsonl", image_size=3)
    with pytest.raises(ValueError, match="image_size must be 1 or more, got 0"):
        convert_images(source, tmp_path / "a.parquet", image_size=0)
    for path in (albef.parent / "deep").iterdir():
        path.unlink()
    with pytest.raises(TooManyBroken, match=r"none of 4 images can be read, the first is deep/0\.jpg"):
        convert_images(source, out, overwrite=True, progress=False)
    assert out.read_text() == "old"
    assert not list(tmp_path.glob(".*"))


def test_a_kill_leaves_no_half_file(albef: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "_stored", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_images(open_pairs(str(albef)), tmp_path / "set.parquet", progress=False)
    assert not list(tmp_path.glob("*.parquet*"))
    assert not list(tmp_path.glob(".*"))


def test_a_folder_with_everything(tmp_path: Path, picture: Picture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "cat/turned.jpg": encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif),
        "cat/plain.png": picture(0, width=12, height=10),
        "cat/text.jpg": b"a text",
        "dog/grey.gif": b"",
        "dog/big.bmp": picture(1, "BMP", width=50, height=40),
        "dog/notes.txt": b"x",
    }
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "emu").mkdir()
    seen = []
    report = inspect_source(open_source(str(tmp_path)), lambda done, total: seen.append((done, total)))
    assert seen == [(done, 5) for done in range(1, 6)]
    assert report.num_images == 5
    assert report.width == Spread(12, 20, 50)  # the turned image is 20 wide
    assert report.height == Spread(10, 30, 40)
    assert report.formats == {"PNG": 1, "JPEG": 1, "BMP": 1}
    assert report.modes == {"RGB": 3}
    assert [(image.key, image.reason.split(" (")[0]) for image in report.broken] == [
        ("cat/text.jpg", "not an image in a format that is read"),
        ("dog/grey.gif", "the file is empty"),
    ]
    assert report.broken_fraction == 0.4
    assert report.images_per_class == {"cat": 2, "dog": 1}
    assert report.unlabeled == 0
    assert [(one.kind, str(one)) for one in report.ignored] == [(".txt", "dog/notes.txt")]
    assert report.empty_folders == ("emu",)
    json.dumps(dataclasses.asdict(report))


def test_duplicate_keys_shared_names_and_missing_labels(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    rows = ["a.png,0,crane", "a.png,2,crane", "a.png,3,dog", "b.png,0,crane", "a.png,,"]
    (tmp_path / "list.csv").write_text("path,label,class_name\n" + "\n".join(rows))
    report = inspect_source(open_source(str(tmp_path / "list.csv")))
    assert report.duplicate_keys == {"a.png": 4}
    assert report.images_per_class == {"crane (0)": 1, "crane (2)": 1, "dog": 1}
    assert report.unlabeled == 1
    assert [image.key for image in report.broken] == ["b.png"]
    (tmp_path / "a.png").write_bytes(b"")
    report = inspect_source(open_source(str(tmp_path / "list.csv")))
    assert (report.width, report.height, report.broken_fraction, report.num_missing) == (None, None, 1.0, 1)


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
    for same in ("?rows=captions", " + 1 * {}"):
        description = f"{tmp_path / 'set.json'}{same}".format(tmp_path / "set.json")
        other = inspect_captions(open_pairs(description))
        assert other.captions_per_image == report.captions_per_image
    repeated = f"2 * {tmp_path / 'set.json'} + {tmp_path / 'set.json'}"
    assert inspect_captions(open_pairs(repeated)).num_captions == 10


def test_official_splits(tmp_path: Path) -> None:
    """Complete files are as expected; one image less, and a foreign split, are said; of other sets nothing."""
    path, dataset = tmp_path / "dataset.json", "flickr8k"
    images = [{"filename": "a.jpg", "split": "test", "sentences": [{"raw": "a"}]}]
    path.write_text(json.dumps({"dataset": dataset, "images": images}))
    source = open_pairs(f"{path}?split=test")
    assert source.splits == AnnotatedSplits(dataset, {"test": 1})
    complete = AnnotatedSplits(dataset, EXPECTED_SPLITS[dataset])
    report = inspect_captions(dataclasses.replace(source, splits=complete))
    assert report.splits == report.expected_splits == EXPECTED_SPLITS[dataset]
    assert report.remarks == ()
    size = EXPECTED_SPLITS[dataset]["test"]
    other = AnnotatedSplits(dataset, {**EXPECTED_SPLITS[dataset], "test": size - 1, "extra": 1})
    report = inspect_captions(dataclasses.replace(source, splits=other))
    assert report.remarks == (
        f"Karpathy's split of Flickr8k has {size:,} images in test, this file {size - 1:,}.",
        "Karpathy's split of Flickr8k has 0 images in extra, this file 1.",
    )
    report = inspect_captions(dataclasses.replace(source, splits=AnnotatedSplits("own", {"train": 1})))
    assert (report.splits, report.expected_splits, report.remarks) == ({"train": 1}, {}, ())
