"""Frozen: an image as embeddings before a caption's; what is trained, what is saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.eval.llm.tiny_causal import tiny_causal
from tests.tiny import tiny_frozen

from pixlex.config.lqae import FrozenConfig
from pixlex.models import checkpoint
from pixlex.models.frozen import Frozen

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_logits_are_those_of_the_language_model_behind_the_prefix(tmp_path: Path, family: str) -> None:
    """Row by row without padding: start word, two embeddings, the words before."""
    model = tiny_frozen(tiny_causal(tmp_path, family=family))
    language = model.language
    words = language.encode(["for the class", "a"], max_words=16)
    logits = model(IMAGES, words.word_ids, words.key_padding)
    prefix = model.prefix(IMAGES)
    assert prefix.shape == (2, 2, 32)
    assert not torch.allclose(prefix[0], prefix[1])
    for row in range(2):
        ids = words.word_ids[row][~words.key_padding[row]]
        start = language.embed(torch.tensor(language.start_ids, dtype=torch.long))
        read = torch.cat([start, prefix[row], language.embed(ids)]).unsqueeze(0)
        expected = language.body(inputs_embeds=read).logits[0, -len(ids) - 1 : -1]
        torch.testing.assert_close(logits[row, : len(ids)], expected, atol=1e-4, rtol=1e-4)
    scores = model.score(model.prompt(prefix), words.word_ids, words.key_padding)
    chosen = logits.double().log_softmax(-1).gather(-1, words.word_ids.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(scores, (chosen * ~words.key_padding).sum(1))


def test_gradients_reach_the_encoder_and_not_the_language_model(causal_language: Path) -> None:
    """Which is not even among the parameters."""
    model = tiny_frozen(causal_language)
    words = model.language.encode(["for", "a class"], max_words=8)
    model(IMAGES, words.word_ids, words.key_padding).square().mean().backward()
    assert all(one.grad is not None and one.grad.any() for one in model.encoder.patches.parameters())
    assert all(one.grad is None for one in model.language.parameters())
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"encoder", "projector"}


def test_saved_without_the_language_model_and_loaded_with_it(tmp_path: Path, causal_language: Path) -> None:
    """Name and hash stay; another language model is refused; it may lie elsewhere."""
    model = tiny_frozen(causal_language)
    checkpoint.save(model, tmp_path / "model")
    assert {name.split(".")[0] for name in load_file(tmp_path / "model/model.safetensors")} == {
        "encoder",
        "projector",
    }
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["language"] == {"name": str(causal_language), "fingerprint": model.language.fingerprint}
    loaded = checkpoint.load_any(str(tmp_path / "model"))
    assert isinstance(loaded, Frozen)
    assert loaded.caption(IMAGES, 5) == model.caption(IMAGES, 5)
    same, other = tiny_causal(tmp_path / "same"), tiny_causal(tmp_path / "other", seed=1)
    assert isinstance(checkpoint.load_any(str(tmp_path / "model"), language_model=str(same)), Frozen)
    with pytest.raises(ValueError, match=r"trained with weights .* mean nothing to another language model"):
        checkpoint.load_any(str(tmp_path / "model"), language_model=str(other))
    with pytest.raises(ValueError, match="family frozen, which writes no codes"):
        checkpoint.load(str(tmp_path / "model"))


def test_more_embeddings_than_the_language_model_reads_are_refused(causal_language: Path) -> None:
    model = tiny_frozen(causal_language)
    with pytest.raises(ValueError, match=r"num_prefix_tokens is 256, but .* reads at most 256 words"):
        Frozen(FrozenConfig(num_prefix_tokens=256), model.language)
    with pytest.raises(ValueError, match="num_prefix_tokens must be above 0, got 0"):
        FrozenConfig(num_prefix_tokens=0)
