"""A frozen causal language model: words with ends, padding that changes nothing, greedy writing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.eval.llm.tiny_causal import CONTEXT, tiny_causal
from transformers import AutoModelForCausalLM

from pixlex.nn.causal import CausalLanguageModel, load_causal_language_model


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def language(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalLanguageModel:
    """One with learned positions, one with rotary ones and a start word."""
    folder = tiny_causal(tmp_path_factory.mktemp(request.param), family=request.param)
    return load_causal_language_model(str(folder))


def test_texts_end_with_the_end_and_are_cut_to_the_limit(language: CausalLanguageModel) -> None:
    """The end counts; padding is on the right; nothing is put before a text."""
    words = language.encode(["for the class", "a"], max_words=32)
    lengths = (~words.key_padding).sum(1).tolist()
    rows = [row[:length].tolist() for row, length in zip(words.word_ids, lengths, strict=True)]
    assert [row[-1] for row in rows] == [language.end_id] * 2
    assert language.tokenizer.decode(rows[0][:-1]) == "for the class"
    assert words.key_padding[1].tolist() == [False] * 2 + [True] * (len(rows[0]) - 2)
    cut = language.encode(["for the class statement of the language"], max_words=3)
    assert cut.word_ids[0, :2].tolist() == rows[0][:2]
    assert cut.word_ids[0, 2:].tolist() == [language.end_id]


def test_logits_are_those_of_transformers_whatever_is_padded(language: CausalLanguageModel) -> None:
    """Embeddings in, and a row beside a longer one."""
    words = language.encode(["for the class", "a"], max_words=32)
    logits = language.logits(language.embed(words.word_ids), words.key_padding)
    for row in range(2):
        ids = words.word_ids[row : row + 1][~words.key_padding[row : row + 1]].unsqueeze(0)
        torch.testing.assert_close(
            logits[row, : ids.shape[1]], language.body(ids).logits[0], atol=1e-4, rtol=1e-4
        )


def test_writing_is_greedy(language: CausalLanguageModel) -> None:
    """Against one step at a time; rows of a batch do not disturb each other."""
    embeddings = torch.randn(2, 5, language.width)
    rows = language.write(embeddings, 6)
    for row in range(2):
        so_far, expected = embeddings[row : row + 1], []
        for _ in range(6):
            padding = torch.zeros(so_far.shape[:2], dtype=torch.bool)
            word = int(language.logits(so_far, padding)[0, -1].argmax())
            expected.append(word)
            if word == language.end_id:
                break
            so_far = torch.cat([so_far, language.embed(torch.tensor([[word]]))], dim=1)
        assert rows[row] == expected


def test_it_never_changes(language: CausalLanguageModel) -> None:
    """No training mode, no gradients to weights, gradients to what it reads."""
    assert not language.train().body.training
    embeddings = torch.randn(1, 3, language.width, requires_grad=True)
    language.logits(embeddings, torch.zeros(1, 3, dtype=torch.bool)).sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum() > 0
    assert all(not one.requires_grad for one in language.parameters())


def test_start_word_and_context(tmp_path: Path) -> None:
    """GPT-2's tokenizer puts nothing before a text, Llama's does; both know how much they read."""
    for family, num in (("gpt2", 0), ("llama", 1)):
        language = load_causal_language_model(str(tiny_causal(tmp_path / family, family=family)))
        assert len(language.start_ids) == num
        assert language.max_words == CONTEXT
        length = CONTEXT + 1
        with pytest.raises(ValueError, match=f"reads at most {CONTEXT} words, got {length}"):
            language.logits(torch.zeros(1, length, 32), torch.zeros(1, length, dtype=torch.bool))


def test_the_fingerprint_is_of_all_weights(tmp_path: Path) -> None:
    """One number in the last layer is enough."""
    folder = tiny_causal(tmp_path / "one")
    before = load_causal_language_model(str(folder)).fingerprint
    assert load_causal_language_model(str(folder)).fingerprint == before
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.ln_f.bias[0] += 1e-3
    model.save_pretrained(folder)
    assert load_causal_language_model(str(folder)).fingerprint != before


def test_what_is_no_causal_language_model_is_refused(language_folder: Path, tmp_path: Path) -> None:
    """A BERT sees the words to come; an empty folder holds nothing."""
    with pytest.raises(
        ValueError, match=r"expected a causal language model \(GPT-like\), got a 'bert' model"
    ):
        load_causal_language_model(str(language_folder))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_causal_language_model(str(tmp_path))


@pytest.fixture(scope="module")
def language_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model."""
    from tests.tiny import tiny_language

    return tiny_language(tmp_path_factory.mktemp("masked"))
