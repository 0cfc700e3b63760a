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
from tests.data.test_folders import fill
from tests.data.test_tar import write_tar

from pixlex.data.captions import open_pairs
from pixlex.data.folders import FileSource
from pixlex.data.images import open_source
from pixlex.data.records import NoCaptions, Records

Picture = Callable[..., bytes]


def keys(source: Records) -> list[str]:
    return [source.key(index) for index in range(len(source))]


@pytest.mark.parametrize(
    ("path", "caption"),
    [("path", "captions"), ("filepath", "caption"), ("image", "title"), ("file_name", "text")],
)
def test_columns_of_lists(tmp_path: Path, path: str, caption: str) -> None:
    """The same in .csv, .tsv, .jsonl and a .parquet of paths; rows of one image are put together."""
    columns = {"url": ["http://x"] * 3, caption: ['a "q", text', "b", "c"], path: ["1.png", "2.png", "1.png"]}
    rows = list(zip(*columns.values(), strict=True))
    for name, delimiter in (("set.csv", ","), ("set.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([columns, *rows])
    lines = (json.dumps(dict(zip(columns, row, strict=True))) for row in rows)
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        source = open_pairs(str(tmp_path / f"set.{suffix}"))
        assert (source.texts, keys(source)) == ((('a "q", text', "c"), ("b",)), ["1.png", "2.png"]), suffix


def test_cells_of_lists_of_any_length_and_half_characters(tmp_path: Path) -> None:
    """Lists inside texts, a byte order mark, captions beyond csv's limit; what cannot be seen is no caption."""
    long = "word " * 50_000
    cells = [json.dumps(["a", "b"]), str(["c", "d's"]), long, "\u200b\u2060", "e\0f"]
    rows = [(f"{number}.png", text) for number, text in enumerate(cells, 1)]
    with (tmp_path / "set.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("path", "caption"), *rows])
    lines = [json.dumps({"path": path, "caption": text}) for path, text in [*rows, ("6.png", "g\ud83d")]]
    (tmp_path / "set.jsonl").write_text("\ufeff" + "\n".join(lines), "utf-8")
    expected = (("a", "b"), ("c", "d's"), (long.strip(),), ("e f",))
    source = open_pairs(str(tmp_path / "set.csv"))
    assert (source.texts, source.ignored) == (expected, ("4.png",))
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
        ("a.tsv", b"a dog\thttp://x/1.jpg\na cat\thttps://x/2.jpg\n", "no header line .* with img2dataset"),
        ("a.csv", b"url,caption\nhttp://x/1.jpg,a\n", r"lists web addresses \(columns url, caption\): download"),
        ("a.csv", b"image,caption\nhttp://x/1.jpg,a\n", "column image: the image is a web address"),
        ("a.csv", b"file,caption\n1.jpg,a\n", "expected a column path, filepath, image or file_name, found file"),
        ("a.jsonl", b'{"path": "a", "caption": {"raw": "x"}}', "line 1: expected a caption or a list of captions"),
        ("a.csv", b"path,caption\na.png,\n", "none of 1 images has a caption of one character or more"),
        ("a.tsv", b"title\tfilepath\na\t1.png\t2.png\n", r"a\.tsv line 2: expected 2 columns, found more"),
    ],
)  # fmt: skip
def test_lists_that_do_not_fit(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=sentence):
        open_pairs(str(tmp_path / name))


def test_paths_of_another_machine_and_addresses_of_files(tmp_path: Path, picture: Picture) -> None:
    """The longest tail below images= is taken; what is here, or nowhere, stays as it is."""
    folder = tmp_path / "coco pictures"
    fill(folder, dict.fromkeys(("train2014/1.png", "train2014/2.png", "2.png", "../here.png"), picture(0)))
    expected = {
        "/export/share/vision/train2014/1.png": "train2014/1.png",
        "/export/share/vision/train2014/2.png": "train2014/2.png",
        "/export/share/vision/train2014/gone.png": "train2014/gone.png",
        "/export/2.png": "2.png",
        "/nowhere/3.png": "/nowhere/3.png",
        "D:/vision/train2014/2.png": "train2014/2.png",
        f"file://{tmp_path}/here.png": f"{tmp_path}/here.png",
        f"file://localhost{tmp_path}/coco%20pictures/2.png": f"{folder}/2.png",
        "2.png": "2.png",
    }
    rows = [{"image": path, "caption": str(number)} for number, path in enumerate(expected)]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "set.json").write_text(json.dumps(rows))
    for form in ("jsonl", "json"):
        source = open_pairs(f"{tmp_path}/set.{form}?images={folder}")
        assert keys(source) == list(expected.values())
    assert source.images.read(6).data == picture(0)


