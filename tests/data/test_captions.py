"""Captions in tables of paths, tables of images, shards and folders."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.data.test_tar import write_tar

from pixlex.data.captions import open_pairs
from pixlex.data.folders import FileSource
from pixlex.data.images import open_source
from pixlex.data.records import NoCaptions, Records
from pixlex.data.sources import ImageSubset

Picture = Callable[..., bytes]


def keys(source: Records) -> list[str]:
    return [source.key(index) for index in range(len(source))]


@pytest.mark.parametrize(
    ("path_column", "caption_column"),
    [("path", "captions"), ("filepath", "caption"), ("image", "title"), ("file_name", "text")],
)
def test_columns_of_lists(tmp_path: Path, path_column: str, caption_column: str) -> None:
    """The same in .csv, .tsv, .jsonl and a .parquet of paths; rows of one image are put together."""
    columns = {
        "url": ["http://x"] * 3,
        caption_column: ['a "quoted", text', "b", "c"],
        path_column: ["1.png", "2.png", "1.png"],
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "set.csv").write_text(
        f'url,{caption_column},{path_column}\nh,"a ""quoted"", text",1.png\nh,b,2.png\nh,c,1.png\n'
    )
    (tmp_path / "set.tsv").write_text(
        f'url\t{caption_column}\t{path_column}\nh\ta "quoted", text\t1.png\nh\tb\t2.png\nh\tc\t1.png\n'
    )
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        source = open_pairs(str(tmp_path / f"set.{suffix}"))
        assert source.texts == (('a "quoted", text', "c"), ("b",)), suffix
        assert keys(source) == ["1.png", "2.png"]


def test_cells_of_lists_of_any_length_and_half_characters(tmp_path: Path) -> None:
    """Lists inside texts, a byte order mark, captions beyond csv's limit; what cannot be seen is no caption."""
    long = "word " * 50_000
    rows = [
        ("1.png", json.dumps(["a", "b"])),
        ("2.png", str(["c", "d's"])),
        ("3.png", long),
        ("4.png", "\u200b\u2060"),
        ("5.png", "e\0f"),
    ]
    with (tmp_path / "set.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("path", "caption"), *rows])
    jsonl = "".join(json.dumps({"path": path, "caption": text}) + "\n" for path, text in rows)
    (tmp_path / "set.jsonl").write_text(
        "\ufeff" + jsonl + '{"path": "6.png", "caption": "g\\ud83d"}\n', "utf-8"
    )
    expected = (("a", "b"), ("c", "d's"), (long.strip(),), ("e f",))
    source = open_pairs(str(tmp_path / "set.csv"))
    assert source.texts == expected
    assert source.ignored == ("4.png",)
    assert open_pairs(str(tmp_path / "set.jsonl")).texts == (*expected, ("g",))


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.csv", "path,caption\n1,\n2,caf\xe9\n".encode("latin-1"), r"a\.csv line 3: .*got 0xe9 at byte 21 "),
        ("a.tsv", "path\tcaption\n".encode("utf-16"), r"a\.tsv line 1: .*byte order mark of UTF-16 at byte 0"),
        ("a.jsonl", b'{"path": "1"}\n{"path": "\xe9"}', r"a\.jsonl line 2: .*got 0xe9 at byte 24 "),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl line 1: not JSON: "),
        ("a.csv", b"path,caption,caption\n1,a,b\n", r"a\.csv: expected columns .* got 'caption' twice"),
        ("a.csv", b"path,caption\na\\b.png,x\n", r"a\.csv line 2, column path: .*backslashes, as Windows does"),
        ("a.jsonl", b'{"path": "a\\u0000", "text": "b"}', r"a\.jsonl line 1, column path: .* no file can have"),
        ("a.jsonl", b'{"path": "a\\ud83d", "text": "b"}', r"a\.jsonl line 1, column path: .* no file can have"),
        ("a.json", b'[{"image": "1", "caption": "\xe9"}]', r"a\.json: .*got 0xe9 at byte 28 "),
    ],
)  # fmt: skip
def test_what_is_no_text_is_named_with_file_and_place(
    tmp_path: Path, name: str, data: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=sentence):
        open_pairs(str(tmp_path / name))


