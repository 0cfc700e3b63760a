"""The model card: front matter that the hub reads, tables and code blocks that do not break."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from pixlex.families import FAMILIES
from pixlex.report.page import model_card

CONFIG: dict[str, Any] = {"family": "lqae", "model": {"image_size": 64, "patch_size": 8}, "seed": 0}
LANGUAGE = ("some/bert", "c0ffee" * 10)
NUMBERS = {"eval/mse": 0.02, "eval/a|b": 1.0}


def test_the_hub_reads_the_front_matter_and_finds_no_license() -> None:
    text = model_card(CONFIG, NUMBERS, ["pixlex train tiny"], LANGUAGE)
    card = ModelCard(text)
    assert card.data.library_name == "pixlex"
    assert card.data.tags == ["image-tokenizer", "vector-quantization", "lqae"]
    assert card.data.license is None
    assert "# license: state one before publishing" in text


def test_the_card_says_what_the_model_is_and_whose_words_it_uses() -> None:
    text = model_card(CONFIG, NUMBERS, ["pixlex train tiny"], LANGUAGE)
    assert "# LQAE: 8 x 8 words for an image" in text
    assert "8 x 8 words" in text
    assert LANGUAGE[1] in text
    assert "`some/bert`" in text
    assert "tokenizer.to_words(images)" in text
    assert "```sh\npixlex train tiny\n```" in text
    embedded = model_card(CONFIG, NUMBERS, [], ("embedded", "c0ffee"))
    assert "sentence-transformers/all-MiniLM-L6-v2" in embedded


def test_a_model_without_words_does_not_speak_of_them() -> None:
    text = model_card({**CONFIG, "family": "vqvae"}, NUMBERS, [], None)
    assert "to_words" not in text
    assert "Language model" not in text
    assert "8 x 8\ncodes" in text
    assert "vq-vae" in text


def test_configuration_and_commands_can_be_read_back() -> None:
    commands = ["cat > note <<END", "```", "END"]
    text = model_card({**CONFIG, "note": "```\nfence"}, NUMBERS, commands, LANGUAGE)
    blocks = {
        kind: body
        for _, kind, body in re.findall(r"^(`{3,})(\w+)\n(.*?)^\1$", text, re.DOTALL | re.MULTILINE)
    }
    assert blocks["sh"].splitlines() == commands
    assert yaml.safe_load(blocks["yaml"]) == {**CONFIG, "note": "```\nfence"}


def test_a_bar_does_not_break_the_table() -> None:
    rows = [line for line in model_card(CONFIG, NUMBERS, [], None).splitlines() if line.startswith("| ")]
    assert len(rows) == 3
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_card(family: str) -> None:
    model = {"image_size": 64, "patch_size": 8, "task": "nlvr2"}
    language = None if family in ("vqvae", "mae") else ("some/model", "c0ffee")
    text = model_card({"family": family, "model": model}, {}, [], language)
    assert re.search(r"^# .*\n\n\w", text, re.MULTILINE)
    assert "{" not in text


def test_families_that_write_no_codes_do_not_speak_of_them() -> None:
    """What they are, how they are used, and whose language model is spoken through."""
    masked = model_card({**CONFIG, "family": "mae"}, NUMBERS, [], None)
    assert "masked-autoencoder" in masked
    assert "model.embed(images)" in masked
    frozen = model_card({**CONFIG, "family": "frozen"}, NUMBERS, [], ("some/model", "c0ffee"))
    assert "The language model is `some/model`" in frozen
    assert "`c0ffee`" in frozen
    assert "model.caption(images" in frozen
    for text in (masked, frozen):
        assert "tokenizer" not in text
        assert "codes" not in text.lower()
