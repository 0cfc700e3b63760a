"""A causal language model in this process: transformers' `generate`, and exact scores of candidates."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pixlex.eval.llm.client import (
    DOES_NOT_FIT,
    NO_TEXT,
    Ability,
    LanguageClient,
    LLMOptions,
    Prompt,
    Reply,
    check_prompt,
    cut_at,
    without_reasoning,
)
from pixlex.models import hash_of

# So many tokens of the prompt are decoded with what was written: some tokenizers drop a leading space.
_TAIL = 8
# What a CPU reads at a time, in tokens, and scores, in logits: more takes memory and saves no time.
_TOKENS_AT_ONCE, _LOGITS_AT_ONCE = 1 << 13, 1 << 25


class LocalClient(LanguageClient):
    """Answers with a causal language model in this process, a batch at a time, long prompts first.

    Args:
        model: one of transformers' `...ForCausalLM`; it is put in evaluation mode, and its own settings of
            generation are replaced by greedy ones.
        tokenizer: its tokenizer, a fast one.
        options: `batch_size` is halved when memory is short; `mode="chat"` puts prompts into the tokenizer's chat
            template, as a user's message.

    Raises:
        ValueError: a tokenizer that is not a fast one, or has no chat template where one is asked for.
    """

    abilities: frozenset[Ability] = frozenset({"generate", "score", "choose", "mix"})
    counts_exactly = True

    def __init__(self, model: Any, tokenizer: Any, options: LLMOptions) -> None:
        from transformers import GenerationConfig

        self.name, self._chat = Path(options.model).name, options.mode == "chat"
        if not tokenizer.is_fast:
            raise ValueError(
                f"language model {self.name!r}: expected a fast tokenizer, got {type(tokenizer)}"
            )
        if self._chat and not tokenizer.chat_template:
            raise ValueError(f"language model {self.name!r} has no chat template; use completions")
        self._tokenizer, self._batch_size = tokenizer, options.batch_size
        self._model = model.eval().requires_grad_(False)
        self._arguments = inspect.signature(model.forward).parameters
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.context_size = options.context_size or (int(positions) if positions else None)
        marks = model.generation_config.eos_token_id
        ends = [tokenizer.eos_token_id, *(marks if isinstance(marks, list) else [marks])]
        self._ends: list[int] = list(dict.fromkeys(end for end in ends if end is not None))
        # What its authors set for sampling, such as penalties, is no part of a greedy choice.
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, eos_token_id=self._ends or None, pad_token_id=self._ends[0] if self._ends else 0
        )

    @cached_property
    def identity(self) -> str:  # type: ignore[override]
        """A fingerprint of weights, precision, tokenizer and chat template."""
        config = {**self._model.config.to_dict(), "_name_or_path": ""}  # where it lies does not matter
        facts = [config, self._tokenizer.chat_template if self._chat else None, sorted(self._ends)]
        settings = json.dumps(facts, sort_keys=True, default=str)
        return hash_of(f"{self._tokenizer.backend_tokenizer.to_str()}{settings}".encode(), self._model)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, with those that the model wants around a prompt."""
        return [len(self._tokens(text)) for text in texts]

    def ask(self, ability: Ability, prompts: Sequence[Prompt], limit: int = 1) -> Iterator[tuple[int, Reply]]:
        """Yield the reply to each prompt that fits, the longest first; others fail with the reason.

        What scored prompts that follow each other have in common is read once, where it is most of them.
        """
        groups = list(_sharing(prompts)) if ability == "score" else [[one] for one in range(len(prompts))]
        items = [self._encoded(ability, [prompts[number] for number in group], limit) for group in groups]
        left = []
        for place, item in enumerate(items):
            before, after = len(item.prefix), limit if ability == "generate" else item.longest
            failure = None
            if before == 0:
                failure = "the prompt is empty: there is nothing to continue"
            elif self.context_size is not None and before + after > self.context_size:
                reason = f"prompt ({before} tokens) and answer (up to {after}) exceed the context of"
                failure = f"{DOES_NOT_FIT}: {reason} {self.context_size} tokens"
            else:
                left.append(place)
            if failure is not None:
                yield from ((number, Reply.failed(failure)) for number in groups[place])
        left.sort(key=lambda place: -len(items[place].prefix))
        while left:
            part, replies = left[: self._most_at_once([items[place] for place in left])], None
            try:
                with torch.inference_mode():
                    replies = self._replies(ability, [items[place] for place in part], limit)
            except torch.OutOfMemoryError:
                pass
            if replies is not None:
                yield from zip(
                    itertools.chain.from_iterable(groups[place] for place in part), replies, strict=True
                )
                left = left[len(part) :]
            elif len(part) == 1:
                size = len(items[part[0]].prefix)
                raise ValueError(f"out of memory with one prompt of {size} tokens at a time")
            else:
                # Not in the handler: while it runs, the traceback holds the tensors that took the memory.
                torch.cuda.empty_cache()
                self._batch_size = len(part) // 2

    def _most_at_once(self, items: Sequence[Encoded]) -> int:
        """Return how many of the items, the longest first, are read together."""
        most = min(self._batch_size, len(items))
        if self._model.device.type != "cpu":
            return most
        while most > 1:
            part, vocabulary = items[:most], self._model.config.get_text_config().vocab_size
            tokens = most * max(len(item.prefix) + item.longest for item in part)
            scored = most * (
                max(item.longest for item in part) - min(min(item.starts, default=0) for item in part)
            )
            if tokens <= _TOKENS_AT_ONCE and scored * vocabulary <= _LOGITS_AT_ONCE:
                break
            most = (most + 1) // 2
        return most

    def _replies(self, ability: Ability, items: Sequence[Encoded], limit: int) -> list[Reply]:
        if ability == "generate":
            return self._written(items, limit)
        if ability == "score":
            return [
                reply
                for item, row in zip(items, self._scores(items), strict=True)
                for reply in item.scored(row)
            ]
        mix = ability == "mix"
        end = self._ends[0] if self._ends and not mix else None
        size = max(len(item.prefix) for item in items)

        def allowed(row: int, ids: Int[Tensor, " T"]) -> list[int]:
            return items[row].following(ids[size:].tolist(), end, mix=mix) or self._ends[:1] or [0]

        longest = max(item.longest for item in items) + (end is not None)
        written = self._write([item.prefix for item in items], longest, prefix_allowed_tokens_fn=allowed)
        if not mix:
            return [Reply(text=item.chosen(new)) for item, new in zip(items, written, strict=True)]
        texts = []
        for item, new in zip(items, written, strict=True):
            before = self._decode(self._tokens(item.prompts[0].text))
            texts.append(self._decode([*item.prefix, *new[: item.longest]])[len(before) :])
        return [Reply(text=text) for text in texts]

    def _written(self, items: Sequence[Encoded], limit: int) -> list[Reply]:
        tails = [item.prefix[-_TAIL:] for item in items]
        before = [len(self._decode(tail)) for tail in tails]
        size = max(len(item.prefix) for item in items)

        def read(row: int, new: list[int]) -> Reply:
            written = list(itertools.takewhile(lambda token: token not in self._ends, new))
            full = self._decode([*tails[row], *written])[before[row] :]
            text = cut_at(full, items[row].prompts[0].stops)
            return Reply(text=text, finish="stop" if text != full or len(written) < len(new) else "length")

        def stopped(ids: Int[Tensor, "B T"], scores: object, **rest: object) -> Tensor:
            done = [read(row, new).finish == "stop" for row, new in enumerate(ids[:, size:].tolist())]
            return torch.tensor(done, device=ids.device)

        rows = self._write([item.prefix for item in items], limit, stopping_criteria=[stopped])
        replies = [read(row, new) for row, new in enumerate(rows)]
        texts = [without_reasoning(reply.text) for reply in replies]
        return [
            Reply.failed(f"{NO_TEXT} within the limit of tokens")
            if text is None
            else replace(reply, text=text)
            for reply, text in zip(replies, texts, strict=True)
        ]

    def _scores(self, items: Sequence[Encoded]) -> list[list[float]]:
        """Return ln p of each text of each item, in nats, summed over its candidate's tokens in float64.

        What an item's texts share is read once; then the items' first stems, their second ones, and so on, each
        from a copy of its keys and values.
        """
        tokens, mask = self._padded([item.prefix for item in items])
        before = self._forward(tokens, mask, (mask.cumsum(1) - 1).clamp(min=0), None, keep=1)
        found = [[0.0] * len(item.rests) for item in items]
        stems = [list(item.stems().items()) for item in items]
        for column in range(max(map(len, stems))):
            # An item with fewer stems repeats its last one, to the same numbers.
            chosen = [row[min(column, len(row) - 1)] for row in stems]
            # Of each token that is scored: item, text, how many tokens of the text's rest come before it, itself.
            wanted = [
                (row, text, place, items[row].rests[text][place])
                for row, (_, texts) in enumerate(chosen)
                for text in texts
                for place in range(items[row].starts[text], len(items[row].rests[text]))
            ]
            logits = self._following(before, mask, [list(stem) for stem, _ in chosen], wanted)
            lines = {
                key: line for line, key in enumerate(dict.fromkeys((row, at) for row, _, at, _ in wanted))
            }
            at = [lines[row, place] for row, _, place, _ in wanted], [token for *_, token in wanted]
            values = logits.float().log_softmax(-1)[at].tolist()
            for row, (_, texts) in enumerate(chosen):
                for text in texts:
                    own = zip(wanted, values, strict=True)
                    found[row][text] = sum(value for one, value in own if one[:2] == (row, text))
        return found

    def _following(
        self, before: Any, mask: Tensor, stems: list[list[int]], wanted: Sequence[tuple[int, int, int, int]]
    ) -> Float[Tensor, "n V"]:
        """Return the logits of what follows a stem's first tokens, for each item and number in `wanted`."""
        rows, places = zip(*dict.fromkeys((row, place) for row, _, place, _ in wanted), strict=True)
        longest, first = max(map(len, stems)), min(places)
        logits = before.logits[:, -1:]
        if longest > 0:
            tokens, own = self._padded(stems, left=False)
            positions = mask.sum(1, keepdim=True) + torch.arange(longest, device=tokens.device)
            both, cache = torch.cat((mask, own), dim=1), copy.deepcopy(before.past_key_values)
            keep = longest + 1 - max(first, 1)
            after = self._forward(tokens, both, positions, cache, keep=keep).logits[:, -keep:]
            logits = torch.cat((logits, after), dim=1) if first == 0 else after
        found: Tensor = logits[rows, [place - first for place in places]]
        return found

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any, *, keep: int) -> Any:
        settings = {"position_ids": positions, "logits_to_keep": keep}
        # Families with relative positions take none.
        settings = {name: value for name, value in settings.items() if name in self._arguments}
        return self._model(
            input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **settings
        )

    def _write(self, rows: Sequence[Sequence[int]], limit: int, **settings: Any) -> list[list[int]]:
        tokens, mask = self._padded(rows)
        written = self._model.generate(
            input_ids=tokens, attention_mask=mask, max_new_tokens=limit, **settings
        )
        new: list[list[int]] = written[:, tokens.shape[1] :].tolist()
        return new

    def _padded(
        self, rows: Sequence[Sequence[int]], *, left: bool = True
    ) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """Return the rows and a mask, 1 where a token is real; what stands in for a token is never looked at."""
        ids, side = [torch.tensor(row, dtype=torch.long) for row in rows], "left" if left else "right"
        tokens, mask = (
            pad_sequence(several, batch_first=True, padding_side=side).to(self._model.device)
            for several in (ids, [torch.ones_like(row) for row in ids])
        )
        return tokens, mask

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _tokens(self, prompt: str) -> list[int]:
        return _without_end(self._tokenize(self._framed(prompt)))

    def _encoded(self, ability: Ability, prompts: Sequence[Prompt], limit: int) -> Encoded:
        for prompt in prompts:
            check_prompt(ability, prompt, limit)
        if ability == "generate":
            return Encoded(prompts, self._tokens(prompts[0].text), [], [])
        return Encoded.of(self._tokenize, [(self._framed(prompt.text), prompt) for prompt in prompts])

    def _framed(self, prompt: str) -> str:
        if not self._chat:
            return prompt
        messages = [{"role": "user", "content": prompt}]
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text

    def _tokenize(self, text: str) -> Any:
        return self._tokenizer(
            text,
            add_special_tokens=not self._chat,  # the template brings its own
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )


