"""A causal language model in this process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch

from pixlex.eval.llm.candidates import EncodedCandidates, PlaceUnion, Trie, encode_candidates, without_end
from pixlex.eval.llm.client import DOES_NOT_FIT, NO_TEXT, Ability, CandidateScores, Completion, spoken
from pixlex.eval.llm.decoding import CausalReader, ChoiceWriter, FreeWriter, decode, score_candidates, write

_T = TypeVar("_T")


class LocalClient:
    """Answers with a causal language model in this process, a batch at a time, long prompts first.

    Args:
        model: one of transformers' `...ForCausalLM`; it is put in evaluation mode.
        tokenizer: its tokenizer, a fast one.
        name: what to call it.
        chat: put prompts into the tokenizer's chat template, as a user's message.
        batch_size: prompts read at a time, 1 or more; half of that after memory was short.
        context_size: tokens that prompt and answer may have together; None for what the model tells.

    Raises:
        ValueError: a tokenizer that is not a fast one, or has no chat template where one is asked for.
    """

    abilities: frozenset[Ability] = frozenset({"generate", "score", "choose", "mix"})
    counts_exactly = True

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        chat: bool = False,
        batch_size: int = 16,
        context_size: int | None = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise ValueError(f"language model {name!r}: expected a fast tokenizer, got {type(tokenizer)}")
        if chat and not tokenizer.chat_template:
            raise ValueError(f"language model {name!r} has no chat template; use completions")
        self.name, self._tokenizer, self._chat, self._batch_size = name, tokenizer, chat, batch_size
        self._reader = CausalReader(model.eval().requires_grad_(False))
        self.context_size = context_size or _positions(model.config)
        marks = model.generation_config.eos_token_id
        ends = [*marks] if isinstance(marks, list) else [marks]
        self._end: int | None = next(
            (end for end in (tokenizer.eos_token_id, *ends) if end is not None), None
        )
        self._ends = frozenset(end for end in (*ends, self._end) if end is not None)

    @cached_property
    def identity(self) -> str:
        """A fingerprint of weights, precision, tokenizer and chat template."""
        model, tokenizer = self._reader.model, self._tokenizer
        digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
        config = {**model.config.to_dict(), "_name_or_path": ""}  # where it lies does not matter
        facts = [config, tokenizer.chat_template if self._chat else None, sorted(self._ends)]
        digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, with those that the model wants around a prompt."""
        return [len(row) for row in self._rows(texts)]

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int, stop: Sequence[str]
    ) -> Iterator[tuple[int, Completion]]:
        """Continue each prompt greedily until one of the stops, the end of text, or the limit."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, got {max_new_tokens}")
        rows = self._rows(prompts)

        def run(part: list[int]) -> list[Completion]:
            chosen = [rows[number] for number in part]
            writers = [FreeWriter(self._tokenizer, row, max_new_tokens, stop, self._ends) for row in chosen]
            write(self._reader, chosen, writers)
            return [_completion(writer) for writer in writers]

        yield from self._answers([(len(row), max_new_tokens) for row in rows], run, _failed)

    def score(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, CandidateScores]]:
        """Score each prompt's candidates as its continuation, exactly."""
        items = self._items(prompts, candidates)

        def run(part: list[int]) -> list[CandidateScores]:
            chosen = [items[number] for number in part]
            scores = score_candidates(self._reader, chosen)
            return [
                CandidateScores(log_probabilities=row, num_tokens=item.num_tokens)
                for row, item in zip(scores, chosen, strict=True)
            ]

        yield from self._answers([item.sizes for item in items], run, _unscored)

    def choose(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, Completion]]:
        """Continue each prompt greedily, allowing nothing but one of its candidates, token by token."""
        items = self._items(prompts, candidates)

        def run(part: list[int]) -> list[Completion]:
            tries = [Trie(items[number].rests, self._end) for number in part]
            writers = [ChoiceWriter(trie) for trie in tries]
            write(self._reader, [items[number].prefix for number in part], writers)
            chosen = [trie.candidate(writer.written) for trie, writer in zip(tries, writers, strict=True)]
            return [
                Completion(text=candidates[number][choice], finish="stop")
                for number, choice in zip(part, chosen, strict=True)
            ]

        yield from self._answers([item.sizes for item in items], run, _failed)

    def mix(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, Completion]]:
        """Continue each prompt greedily, allowing at each place the tokens that any candidate has there."""
        items, rows = self._items(prompts, candidates), self._rows(prompts)

        def run(part: list[int]) -> list[Completion]:
            prefixes = [items[number].prefix for number in part]
            writers = [ChoiceWriter(PlaceUnion(items[number].rests)) for number in part]
            write(self._reader, prefixes, writers)
            texts = [
                decode(self._tokenizer, [*prefix, *writer.written])[
                    len(decode(self._tokenizer, rows[number])) :
                ]
                for number, prefix, writer in zip(part, prefixes, writers, strict=True)
            ]
            return [Completion(text=text, finish="stop") for text in texts]

        yield from self._answers([item.sizes for item in items], run, _failed)

    def _rows(self, prompts: Sequence[str]) -> list[list[int]]:
        return [without_end(self._tokenize(self._framed(prompt))) for prompt in prompts]

    def _items(self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[EncodedCandidates]:
        return [
            encode_candidates(self._tokenize, self._framed(prompt), names)
            for prompt, names in zip(prompts, candidates, strict=True)
        ]

    def _framed(self, prompt: str) -> str:
        """Put a prompt into the chat template, where that is wanted."""
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

    def _answers(
        self,
        sizes: Sequence[tuple[int, int]],
        run: Callable[[list[int]], list[_T]],
        failed: Callable[[str], _T],
    ) -> Iterator[tuple[int, _T]]:
        """Yield what `run` makes of the prompts that fit, the longest first; others fail with the reason.

        Args:
            sizes: tokens of each prompt, and of its longest answer.
            run: answers the prompts of a batch, given by number.
            failed: an answer that did not come, from the reason.
        """
        fitting = []
        for number, (before, after) in enumerate(sizes):
            if before == 0:
                yield number, failed("the prompt is empty: there is nothing to continue")
            elif self.context_size is not None and before + after > self.context_size:
                yield (
                    number,
                    failed(
                        f"{DOES_NOT_FIT}: prompt ({before} tokens) and answer (up to {after}) exceed the "
                        f"context of {self.context_size} tokens"
                    ),
                )
            else:
                fitting.append((-before, number))
        left = [number for _, number in sorted(fitting)]
        while left:
            part = left[: self._batch_size]
            answers = self._attempt(run, part)
            if answers is not None:
                yield from zip(part, answers, strict=True)
                left = left[len(part) :]
            elif len(part) == 1:
                raise ValueError(f"out of memory with one prompt of {sizes[part[0]][0]} tokens at a time")
            else:
                self._batch_size = len(part) // 2

    def _attempt(self, run: Callable[[list[int]], list[_T]], part: list[int]) -> list[_T] | None:
        """Return a batch's answers; None where memory was short."""
        try:
            with torch.inference_mode():
                return run(part)
        except torch.OutOfMemoryError:
            pass
        # Not in the handler: while it runs, the traceback holds the tensors that took the memory.
        torch.cuda.empty_cache()
        return None


def _completion(writer: FreeWriter) -> Completion:
    text = spoken(writer.text)
    if text is None:
        return _failed(f"{NO_TEXT} within the limit of tokens")
    return Completion(text=text, finish=writer.finish)


def _failed(reason: str) -> Completion:
    return Completion(text="", finish="failed", reason=reason)


def _unscored(reason: str) -> CandidateScores:
    return CandidateScores(log_probabilities=(), num_tokens=(), reason=reason)


def _positions(config: Any) -> int | None:
    """Return the number of tokens that a model was made for, where its configuration tells."""
    size = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(size) if size else None