def test_a_folder_as_imagefolder_writes_it(tmp_path: Path, picture: Picture) -> None:
    """file_name is relative to the metadata, the nearest file counts, and columns give captions and labels."""
    fill(tmp_path, dict.fromkeys(("a.png", "b/1.png", "b/2.png", "c/1.png", "d.png"), picture(0)))
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


def test_metadata_that_does_not_fit(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    metadata = tmp_path / "metadata.csv"
    metadata.write_text("camera,place\nx,y\n")  # of something else
    assert [one.name for one in open_source(str(tmp_path)).ignored] == ["metadata.csv"]  # type: ignore[attr-defined]
    metadata.write_text("file_name,prompt\na.png,one\ngone.png,two\n")
    with pytest.warns(UserWarning, match=r"metadata\.csv: 1 rows name images .* such as 'gone\.png'"):
        assert open_pairs(f"{tmp_path}?captions=prompt").texts == (("one",),)
    metadata.write_text("file_name,label\na.png,cat\na.png,dog\n")
    with pytest.raises(ValueError, match=r"metadata\.csv line 3: expected one row .*, got 'a\.png' again"):
        open_source(str(tmp_path))
    metadata.write_text("file_name,label\na.png,cat\n")
    assert open_source(str(tmp_path)).class_names == ("cat",)
    with pytest.raises(ValueError, match="expected a column prompt in a metadata file, found none"):
        open_pairs(f"{tmp_path}?captions=prompt")


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        ('"""Hi"" said	he"\t1.png\n', (('"Hi" said\the',),)),
        ('"Hi" said he\t1.png\n"no end\t2.png\n', (('"Hi" said he',), ('"no end',))),
    ],
)
def test_quotes_in_tsv(tmp_path: Path, rows: str, texts: tuple[tuple[str, ...], ...]) -> None:
    """Fields in quotes as pandas writes them; quotes of the text itself where that does not work out."""
    (tmp_path / "a.tsv").write_text(f"title\tfilepath\n{rows}")
    assert open_pairs(str(tmp_path / "a.tsv")).texts == texts


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
    ("columns", "sentence"),
    [
        ({"url": ["http://x/1.jpg"], "caption": ["a"]}, "lists web addresses .* img2dataset"),
        ({"id": [3], "caption": ["a"]}, "expected a column of image bytes, .* called path, .* found id, cap"),
        ({"path": pa.array([], pa.string()), "caption": pa.array([], pa.string())}, "lists no image"),
    ],
)
def test_parquet_without_images(tmp_path: Path, columns: dict[str, object], sentence: str) -> None:
    """As a metadata file of img2dataset: addresses alone, or nothing that is known."""
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    with pytest.raises(ValueError, match=sentence):
        open_pairs(str(tmp_path / "set.parquet"))


