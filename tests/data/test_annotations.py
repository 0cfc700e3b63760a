"""Annotation files: four kinds told by their content, splits, and what does not fit."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixlex.data.captions import open_pairs
from pixlex.data.decoding import UnreadableImage
from pixlex.data.records import AnnotatedSplits

Picture = Callable[..., bytes]
KARPATHY = {
    "dataset": "coco",
    "images": [
        {
            "filepath": "val2014", "filename": f"{split}.png", "split": split, "sentids": [number],
            "sentences": [{"raw": f"{split} {text}", "imgid": number, "sentid": text} for text in range(2)],
        }
        for number, split in enumerate(("train", "restval", "val", "test"))
    ],
}  # fmt: skip
COCO = {
    "info": {},
    "images": [{"id": number, "file_name": f"{number}.png"} for number in (7, 3, 5)],
    "annotations": [
        {"id": 1, "image_id": 3, "caption": "three "},
        {"id": 2, "image_id": 7, "caption": "seven"},
        {"id": 3, "image_id": 3, "caption": "a second three"},
    ],
}
ONE = [{"image_id": 1, "caption": "x"}]
GENOME = [
    {"id": 1, "regions": [{"region_id": 5, "image_id": 1, "phrase": "the clock"}, {"phrase": "a tree"}]},
    {"image_id": 20, "regions": [{"phrase": "a man"}]},
    {"id": 3, "regions": [{"phrase": "gone"}]},
    {"id": 4, "regions": []},
]


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_albef(tmp_path: Path, picture: Picture) -> None:
    """Texts or lists of texts; rows of one image become one image with several captions."""
    (tmp_path / "a.png").write_bytes(picture(0))
    rows = [
        {"image": "a.png", "caption": "one", "image_id": "x"},
        {"image": "b.png", "caption": ["two", "three"]},
        {"image": "c.png", "caption": ""},
        {"image": "a.png", "caption": "four"},
    ]
    source = open_pairs(write(tmp_path / "set.json", rows))
    assert source.texts == (("one", "four"), ("two", "three"))
    assert source.ignored == ("c.png",)
    assert [source.key(index) for index in range(2)] == ["a.png", "b.png"]
    assert source.images.read(0).data == picture(0)
    with pytest.raises(UnreadableImage, match=r"b\.png: the file does not exist"):
        pickle.loads(pickle.dumps(source)).images.read(1)
    write(tmp_path / "many.json", [{"image": "a.png", "captions": ["x"]}])
    assert open_pairs(str(tmp_path / "many.json")).texts == (("x",),)


def test_karpathy(tmp_path: Path, picture: Picture) -> None:
    path = write(tmp_path / "dataset_coco.json", KARPATHY)
    folder = tmp_path / "elsewhere"
    (folder / "val2014").mkdir(parents=True)
    (folder / "val2014" / "restval.png").write_bytes(picture(1))
    source = open_pairs(f"{path}?split=train+restval&images={folder}")
    assert [source.key(index) for index in range(len(source))] == ["val2014/train.png", "val2014/restval.png"]
    assert source.texts[1] == ("restval 0", "restval 1")
    assert source.images.read(1).data == picture(1)
    assert source.splits == AnnotatedSplits("coco", {"train": 1, "restval": 1, "val": 1, "test": 1})
    assert len(open_pairs(f"{path}?split=all")) == len(open_pairs(path, every_split=True)) == 4
    assert len(open_pairs(f"{path}?split=test", every_split=True)) == 1


def test_splits_are_named(tmp_path: Path) -> None:
    """Not by default: a training set that holds the test images would not be noticed."""
    path = write(tmp_path / "dataset_coco.json", KARPATHY)
    known = r"train \(1 images\), restval \(1 images\), val"
    with pytest.raises(
        ValueError, match=rf"holds the splits {known}.*dataset_coco\.json\?split=train\+restval"
    ):
        open_pairs(path)
    with pytest.raises(ValueError, match=rf"has no split dev, tset; known: {known}"):
        open_pairs(f"{path}?split=tset+train+dev")
    coco = write(tmp_path / "coco.json", COCO)
    with pytest.raises(ValueError, match=r"coco\.json has no splits, got split=train"):
        open_pairs(f"{coco}?split=train")


def test_coco(tmp_path: Path) -> None:
    source = open_pairs(write(tmp_path / "captions_val2014.json", COCO))
    assert [source.key(index) for index in range(len(source))] == ["7.png", "3.png"]
    assert source.texts == (("seven",), ("three", "a second three"))
    assert source.ignored == ("5.png",)


def test_visual_genome(tmp_path: Path, picture: Picture) -> None:
    """Every phrase is a text of the whole image; files are found by their number, or by the index."""
    path = write(tmp_path / "region_descriptions.json", GENOME)
    for name in ("VG_100K/1.jpg", "VG_100K_2/20.jpg", "VG_100K_2/notes.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture(len(name), "JPEG"))
    source = open_pairs(path)
    assert source.texts == (("the clock", "a tree"), ("a man",), ("gone",))
    assert [source.key(index) for index in range(3)] == ["VG_100K/1.jpg", "VG_100K_2/20.jpg", "VG_100K/3.jpg"]
    assert source.images.read(1).data == picture(len("VG_100K_2/20.jpg"), "JPEG")
    assert source.ignored == ("VG_100K/4.jpg",)
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "3.jpg").write_bytes(b"")
    assert open_pairs(f"{path}?images={tmp_path / 'flat'}").key(2) == "3.jpg"
    rows = [
        {"image_id": number, "url": f"https://example.org/VG_100K_2/9{number}.jpg"} for number in (1, 20, 3)
    ]
    index = write(tmp_path / "image_data.json", rows)
    assert open_pairs(f"{path}?index={index}").key(0) == "VG_100K_2/91.jpg"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([{"question": "x", "answer": "y"}], r"found a list of 1 objects of question, answer"),
        ({"images": [{"id": 1}], "info": {}}, r"found an object of images: a list of 1 objects of id, info"),
        ([], r"found \[\]"),
        (["a.png"], r"found a list of 1 'a\.png'"),
        (3, "found 3"),
        ({"image_urls": ["http://x"], "captions": ["a"]}, "lists web addresses; download .* img2dataset"),
        ([{"image": "a", "caption": "b"}, {"image": "c", "caption": 3}], r"entry 1: c: expected a caption"),
        ([{"image": "a", "caption": "b"}, {"caption": "c"}], "entry 1 has no field 'image'"),
        ([{"image": "a", "caption": "b"}, {"image": 3, "caption": "c"}], "entry 1: image: expected .* got 3"),
        ([{"image": "a", "caption": "b"}, {"image": "c"}], "entry 1 has no field 'caption'"),
        (
            {**COCO, "annotations": [{"image_id": "7.0", "caption": "x"}, {"caption": "y"}]},
            "annotation 1: expected the fields image_id and caption, got",
        ),
        (
            {"images": [{"id": 1.0, "file_name": "a"}, {"id": "1", "file_name": "b"}], "annotations": ONE},
            "image 1: expected ids that occur once, got 1 again",
        ),
        ({"images": [{"id": 1}], "annotations": ONE}, "image 0 has no field 'file_n"),
        ([{"image": "a", "caption": "b"}, {"image": "c", "caption": {"d": "e" * 999}}], "got .{80}$"),
        ([{"image": "a", "caption": "b"}, "c"], "entry 1: expected an object, got 'c'"),
        ([{"image": "a", "caption": ""}], "none of 1 images has a caption"),
        ({**COCO, "annotations": [{"image_id": 9, "caption": "x"}]}, "belongs to image 9, which is not among"),
        ({"images": [{"sentences": [], "filename": "a"}]}, "image 0 has no field 'split'"),
        ([{"id": 1, "regions": [{"phrase": 3}]}], "entry 0: image 1: expected a caption"),
        ([{"regions": [{"phrase": "x"}]}], "entry 0 has no field 'image_id'"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(tmp_path: Path, content: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_pairs(write(tmp_path / "set.json", content), every_split=True)


def test_files_that_are_no_json_and_options_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_bytes(b"\x80{")
    genome, coco = write(tmp_path / "genome.json", GENOME), write(tmp_path / "coco.json", COCO)
    for description, message in (
        (f"{tmp_path}/set.json", r"set\.json: expected UTF-8 text, got 0x80 at byte 0"),
        (f"{coco}?index={genome}", "COCO's captions take the options split, images, rows, got index"),
        (f"{genome}?index={coco}", r"coco\.json is no image_data\.json: expected a list of \{image_id, url"),
        (f"{genome}?index={tmp_path}/none.json", r"none\.json cannot be read: No such file"),
        (f"{coco}?images={tmp_path}/missing", r"the folder of images .*missing does not exist"),
        (f"{coco}?rows=texts", "rows must be images or captions, got texts"),
    ):
        with pytest.raises(ValueError, match=message):
            open_pairs(description)
