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
from jaxtyping import Int
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
        """Yield the reply to each prompt that fits, the longest first; others fail with the reason."""
        items, left = [self._encoded(ability, prompt, limit) for prompt in prompts], []
        for number, item in enumerate(items):
            before, after = len(item.prefix), limit if ability == "generate" else item.longest
            if before == 0:
                yield number, Reply.failed("the prompt is empty: there is nothing to continue")
            elif self.context_size is not None and before + after > self.context_size:
                reason = f"prompt ({before} tokens) and answer (up to {after}) exceed the context of"
                yield number, Reply.failed(f"{DOES_NOT_FIT}: {reason} {self.context_size} tokens")
            else:
                left.append(number)
        left.sort(key=lambda number: -len(items[number].prefix))
        while left:
            part, replies = left[: self._batch_size], None
            try:
                with torch.inference_mode():
                    replies = self._replies(ability, [items[number] for number in part], limit)
            except torch.OutOfMemoryError:
                pass
            if replies is not None:
                yield from zip(part, replies, strict=True)
                left = left[len(part) :]
            elif len(part) == 1:
                size = len(items[part[0]].prefix)
                raise ValueError(f"out of memory with one prompt of {size} tokens at a time")
            else:
                # Not in the handler: while it runs, the traceback holds the tensors that took the memory.
                torch.cuda.empty_cache()
                self._batch_size = len(part) // 2

    def _replies(self, ability: Ability, items: Sequence[Encoded], limit: int) -> list[Reply]:
        if ability == "generate":
            return self._written(items, limit)
        if ability == "score":
            rows = zip(items, self._scores(items), strict=True)
            return [Reply(log_probabilities=row, num_tokens=item.num_tokens) for item, row in rows]
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
            before = self._decode(self._tokens(item.prompt.text))
            texts.append(self._decode([*item.prefix, *new[: item.longest]])[len(before) :])
        return [Reply(text=text) for text in texts]

    def _written(self, items: Sequence[Encoded], limit: int) -> list[Reply]:
        tails = [item.prefix[-_TAIL:] for item in items]
        before = [len(self._decode(tail)) for tail in tails]
        size = max(len(item.prefix) for item in items)

        def read(row: int, new: list[int]) -> Reply:
            written = list(itertools.takewhile(lambda token: token not in self._ends, new))
            full = self._decode([*tails[row], *written])[before[row] :]
            text = cut_at(full, items[row].prompt.stops)
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

    def _scores(self, items: Sequence[Encoded]) -> list[tuple[float, ...]]:
        """Return ln p of each candidate of each prompt, in nats, summed over its tokens in float64.

        What a prompt's candidates share is read once; then the prompts' first candidates, their second ones, and
        so on, each from a copy of its keys and values.
        """
        tokens, mask = self._padded([item.prefix for item in items])
        start = self._forward(tokens, mask, (mask.cumsum(1) - 1).clamp(min=0), None, keep=1)
        columns = []
        for column in range(max(len(item.rests) for item in items)):
            # A prompt with fewer candidates repeats its last one, which is dropped below.
            chosen = [min(column, len(item.rests) - 1) for item in items]
            rests = [item.rests[number] for item, number in zip(items, chosen, strict=True)]
            tokens, own = self._padded(rests, left=False)
            logits = start.logits[:, -1:].float()
            if (more := tokens.shape[1] - 1) > 0:
                positions = mask.sum(1, keepdim=True) + torch.arange(more, device=tokens.device)
                both = torch.cat((mask, own[:, 1:]), dim=1)
                cache = copy.deepcopy(start.past_key_values)
                after = self._forward(tokens[:, :-1], both, positions, cache, keep=more)
                logits = torch.cat((logits, after.logits.float()), dim=1)
            scores = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
            for row, (item, number) in enumerate(zip(items, chosen, strict=True)):
                own[row, : item.starts[number]] = 0
            columns.append((scores.double() * own).sum(1).tolist())
        return [tuple(column[row] for column in columns[: len(item.rests)]) for row, item in enumerate(items)]

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

    def _encoded(self, ability: Ability, prompt: Prompt, limit: int) -> Encoded:
        check_prompt(ability, prompt, limit)
        if ability == "generate":
            return Encoded(prompt, self._tokens(prompt.text), [], [])
        return Encoded.of(self._tokenize, self._framed(prompt.text), prompt)

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
    """A prompt with each of its candidates, as tokens.

    A text is tokenized as a whole, for a tokenizer may join the end of the prompt and the beginning of
    a candidate. The candidate's tokens are those that reach into it.
    """

    prompt: Prompt
    prefix: list[int]  # that all the texts begin with, none of them a candidate's
    rests: list[list[int]]  # the other tokens of each text, one or more
    starts: list[int]  # how many of them belong to the prompt alone

    @classmethod
    def of(cls, tokenize: Callable[[str], Any], framed: str, prompt: Prompt) -> Encoded:
        """Tokenize a framed prompt with each candidate; no token before a candidate's raises `ValueError`."""
        rows, starts = [], []
        for candidate in prompt.candidates:
            encoding = tokenize(framed + candidate)
            ids, offsets = _without_end(encoding), encoding["offset_mapping"]
            rows.append(ids)
            starts.append(next(place for place in range(len(ids)) if offsets[place][1] > len(framed)))
        shared = 0
        while shared < min(starts) and len({row[shared] for row in rows}) == 1:
            shared += 1
        if shared == 0:
            raise ValueError(f"the prompt {framed[:40]!r} leaves no token to come before the candidates")
        rests = [row[shared:] for row in rows]
        return cls(prompt, rows[0][:shared], rests, [start - shared for start in starts])

    @property
    def longest(self) -> int:
        """Tokens of the longest rest."""
        return max(len(rest) for rest in self.rests)

    @property
    def num_tokens(self) -> tuple[int, ...]:
        """Tokens of each candidate."""
        return tuple(len(rest) - start for rest, start in zip(self.rests, self.starts, strict=True))

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
        return self.prompt.candidates[self.rests.index(max(complete, key=len))]


def _without_end(encoding: Any) -> list[int]:
    """Return the tokens of a text, less those with which some tokenizers end every text."""
    ids: list[int] = encoding["input_ids"]
    end = len(ids)
    while end > 1 and encoding["special_tokens_mask"][end - 1]:  # alone, it begins an empty text
        end -= 1
    return ids[:end]
