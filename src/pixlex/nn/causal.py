"""Frozen causal language models that read embeddings: words, and what stands for images between them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixlex.batch import Words
from pixlex.nn.language_model import check_complete, hash_of, load_pretrained
from pixlex.nn.tokenizer import CachedTexts, padded


class CausalLanguageModel(nn.Module):
    """A pretrained causal language model that never changes: no gradients to its weights, no dropout, ever.

    Args:
        model: A transformers `...ForCausalLM` in float32.
        tokenizer: Its tokenizer.
        name: How `load_causal_language_model` found it.

    Raises:
        ValueError: The tokenizer has no word for the end of a text.
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
        self._bare = CachedTexts(tokenizer)
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
        weights = sorted(self.body.state_dict().items())
        return hash_of(part for name, weight in weights for part in (name.encode(), weight))

    def word_ids(self, text: str) -> list[int]:
        """Return the words of a text that stands inside a longer one: nothing put before or behind it."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def encode(self, texts: Sequence[str], max_words: int) -> Words:
        """Return texts with their ends, padded on the right, each cut to so many words, the end included.

        Args:
            texts: One or more.
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
            embeddings: Of words, or what stands between them.
            key_padding: True = padding, on the right.

        Raises:
            ValueError: More words than the model has positions for.
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
    """Load a frozen causal language model in float32 on the CPU; name and errors as of `load_causal_parts`."""
    model, tokenizer = load_causal_parts(name)
    return CausalLanguageModel(model, tokenizer, name=name)


def load_causal_parts(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return a transformers `...ForCausalLM` on the CPU and its tokenizer.

    Args:
        name: A name on the hub, or a local directory; weights are read from safetensors only and no code of the
            model's repository is run.
        dtype: Of the weights.

    Raises:
        ValueError: Nothing to load under that name, not a causal language model, or an incomplete checkpoint.
    """
    from transformers import AutoModelForCausalLM

    model, tokenizer, missing = load_pretrained(AutoModelForCausalLM, name, False, dtype=dtype)
    check_complete(name, missing)
    return model, tokenizer
