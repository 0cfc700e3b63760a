"""Frozen language models, masked and causal: embeddings in, hidden states and logits out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from pixlex.nn.bert import EMBEDDED, EMBEDDED_HEAD, CachedTexts, Words, embedded_directory, padded
from pixlex.nn.gguf import memory, unpacked
from pixlex.nn.transformer import attend

# How far the separated head may stray from the family's own logits; other shapes of a matrix product round
# otherwise.
_HEAD_TOLERANCE = 1e-3
_ATTENTION = "pixlex"
_WORDS = re.compile(r"(^|\.)(word|tok)_embeddings\.weight")


@dataclass(frozen=True)
class LanguageOutput:
    """The last layer's hidden state (after the final norm where the family has one).

    Where they were asked for, `hidden_states` are the embedding layer's output, then every layer's, the last one
    `last`.
    """

    last: Float[Tensor, "B T D"]
    hidden_states: tuple[Float[Tensor, "B T D"], ...] = ()


class Pieces:
    """What a vocabulary asks of a tokenizer, from `tokenizer.json`: importing transformers takes a second."""

    is_fast = True

    def __init__(self, path: Path) -> None:
        self.backend_tokenizer = Tokenizer.from_file(str(path))
        added = self.backend_tokenizer.get_added_tokens_decoder()
        self.all_special_ids = [number for number, token in added.items() if token.special]
        self._added = {token.content: number for number, token in added.items()}

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size())

    def get_added_vocab(self) -> dict[str, int]:
        """Return the words that are matched before the others."""
        return self._added

    def decode(self, ids: list[int], **_: object) -> str:
        """Return the text of words, special ones among them."""
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=False))


class LanguageWords:
    """The words of a masked language model, whose network is loaded (by `load`) only where it is needed."""

    def __init__(
        self,
        word_embedding: Float[Tensor, "V D"],
        tokenizer: Any,
        config: Any,
        *,
        name: str,
        load: Callable[[], LanguageModel],
    ) -> None:
        self.word_embedding, self.tokenizer, self.name, self.load = word_embedding, tokenizer, name, load
        self.vocab_size, self.width = word_embedding.shape
        self.num_layers: int = config.num_hidden_layers
        self.hidden_width: int = config.hidden_size

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the word embedding matrix as float32 bytes: codes mean nothing under another one."""
        return _hash_of([self.word_embedding])


class _FrozenModel(nn.Module):
    """A pretrained model that never changes: no gradients to its weights, no dropout, ever."""

    def train(self, mode: bool = True) -> _FrozenModel:
        """Do nothing: a frozen language model stays in evaluation mode."""
        return self


class LanguageModel(_FrozenModel):
    """A frozen masked language model.

    The body is the family's own network and runs on embeddings that the caller gives; the family's own
    position embeddings count 0, 1, 2, ... whatever the words are (in the official code every `<pad>` shifts
    the later ones). The head is the family's own masked-LM head without its output matrix, which stays apart
    in `head_weight_and_bias`, so that logits of a few words, or a cross-entropy in chunks, need no logits of
    all words. A ValueError refuses a tokenizer without mask word, or a head of another form.

    Args:
        model: A transformers `...ForMaskedLM` in float32; it is taken apart.
        has_head: Whether the masked-LM head is trained.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, has_head: bool = True) -> None:
        super().__init__()
        if tokenizer.mask_token_id is None:
            raise ValueError(f"language model {name!r} has no mask word; expected a masked language model")
        model.eval().requires_grad_(False)
        self.name, self.tokenizer, self.has_head = name, tokenizer, has_head
        self.family: str = model.config.model_type
        self.mask_id: int = tokenizer.mask_token_id
        self.num_layers: int = model.config.num_hidden_layers
        self.hidden_width: int = model.config.hidden_size
        self.body, self.head, self.output = _take_apart(model, name)
        self.max_words: int = _usable_positions(self.body, model.config.max_position_embeddings)
        nn.Module.train(self, False)
        self.vocab_size, self.width = self.word_embedding.shape

    @property
    def word_embedding(self) -> Float[Tensor, "V D"]:
        """The word embedding matrix, one row per word id."""
        weight: Tensor = self.body.get_input_embeddings().weight
        return weight

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the word embedding matrix as float32 bytes: codes mean nothing under another one."""
        return _hash_of([self.word_embedding])

    def forward(
        self,
        embeddings: Float[Tensor, "B T D"],
        key_padding: Bool[Tensor, "B T"] | None = None,
        *,
        all_states: bool = False,
    ) -> LanguageOutput:
        """Run the body on word embeddings (LQAE, section 3.1: `f(z)` with the language model frozen).

        Args:
            embeddings: Raw word embeddings (rows of `word_embedding` or estimates of them), without positions;
                gradients flow back to them.
            key_padding: True = padding, hidden from attention; None = every word is real.
            all_states: Whether to return the hidden states of all layers.

        Raises:
            ValueError: More words than the model has positions for.
        """
        num_words = embeddings.shape[1]
        if num_words > self.max_words:
            raise ValueError(
                f"language model {self.name!r} takes at most {self.max_words} words, got {num_words}; "
                "use larger patches, smaller images, or a language model with more positions"
            )
        output = self.body(
            inputs_embeds=embeddings,
            attention_mask=None if key_padding is None else (~key_padding).long(),
            output_hidden_states=all_states,
            return_dict=True,
        )
        last = output.last_hidden_state
        return LanguageOutput(last, (*output.hidden_states[:-1], last) if all_states else ())

    def predict(self, hidden: Float[Tensor, "... hidden_width"]) -> Float[Tensor, "... width"]:
        """Return the head's transform of last hidden states; with output matrix and bias, logits come of it."""
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
        """Return one logit per hidden state and word (None = the whole vocabulary), equal to the family's own."""
        weight, bias = self.head_weight_and_bias()
        if word_ids is not None:
            weight = weight[word_ids]
            bias = None if bias is None else bias[word_ids]
        return F.linear(self.predict(hidden), weight, bias)

    def head_weight_and_bias(self) -> tuple[Float[Tensor, "V D"], Float[Tensor, " V"] | None]:
        """Return output matrix and bias of the masked-LM head."""
        return self.output.weight, self.output.bias


