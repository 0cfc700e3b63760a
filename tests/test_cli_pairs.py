"""`doctor` and `convert` on images with captions."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.tiny import write_images

from pixlex.data.captions import open_pairs

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def karpathy(tmp_path: Path) -> Path:
    """A file of two splits, one image of which is missing and one has no caption."""
    write_images(tmp_path / "images", ["0.png", "1.png", "2.png"])
    images = [
        {
            "filename": f"{number}.png",
            "split": split,
            "sentences": [{"raw": f"text {number}"}] * (number != 2),
        }
        for number, split in enumerate(("train", "train", "val", "val"))
    ]
    path = tmp_path / "dataset_flickr8k.json"
    path.write_text(json.dumps({"dataset": "flickr8k", "images": images}))
    return path


def test_doctor_on_captions(call: Call, karpathy: Path, tmp_path: Path) -> None:
    """No split need be named: all images are looked at."""
    code, out, err = call("doctor", f"{karpathy}?images={tmp_path / 'images'}")
    assert (code, "read" in err) == (0, True)
    assert "broken     1 (33.3%, 1 of them missing files)" in out
    assert "captions     3" in out
    assert "no caption   1 images, left out" in out
    assert "split train  2 images, 6,000 expected" in out
    assert "Karpathy's split of Flickr8k has 1,000 images in test, this file 0." in out
    code, out, err = call("doctor", f"{karpathy}?images={tmp_path / 'images'}", "--json", "--quiet")
    values = json.loads(out)
    assert (values["num_missing"], values["captions"]["splits"]) == (1, {"train": 2, "val": 2})
    assert values["captions"]["words_per_caption"] == {"smallest": 2, "middle": 2, "largest": 2}
    assert err == ""


def test_doctor_reads_an_image_of_a_mixture_once(call: Call, tmp_path: Path) -> None:
    write_images(tmp_path, ["0.png", "1.png"])
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("path,caption\n0.png,x\n1.png,y\n")
    values = json.loads(call("doctor", f"3 * {tmp_path}/a.csv + {tmp_path}/b.csv", "--json")[1])
    assert (values["num_images"], values["duplicate_keys"]) == (4, {})
    assert values["captions"]["num_captions"] == 4


def test_doctor_on_images_alone(call: Call, tmp_path: Path) -> None:
    write_images(tmp_path, ["0.png"])
    assert json.loads(call("doctor", tmp_path, "--json")[1])["captions"] is None
    (tmp_path / "set.json").write_text('[{"question": "x"}]')
    code, _, err = call("doctor", tmp_path / "set.json")
    assert (code, "found a list of 1 objects of question" in err) == (2, True)


def test_convert(call: Call, karpathy: Path, tmp_path: Path) -> None:
    description, out = f"{karpathy}?images={tmp_path / 'images'}", tmp_path / "set.parquet"
    code, text, err = call("convert", description, "--out", out, "--split", "train+val", "--image-size", 20)
    assert code == 0
    assert f"{out}: 2 images, 2 captions" in text
    assert "images that cannot be read, left out (1)\n  3.png: the file does not exist" in text
    assert "images without a caption, left out (1)\n  2.png" in text
    assert "convert: 100%" in err
    assert open_pairs(str(out)).texts == (("text 0",), ("text 1",))
    code, _, err = call("convert", description, "--out", out, "--split", "train")
    assert (code, "exists; choose another name" in err) == (2, True)
    code, text, err = call(
        "convert", description, "--out", out, "--split", "train", "--overwrite", "--quiet", "--json"
    )
    assert (code, err) == (0, "")
    assert json.loads(text) == {
        "path": str(out), "num_images": 2, "num_captions": 2, "skipped": [], "without_captions": [],
    }  # fmt: skip
    assert not out.with_name("set.parquet.skipped.jsonl").exists()


def test_convert_says_what_is_wrong(call: Call, karpathy: Path, tmp_path: Path) -> None:
    """A split must be named; nothing readable is a failure, not a mistake of who typed."""
    out = tmp_path / "set.parquet"
    code, _, err = call("convert", karpathy, "--out", out)
    assert (code, "say which are meant" in err) == (2, True)
    code, _, err = call("convert", karpathy, "--out", out, "--split", "all")
    assert (code, "none of 3 images can be read" in err) == (1, True)
    assert not out.exists()
    write_images(tmp_path / "bare", ["0.png"])  # images alone are no mistake
    code, text, _ = call("convert", tmp_path / "bare", "--out", out)
    assert (code, text.strip()) == (0, f"{out}: 1 images, 0 captions")


def test_doctor_and_convert_at_an_address(call: Call, tmp_path: Path) -> None:
    """The same report and the same file as from a disk, but for names."""
    files = fsspec.filesystem("memory")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for number in range(3):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
            (tmp_path / f"{number}.txt").write_text(f"caption {number}")
            tar.add(tmp_path / f"{number}.png", f"{number}.png")
            tar.add(tmp_path / f"{number}.txt", f"{number}.txt")
    files.pipe("/bucket/set.tar", (tmp_path / "set.tar").read_bytes())
    answers = {}
    try:
        for place in (str(tmp_path), "memory://bucket"):
            code, out, err = call("doctor", f"{place}/set.tar", "--json", "--quiet")
            assert code == 0, err
            answers[place] = {key: value for key, value in json.loads(out).items() if key != "name"}
            code, _, err = call(
                "convert", f"{place}/set.tar", "--out", tmp_path / f"{len(answers)}.parquet", "--quiet"
            )
            assert code == 0, err
        code, _, err = call("doctor", "memory://bucket/none.tar")
        assert (code, err) == (2, "pixlex: error: memory://bucket/none.tar does not exist\n")
    finally:
        files.rm("/bucket", recursive=True)
    near, far = answers.values()
    assert near == far
    assert near["num_images"] == 3
    assert pq.read_table(tmp_path / "1.parquet").equals(pq.read_table(tmp_path / "2.parquet"))