class Encoded(NamedTuple):
    """Prompts, each with each of its candidates, as tokens.

    A text is tokenized as a whole, for a tokenizer may join the end of the prompt and the beginning of
    a candidate. The candidate's tokens are those that reach into it.
    """

    prompts: Sequence[Prompt]
    prefix: list[int]  # that all the texts begin with, none of them a candidate's
    rests: list[list[int]]  # the other tokens of each text, one or more
    starts: list[int]  # how many of them belong to the prompt alone

    @classmethod
    def of(cls, tokenize: Callable[[str], Any], framed: Sequence[tuple[str, Prompt]]) -> Encoded:
        """Tokenize framed prompts with each candidate; no token before a candidate's raises `ValueError`."""
        rows, starts = [], []
        for text, candidate in ((text, one) for text, prompt in framed for one in prompt.candidates):
            encoding = tokenize(text + candidate)
            ids, offsets = _without_end(encoding), encoding["offset_mapping"]
            rows.append(ids)
            starts.append(next(place for place in range(len(ids)) if offsets[place][1] > len(text)))
        shared = 0
        while shared < min(starts) and len({row[shared] for row in rows}) == 1:
            shared += 1
        if shared == 0:
            raise ValueError(
                f"the prompt {framed[0][0][:40]!r} leaves no token to come before the candidates"
            )
        rests, prompts = [row[shared:] for row in rows], [prompt for _, prompt in framed]
        return cls(prompts, rows[0][:shared], rests, [start - shared for start in starts])

    def stems(self) -> dict[tuple[int, ...], list[int]]:
        """Return the rests without their last tokens, and the numbers of the texts that each is of."""
        found: dict[tuple[int, ...], list[int]] = {}
        for number, rest in enumerate(self.rests):
            found.setdefault(tuple(rest[:-1]), []).append(number)
        return found

    def scored(self, values: Sequence[float]) -> Iterator[Reply]:
        """Yield the reply to each prompt, given the log-likelihood of each text."""
        counts = [len(rest) - start for rest, start in zip(self.rests, self.starts, strict=True)]
        first = 0
        for prompt in self.prompts:
            own = slice(first, first + len(prompt.candidates))
            yield Reply(log_probabilities=tuple(values[own]), num_tokens=tuple(counts[own]))
            first = own.stop

    @property
    def longest(self) -> int:
        """Tokens of the longest rest."""
        return max(map(len, self.rests), default=0)

    def following(self, written: Sequence[int], end: int | None, *, mix: bool = False) -> list[int]:
        """Return the tokens that may follow; none where a candidate is complete.

        A candidate that another one begins with competes with it as the end of the text.
        """
        size = len(written)
        fits = [rest for rest in self.rests if mix or rest[:size] == list(written)]
        tokens = sorted({rest[size] for rest in fits if len(rest) > size})
        return [*tokens, end] if tokens and end is not None and list(written) in fits else tokens

    def chosen(self, written: Sequence[int]) -> str:
        """Return the candidate that was written; of two that are equal the first."""
        complete = [rest for rest in self.rests if rest == list(written[: len(rest)])]
        return self.prompts[0].candidates[self.rests.index(max(complete, key=len))]


def _sharing(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Yield the numbers of prompts that follow each other and begin like the first of them, by half or more."""
    group: list[int] = []
    for number, prompt in enumerate(prompts):
        texts = (prompts[group[0]].text, prompt.text) if group else ("", "")
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
        if 2 * same < max(map(len, texts)):
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def _without_end(encoding: Any) -> list[int]:
    """Return the tokens of a text, less those with which some tokenizers end every text."""
    ids: list[int] = encoding["input_ids"]
    end = len(ids)
    while end > 1 and encoding["special_tokens_mask"][end - 1]:  # alone, it begins an empty text
        end -= 1
    return ids[:end]
