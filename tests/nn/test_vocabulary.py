"""Vocabularies: words <-> text exactly, for every tokenizer family, and no word that does not belong."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pixlex.nn.language_model import LanguageModel, Pieces, load_language_model, load_language_words
from pixlex.nn.vocabulary import build_vocabulary, is_fit_to_print

FAMILIES = ("bert", "roberta", "distilbert", "modernbert")
NUM_SEQUENCES = 2_000
Maker = Callable[[str], Path]


def load(make: Maker, family: str) -> LanguageModel:
    """A tiny language model of a family."""
    return load_language_model(str(make(family)))


def test_words_of_the_embedded_model_are_those_that_transformers_reads(embedded: LanguageModel) -> None:
    words, whole = load_language_words(), embedded
    assert isinstance(words.tokenizer, Pieces)
    for name in ("num_layers", "hidden_width", "vocab_size", "width", "fingerprint"):
        assert getattr(words, name) == getattr(whole, name)
    for kind in ("clean-words", "all"):
        alone, known = build_vocabulary(words, kind), build_vocabulary(whole, kind)  # type: ignore[arg-type]
        assert alone.words == known.words
        assert torch.equal(alone.word_ids, known.word_ids)
        for codes in random_sequences(len(known), 50):
            text = known.to_text(codes)
            assert alone.to_text(codes) == text
            assert alone.from_text(text) == known.from_text(text)


def random_sequences(size: int, count: int) -> list[list[int]]:
    """Sequences of 1 to 16 codes."""
    generator = np.random.default_rng(11)
    return [generator.integers(size, size=generator.integers(1, 17)).tolist() for _ in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_text_and_codes_are_inverses(tiny_language_model: Maker, family: str) -> None:
    language = load(tiny_language_model, family)
    vocabulary = build_vocabulary(language)
    assert len(vocabulary) > 300
    sequences = random_sequences(len(vocabulary), NUM_SEQUENCES)
    texts = [vocabulary.to_text(codes) for codes in sequences]
    assert [vocabulary.from_text(text) for text in texts] == sequences
    lean = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    read = language.tokenizer([f" {text}" for text in texts], **lean)["input_ids"]
    ids = vocabulary.word_ids.tolist()
    assert read == [[ids[code] for code in codes] for codes in sequences]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_is_written_and_read_by_the_tokenizer(tiny_language_model: Maker, family: str) -> None:
    """No "Ġ" reaches anybody; text is one line; what is lost is counted."""
    language = load(tiny_language_model, family)
    vocabulary = build_vocabulary(language, "all")
    assert not vocabulary.is_exact
    assert vocabulary.word_ids.tolist() == list(range(language.vocab_size))
    assert vocabulary.words[language.mask_id] == language.tokenizer.mask_token
    for codes in random_sequences(len(vocabulary), 300):
        text = vocabulary.to_text(codes)
        decoded = language.tokenizer.decode(codes, clean_up_tokenization_spaces=False)
        assert text.split() == "".join(mark if mark.isprintable() else " " for mark in decoded).split()
        assert text.isprintable()
        assert not set("ĠĊĉ") & set(text)
        read = vocabulary.from_text(text)
        assert read == language.tokenizer(f" {text}", add_special_tokens=False)["input_ids"] or not text
        assert vocabulary.survivors(codes) <= min(len(codes), len(read))
    whole = build_vocabulary(language)
    words = whole.word_ids[[3, 5, 3, 8]].tolist()
    assert vocabulary.to_text(words) == whole.to_text([3, 5, 3, 8])
    assert (vocabulary.from_text(vocabulary.to_text(words)), vocabulary.survivors(words)) == (words, 4)


def test_rows_that_show_nothing_are_named_by_their_number(tiny_language_model: Maker) -> None:
    language = load(tiny_language_model, "modernbert")
    blank = {row for row in range(len(language.tokenizer)) if not language.tokenizer.decode([row]).strip(" ")}
    assert set(language.tokenizer.convert_tokens_to_ids(["  ", "    ", "Ġ"])) <= blank
    words = build_vocabulary(language, "all").words
    rows_without_words = range(len(language.tokenizer), language.vocab_size)
    assert len(rows_without_words) == 7
    named = {row for row, word in enumerate(words) if re.fullmatch(r"<row:\d+>", word)}
    assert named == {*blank, *rows_without_words}


def test_words_unfit_to_print_are_no_codewords_unless_asked_for(embedded: LanguageModel) -> None:
    """The embedded vocabulary, whose words pages show; models from before keep theirs."""
    whole, clean = build_vocabulary(embedded, "whole-words"), build_vocabulary(embedded)
    assert (clean.kind, len(whole), len(clean)) == ("clean-words", 21_358, 21_270)
    assert set(clean.words) < set(whole.words)
    assert hashlib.sha256("\n".join(whole.words).encode()).hexdigest()[:12] == "a6cd1f72d6d0"
    left_out = set(whole.words) - set(clean.words)
    assert not any(is_fit_to_print(word) or is_fit_to_print(word.title()) for word in left_out)
    # what names people without contempt, medicine and everyday words stay
    harmless = "gay lesbian jew muslim black cancer kill fat assess butter cocked cummings analysis sussex"
    assert set(harmless.split()) <= set(clean.words)
    neutral = build_vocabulary(embedded, "neutral-words")
    assert (neutral.kind, len(neutral)) == ("neutral-words", 20_190)
    assert set(harmless.split()) - set(neutral.words) == {
        "gay", "lesbian", "jew", "muslim", "black", "cancer", "kill", "fat",
    }  # fmt: skip
    # Codes are numbers of words: those of small-words mean others when this list changes.
    assert hashlib.sha256("\n".join(neutral.words).encode()).hexdigest()[:12] == "6ee23fabd8a9"
    assert set(neutral.words) < set(clean.words)


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_words_are_whole_words(tiny_language_model: Maker, family: str) -> None:
    language = load(tiny_language_model, family)
    vocabulary = build_vocabulary(language)
    ids = vocabulary.word_ids.tolist()
    strings = language.tokenizer.convert_ids_to_tokens(ids)
    before = "Ġ" if family in ("roberta", "modernbert") else ""
    assert strings == [before + word for word in vocabulary.words]
    assert all(re.fullmatch(r"[A-Za-z]{3,}", word) for word in vocabulary.words)
    assert not set(ids) & set(language.tokenizer.all_special_ids)
    assert ids == sorted(set(ids))
    # pieces and words inside words are letters too, and must be out: "##ing", "ing" without its space
    pieces = [token for token in language.tokenizer.get_vocab() if re.fullmatch(r"(##)?[a-z]{3,}", token)]
    inside = {
        language.tokenizer.convert_tokens_to_ids(token) for token in pieces if before or token[0] == "#"
    }
    assert len(inside) > 50
    assert not set(ids) & inside


def test_case_is_kept_where_the_tokenizer_keeps_it(tiny_language_model: Maker) -> None:
    cased = build_vocabulary(load(tiny_language_model, "roberta"))
    assert "The" in cased.words
    assert "the" in cased.words
    assert cased.from_text("The the") != cased.from_text("the the")
    uncased = build_vocabulary(load(tiny_language_model, "bert"))
    assert uncased.from_text("the") == [uncased.words.index("the")]
    with pytest.raises(ValueError, match="'The'"):
        uncased.from_text("the The")


def test_rows_that_were_never_trained_are_left_out(tiny_language_model: Maker) -> None:
    language = load(tiny_language_model, "bert")
    whole = build_vocabulary(language)
    zero, tiny, small = whole.word_ids[[5, 17, 40]].tolist()
    with torch.no_grad():
        language.word_embedding[zero] = 0.0
        language.word_embedding[tiny] *= 1e-4
        language.word_embedding[small] *= 0.5
    filtered = build_vocabulary(language)
    assert set(whole.word_ids.tolist()) - set(filtered.word_ids.tolist()) == {zero, tiny}
    assert len(build_vocabulary(language, "all")) == language.vocab_size


def test_words_that_merge_with_their_neighbors_are_left_out(tiny_language_model: Maker) -> None:
    language = load(tiny_language_model, "bert")
    whole = build_vocabulary(language)

    class Merging:
        """The tokenizer, but "the" is glued to whatever follows it, as phrases are in some vocabularies."""

        is_fast = False

        def __getattr__(self, name: str) -> object:
            return getattr(inner, name)

        def __len__(self) -> int:
            return len(inner)

        def encode(self, text: str, **settings: object) -> object:
            return inner.encode(re.sub(r"\bthe ", "the", text), **settings)

    inner, language.tokenizer = language.tokenizer, Merging()
    vocabulary = build_vocabulary(language)
    dropped = set(whole.words) - set(vocabulary.words)
    assert "the" in dropped
    assert len(dropped) <= 4  # its neighbors of the moment may go with it, no more
    ids = vocabulary.word_ids.tolist()
    sequences = random_sequences(len(vocabulary), 300)
    read = inner([f" {vocabulary.to_text(codes)}" for codes in sequences], add_special_tokens=False)[
        "input_ids"
    ]
    assert read == [[ids[code] for code in codes] for codes in sequences]


def test_documented_errors(tiny_language_model: Maker, unchecked_shapes: None) -> None:
    language = load(tiny_language_model, "bert")
    vocabulary = build_vocabulary(language)
    size = len(vocabulary)
    for code in (-1, size):
        with pytest.raises(ValueError, match=rf"expected codes in \[0, {size}\), got {code}"):
            vocabulary.to_text([0, code])
    with pytest.raises(ValueError, match=rf"'\[MASK\]' is not one of the {size} codewords \(clean-words\)"):
        vocabulary.from_text("the [MASK]")
    with pytest.raises(
        ValueError, match="a vocabulary of clean-words, neutral-words, whole-words, all, got 'some'"
    ):
        build_vocabulary(language, "some")  # type: ignore[arg-type]


def test_no_whole_word_is_an_error(tiny_language_model: Maker) -> None:
    language = load(tiny_language_model, "bert")
    with torch.no_grad():
        ids = build_vocabulary(language).word_ids
        language.word_embedding[ids] = 0.0
    with pytest.raises(ValueError, match="no whole word of ASCII letters"):
        build_vocabulary(language)