def test_paths_of_another_machine_and_addresses_of_files(tmp_path: Path, picture: Picture) -> None:
    """The longest tail below images= is taken; what is here, or nowhere, stays as it is."""
    folder = tmp_path / "coco pictures"
    for name in ("train2014/1.png", "train2014/2.png", "2.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(0))
    (tmp_path / "here.png").write_bytes(picture(0))
    paths = [
        "/export/share/vision/train2014/1.png",
        "/export/share/vision/train2014/2.png",
        "/export/share/vision/train2014/gone.png",
        "/export/2.png",
        "/nowhere/3.png",
        "D:/vision/train2014/2.png",
        f"file://{tmp_path}/here.png",
        f"file://localhost{tmp_path}/coco%20pictures/2.png",
        "2.png",
    ]
    rows = [{"image": path, "caption": str(number)} for number, path in enumerate(paths)]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "set.json").write_text(json.dumps(rows))
    inside = [f"train2014/{name}.png" for name in ("1", "2", "gone")]
    for form in ("jsonl", "json"):
        source = open_pairs(f"{tmp_path}/set.{form}?images={folder}")
        assert keys(source) == [
            *inside, "2.png", "/nowhere/3.png", inside[1], f"{tmp_path}/here.png", f"{folder}/2.png", "2.png",
        ]  # fmt: skip
    assert source.images.read(6).data == picture(0)


def test_a_folder_as_imagefolder_writes_it(tmp_path: Path, picture: Picture) -> None:
    """file_name is relative to the metadata, the nearest file counts, and columns give captions and labels."""
    for name in ("a.png", "b/1.png", "b/2.png", "c/1.png", "d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture(0))
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "one", "label": 1.0}\n{"file_name": "c/1.png", "text": ["two", "three"]}\n'
        '{"file_name": "b/1.png", "text": "farther"}\n'
    )
    (tmp_path / "b" / "metadata.csv").write_text("file_name,text,label\n1.png,four,0\n./2.png,five,1\n")
    source = open_pairs(str(tmp_path))
    assert dict(zip(keys(source), source.texts, strict=True)) == {
        "a.png": ("one",), "b/1.png": ("four",), "b/2.png": ("five",), "c/1.png": ("two", "three"),
    }  # fmt: skip
    assert source.ignored == ("d.png",)
    images = open_source(str(tmp_path))
    assert isinstance(images, FileSource)
    assert images.labels.indices.tolist() == [1, 0, 1, -1, -1]
    assert images.class_names == ("0", "1")
    assert isinstance(source.images, ImageSubset)
    assert isinstance(source.images.parts[0], FileSource)
    assert source.images.parts[0].ignored == ()


