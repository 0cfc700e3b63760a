"""`doctor` and `convert` on images with captions."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tests.tiny import english_words, tiny_cbvila, tiny_reasoner, write_images

from pixlex.config.cbvila import ReasoningTask
from pixlex.data.captions import open_pairs
from pixlex.models import checkpoint

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
    assert "no caption   1 image, left out" in out
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
    assert (code, text.strip()) == (0, f"{out}: 1 image, 0 captions")


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


@pytest.fixture(scope="module")
def folder(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and an image."""
    folder = tmp_path_factory.mktemp("explain")
    for name in ("cbvila", "mae"):
        (folder / name).symlink_to(models / name)
    write_images(folder, ["a.png"])
    (folder / "text.png").write_text("no image")
    return folder


@pytest.mark.parametrize("score", ["matching", "masked_language"])
def test_explain(call: Call, folder: Path, tmp_path: Path, score: str) -> None:
    """A picture; words, maps and score as JSON: those of the function."""
    arguments = ("--model", folder / "cbvila", "--out", tmp_path / "why.png", "--score", score)
    code, out, err = call("explain", folder / "a.png", "About, all!", *arguments, "--json", "--layer", 2)
    assert (code, err != "") == (
        0,
        score == "matching",
    )  # in the last layer words have no heat, which is said
    code, out, err = call("explain", folder / "a.png", "About, all!", *arguments, "--json")
    values = json.loads(out)
    assert (code, err) == (0, "")
    assert values["words"] == ["about", "all"]
    assert (values["explained"], values["layer"], values["left_out"]) == (score, 1, [])
    maps = torch.tensor(values["maps"])
    assert maps.shape == (2, 4, 4)
    assert (maps.flatten(1).amax(1) > 0).all()
    assert torch.tensor(values["whole"]).shape == (4, 4)
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.width > 4 * 192
    _, _, err = call("explain", folder / "a.png", "and " * 14 + "also", *arguments)
    assert "longer than the model's 16 positions: cut behind 14 words, not read: also" in err
    code, out, _ = call("explain", folder / "a.png", "About, all!", *arguments, "--json", "--raw-text")
    assert len(json.loads(out)["words"]) == 4


def test_bad_input_of_explain(call: Call, folder: Path, tmp_path: Path) -> None:
    """Exit code 2, what was expected and what came, and no picture."""
    for image, text, model, extra, message in (
        ("text.png", "and", "cbvila", (), "not an image in a format that is read"),
        ("none.png", "and", "cbvila", (), "none.png: the file does not exist"),
        ("a.png", "and", "mae", (), "holds a model of family mae, expected one of cbvila"),
        ("a.png", "and", "cbvila", ("--answer", "red"), "gives no answers"),
        ("a.png", "and", "none", (), "none"),
    ):
        code, _, err = call(
            "explain", folder / image, text, "--model", folder / model, "--out", tmp_path / "a.png", *extra
        )
        assert (code, message in err) == (2, True), err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["vqa", "nlvr2"])
def test_the_answer_of_a_fine_tuned_model_is_explained(
    call: Call, folder: Path, language: Path, tmp_path: Path, task: ReasoningTask
) -> None:
    """A picture for the answer that `ask` puts first, or for one that is named; as many images as it reads."""
    model = tiny_reasoner(language, task)
    checkpoint.save(model, tmp_path / "model")
    images = [folder / "a.png"] * model.config.num_images
    arguments = ("--model", tmp_path / "model", "--out", tmp_path / "why.png", "--json")
    code, out, err = call("explain", *images, "about all?", *arguments)
    values = json.loads(out)
    assert (code, err) == (0, "")
    asked = json.loads(call("ask", *images, "about all?", "--model", tmp_path / "model", "--json")[1])
    assert values["answer"] == asked["answers"][0]["answer"]
    assert (values["explained"], values["words"]) == ("answer", ["about", "all"])
    assert torch.tensor(values["maps"]).shape == (len(images), 2, 4, 4)
    assert torch.tensor(values["maps"]).max() > 0
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.width > 4 * 192
    other = model.config.answers[-1]
    again = json.loads(call("explain", *images, "about all?", *arguments, "--answer", other)[1])
    assert again["answer"] == other
    assert again["score"] <= values["score"] + 1e-6
    code, _, err = call("explain", *images, folder / "a.png", "about", *arguments)
    assert (code, f"{len(images)} images with the text, got {len(images) + 1}" in err) == (2, True), err
    for extra, message in (
        (("--score", "matching"), "was fine-tuned to answer"),
        (("--raw-text",), "--raw-text is for"),
        (("--answer", "" if task == "vqa" else "perhaps"), "answer"),
    ):
        code, _, err = call("explain", *images, "about", *arguments, *extra)
        assert (code, message in err) == (2, True), err


