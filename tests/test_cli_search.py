"""`index` and `search` from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests.tiny import english_words, tiny_cbvila, tiny_vqvae, write_images

from pixlex.models import checkpoint

Call = Callable[..., tuple[int, str, str]]
NAMES = tuple(f"{group}/{number}.png" for group in ("cats", "dogs") for number in range(5))
TEXT = " ".join(english_words(40)[20:24])


@pytest.fixture(scope="module")
def model(language: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "pairs"
    checkpoint.save(tiny_cbvila(language), folder)
    return folder


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
    rows = dict(line.rsplit(maxsplit=1) for line in out.splitlines()[1:])
    assert (rows["images"], rows["embedded"], rows["unreadable"]) == ("10", "10", "1")
    assert "index: 100%" in error
    assert "images/s" in error or "s/ images" in error  # tqdm's own way to write less than one a second
    assert "pixlex: skipped broken.png: not an image" in error
    code, out, error = call(*arguments, "--json", "--quiet")
    values = json.loads(out)
    assert (code, error) == (0, "")
    assert (values["num_images"], values["num_embedded"], values["num_unchanged"]) == (10, 0, 10)
    assert values["source"] == str(photos)
    assert [one["key"] for one in values["skipped"]] == ["broken.png"]
    code, _, error = call(*arguments, "--max-broken-share", "0.01", "--quiet")
    assert (code, "cannot be read" in error) == (1, True)


def test_search_by_text(call: Call, indexed: Path) -> None:
    """A table; the same as JSON; quotes may be left out; the model is remembered."""
    code, out, _ = call("search", TEXT, "--index", indexed, "--top-k", 3)
    lines = out.splitlines()
    assert (code, lines[0].split(), len(lines)) == (0, ["rank", "similarity", "key"], 4)
    code, as_json, error = call(
        "search", "--index", indexed, *TEXT.split(), "--top-k", 3, "--json", "--quiet"
    )
    values = json.loads(as_json)
    assert (code, error) == (0, "")
    assert values["query"] == {"text": TEXT}
    assert (values["num_images"], values["ranked_by"]) == (10, "contrastive")
    for line, hit in zip(lines[1:], values["hits"], strict=True):
        rank, similarity, key = line.split()
        assert (int(rank), key) == (hit["rank"], hit["key"])
        assert float(similarity) == pytest.approx(hit["similarity"], abs=1e-4)
    near = json.loads(call("search", TEXT, "--index", indexed, "--top-k", 3, "--approximate", "--json")[1])
    assert [hit["key"] for hit in near["hits"]] == [hit["key"] for hit in values["hits"]]


def test_search_in_two_stages(call: Call, indexed: Path, photos: Path) -> None:
    arguments = ("search", TEXT, "--index", indexed, "--rerank", 10, "--json")
    values = json.loads(call(*arguments, "--score", "matching+contrastive")[1])
    assert values["ranked_by"] == "matching+contrastive"
    matching = [hit["matching"] for hit in values["hits"]]
    assert matching == sorted(matching, reverse=True)
    (photos / values["hits"][0]["key"]).unlink()
    code, out, error = call(*arguments)
    assert code == 0
    assert json.loads(out)["skipped"][0]["key"] == values["hits"][0]["key"]
    assert f"skipped {values['hits'][0]['key']}: it is no longer in {photos}" in error


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
    code, out, _ = call("search", TEXT, "--index", place, "--top-k", 3, "--json")
    assert (code, json.loads(out)["index"], len(json.loads(out)["hits"])) == (0, place, 3)


def test_bad_input(
    call: Call, indexed: Path, model: Path, photos: Path, language: Path, tmp_path: Path
) -> None:
    """What was expected and what came; exit code 2."""
    other, wrong = tmp_path / "other", tmp_path / "wrong"
    checkpoint.save(tiny_cbvila(language, seed=1), other)
    checkpoint.save(tiny_vqvae(), wrong)
    part = next((indexed / "images.lance/data").iterdir())
    for arguments, message in (
        (("search", "--index", indexed), "expected a text to search by, or --image FILE, one of the two"),
        (("search", "?", "--index", indexed), "got '?': it holds punctuation alone"),
        (("search", TEXT, "--index", indexed, "--top-k", 0), "expected an integer of 1 or more, got '0'"),
        (("search", TEXT, "--index", photos), "is no index, it holds no index.json"),
        (("search", TEXT, "--index", tmp_path / "none"), "is no index, there is no such folder"),
        (("search", "--image", part, "--index", indexed), "not an image in a format that is read"),
        (("search", "--image", "none.png", "--index", indexed), "none.png: the file does not exist"),
        (("search", TEXT, "--index", indexed, "--model", other), f"was made with {model} (fingerprint "),
        (
            ("search", TEXT, "--index", indexed, "--model", wrong),
            "a model of family vqvae, expected one of cbvila",
        ),
        (("index", photos, "--model", other, "--out", indexed), f"got {other} (fingerprint "),
        (("index", photos / "cats", "--model", model, "--out", indexed), "say so with --moved"),
        (("index", tmp_path / "none", "--model", model, "--out", indexed), "does not exist"),
    ):
        code, _, error = call(*arguments)
        assert (code, message in error) == (2, True), (arguments, error)
    part.write_bytes(part.read_bytes()[:-1])
    code, _, error = call("search", TEXT, "--index", indexed)
    assert (code, f"{part} is damaged" in error) == (2, True)
    assert f"pixlex index SOURCE --out {indexed}" in error
