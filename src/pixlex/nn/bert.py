"""BERT's layers, with cross-attention where asked: text encoder, fusion encoder, answer decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixlex.nn.transformer import Attention, attend, initializer, take_rows

_EPSILON = 1e-12

# Is given the probabilities of one cross-attention, (contexts, heads, queries, M); returns those to go on with.
Watch = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class KeysValues:
    """Keys and values of one layer's cross-attention: computed once for a context, for any number of queries."""

    keys: Float[Tensor, "B h M d"]
    values: Float[Tensor, "B h M d"]

    def rows(self, numbers: Int[Tensor, " R"]) -> KeysValues:
        """Return those of some contexts."""
        return KeysValues(take_rows(self.keys, numbers), take_rows(self.values, numbers))


@dataclass(frozen=True)
class Context:
    """Keys and values for each layer of a fusion encoder; `key_padding` is True where they are padding."""

    layers: tuple[KeysValues, ...]
    key_padding: Bool[Tensor, "B M"] | None = None

    def rows(self, numbers: Int[Tensor, " R"]) -> Context:
        """Return those of some contexts."""
        padding = None if self.key_padding is None else self.key_padding[numbers]
        return Context(tuple(layer.rows(numbers) for layer in self.layers), padding)


@dataclass(frozen=True)
class Watched:
    """The fusion encoder with the cross-attention of one of its layers laid open.

    Attributes:
        fused: What the encoder returns.
        shares: The probabilities of that layer's queries over the context, a leaf that `fused` depends on and can
            be differentiated by. Queries of several groups stand behind each other.
    """

    fused: Float[Tensor, "B N D"]
    shares: Float[Tensor, "C h Q M"]


def padding_bias(key_padding: Bool[Tensor, "B M"] | None) -> Float[Tensor, "B 1 1 M"] | None:
    """Return what hides padding when it is added to attention scores."""
    if key_padding is None:
        return None
    bias = torch.zeros(key_padding.shape, device=key_padding.device).masked_fill(key_padding, -torch.inf)
    return bias[:, None, None, :]


class CrossAttention(nn.Module):
    """Multi-head attention of queries over a context of the same width.

    Args:
        width: D, of queries and context.
        heads: Number of heads; must divide the width.
        dropout_rate: Of the probabilities in training, in [0, 1).
    """

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
            context: Keys and values.
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
            shares = torch.softmax(scores if bias is None else scores + bias, dim=-1)
            attended = watch(shares) @ context.values
        apart = attended.transpose(1, 2).reshape(num_contexts, -1, length, width).transpose(0, 1)
        output: Tensor = self.output(apart.reshape(num_rows, length, width))
        return output


class BertLayer(nn.Module):
    """Post-norm layer (Devlin et al. 2018): LN(x + SelfAttn), [LN(x + CrossAttn)], LN(x + GELU network).

    Args:
        width: D.
        heads: Attention heads.
        mlp_ratio: Width of the hidden layer over D.
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

        Args:
            sequence: The vectors.
            bias: Hides the padding of the sequence, or from each query what it may not attend to.
            context: Given exactly where the layer has cross-attention.
            context_bias: Hides the padding of the context.
            watch: See `CrossAttention`.
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

    BERT's embedding of the first segment, the same for every word here, is part of the positions.

    Args:
        vocab_size: V, rows of the word embedding.
        num_positions: Longest text.
        width: D.
        depth: Number of layers.
        heads: Attention heads.
        mlp_ratio: Width of the feed-forward part over D.
        dropout_rate: Of embeddings, of attention and of what each part adds.
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

    def forward(
        self, word_ids: Int[Tensor, "B T"], key_padding: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T D"]:
        """Return one vector for each word, that of the start word for the whole text first.

        Args:
            word_ids: Rows of the word embedding; anything where padded.
            key_padding: True = padding, which no word attends to.

        Raises:
            ValueError: Longer texts than there are positions.
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
    """Layers whose queries are one side and whose context is the other, in either direction with the same weights.

    Args:
        width: D, of both sides.
        depth: Number of layers.
        heads: Attention heads.
        mlp_ratio: Width of the feed-forward part over D.
        dropout_rate: Of attention and of what each part adds.
    """

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
        parts = [layer.cross_attention for layer in self.layers if isinstance(layer, BertLayer)]
        return Context(tuple(part.project(context) for part in parts if part is not None), key_padding)

    def forward(
        self,
        queries: Float[Tensor, "B N D"],
        context: Context,
        key_padding: Bool[Tensor, "B N"] | None = None,
        watches: Mapping[int, Watch] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Return the queries after all layers.

        Args:
            queries: One sequence for each context, or several groups of as many (see `CrossAttention`).
            context: What they attend to.
            key_padding: True = padding of the queries.
            watches: What the cross-attention of some layers passes through, by their number from 1.
        """
        bias, context_bias = self._bias(queries, key_padding), padding_bias(context.key_padding)
        for number, (layer, keys_values) in enumerate(zip(self.layers, context.layers, strict=True), start=1):
            watch = (watches or {}).get(number)
            queries = layer(queries, bias, keys_values, context_bias, watch)
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

        def keep(shares: Tensor) -> Tensor:
            seen.append(shares.detach().requires_grad_())
            return seen[0]

        fused = self(queries, context, key_padding, {layer: keep})
        return Watched(fused, seen[0])

    def _bias(
        self, queries: Float[Tensor, "B N D"], key_padding: Bool[Tensor, "B N"] | None
    ) -> Float[Tensor, "B 1 _ N"] | None:
        """What hides from each query those that it may not attend to."""
        return padding_bias(key_padding)


class AnswerDecoder(FusionEncoder):
    """A causal fusion encoder: each query attends to itself and those before it.

    The decoder of ALBEF's question answering (Li et al. 2021, section 4.2); its layers have the shapes of the
    fusion encoder's, from which they start.
    """

    def _bias(
        self, queries: Float[Tensor, "B N D"], key_padding: Bool[Tensor, "B N"] | None
    ) -> Float[Tensor, "B 1 _ N"] | None:
        length = queries.shape[1]
        later = torch.full((1, 1, length, length), -torch.inf, device=queries.device).triu(1)
        # Padding stands on the right, behind all that counts: nothing before it attends to it.
        return later.expand(len(queries), -1, -1, -1)
