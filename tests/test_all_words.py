"""`vocabulary: all` over a byte-level BPE, as RoBERTa's: what is shown, prompted and written is text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tests.eval.few_shot.fakes import labeled
from tests.nn.conftest import configuration, tokenizer_of
from tests.tiny import tiny_lqae_config

from pixlex.api import ImageTokenizer
from pixlex.config.lqae import LanguageConfig
from pixlex.data.images import open_source
from pixlex.eval.few_shot.readers import model_words
from pixlex.models import checkpoint
from pixlex.models.lqae import LQAE

BYTES = set("ĠĊĉ")  # how byte-level tokens spell a space, a line end and a tab


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an LQAE whose codewords are all rows of a RoBERTa."""
    folder = tmp_path_factory.mktemp("all")
    tokenizer = tokenizer_of("roberta")
    transformers.RobertaForMaskedLM(configuration("roberta", tokenizer)).save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    language = LanguageConfig(name=str(folder / "language"), vocabulary="all")
    config = dataclasses.replace(tiny_lqae_config(folder), language=language)
    checkpoint.save(LQAE.build(config), folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> ImageTokenizer:
    return ImageTokenizer.from_pretrained(str(model), device="cpu")


def test_words_are_text_and_the_round_trip_says_what_it_cannot(tokenizer: ImageTokenizer) -> None:
    codes = torch.randint(tokenizer.num_codewords, (20, 16), generator=torch.Generator().manual_seed(3))
    texts = tokenizer.to_words(codes)
    own = tokenizer.model.language.tokenizer  # type: ignore[union-attr]
    for row, text in zip(codes.tolist(), texts, strict=True):
        assert not BYTES & set(text)
        assert len(text.splitlines()) == 1
        assert len(own(text)["input_ids"]) < 2 * len(row)  # "Ġch Ć" would be more than twice as many
    with pytest.raises(ValueError, match=r"expected 16 words \(4 x 4\), got \d+ as the tokenizer divides"):
        [tokenizer.from_words(text) for text in texts]
    words = own(" the class is of" * 4, add_special_tokens=False)["input_ids"]
    text = tokenizer.to_words(torch.tensor([words]))[0]
    assert text == "the class is of the class is of the class is of the class is of"
    assert tokenizer.from_words(text)[0].tolist() == words


def test_prompts_and_files_hold_text(
    model: Path, tokenizer: ImageTokenizer, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    images, written = tmp_path / "images", tmp_path / "codes.jsonl"
    labeled(images, per_class=4)
    source = open_source(str(images))
    texts = model_words(tokenizer.model, name="words").read(source, range(len(source)))
    assert not BYTES & set("".join(texts.values()))
    given: tuple[object, ...] = ("--model", model, "--device", "cpu")
    code, out, err = call("encode", images, *given)
    assert (code, "is not read back exactly" in err) == (0, True)
    assert [line.split("\t")[1] for line in out.splitlines()] == list(texts.values())
    call("encode", images, "--to", "jsonl", "--out", written, *given)
    assert json.loads(written.read_text().splitlines()[0])["words"] == texts[0]
    code, out, err = call("decode", written, "--out", tmp_path / "pictures", *given)
    assert code == 0, err


def test_every_reader_of_words_takes_text_of_any_length(
    model: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    labeled(tmp_path / "images", per_class=4)
    given = ("--model", model, "--data", tmp_path / "images", "--device", "cpu", "--quiet", "--json")
    code, out, err = call(
        "evaluate", "few-shot", *given, "--episodes", 3, "--ways", 2, "--settings", "1/0",
        "--classifiers", "layers", "last-layer", "bag", "--out", tmp_path / "few",
    )  # fmt: skip
    assert code == 0, err
    assert all(cell["num_failed"] == 0 for cell in json.loads(out))
    code, out, err = call("evaluate", "reconstruction", *given, "--out", tmp_path / "page")
    assert code == 0, err
    values = json.loads(out)
    assert 0 < values["word_round_trip_rate"] < 1
    assert values["text_round_trip_rate"] <= values["word_round_trip_rate"]
    assert not BYTES & set((tmp_path / "page" / "report.html").read_text(encoding="utf-8"))