def test_tables_of_images(tmp_path: Path, picture: Picture) -> None:
    """A folder of them; labels without names do not matter here; another column can be named."""
    for part in range(2):
        names = [2 * part, 2 * part + 1]
        columns = {
            "image": [*map(picture, names)],
            "image_id": [f"id{name}" for name in names],
            "label": [1, 0],
        }
        columns |= {"caption": [f"text {part}", ""], "sentence": ["x", "y"]}
        pq.write_table(pa.table(columns), tmp_path / f"{part}.parquet")
    source = open_pairs(str(tmp_path))
    assert (source.texts, source.ids) == ((("text 0",), ("text 1",)), ("id0", "id2"))
    assert source.ignored == ("0.parquet#1", "1.parquet#1")
    record = source.images.read(1)
    assert (record.data, record.label, record.key) == (picture(2), 1, "1.parquet#0")
    assert source.images.class_names == ("0", "1")
    assert open_pairs(f"{tmp_path}?captions=sentence").texts == (("x",), ("y",)) * 2
    with pytest.raises(ValueError, match="has no column words, found image, image_id, label, caption"):
        open_pairs(f"{tmp_path}?captions=words")
    with pytest.raises(ValueError, match="tables of images take the options captions, rows, got images"):
        open_pairs(f"{tmp_path}?images={tmp_path}")


def test_shards(tmp_path: Path, picture: Picture) -> None:
    """Fields of .json before .txt; a class is no caption, and a year neither class nor error."""
    files = {
        "0.txt": b"from txt", "0.json": b'{"caption": "from json", "status": "success"}',
        "1.txt": b" a caption\n", "2.json": b'{"captions": ["one", "two"]}', "3.json": b'{"text": "a text"}',
        "4.json": b'{"caption": null}', "5.txt": b"7", "6.txt": b"dog", "6.cls": b"1", "7.txt": b"20240101",
    }  # fmt: skip
    files |= {f"{number}.png": picture(number) for number in range(8)}
    write_tar(tmp_path / "set-0.tar", dict(sorted(files.items())))
    source = open_pairs(str(tmp_path / "set-{0..0}.tar"))
    assert source.texts == (("from json",), ("a caption",), ("one", "two"), ("a text",), ("20240101",))
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
    files = {f"{number}.png": picture(number) for number in range(3)}
    files |= {
        "0.txt": b"from txt",
        "0.json": b'{"caption": "from json"}',
        "1.txt": b"a caption",
        "notes.txt": b"-",
    }
    fill(tmp_path / "00000", files)
    source = open_pairs(str(tmp_path))
    assert (source.texts, source.ignored) == ((("from json",), ("a caption",)), ("00000/2.png",))
    assert source.images.read(1).data == picture(1)
    for one in (source.images, *source.images.parts):
        assert [passed.name for passed in one.ignored] == ["00000/notes.txt"]
    for name, data, message in (
        ("1.txt", b"\x80", r"1\.txt: expected UTF-8 text, got 0x80 at byte 0"),
        ("0.json", b"{", r"0\.json: not JSON"),
    ):
        fill(tmp_path / "00000", {name: data})
        with pytest.raises(ValueError, match=message):
            open_pairs(str(tmp_path))


def test_data_sets_of_hugging_face(tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    images = [Image.open(io.BytesIO(picture(number))) for number in range(3)]
    rows = {"image": images, "caption": [["a", "b"], [], ["c"]], "sentence": list("xyz"), "label": [1, 2, 1]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    dataset.save_to_disk(tmp_path / "set")
    source = open_pairs(str(tmp_path / "set"))
    assert (source.texts, source.ignored) == ((("a", "b"), ("c",)), ("#1",))
    assert source.images.class_names == ("", "1", "2")
    assert Image.open(io.BytesIO(source.images.read(1).data)).tobytes() == images[2].tobytes()
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: dataset)
    source = open_pairs("hf:owner/set:test?captions=sentence")
    assert (source.name, source.texts) == ("hf:owner/set:test", (("x",), ("y",), ("z",)))
    dataset.remove_columns(["caption"]).save_to_disk(tmp_path / "bare")
    with pytest.raises(NoCaptions, match=r"expected a column captions, caption, .* found sentence"):
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
    assert (keys(kept), kept.ignored) == (["6.png"], tuple(f"{number}.png" for number in range(5)))
    (tmp_path / "bad.csv").write_text("\n".join(["path,caption", *lines]))
    with pytest.raises(ValueError, match=r"nothing is left of all of them after .*, the first '\.\.\.'"):
        open_pairs(str(tmp_path / "bad.csv")).cleaned()
    with pytest.raises(ValueError, match="max_words must be 1 or more"):
        source.cleaned(0)
