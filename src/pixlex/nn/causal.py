"""Frozen causal language models that read embeddings: words, and what stands for images between them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pixlex.batch import Words
from pixlex.nn.texts import KeptTexts, padded


class CausalLanguageModel(nn.Module):
    """A pretrained causal language model that never changes: no gradients to its weights, no dropout, ever.

    Args:
        model: a transformers `...ForCausalLM` in float32.
        tokenizer: its tokenizer.
        name: how `load_causal_language_model` found it.

    Raises:
        ValueError: the tokenizer has no word for the end of a text.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        super().__init__()
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"language model {name!r}: expected a tokenizer with an end-of-text word, found none"
            )
        self.name = name
        self.body = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._bare = KeptTexts(tokenizer)
        self.end_id: int = tokenizer.eos_token_id
        size = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_words: int | None = int(size) if size else None
        # What the tokenizer puts before every text, such as Llama's <s>; GPT-2's puts nothing.
        before = tokenizer("").input_ids
        self.start_ids: tuple[int, ...] = tuple(one for one in before if one == tokenizer.bos_token_id)[:1]
        super().train(False)

    def train(self, mode: bool = True) -> CausalLanguageModel:
        """Do nothing: a frozen language model stays in evaluation mode."""
        return self

    @property
    def width(self) -> int:
        """Width of a word embedding."""
        weight: Tensor = self.body.get_input_embeddings().weight
        return weight.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all weights as float32 bytes: a prefix means nothing to another language model."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.body.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def word_ids(self, text: str) -> list[int]:
        """Return the words of a text that stands inside a longer one: nothing put before or behind it."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def encode(self, texts: Sequence[str], max_words: int) -> Words:
        """Return texts with their ends, padded on the right, each cut to so many words, the end included.

        Args:
            texts: one or more.
            max_words: 2 or more.
        """
        rows = [words[: max_words - 1] for words in self._bare(texts)]
        return padded(rows, end_id=self.end_id, pad_id=self.end_id)

    def embed(self, word_ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Return the embeddings of words."""
        embeddings: Tensor = self.body.get_input_embeddings()(word_ids)
        return embeddings

    def logits(
        self, embeddings: Float[Tensor, "B T D"], key_padding: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T V"]:
        """Return the logits of the word that follows each position; gradients flow back to `embeddings`.

        Args:
            embeddings: of words, or what stands between them.
            key_padding: True = padding, on the right.

        Raises:
            ValueError: more words than the model has positions for.
        """
        if self.max_words is not None and embeddings.shape[1] > self.max_words:
            raise ValueError(
                f"language model {self.name!r} reads at most {self.max_words} words, got {embeddings.shape[1]}"
            )
        output = self.body(inputs_embeds=embeddings, attention_mask=(~key_padding).long(), use_cache=False)
        logits: Tensor = output.logits
        return logits

    @torch.no_grad()
    def write(self, embeddings: Float[Tensor, "B T D"], max_new_words: int) -> list[list[int]]:
        """Continue rows of one length greedily, to the end of the text or the limit.

        Returns:
            The new words of each row; the end, where it was reached, is the last of them.
        """
        written = self.body.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device),
            max_new_tokens=max_new_words,
            do_sample=False,
            num_beams=1,
            eos_token_id=self.end_id,
            pad_token_id=self.end_id,
        )
        rows: list[list[int]] = written.tolist()
        return [row[: row.index(self.end_id) + 1] if self.end_id in row else row for row in rows]


def load_causal_language_model(name: str) -> CausalLanguageModel:
    """Load a frozen causal language model, in float32 on the CPU.

    Args:
        name: as for `load_causal_parts`.

    Raises:
        ValueError: as `load_causal_parts`.
    """
    model, tokenizer = load_causal_parts(name)
    return CausalLanguageModel(model, tokenizer, name=name)


def load_causal_parts(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return a transformers `...ForCausalLM` on the CPU and its tokenizer.

    Args:
        name: a name on the hub, or a local directory; weights are read from safetensors only and no code of the
            model's repository is run.
        dtype: of the weights.

    Raises:
        ValueError: nothing to load under that name, not a causal language model, or an incomplete checkpoint.
    """
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        # transformers loads a BERT as a causal model, with a warning: it would see the words to come.
        if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
            raise ValueError(
                f"expected a causal language model (GPT-like), got a {config.model_type!r} model"
            )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as reason:
        raise ValueError(f"language model {name!r} cannot be loaded: {reason}") from reason
    model, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ValueError(
            f"language model {name!r}: the checkpoint lacks {len(missing)} weights, first {missing[0]}"
        )
    return model, tokenizer
