"""Frozen masked language models behind one small interface: embeddings in, hidden states and logits out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
)
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging as transformers_logging

from pixlex.nn.embedded import EMBEDDED, embedded_directory, load_embedded_head
from pixlex.nn.transformer import attend

# How far the separated head may stray from the family's own logits; other shapes of a matrix product round
# otherwise.
_HEAD_TOLERANCE = 1e-3

_ATTENTION = "pixlex"

# Where layers put what comes in and out of them while a language model of ours runs in this thread.
_STATES: ContextVar[list[Tensor] | None] = ContextVar("_STATES", default=None)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Let the language model use our attention, in the form that transformers calls."""
    bias = None
    if mask is not None:
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    return attend(query, key, value, bias, settings.get("scaling")).transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


@dataclass(frozen=True)
class LanguageOutput:
    """What a language model makes of a batch of word embeddings.

    Attributes:
        hidden_states: the embedding layer's output, then every layer's, `num_layers + 1` in all; the last one
            is the family's final hidden state (after the final norm where the family has one).
    """

    hidden_states: tuple[Float[Tensor, "B T D"], ...]

    @property
    def last(self) -> Float[Tensor, "B T D"]:
        """The last layer's hidden state: what decoder and masked-LM head read."""
        return self.hidden_states[-1]