NAMES = tuple(f"{group}/{number}.png" for group in ("cats", "dogs") for number in range(5))
TEXT = " ".join(english_words(40)[20:24])


@pytest.fixture
def model(models: Path) -> Path:
    return models / "cbvila"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", NAMES)


@pytest.fixture
def indexed(call: Call, photos: Path, model: Path, tmp_path: Path) -> Path:
    assert call("index", photos, "--model", model, "--out", tmp_path / "index", "--quiet")[0] == 0
    return tmp_path / "index"


def test_index(call: Call, photos: Path, model: Path, tmp_path: Path) -> None:
    """A bar and a table; as JSON; what is broken is named; nothing twice."""
    (photos / "broken.png").write_bytes(b"no image")
    arguments = ("index", photos, "--model", model, "--out", tmp_path / "index")
    code, out, error = call(*arguments)
    assert code == 0
    assert "index: 100%" in error
    assert "pixlex: skipped broken.png: not an image" in error
    code, out, error = call(*arguments, "--json", "--quiet")
    values = json.loads(out)
    assert (code, error) == (0, "")
    assert (values["num_images"], values["num_embedded"], values["num_unchanged"]) == (10, 0, 10)
    assert values["source"] == str(photos)
    assert [one["key"] for one in values["skipped"]] == ["broken.png"]
    code, _, error = call(*arguments, "--max-broken-fraction", "0.01", "--quiet")
    assert (code, "cannot be read" in error) == (1, True)


def test_search_by_image_and_sheet(call: Call, indexed: Path, photos: Path, tmp_path: Path) -> None:
    """The picture itself comes first, and stands in the top left corner of the sheet."""
    photo, sheet = photos / NAMES[7], tmp_path / "new folder" / "sheet.png"
    code, out, _ = call(
        "search", "--image", photo, "--index", indexed, "--sheet", sheet, "--json", "--top-k", 7
    )
    values = json.loads(out)
    assert code == 0
    assert values["query"] == {"image": str(photo)}
    assert values["hits"][0]["key"] == NAMES[7]
    assert values["hits"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    with Image.open(sheet) as drawn, Image.open(photo) as original:
        assert drawn.width > drawn.height  # five in a row, two rows
        middle = drawn.convert("RGB").getpixel((16 + 110, 16 + 36 + 110))
        expected = original.convert("RGB").resize((220, 198), Image.Resampling.BICUBIC).getpixel((110, 99))
    assert middle == pytest.approx(expected, abs=12)


def test_a_sheet_says_what_it_cannot_draw(call: Call, indexed: Path, photos: Path, tmp_path: Path) -> None:
    (photos / NAMES[0]).unlink()
    code, _, error = call("search", TEXT, "--index", indexed, "--sheet", tmp_path / "sheet.png")
    assert code == 0
    assert f"not drawn: {NAMES[0]}: " in error
    assert (tmp_path / "sheet.png").is_file()


def test_a_moved_model_is_named(call: Call, language: Path, photos: Path, tmp_path: Path) -> None:
    checkpoint.save(tiny_cbvila(language), tmp_path / "here")
    call("index", photos, "--model", tmp_path / "here", "--out", tmp_path / "index", "--quiet")
    (tmp_path / "here").rename(tmp_path / "there")
    code, _, error = call("search", TEXT, "--index", tmp_path / "index")
    assert (code, str(tmp_path / "here") in error) == (2, True)
    assert call("search", TEXT, "--index", tmp_path / "index", "--model", tmp_path / "there")[0] == 0


def test_an_index_at_a_url(call: Call, photos: Path, model: Path, tmp_path: Path) -> None:
    """Its address comes through as it was typed."""
    place = f"file://{tmp_path}/far/index"
    code, out, _ = call("index", photos, "--model", model, "--out", place, "--json", "--quiet")
    assert (code, json.loads(out)["index"]) == (0, place)
    assert (tmp_path / "far/index/images.lance").is_dir()
    exact, near = (
        json.loads(call("search", *TEXT.split(), "--index", place, "--top-k", 3, "--json", *how)[1])
        for how in ((), ("--approximate",))
    )
    assert (exact["index"], exact["query"], exact["ranked_by"]) == (place, {"text": TEXT}, "contrastive")
    assert [hit["key"] for hit in near["hits"]] == [hit["key"] for hit in exact["hits"]]


def test_bad_input(call: Call, indexed: Path) -> None:
    """What was expected and what came; exit code 2."""
    for arguments, message in (
        (("search", "--index", indexed), "expected a text to search by, or --image FILE, one of the two"),
        (("search", TEXT, "--index", indexed, "--top-k", 0), "expected an integer of 1 or more, got '0'"),
        (("search", "--image", "none.png", "--index", indexed), "none.png: the file does not exist"),
    ):
        code, _, error = call(*arguments)
        assert (code, message in error) == (2, True), (arguments, error)