class CausalLanguageModel(_FrozenModel):
    """A frozen causal language model, a transformers `...ForCausalLM` in float32, that reads embeddings."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        super().__init__()
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"language model {name!r}: expected a tokenizer with an end-of-text word, found none"
            )
        self.name, self.tokenizer = name, tokenizer
        self.body = model.eval().requires_grad_(False)
        self._bare = CachedTexts(tokenizer)
        self.end_id: int = tokenizer.eos_token_id
        size = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_words: int | None = int(size) if size else None
        # What the tokenizer puts before every text, such as Llama's <s>; GPT-2's puts nothing.
        before = tokenizer("").input_ids
        self.start_ids: tuple[int, ...] = tuple(one for one in before if one == tokenizer.bos_token_id)[:1]
        self.width: int = self.body.get_input_embeddings().weight.shape[1]
        nn.Module.train(self, False)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all weights as float32 bytes: a prefix means nothing to another language model."""
        weights = sorted(self.body.state_dict().items())
        return _hash_of(part for name, weight in weights for part in (name.encode(), weight))

    def word_ids(self, text: str) -> list[int]:
        """Return the words of a text that stands inside a longer one: nothing put before or behind it."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def encode(self, texts: Sequence[str], max_words: int) -> Words:
        """Return texts with their ends, padded on the right, each cut to so many words, 2 or more with the end."""
        rows = [words[: max_words - 1] for words in self._bare(texts)]
        return padded(rows, end_id=self.end_id, pad_id=self.end_id)

    def embed(self, word_ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Return the embeddings of words."""
        embeddings: Tensor = self.body.get_input_embeddings()(word_ids)
        return embeddings

    def logits(
        self, embeddings: Float[Tensor, "B T D"], key_padding: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T V"]:
        """Return the logits of the word that follows each position; padding is on the right.

        Gradients flow back to `embeddings`; a ValueError refuses more words than the model has positions for.
        """
        self._check_length(embeddings.shape[1])
        output = self.body(inputs_embeds=embeddings, attention_mask=(~key_padding).long(), use_cache=False)
        logits: Tensor = output.logits
        return logits

    @torch.no_grad()
    def following(
        self,
        prompts: Float[Tensor, "P prompt D"],
        word_ids: Int[Tensor, "B T"],
        key_padding: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B T V"]:
        """Return the logits of each word behind its row's prompt, or behind the one prompt of all, read once.

        Padding is on the right. A ValueError refuses more words than the model has positions for.
        """
        count, last = word_ids.shape[0], word_ids.shape[1] - 1
        self._check_length(prompts.shape[1] + last)
        # Families that cannot leave out logits give all of them.
        least = {"logits_to_keep": 1} if "logits_to_keep" in signature(self.body.forward).parameters else {}
        before = self.body(inputs_embeds=prompts, use_cache=True, **least)
        logits: Tensor = before.logits[:, -1:].expand(count, -1, -1)
        if last == 0:  # nothing follows the last word
            return logits
        words, length = self.embed(word_ids[:, :last]), prompts.shape[1]
        padding = F.pad(key_padding[:, :last], (length, 0))
        cache: Any = getattr(before, "past_key_values", None)
        layers = getattr(cache, "layers", ())
        if not layers or not all(hasattr(layer, "batch_repeat_interleave") for layer in layers):
            # Recurrent families have no keys and values, or not in all layers.
            rows = torch.cat([prompts.expand(count, -1, -1), words], dim=1)
            return self.logits(rows, padding)[:, length - 1 :]
        if len(prompts) < count:
            cache.batch_repeat_interleave(count)
        after = self.body(inputs_embeds=words, attention_mask=(~padding).long(), past_key_values=cache)
        return torch.cat([logits, after.logits], dim=1)

    def _check_length(self, length: int) -> None:
        if self.max_words is not None and length > self.max_words:
            raise ValueError(
                f"language model {self.name!r} reads at most {self.max_words} words, got {length}"
            )

    @torch.no_grad()
    def write(self, embeddings: Float[Tensor, "B T D"], max_new_words: int) -> list[list[int]]:
        """Continue rows of one length greedily, to the end of the text, which is part of it, or the limit."""
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


def load_language_model(
    name: str = EMBEDDED, *, random_weights: bool = False, random_seed: int = 0
) -> LanguageModel:
    """Load a frozen masked language model in float32 on the CPU.

    Args:
        name: "embedded" (needs no network), a name on the hub (`FacebookAI/roberta-base`), or a local
            directory; weights are read from safetensors only and no code of the model's repository is run.
        random_weights: Keep the pretrained word embeddings, draw all other weights anew (LQAE, Table 3 B).
        random_seed: Seed of those draws; the same seed gives the same weights on every call.

    Raises:
        MissingLanguageModel: "embedded" without the package that carries it.
        ValueError: Nothing to load under that name, not a masked language model, or an incomplete checkpoint.
    """
    from transformers import AutoModelForMaskedLM

    embedded = name == EMBEDDED
    source = str(embedded_directory()) if embedded else name
    # It may be loaded in the middle of a computation, whose precision and modes are not those of its checks.
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
        model, tokenizer, missing = _load_pretrained(
            AutoModelForMaskedLM, source, embedded, attn_implementation=registered_attention()
        )
        _check_complete(source, [key for key in missing if key.startswith(f"{model.base_model_prefix}.")])
        if embedded:
            unexpected = model.load_state_dict(load_file(EMBEDDED_HEAD), strict=False).unexpected_keys
            assert not unexpected, f"the shipped head does not fit the embedded model: {unexpected}"
        if random_weights:
            torch.manual_seed(random_seed)
            words = model.get_input_embeddings().weight.detach()
            model = AutoModelForMaskedLM.from_config(  # type: ignore[no-untyped-call]
                model.config, attn_implementation=_ATTENTION, dtype=torch.float32
            )
            with torch.no_grad():
                model.get_input_embeddings().weight.copy_(words)
        return LanguageModel(model, tokenizer, name=name, has_head=embedded or random_weights or not missing)


def load_language_words(
    name: str = EMBEDDED, *, random_weights: bool = False, random_seed: int = 0
) -> LanguageWords | LanguageModel:
    """Load the words of a masked language model alone; all of it where they cannot be told from other weights."""
    from huggingface_hub import try_to_load_from_cache

    @cache  # networks that share the words share what is loaded
    def load() -> LanguageModel:
        return load_language_model(name, random_weights=random_weights, random_seed=random_seed)

    embedded = name == EMBEDDED
    source = str(embedded_directory()) if embedded else name
    cached = None if Path(source).is_dir() else try_to_load_from_cache(source, "model.safetensors")
    path = Path(cached) if isinstance(cached, str) else Path(source, "model.safetensors")
    if not path.is_file():
        return load()
    with safe_open(path, "pt") as stored:
        found = [key for key in stored.keys() if _WORDS.search(key)]  # noqa: SIM118
        if len(found) != 1:
            return load()
        words = stored.get_tensor(found[0]).float()
    if embedded:  # known by its hash: that transformers would make the same of it is tested
        described = json.loads(Path(source, "config.json").read_text(encoding="utf-8"))
        tokenizer: Any = Pieces(Path(source, "tokenizer.json"))
        return LanguageWords(words, tokenizer, SimpleNamespace(**described), name=name, load=load)
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError):
        return load()  # which says what is wrong
    return LanguageWords(words, tokenizer, config, name=name, load=load)


def load_causal_language_model(name: str) -> CausalLanguageModel:
    """Load a frozen causal language model in float32 on the CPU; name and errors as of `load_causal_parts`."""
    return CausalLanguageModel(*load_causal_parts(name), name=name)


def load_causal_parts(
    name: str, dtype: torch.dtype = torch.float32, say: Callable[[str], object] = bool
) -> tuple[Any, Any]:
    """Return a transformers `...ForCausalLM` on the CPU and its tokenizer.

    Weights are read from safetensors and GGUF only and no code of the model's repository is run.

    Args:
        name: a directory, a name on the hub, or what `gguf_files` takes for a GGUF.
        say: is told what memory it takes, before anything is loaded.

    Raises:
        ValueError: nothing to load, or something else than a complete causal language model.
        ModuleNotFoundError: a GGUF without the packages that read it.
    """
    from transformers import AutoModelForCausalLM

    source = unpacked(name, say)
    model, tokenizer, missing = _load_pretrained(
        AutoModelForCausalLM,
        source,
        False,
        lambda config: say(f"{name}: {memory(config, dtype)}"),
        dtype=dtype,
    )
    _check_complete(source, missing)
    return model, tokenizer


def _load_pretrained(
    kind: Any, source: str, local_only: bool, announce: Callable[[Any], object] = bool, **options: Any
) -> tuple[Any, Any, list[str]]:
    """Load a model of an Auto class and its tokenizer; return them with the weights that the checkpoint lacks."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

    settings = {"local_files_only": local_only, "trust_remote_code": False}
    wanted = "causal language model (GPT-like)"
    try:
        config = AutoConfig.from_pretrained(source, **settings)
        fits = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder
        if kind is AutoModelForCausalLM:
            # transformers loads a BERT as a causal model, with a warning: it would see the words to come.
            fits = not fits or getattr(config, "is_decoder", False)
        else:
            wanted = "masked language model (BERT-like)"
        if not fits:
            raise ValueError(f"expected a {wanted}, got a {config.model_type!r} model")
        announce(config)
        tokenizer = AutoTokenizer.from_pretrained(source, **settings)
        options = {"dtype": torch.float32, **options, **settings}
        with _quiet_transformers():
            model, loading = kind.from_pretrained(
                source, config=config, use_safetensors=True, output_loading_info=True, **options
            )
    except (OSError, ValueError) as reason:
        raise ValueError(f"language model {source!r} cannot be loaded: {reason}") from reason
    return model, tokenizer, sorted(loading["missing_keys"])


def _check_complete(source: str, missing: list[str]) -> None:
    if missing:
        raise ValueError(
            f"language model {source!r}: the checkpoint lacks {len(missing)} weights, first {missing[0]}"
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the loading report, which calls a body without a head corrupted, and the loading bar."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def registered_attention() -> str:
    """The name under which transformers finds our attention, fast in bfloat16 on a CPU."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    return _ATTENTION


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Our attention in the form that transformers calls."""
    bias = None
    if mask is not None:
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    return attend(query, key, value, bias, settings.get("scaling")).transpose(1, 2).contiguous(), None


class _Passthrough(nn.Module):
    """Stands where the body was inside the family's own head: its input is the last hidden state."""

    def forward(self, *arguments: Any, inputs_embeds: Tensor, **settings: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=inputs_embeds)


def _take_apart(model: Any, name: str) -> tuple[Any, Any, nn.Linear]:
    """Split a `...ForMaskedLM` into body, head, and output matrix; check that the parts give its logits."""
    output, body = model.get_output_embeddings(), model.base_model
    paths = [path for path, module in model.named_modules() if module is output]
    if not isinstance(output, nn.Linear) or len(paths) != 1 or body is model:
        raise ValueError(f"language model {name!r} ({model.config.model_type}) has no head of a known form")
    words = body.get_input_embeddings().weight[:2].unsqueeze(0)
    with torch.no_grad():
        expected = model(inputs_embeds=words).logits
        hidden = body(inputs_embeds=words).last_hidden_state
        setattr(model, model.base_model_prefix, _Passthrough())
        model.set_submodule(paths[0], nn.Identity())
        parts = F.linear(model(inputs_embeds=hidden).logits, output.weight, output.bias)
    if not torch.allclose(parts, expected, rtol=_HEAD_TOLERANCE, atol=_HEAD_TOLERANCE):
        raise ValueError(
            f"language model {name!r} ({model.config.model_type}): expected a head whose logits are a "
            f"transform times an output matrix plus bias, got {(parts - expected).abs().max():.3g} apart"
        )
    return body, model, output


def _usable_positions(body: nn.Module, num_positions: int) -> int:
    """Positions that words can take: RoBERTa's rows start after the padding row (514 rows, 512 positions)."""
    for path, module in body.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - first
    return num_positions


def _hash_of(parts: Iterable[Tensor | bytes]) -> str:
    """Return the SHA-256 of bytes, and of tensors as float32 bytes."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
        digest.update(part)
    return digest.hexdigest()
