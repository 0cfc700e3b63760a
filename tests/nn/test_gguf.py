"""A GGUF is the model that it was made of: whole, split as llama.cpp does it, or in pieces."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.eval.llm.tiny_causal import byte_tokenizer

from pixlex.eval.llm import LLMOptions, connect
from pixlex.nn.gguf import gguf_files, unpack
from pixlex.nn.language_model import load_causal_parts

gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'pixlex[gguf]'")
pytest.importorskip("accelerate", reason="needs accelerate: pip install 'pixlex[gguf]'")
# As llama.cpp calls them.
LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    """A Qwen2 of two layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.Qwen2Config(
            vocab_size=len(byte_tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
            tie_word_embeddings=True,
        )  # fmt: skip
        return transformers.Qwen2ForCausalLM(config).eval()


def write(model: Any, path: Path, quantized: bool = False, part: int = 0, parts: int = 1) -> None:
    """Write a GGUF, or of `parts` the one with every so manieth tensor."""
    writer, config, tokenizer = gguf.GGUFWriter(path, "qwen2"), model.config, byte_tokenizer()
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    words = tokenizer.get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(words, key=words.__getitem__))
    writer.add_token_types([1] * len(words))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if parts > 1:
        writer.add_uint16("split.no", part)
    for number, (name, weight) in enumerate(model.named_parameters()):
        if number % parts != part:
            continue
        name = name.replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm")
        for ours, theirs in LAYER.items():
            name = name.replace(ours, theirs)
        name, values = name.replace("model.layers", "blk"), weight.detach().numpy()
        kind = gguf.GGMLQuantizationType.Q8_0
        if quantized and values.ndim == 2:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()


def logits(model: Any) -> Any:
    with torch.inference_mode():
        return model(torch.arange(20).unsqueeze(0)).logits.numpy()


def test_a_gguf_is_its_model(model: Any, tmp_path: Path) -> None:
    """Whole, in llama.cpp's files and in pieces; by file, by part and by folder; unpacked once."""
    for name in ("whole", "split", "pieces"):
        (tmp_path / name).mkdir()
    write(model, tmp_path / "whole" / "tiny.gguf")
    for part in range(3):
        write(model, tmp_path / "split" / f"tiny-0000{part + 1}-of-00003.gguf", part=part, parts=3)
    data = (tmp_path / "whole" / "tiny.gguf").read_bytes()
    (tmp_path / "pieces" / "tiny.gguf.part00").write_bytes(data[:5000])
    (tmp_path / "pieces" / "tiny.gguf.part01").write_bytes(data[5000:])
    names = [
        tmp_path / name for name in ("whole", "split", "pieces", "whole/tiny.gguf", "pieces/tiny.gguf.part00")
    ]
    said: list[str] = []
    for name in names:
        found, tokenizer = load_causal_parts(str(name), say=said.append)
        np.testing.assert_array_equal(logits(found), logits(model))
        assert tokenizer("a statement").input_ids == byte_tokenizer()("a statement").input_ids
    assert sum("unpacked once" in one for one in said) == 3
    assert sum("million weights in float32" in one for one in said) == len(names)


def test_a_quantized_gguf_is_rounded_to_bfloat16(model: Any, tmp_path: Path) -> None:
    write(model, tmp_path / "tiny.gguf", quantized=True)
    client = connect(LLMOptions(model=str(tmp_path / "tiny.gguf")))
    unpack([tmp_path / "tiny.gguf"], tmp_path / "directory", bool)
    assert connect(LLMOptions(model=str(tmp_path / "directory"))).identity == client.identity
    stored = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "directory")
    assert stored.dtype == torch.bfloat16
    for (name, weight), other in zip(model.named_parameters(), stored.parameters(), strict=True):
        assert torch.allclose(weight, other.float(), rtol=0.01, atol=0.02), name


def test_errors(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(ValueError, match=r"broken.gguf' cannot be read as a GGUF"):
        load_causal_parts(str(tmp_path / "broken.gguf"))
    shutil.copy(tmp_path / "broken.gguf", tmp_path / "other-00002-of-00002.gguf")
    with pytest.raises(ValueError, match="expected 2 parts, number 1 is missing"):
        gguf_files(str(tmp_path / "other-00002-of-00002.gguf"))
    (tmp_path / "other-00002-of-00002.gguf").rename(tmp_path / "other.gguf")
    with pytest.raises(ValueError, match=r"several language models, name one of broken.gguf, other.gguf"):
        gguf_files(str(tmp_path))
    assert gguf_files(str(tmp_path / "nothing")) == []
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match=r"a GGUF file needs gguf: pip install 'pixlex\[gguf\]'"):
        load_causal_parts(str(tmp_path / "other.gguf"))
