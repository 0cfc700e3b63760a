"""Reading and writing with a causal language model: left padding, one pass over a prompt, greedy writing."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixlex.eval.llm.candidates import EncodedCandidates, PlaceUnion, Trie
from pixlex.eval.llm.client import cut_at

# So many tokens of the prompt are decoded with what was written: some tokenizers drop a leading space.
_TAIL = 8


@dataclass
class Reading:
    """What a model made of the texts so far.

    Attributes:
        cache: its keys and values.
        mask: 1 where a token is real.
        logits: of the token that comes next, in float32.
    """

    cache: Any
    mask: Int[Tensor, "B T"]
    logits: Float[Tensor, "B V"]


class CausalReader:
    """Runs a causal language model on batches of token rows of unequal length.

    Args:
        model: any of transformers' `...ForCausalLM`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._known = inspect.signature(model.forward).parameters

    def read(self, rows: Sequence[Sequence[int]]) -> Reading:
        """Read rows of one token or more, padded on the left so that all end together."""
        tokens, mask = _padded(rows, self.model.device, side="left")
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = self._forward(tokens, mask, positions, None, keep=1)
        return Reading(output.past_key_values, mask, output.logits[:, -1].float())

    def advance(self, reading: Reading, rows: Sequence[Sequence[int]]) -> Float[Tensor, "B L V"]:
        """Read on, padded on the right; the reading's cache grows, and only that.

        Returns:
            The logits after each of the tokens.
        """
        tokens, mask = _padded(rows, self.model.device, side="right")
        seen = reading.mask.sum(1, keepdim=True)
        positions = seen + torch.arange(tokens.shape[1], device=tokens.device)
        whole = torch.cat((reading.mask, mask), dim=1)
        output = self._forward(tokens, whole, positions, reading.cache, keep=tokens.shape[1])
        reading.cache = output.past_key_values
        logits: Tensor = output.logits.float()
        return logits

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any, *, keep: int) -> Any:
        settings: dict[str, Any] = {}
        if "position_ids" in self._known:  # families with relative positions take none
            settings["position_ids"] = positions
        if "logits_to_keep" in self._known:
            settings["logits_to_keep"] = keep
        return self.model(
            input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **settings
        )


def score_candidates(reader: CausalReader, items: Sequence[EncodedCandidates]) -> list[tuple[float, ...]]:
    """Return ln p of each candidate of each prompt, in nats, summed over its tokens in float64.

    What a prompt's candidates share is read once; then the prompts' first candidates, their second ones, and
    so on, each from a copy of that.
    """
    start = reader.read([item.prefix for item in items])
    columns = []
    for column in range(max(len(item.rests) for item in items)):
        # A prompt with fewer candidates repeats its last one, which is dropped below.
        chosen = [min(column, len(item.rests) - 1) for item in items]
        rests = [item.rests[number] for item, number in zip(items, chosen, strict=True)]
        logits = start.logits.unsqueeze(1)
        if max(len(rest) for rest in rests) > 1:
            reading = Reading(copy.deepcopy(start.cache), start.mask, start.logits)
            rows = [rest[:-1] for rest in rests]
            logits = torch.cat((logits, reader.advance(reading, rows)), dim=1)
        tokens, mask = _padded(rests, logits.device, side="right")
        scores = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        for row, (item, number) in enumerate(zip(items, chosen, strict=True)):
            mask[row, : item.starts[number]] = 0
        columns.append((scores.double() * mask).sum(1).tolist())
    return [
        tuple(columns[column][row] for column in range(len(item.rests))) for row, item in enumerate(items)
    ]


class FreeWriter:
    """Writes the likeliest token until the end of the text, a stop, or the limit.

    Args:
        tokenizer: turns tokens into text.
        prompt: the tokens before.
        limit: most tokens.
        stop: texts that end the writing and are not part of it.
        ends: tokens that do.
    """

    def __init__(
        self, tokenizer: Any, prompt: Sequence[int], limit: int, stop: Sequence[str], ends: frozenset[int]
    ) -> None:
        self._tokenizer, self._limit, self._stop, self._ends = tokenizer, limit, stop, ends
        self._tail = list(prompt[-_TAIL:])
        self._before = len(decode(tokenizer, self._tail))
        self._written: list[int] = []
        self.text = ""
        self.finish: Literal["stop", "length"] = "length"
        self.done = False

    def write(self, logits: Float[Tensor, " V"]) -> int:
        """Take the likeliest token."""
        token = int(logits.argmax())
        if token in self._ends:
            self.finish, self.done = "stop", True
            return token
        self._written.append(token)
        text = decode(self._tokenizer, [*self._tail, *self._written])[self._before :]
        self.text = cut_at(text, self._stop)
        if self.text != text:
            self.finish = "stop"
        self.done = self.finish == "stop" or len(self._written) == self._limit
        return token


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the text of tokens as it is."""
    text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


class ChoiceWriter:
    """Writes the likeliest token among those with which one of the candidates goes on.

    Args:
        trie: the candidates.
    """

    def __init__(self, trie: Trie | PlaceUnion) -> None:
        self._trie = trie
        self.written: list[int] = []
        self.done = False

    def write(self, logits: Float[Tensor, " V"]) -> int:
        """Take the likeliest allowed token."""
        allowed = self._trie.allowed(self.written)
        token = allowed[int(logits[allowed].argmax())]
        self.written.append(token)
        self.done = not self._trie.allowed(self.written)
        return token


def write(
    reader: CausalReader, prompts: Sequence[Sequence[int]], writers: Sequence[FreeWriter | ChoiceWriter]
) -> None:
    """Let each writer continue its prompt; those that are done wait for the others."""
    reading = reader.read(prompts)
    while True:
        tokens = [
            0 if writer.done else writer.write(logits)
            for writer, logits in zip(writers, reading.logits, strict=True)
        ]
        if all(writer.done for writer in writers):
            return
        logits = reader.advance(reading, [[token] for token in tokens])
        reading.mask = torch.cat((reading.mask, torch.ones_like(reading.mask[:, :1])), dim=1)
        reading.logits = logits[:, -1]


def _padded(
    rows: Sequence[Sequence[int]], device: torch.device, *, side: Literal["left", "right"]
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Return the rows and a mask, 1 where a token is real; what stands in for a token is never looked at."""
    size = max(len(row) for row in rows)
    tokens, mask = torch.zeros((2, len(rows), size), dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(size - len(row), size) if side == "left" else slice(0, len(row))
        tokens[number, place] = torch.tensor(row, dtype=torch.long)
        mask[number, place] = 1
    return tokens.to(device), mask.to(device)