class LanguageModel(nn.Module):
    """A pretrained masked language model that never changes: no gradients to its weights, no dropout, ever.

    The body is the family's own network and runs on embeddings that the caller gives; the family's own
    position embeddings count 0, 1, 2, ... whatever the words are (in the official code every `<pad>` shifts
    the later ones). The head is the family's own masked-LM head without its output matrix, which stays apart
    in `head_weight_and_bias`, so that logits of a few words, or a cross-entropy in chunks, need no logits of
    all words.

    Args:
        model: a transformers `...ForMaskedLM` in float32; it is taken apart.
        tokenizer: its tokenizer.
        name: how `load_language_model` found it.
        has_head: whether the masked-LM head is trained.

    Raises:
        ValueError: the tokenizer has no mask word, or the head is not a transform followed by an output
            matrix.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, has_head: bool = True) -> None:
        super().__init__()
        if tokenizer.mask_token_id is None:
            raise ValueError(f"language model {name!r} has no mask word; expected a masked language model")
        model.eval().requires_grad_(False)
        self.name = name
        self.family: str = model.config.model_type
        self.tokenizer = tokenizer
        self.mask_id: int = tokenizer.mask_token_id
        self.has_head = has_head
        self.num_layers: int = model.config.num_hidden_layers
        self.hidden_width: int = model.config.hidden_size
        self.body, self.head, self.output = _take_apart(model, name)
        self.max_words: int = _usable_positions(self.body, model.config.max_position_embeddings)
        self._collects = self._collect_states()
        super().train(False)

    def train(self, mode: bool = True) -> LanguageModel:
        """Do nothing: a frozen language model stays in evaluation mode."""
        return self

    @property
    def word_embedding(self) -> Float[Tensor, "V D"]:
        """The word embedding matrix, one row per word id."""
        weight: Tensor = self.body.get_input_embeddings().weight
        return weight

    @property
    def width(self) -> int:
        """Width of a word embedding."""
        return self.word_embedding.shape[1]

    @property
    def vocab_size(self) -> int:
        """Number of rows of the word embedding matrix."""
        return self.word_embedding.shape[0]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the word embedding matrix as float32 bytes: codes mean nothing under another one."""
        rows = self.word_embedding.detach().to("cpu", torch.float32).contiguous()
        return hashlib.sha256(rows.numpy().tobytes()).hexdigest()

    def forward(
        self, embeddings: Float[Tensor, "B T D"], key_padding: Bool[Tensor, "B T"] | None = None
    ) -> LanguageOutput:
        """Run the body on word embeddings (LQAE, section 3.1: `f(z)` with the language model frozen).

        Args:
            embeddings: raw word embeddings (rows of `word_embedding` or estimates of them), without
                positions.
            key_padding: True = padding, hidden from attention; None = every word is real.

        Returns:
            The hidden states of all layers; gradients flow back to `embeddings`.

        Raises:
            ValueError: more words than the model has positions for.
        """
        num_words = embeddings.shape[1]
        if num_words > self.max_words:
            raise ValueError(
                f"language model {self.name!r} takes at most {self.max_words} words, got {num_words}; "
                "use larger patches, smaller images, or a language model with more positions"
            )
        attention = None if key_padding is None else (~key_padding).long()
        with _handed_out() as states:
            output = self.body(
                inputs_embeds=embeddings,
                attention_mask=attention,
                output_hidden_states=not self._collects,
                return_dict=True,
            )
        found = states if self._collects else output.hidden_states
        return LanguageOutput(hidden_states=(*found[:-1], output.last_hidden_state))

    def _collect_states(self) -> bool:
        """Let layers hand out their states themselves; return whether they do.

        Asked for all states, transformers would put hooks on what lies inside of layers, at which torch.compile
        stops.
        """
        layers = [module for module in self.body.modules() if isinstance(module, GradientCheckpointingLayer)]
        hooks = [layer.register_forward_hook(_hand_out, with_kwargs=True) for layer in layers]
        with torch.no_grad(), _handed_out() as states:
            self.body(inputs_embeds=self.word_embedding[:2].unsqueeze(0))
        if len(states) == self.num_layers + 1:
            return True
        for hook in hooks:  # a family with layers of another kind, or more of them
            hook.remove()
        return False

    def predict(self, hidden: Float[Tensor, "... hidden_width"]) -> Float[Tensor, "... width"]:
        """Turn hidden states into vectors to be compared with the rows of the output matrix.

        Args:
            hidden: last hidden states, `hidden_width` wide.

        Returns:
            The head's transform of each, `width` wide: its product with the output matrix plus bias are the
            logits.

        Raises:
            ValueError: the checkpoint brought no masked-LM head.
        """
        if not self.has_head:
            raise ValueError(
                f"language model {self.name!r} has no trained masked-LM head; expected a checkpoint "
                "saved from a ...ForMaskedLM class (without a head, set masked_language_weight to 0)"
            )
        vectors: Tensor = self.head(inputs_embeds=hidden).logits
        return vectors

    def logits(
        self, hidden: Float[Tensor, "... hidden_width"], word_ids: Int[Tensor, " K"] | None = None
    ) -> Float[Tensor, "... K"]:
        """Score words at each hidden state, in nats up to a constant.

        Args:
            hidden: last hidden states, `hidden_width` wide.
            word_ids: the words to score; None = the whole vocabulary.

        Returns:
            One logit per hidden state and word, equal to the family's own.

        Raises:
            ValueError: the checkpoint brought no masked-LM head.
        """
        weight, bias = self.head_weight_and_bias()
        if word_ids is not None:
            weight = weight[word_ids]
            bias = None if bias is None else bias[word_ids]
        return functional.linear(self.predict(hidden), weight, bias)

    def head_weight_and_bias(self) -> tuple[Float[Tensor, "V D"], Float[Tensor, " V"] | None]:
        """Return output matrix and bias of the masked-LM head, for `F.linear_cross_entropy`."""
        return self.output.weight, self.output.bias


@contextmanager
def _handed_out() -> Iterator[list[Tensor]]:
    """Yield where layers put their states meanwhile."""
    states: list[Tensor] = []
    before = _STATES.set(states)
    try:
        yield states
    finally:
        _STATES.reset(before)