def test_metadata_that_does_not_fit(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    metadata = tmp_path / "metadata.csv"
    metadata.write_text("camera,place\nx,y\n")  # of something else
    assert [one.name for one in open_source(str(tmp_path)).ignored] == ["metadata.csv"]  # type: ignore[attr-defined]
    metadata.write_text("file_name,prompt\na.png,one\ngone.png,two\n")
    with pytest.warns(
        UserWarning, match=r"metadata\.csv: 1 rows name images that are not .* such as 'gone\.png'"
    ):
        assert open_pairs(f"{tmp_path}?captions=prompt").texts == (("one",),)
    metadata.write_text("file_name,label\na.png,cat\na.png,dog\n")
    with pytest.raises(
        ValueError, match=r"metadata\.csv line 3: expected one row for each image, got 'a\.png' again"
    ):
        open_source(str(tmp_path))
    metadata.write_text("file_name,label\na.png,cat\n")
    assert open_source(str(tmp_path)).class_names == ("cat",)
    with pytest.raises(ValueError, match="expected a column prompt in a metadata file, found none"):
        open_pairs(f"{tmp_path}?captions=prompt")


def test_quotes_in_tsv(tmp_path: Path) -> None:
    """Fields in quotes as pandas writes them; quotes of the text itself where that does not work out."""
    (tmp_path / "d.tsv").write_text("path\ttitle\n1.png\ta\n")
    (tmp_path / "a.tsv").write_text('title\tfilepath\n"""Hi"" said	he"\t1.png\n')
    assert open_source(str(tmp_path / "d.tsv")).key(0) == "1.png"
    assert open_pairs(str(tmp_path / "a.tsv")).texts == (('"Hi" said\the',),)
    (tmp_path / "b.tsv").write_text('title\tfilepath\n"Hi" said he\t1.png\n"no end\t2.png\n')
    assert open_pairs(str(tmp_path / "b.tsv")).texts == (('"Hi" said he',), ('"no end',))
    (tmp_path / "c.tsv").write_text("title\tfilepath\na\t1.png\t2.png\n")
    with pytest.raises(ValueError, match=r"c\.tsv line 2: expected 2 columns, found more"):
        open_pairs(str(tmp_path / "c.tsv"))


def test_a_row_for_each_caption(tmp_path: Path) -> None:
    """Rows of one image share its number; images without captions are counted, not fatal."""
    (tmp_path / "set.csv").write_text("path,caption\n1.png,a\n2.png,b\n3.png,\n1.png,c\n4.png,d\n")
    whole = open_pairs(str(tmp_path / "set.csv"))
    assert (keys(whole), whole.ignored) == (["1.png", "2.png", "4.png"], ("3.png",))
    assert [whole.image_of(row) for row in range(3)] == [0, 1, 2]
    source = open_pairs(f"{tmp_path / 'set.csv'}?rows=captions")
    assert source.texts == (("a",), ("c",), ("b",), ("d",))
    assert keys(source) == ["1.png", "1.png", "2.png", "4.png"]
    assert [source.image_of(row) for row in range(4)] == [0, 0, 1, 2]
    assert source.identity != whole.identity


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.tsv", "a dog runs\thttp://x/1.jpg\na cat\thttps://x/2.jpg\n", "no header line .* with img2dataset"),
        ("a.csv", "url,caption\nhttp://x/1.jpg,a\n", r"lists web addresses \(columns url, caption\): download"),
        ("a.jsonl", '{"image_url": "http://x/1.jpg", "text": "a"}\n', "lists web addresses .* img2dataset"),
        (
            "a.csv",
            "image,caption\nhttp://x/1.jpg,a\n",
            r"column image: the image is a web address \('http://x/1.jpg'\)",
        ),
        (
            "a.csv",
            "file,caption\n1.jpg,a\n",
            "expected a column path, filepath, image or file_name, found file, c",
        ),
        (
            "a.jsonl",
            '{"path": "a", "caption": {"raw": "x"}}',
            "line 1: expected a caption or a list of captions",
        ),
        ("a.csv", "path,caption\na.png,\n", "none of 1 images has a caption of one character or more"),
    ],
)  # fmt: skip
def test_lists_that_do_not_fit(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        open_pairs(str(tmp_path / name))


def test_parquet_without_images(tmp_path: Path) -> None:
    """As a metadata file of img2dataset: addresses alone, or nothing that is known."""
    for columns, sentence in (
        ({"url": ["http://x/1.jpg"], "caption": ["a"]}, "lists web addresses .* img2dataset"),
        (
            {"id": [3], "caption": ["a"]},
            "expected a column of image bytes, or one called path, .* found id, cap",
        ),
        ({"path": pa.array([], pa.string()), "caption": pa.array([], pa.string())}, "lists no image"),
    ):
        pq.write_table(pa.table(columns), tmp_path / "set.parquet")
        with pytest.raises(ValueError, match=sentence):
            open_pairs(str(tmp_path / "set.parquet"))
    (tmp_path / "set.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"set\.parquet cannot be read as parquet"):
        open_pairs(str(tmp_path / "set.parquet"))


def test_tables_of_images(tmp_path: Path, picture: Picture) -> None:
    """A folder of them; labels without names do not matter here; another column can be named."""
    for part in range(2):
        columns = {
            "image": [picture(2 * part), picture(2 * part + 1)],
            "image_id": [f"id{2 * part}", f"id{2 * part + 1}"],
            "label": [1, 0],
            "caption": [f"text {part}", ""],
            "sentence": ["x", "y"],
        }
        pq.write_table(pa.table(columns), tmp_path / f"{part}.parquet")
    source = open_pairs(str(tmp_path))
    assert source.texts == (("text 0",), ("text 1",))
    assert source.ids == ("id0", "id2")
    assert source.ignored == ("0.parquet#1", "1.parquet#1")
    assert (source.images.read(1).data, source.images.read(1).label, source.images.read(1).key) == (
        picture(2),
        1,
        "1.parquet#0",
    )
    assert source.images.class_names == ("0", "1")
    assert open_pairs(f"{tmp_path}?captions=sentence").texts == (("x",), ("y",)) * 2
    with pytest.raises(
        ValueError, match="has no column words, found image, image_id, label, caption, sentence"
    ):
        open_pairs(f"{tmp_path}?captions=words")
    with pytest.raises(ValueError, match="tables of images take the options captions, rows, got images"):
        open_pairs(f"{tmp_path}?images={tmp_path}")


def test_shards(tmp_path: Path, picture: Picture) -> None:
    """Fields of .json before .txt; a class is no caption, and a year neither class nor error."""
    files = {
        "0.png": picture(0), "0.txt": b"from txt", "0.json": b'{"caption": "from json", "status": "success"}',
        "1.png": picture(1), "1.txt": b" a caption\n",
        "2.png": picture(2), "2.json": b'{"captions": ["one", "two"]}',
        "3.png": picture(3), "3.json": b'{"text": "a text"}',
        "4.png": picture(4), "4.json": b'{"caption": null}',
        "5.png": picture(5), "5.txt": b"7",
        "6.png": picture(6), "6.txt": b"dog", "6.cls": b"1",
        "7.png": picture(7), "7.txt": b"20240101",
    }  # fmt: skip
    write_tar(tmp_path / "set-0.tar", files)
    source = open_pairs(str(tmp_path / "set-{0..0}.tar"))
    assert source.texts == (
        ("from json",), ("a caption",), ("one", "two"), ("a text",), ("20240101",),
    )  # fmt: skip
    assert source.ignored == tuple(f"set-0.tar/{number}.png" for number in (4, 5, 6))
    assert source.images.read(4).data == picture(7)
    with pytest.raises(ValueError, match="shards and embedded sets take the options rows, got captions"):
        open_pairs(f"{tmp_path / 'set-0.tar'}?captions=caption")
    write_tar(tmp_path / "bare.tar", {"0.png": picture(0), "0.cls": b"1"})
    for bare in (str(tmp_path / "bare.tar"), "embedded:digits:test"):
        with pytest.raises(NoCaptions, match="has no captions"):
            open_pairs(bare)
    write_tar(tmp_path / "bad.tar", {"0.png": picture(0), "0.json": b'{"caption": 3}'})
    with pytest.raises(ValueError, match=r"bad\.tar/0\.png: expected a caption or a list of captions, got 3"):
        open_pairs(str(tmp_path / "bad.tar"))


def test_a_folder_as_img2dataset_writes_it(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "00000").mkdir()
    for number in range(3):
        (tmp_path / "00000" / f"{number}.png").write_bytes(picture(number))
    (tmp_path / "00000" / "0.txt").write_text("from txt")
    (tmp_path / "00000" / "0.json").write_text('{"caption": "from json"}')
    (tmp_path / "00000" / "1.txt").write_text("a caption")
    (tmp_path / "00000" / "notes.txt").write_text("nothing")
    source = open_pairs(str(tmp_path))
    assert source.texts == (("from json",), ("a caption",))
    assert source.ignored == ("00000/2.png",)
    assert source.images.read(1).data == picture(1)
    (part,) = source.images.parts
    assert isinstance(part, FileSource)
    assert (
        [one.name for one in part.ignored]
        == [one.name for one in source.images.ignored]
        == ["00000/notes.txt"]
    )
    (tmp_path / "00000" / "0.json").write_text("{")
    with pytest.raises(ValueError, match=r"0\.json: not JSON"):
        open_pairs(str(tmp_path))
    (tmp_path / "00000" / "0.json").unlink()
    (tmp_path / "00000" / "0.txt").write_bytes(b"\x80")
    with pytest.raises(ValueError, match=r"0\.txt: expected UTF-8 text, got 0x80 at byte 0"):
        open_pairs(str(tmp_path))


def test_data_sets_of_hugging_face(tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    images = [Image.open(io.BytesIO(picture(number))) for number in range(3)]
    columns = {
        "image": images,
        "caption": [["a", "b"], [], ["c"]],
        "sentence": ["x", "y", "z"],
        "label": [1, 2, 1],
    }
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    dataset.save_to_disk(tmp_path / "set")
    source = open_pairs(str(tmp_path / "set"))
    assert (source.texts, source.ignored) == ((("a", "b"), ("c",)), ("#1",))
    assert source.images.class_names == ("", "1", "2")
    assert Image.open(io.BytesIO(source.images.read(1).data)).tobytes() == images[2].tobytes()
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: dataset)
    source = open_pairs("hf:owner/set:test?captions=sentence")
    assert (source.name, source.texts) == ("hf:owner/set:test", (("x",), ("y",), ("z",)))
    dataset.remove_columns(["caption"]).save_to_disk(tmp_path / "bare")
    with pytest.raises(
        NoCaptions, match="expected a column captions, caption, title or text, found sentence"
    ):
        open_pairs(str(tmp_path / "bare"))


def test_cleaned_captions(tmp_path: Path) -> None:
    """Empty ones are dropped; an image that loses all is left out and named."""
    (tmp_path / "set.csv").write_text('path,caption\n1.png,"A Dog, running!"\n1.png,...\n2.png,a cat\n')
    source = open_pairs(str(tmp_path / "set.csv"))
    assert source.cleaned(2).texts == (("a dog",), ("a cat",))
    assert source.cleaned().texts == (("a dog running",), ("a cat",))
    assert source.cleaned().identity != source.identity
    assert source.texts[0] == ("A Dog, running!", "...")
    lines = [f"{number}.png,..." for number in range(5)]
    (tmp_path / "most.csv").write_text("\n".join(["path,caption", *lines, "6.png,a"]))
    kept = open_pairs(str(tmp_path / "most.csv")).cleaned()
    assert [kept.key(row) for row in range(len(kept))] == ["6.png"]
    assert kept.ignored == tuple(f"{number}.png" for number in range(5))
    (tmp_path / "bad.csv").write_text("\n".join(["path,caption", *lines]))
    with pytest.raises(
        ValueError, match=r"nothing is left of all of them after cleaning, the first '\.\.\.'"
    ):
        open_pairs(str(tmp_path / "bad.csv")).cleaned()
    with pytest.raises(ValueError, match="max_words must be 1 or more"):
        source.cleaned(0)
