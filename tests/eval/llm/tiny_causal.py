"""A causal language model small enough for tests: random weights, a byte-level tokenizer trained here."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

END = "<end>"
START = "<start>"
CONTEXT = 256


def tiny_causal(folder: Path, *, family: str = "gpt2", seed: int = 0) -> Path:
    """Write a causal language model of two layers, 32 wide, with 400 tokens.

    Args:
        folder: made if missing.
        family: `gpt2` has learned positions and no start token, `llama` rotary ones and a start token, `mamba` no
            attention, `lfm2` one layer of it behind one of convolutions.
        seed: of its weights.

    Returns:
        The folder: what `connect` takes as a model.
    """
    tokenizer = byte_tokenizer(start=family == "llama")
    common = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: transformers.PreTrainedModel
        if family == "llama":
            common["bos_token_id"] = tokenizer.bos_token_id
            model = transformers.LlamaForCausalLM(
                transformers.LlamaConfig(
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    max_position_embeddings=CONTEXT,
                    initializer_range=0.3,
                    **common,
                )
            )
        elif family == "mamba":
            model = transformers.MambaForCausalLM(
                transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **common)
            )
        elif family == "lfm2":
            sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
            layers = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
            model = transformers.Lfm2ForCausalLM(
                transformers.Lfm2Config(**sizes, **layers, num_key_value_heads=2, **common)
            )
        else:
            model = transformers.GPT2LMHeadModel(
                transformers.GPT2Config(
                    n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, initializer_range=0.3, **common
                )
            )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def byte_tokenizer(*, start: bool = False) -> transformers.PreTrainedTokenizerFast:
    """Train a byte-level tokenizer on Python's own manual."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((page for _, page in sorted(topics.items())), trainer)
    backend.post_processor = (
        processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, 1)])
        if start
        else processors.ByteLevel(trim_offsets=False)
    )
    settings = {"bos_token": START} if start else {}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, **settings)
