"""The page of a run: complete in one file, escaped, readable without it."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from pixlex.eval.evaluate import metric_of
from pixlex.families import FAMILIES
from pixlex.report.figures import Captioned, to_bytes
from pixlex.report.page import Page, comparison, model_card, write_page

EVIL = "<script>alert('x')</script>"
NUMBERS = {"eval/mse": 0.02, "eval/mean_image_mse": 0.08, "eval/psnr": 17.0, "eval/codebook_usage": 0.0375}


class Reader(HTMLParser):
    """Collects tags with attributes, text, and what was opened and closed."""

    VOID = ("meta", "img", "br", "wbr")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(path: Path) -> Reader:
    """The page as a browser sees it; every tag is closed in its turn."""
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def write(folder: Path, **changes: Any) -> Path:
    """A page with everything on it."""
    settings: dict[str, Any] = {
        "title": "A run & more",
        "numbers": NUMBERS,
        "examples": examples(),
        "commands": ["pixlex train tiny out=a", f"echo '{EVIL}'"],
        "config": {"family": "lqae", "note": EVIL, "model": {"image_size": 16}},
        "introduction": f"First.\n\nSecond {EVIL}.",
        "notes": [f"note {EVIL}"],
        "pictures": {},
    }
    return write_page(folder / "index.html", Page(**{**settings, **changes}))


def examples(words: bool = True) -> dict[str, Any]:
    """Two images of four words."""
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = (("ant", EVIL, "counterrevolutionaries", "$title"), ("a", "b", "c", "d&e"))
    return {
        "keys": (EVIL, "key"), "originals": images, "reconstructions": 1 - images,
        "codes": torch.zeros(2, 4, dtype=torch.long), "words": rows if words else None,
    }  # fmt: skip


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "run")
    assert path == tmp_path / "run" / "index.html"
    assert "http://" not in path.read_text("utf-8")
    assert "https://" not in path.read_text("utf-8")
    for tag, attributes in read(path).tags:
        assert tag not in ("script", "link", "iframe", "object")
        assert not any(name.startswith("on") or name == "href" for name in attributes)
        if "src" in attributes:
            assert str(attributes["src"]).startswith("data:image/png;base64,")
    policies = [attributes["content"] for _, attributes in read(path).tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_everything_given_is_escaped_and_shown(tmp_path: Path) -> None:
    text = "".join(read(write(tmp_path)).text)
    # word, text of the words, key, command, configuration, introduction, note
    assert text.count(EVIL) == 7
    for given in ("A run & more", "pixlex train tiny out=a", "image_size: 16", "$title"):
        assert given in text


def test_words_are_text_in_the_order_of_the_grid(tmp_path: Path) -> None:
    source = write(tmp_path).read_text("utf-8")
    cells = re.findall(r'<div style="--width[^>]*><span>(.*?)</span></div>', source)
    assert [cell.replace("<i></i><wbr>", "") for cell in cells[4:]] == ["a", "b", "c", "d&amp;e"]
    assert cells[2].replace("<i></i><wbr>", "") == "counterrevolutionaries"
    assert "<p>a b c d&amp;e</p>" in source


def test_pictures_are_the_images_to_the_byte(tmp_path: Path) -> None:
    pictures = []
    for tag, attributes in read(write(tmp_path)).tags:
        if tag == "img":
            data = str(attributes["src"]).removeprefix("data:image/png;base64,")
            with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
                pictures.append(np.asarray(picture))
            assert attributes["alt"]
    pairs = zip(examples()["originals"], examples()["reconstructions"], strict=True)
    expected = [to_bytes(image) for pair in pairs for image in pair]
    assert all(np.array_equal(found, wanted) for found, wanted in zip(pictures, expected, strict=True))


def test_a_page_without_words_or_examples(tmp_path: Path) -> None:
    source = write(tmp_path, examples=examples(words=False)).read_text("utf-8")
    assert source.count("<img") == 4
    assert "as text" not in source
    source = write(tmp_path, examples=None, notes=(), introduction="", numbers={}).read_text("utf-8")
    assert "<img" not in source
    assert "<li>" not in source
    read(tmp_path / "index.html")


def test_what_is_said_of_images_is_text_beside_them(tmp_path: Path) -> None:
    """A block for each item with all its images; text can be copied, and is escaped."""
    shown = [
        Captioned(torch.rand(2, 3, 8, 8), (EVIL, "model: yes")),
        Captioned(torch.rand(1, 3, 8, 8), ("$title",)),
    ]
    path = write(tmp_path, examples=None, captioned=shown)
    source, text = path.read_text("utf-8"), "".join(read(path).text)
    blocks = source.split('<section class="said">')[1:]
    assert [block.count("<img") for block in blocks] == [2, 1]
    assert "model: yes" in text
    assert text.count(EVIL) == 5  # command, configuration, introduction, note, and here
    assert "$title" in text


def test_curves_are_shown_where_they_are_given(tmp_path: Path) -> None:
    Image.new("RGB", (5, 3)).save(tmp_path / "some.png")
    source = write(
        tmp_path, examples=None, pictures={"Curves": tmp_path / "some.png", "Lost": None}
    ).read_text("utf-8")
    data = re.findall(r'class="curves"[^>]*base64,([^"]+)"', source)
    with Image.open(io.BytesIO(base64.b64decode(data[0]))) as picture:
        assert picture.size == (5, 3)
    with pytest.raises(FileNotFoundError):
        write(tmp_path, pictures={"Curves": tmp_path / "absent.png"})


@pytest.mark.parametrize(
    ("error", "constant", "sentence"),
    [
        (0.02, 0.08, "75% below"),
        (0.12, 0.08, "50% above"),
        (0.02, None, ""),
        (None, 0.08, ""),
        (0.1, 0.0, ""),
    ],
)
def test_the_comparison_says_which_is_better(
    error: float | None, constant: float | None, sentence: str
) -> None:
    numbers = {"eval/mse": error, "eval/mean_image_mse": constant}
    found = comparison({name: value for name, value in numbers.items() if value is not None})
    assert sentence in found
    assert bool(found) == bool(sentence)


def test_numbers_are_written_for_people_with_unit_and_name(tmp_path: Path) -> None:
    text = re.sub(r"\s+", " ", " ".join(read(write(tmp_path)).text))
    assert "17 dB higher eval/psnr" in text
    assert "3.75 % higher eval/codebook_usage" in text
    for key, value, shown in (
        ("eval/num_images", 12345.0, "12,345"), ("eval/mse", 0.0213456, "0.02135 MSE"),
        ("eval/text_round_trip_rate", 1.0, "100 %"), ("eval/pseudo_perplexity", 1e10, "10,000,000,000"),
        ("eval/psnr", float("nan"), "nan"), ("eval/never_heard_of", 2.5, "2.5"),
    ):  # fmt: skip
        assert metric_of(key).text(value) == shown
    assert metric_of("eval/never_heard_of").label == "never heard of"


CONFIG: dict[str, Any] = {"family": "lqae", "model": {"image_size": 64, "patch_size": 8}, "seed": 0}
LANGUAGE = ("some/bert", "c0ffee" * 10)
BARRED = {"eval/mse": 0.02, "eval/a|b": 1.0}


def test_the_card_can_be_read_back() -> None:
    """By the hub, without a license; configuration and commands to the letter; a bar breaks no table."""
    commands = ["cat > note <<END", "```", "END"]
    text = model_card({**CONFIG, "note": "```\nfence"}, BARRED, commands, LANGUAGE)
    card = ModelCard(text)
    assert (card.data.library_name, card.data.license) == ("pixlex", None)
    assert card.data.tags == ["image-tokenizer", "vector-quantization", "lqae"]
    blocks = {
        kind: body
        for _, kind, body in re.findall(r"^(`{3,})(\w+)\n(.*?)^\1$", text, re.DOTALL | re.MULTILINE)
    }
    assert blocks["sh"].splitlines() == commands
    assert yaml.safe_load(blocks["yaml"]) == {**CONFIG, "note": "```\nfence"}
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4  # with the rule
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_card(family: str) -> None:
    """What it is, how it is used, whose language model it speaks through; nothing of what it has not."""
    model = {"image_size": 64, "patch_size": 8, "task": "nlvr2"}
    language = None if family in ("vqvae", "mae") else LANGUAGE
    text = model_card({"family": family, "model": model}, {}, [], language)
    assert re.search(r"^# .*\n\n\w", text, re.MULTILINE)
    assert "{" not in text
    said, unsaid = {
        "lqae": (
            ("# LQAE: 8 x 8 words for an image", "`some/bert`", LANGUAGE[1], "tokenizer.to_words(images)"),
            (),
        ),
        "vqvae": (("8 x 8\ncodes", "vq-vae"), ("to_words", "Language model")),
        "mae": (("masked-autoencoder", "model.embed(images)"), ("tokenizer", "codes")),
        "frozen": (("The language model is `some/bert`", "model.caption(images"), ("tokenizer", "codes")),
    }.get(family, ((), ()))
    assert [one for one in said if one not in text] == [one for one in unsaid if one in text] == []
    if family == "lqae":
        embedded = model_card(CONFIG, BARRED, [], ("embedded", "c0ffee"))
        assert "sentence-transformers/all-MiniLM-L6-v2" in embedded