def _hand_out(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
    """Put what went into the first layer, and what came out of each, where the language model finds it."""
    if (states := _STATES.get()) is not None:
        if not states:
            states.append(given[0] if given else named["hidden_states"])
        states.append(output[0] if isinstance(output, tuple) else output)


class _Passthrough(nn.Module):
    """Stands where the body was inside the family's own head: its input is the last hidden state."""

    def forward(self, *arguments: Any, inputs_embeds: Tensor, **settings: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)


def _take_apart(model: Any, name: str) -> tuple[Any, Any, nn.Linear]:
    """Split a `...ForMaskedLM` into body, head, and output matrix; check that the parts give its logits."""
    prefix, output = model.base_model_prefix, model.get_output_embeddings()
    body: Any = model.base_model
    places = [place for place, module in model.named_modules() if module is output]
    if not isinstance(output, nn.Linear) or len(places) != 1 or body is model:
        raise ValueError(f"language model {name!r} ({model.config.model_type}) has no head of a known form")
    words = body.get_input_embeddings().weight[:2].unsqueeze(0)
    with torch.no_grad():
        expected = model(inputs_embeds=words).logits
        hidden = body(inputs_embeds=words).last_hidden_state
        setattr(model, prefix, _Passthrough())
        model.set_submodule(places[0], nn.Identity())
        parts = functional.linear(model(inputs_embeds=hidden).logits, output.weight, output.bias)
    if not torch.allclose(parts, expected, rtol=_HEAD_TOLERANCE, atol=_HEAD_TOLERANCE):
        raise ValueError(
            f"language model {name!r} ({model.config.model_type}): expected a head whose logits are a "
            f"transform times an output matrix plus bias, got {(parts - expected).abs().max():.3g} apart"
        )
    return body, model, output


def _usable_positions(body: nn.Module, num_positions: int) -> int:
    """Positions that words can take: RoBERTa's rows start after the padding row (514 rows, 512 positions)."""
    for place, module in body.named_modules():
        if place.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - first
    return num_positions


def load_language_model(
    name: str = EMBEDDED, *, random_weights: bool = False, random_seed: int = 0
) -> LanguageModel:
    """Load a frozen masked language model.

    Args:
        name: "embedded" (needs no network), a name on the hub (`FacebookAI/roberta-base`), or a local
            directory; weights are read from safetensors only and no code of the model's repository is run.
        random_weights: keep the pretrained word embeddings, draw all other weights anew (LQAE, Table 3 B).
        random_seed: seed of those draws; the same seed gives the same weights on every call.

    Returns:
        The model in float32 on the CPU, in evaluation mode, without gradients to its weights.

    Raises:
        MissingLanguageModel: "embedded" without the package that carries it.
        ValueError: nothing to load under that name, not a masked language model, or an incomplete checkpoint.
    """
    embedded = name == EMBEDDED
    source = str(embedded_directory()) if embedded else name
    with torch.random.fork_rng(devices=[]), _quiet_transformers():
        model, tokenizer, has_head = _load_pretrained(source, local_only=embedded)
        if embedded:
            load_embedded_head(model)
            has_head = True
        if random_weights:
            torch.manual_seed(random_seed)
            words = model.get_input_embeddings().weight.detach()
            model = AutoModelForMaskedLM.from_config(  # type: ignore[no-untyped-call]
                model.config, attn_implementation=_ATTENTION, dtype=torch.float32
            )
            with torch.no_grad():
                model.get_input_embeddings().weight.copy_(words)
            has_head = True
    return LanguageModel(model, tokenizer, name=name, has_head=has_head)


def _load_pretrained(source: str, *, local_only: bool) -> tuple[Any, Any, bool]:
    """Load configuration, weights and tokenizer; say whether the checkpoint brought the masked-LM head."""
    settings = {"local_files_only": local_only, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **settings)
        if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or config.is_encoder_decoder:
            raise ValueError(
                f"expected a masked language model (BERT-like), got a {config.model_type!r} model"
            )
        tokenizer = AutoTokenizer.from_pretrained(source, **settings)
        model, loading = AutoModelForMaskedLM.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            attn_implementation=_ATTENTION,
            dtype=torch.float32,
            output_loading_info=True,
            **settings,
        )
    except (OSError, ValueError) as reason:
        raise ValueError(f"language model {source!r} cannot be loaded: {reason}") from reason
    body = f"{model.base_model_prefix}."
    missing = sorted(key for key in loading["missing_keys"] if key.startswith(body))
    if missing:
        raise ValueError(
            f"language model {source!r}: the checkpoint lacks {len(missing)} weights, first {missing[0]}"
        )
    return model, tokenizer, not loading["missing_keys"]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the loading report, which calls a body without a head corrupted, and the loading bar."""
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
