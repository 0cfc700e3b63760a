"""A causal language model in this process: transformers' `generate`, and exact scores of candidates."""

from __future__ import annotations

import copy
import hashlib
import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from pixlex.distributed import pick_device
from pixlex.eval.llm.client import (
    DOES_NOT_FIT,
    NO_TEXT,
    Ability,
    Candidates,
    CandidateScores,
    Completion,
    LanguageClient,
    LLMOptions,
    Prompts,
    check_candidates,
    cut_at,
    without_reasoning,
)
from pixlex.nn.causal import load_causal_parts

_T = TypeVar("_T")
# So many tokens of the prompt are decoded with what was written: some tokenizers drop a leading space.
_TAIL = 8


def load_local(options: LLMOptions) -> LocalClient:
    """Load a causal language model; weights are read from safetensors only, and none of its code is run.

    Raises:
        ValueError: nothing to load under that name, not a causal language model, or an incomplete checkpoint.
    """
    device, precision = pick_device(options.device), options.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model, tokenizer = load_causal_parts(options.model, dtype)
    return LocalClient(model.to(device), tokenizer, options)


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
    def identity(self) -> str:
        """A fingerprint of weights, precision, tokenizer and chat template."""
        digest = hashlib.sha256(self._tokenizer.backend_tokenizer.to_str().encode())
        config = {**self._model.config.to_dict(), "_name_or_path": ""}  # where it lies does not matter
        facts = [config, self._tokenizer.chat_template if self._chat else None, sorted(self._ends)]
        digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def count_tokens(self, texts: Prompts) -> list[int]:
        """Return the number of tokens of each text, with those that the model wants around a prompt."""
        return [len(row) for row in self._rows(texts)]

    def generate(
        self, prompts: Prompts, *, max_new_tokens: int, stop: Sequence[str]
    ) -> Iterator[tuple[int, Completion]]:
        """Continue each prompt greedily until one of the stops, the end of text, or the limit."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, got {max_new_tokens}")
        rows = self._rows(prompts)

        def run(part: list[int]) -> list[Completion]:
            chosen = [rows[number] for number in part]
            tails = [row[-_TAIL:] for row in chosen]
            before = [len(self._decode(tail)) for tail in tails]
            size = max(len(row) for row in chosen)

            def read(row: int, new: list[int]) -> Completion:
                written = list(itertools.takewhile(lambda token: token not in self._ends, new))
                full = self._decode([*tails[row], *written])[before[row] :]
                text = cut_at(full, stop)
                ended = text != full or len(written) < len(new)
                return Completion(text=text, finish="stop" if ended else "length")

            def stopped(ids: Int[Tensor, "B T"], scores: object, **rest: object) -> Tensor:
                done = [read(row, new).finish == "stop" for row, new in enumerate(ids[:, size:].tolist())]
                return torch.tensor(done, device=ids.device)

            written = self._write(chosen, max_new_tokens, stopping_criteria=[stopped])
            return [_without_reasoning(read(row, new)) for row, new in enumerate(written)]

        yield from self._answers([(len(row), max_new_tokens) for row in rows], run, Completion.failed)

    def choose(
        self, prompts: Prompts, candidates: Candidates, *, mix: bool = False
    ) -> Iterator[tuple[int, Completion]]:
        """Continue each prompt greedily, allowing nothing but one of its candidates, token by token.

        With `mix`, at each place whatever any candidate has there, as V2L's code decodes (Zhu et al. 2024): parts
        of several names may follow each other, and no end is written.
        """
        items = self._encoded(prompts, candidates)
        rows = self._rows(prompts) if mix else []
        end = self._ends[0] if self._ends and not mix else None

        def run(part: list[int]) -> list[Completion]:
            chosen = [items[number] for number in part]
            size = max(len(item.prefix) for item in chosen)

            def allowed(row: int, ids: Int[Tensor, " T"]) -> list[int]:
                return chosen[row].following(ids[size:].tolist(), end, mix=mix) or self._ends[:1] or [0]

            longest = max(len(rest) for item in chosen for rest in item.rests) + (end is not None)
            written = self._write([item.prefix for item in chosen], longest, prefix_allowed_tokens_fn=allowed)
            texts = []
            for number, item, new in zip(part, chosen, written, strict=True):
                if not mix:
                    texts.append(candidates[number][item.chosen(new)])
                    continue
                most = max(len(rest) for rest in item.rests)
                before = len(self._decode(rows[number]))
                texts.append(self._decode([*item.prefix, *new[:most]])[before:])
            return [Completion(text=text, finish="stop") for text in texts]

        yield from self._answers([item.sizes for item in items], run, Completion.failed)

    def score(self, prompts: Prompts, candidates: Candidates) -> Iterator[tuple[int, CandidateScores]]:
        """Score each prompt's candidates as its continuation, exactly."""
        items = self._encoded(prompts, candidates)

        def run(part: list[int]) -> list[CandidateScores]:
            chosen = [items[number] for number in part]
            return [
                CandidateScores(log_probabilities=row, num_tokens=item.num_tokens)
                for row, item in zip(self._scores(chosen), chosen, strict=True)
            ]

        yield from self._answers(
            [item.sizes for item in items], run, lambda reason: CandidateScores(reason=f"{reason}")
        )

    def _scores(self, items: Sequence[EncodedCandidates]) -> list[tuple[float, ...]]:
        """Return ln p of each candidate of each prompt, in nats, summed over its tokens in float64.

        What a prompt's candidates share is read once; then the prompts' first candidates, their second ones, and
        so on, each from a copy of its keys and values.
        """
        tokens, mask = self._padded([item.prefix for item in items], side="left")
        start = self._forward(tokens, mask, (mask.cumsum(1) - 1).clamp(min=0), None, keep=1)
        columns = []
        for column in range(max(len(item.rests) for item in items)):
            # A prompt with fewer candidates repeats its last one, which is dropped below.
            chosen = [min(column, len(item.rests) - 1) for item in items]
            tokens, own = self._padded(
                [item.rests[number] for item, number in zip(items, chosen, strict=True)], side="right"
            )
            logits = start.logits[:, -1:].float()
            if tokens.shape[1] > 1:
                positions = mask.sum(1, keepdim=True) + torch.arange(
                    tokens.shape[1] - 1, device=tokens.device
                )
                both = torch.cat((mask, own[:, 1:]), dim=1)
                cache = copy.deepcopy(start.past_key_values)
                after = self._forward(tokens[:, :-1], both, positions, cache, keep=tokens.shape[1] - 1)
                logits = torch.cat((logits, after.logits.float()), dim=1)
            scores = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
            for row, (item, number) in enumerate(zip(items, chosen, strict=True)):
                own[row, : item.starts[number]] = 0
            columns.append((scores.double() * own).sum(1).tolist())
        return [tuple(column[row] for column in columns[: len(item.rests)]) for row, item in enumerate(items)]

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any, *, keep: int) -> Any:
        settings: dict[str, Any] = {"position_ids": positions, "logits_to_keep": keep}
        # Families with relative positions take none.
        settings = {name: value for name, value in settings.items() if name in self._arguments}
        return self._model(
            input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **settings
        )

    def _write(self, rows: Sequence[Sequence[int]], limit: int, **settings: Any) -> list[list[int]]:
        """Return the tokens that `generate` writes behind each row."""
        tokens, mask = self._padded(rows, side="left")
        written = self._model.generate(
            input_ids=tokens, attention_mask=mask, max_new_tokens=limit, **settings
        )
        new: list[list[int]] = written[:, tokens.shape[1] :].tolist()
        return new

    def _padded(
        self, rows: Sequence[Sequence[int]], *, side: Literal["left", "right"]
    ) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """Return the rows and a mask, 1 where a token is real; what stands in for a token is never looked at."""
        size = max(len(row) for row in rows)
        tokens, mask = torch.zeros((2, len(rows), size), dtype=torch.long)
        for number, row in enumerate(rows):
            place = slice(size - len(row), size) if side == "left" else slice(0, len(row))
            tokens[number, place] = torch.tensor(row, dtype=torch.long)
            mask[number, place] = 1
        return tokens.to(self._model.device), mask.to(self._model.device)

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _rows(self, prompts: Prompts) -> list[list[int]]:
        return [_without_end(self._tokenize(self._framed(prompt))) for prompt in prompts]

    def _encoded(self, prompts: Prompts, candidates: Candidates) -> list[EncodedCandidates]:
        return [
            EncodedCandidates.of(self._tokenize, self._framed(prompt), names)
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

        `sizes` are the tokens of each prompt and of its longest answer.
        """
        fitting = []
        for number, (before, after) in enumerate(sizes):
            if before == 0:
                yield number, failed("the prompt is empty: there is nothing to continue")
            elif self.context_size is not None and before + after > self.context_size:
                reason = f"prompt ({before} tokens) and answer (up to {after}) exceed the context of"
                yield number, failed(f"{DOES_NOT_FIT}: {reason} {self.context_size} tokens")
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


def _without_reasoning(completion: Completion) -> Completion:
    text = without_reasoning(completion.text)
    if text is None:
        return Completion.failed(f"{NO_TEXT} within the limit of tokens")
    return Completion(text=text, finish=completion.finish)


@dataclass(frozen=True)
class EncodedCandidates:
    """A prompt with each of its candidates, as tokens.

    A text is tokenized as a whole, for a tokenizer may join the end of the prompt and the beginning of
    a candidate. The candidate's tokens are those that reach into it.

    Attributes:
        prefix: tokens that all the texts begin with, none of them a candidate's; one or more.
        rests: the other tokens of each text, one or more.
        starts: how many of them belong to the prompt alone.
    """

    prefix: list[int]
    rests: list[list[int]]
    starts: list[int]

    @classmethod
    def of(cls, tokenize: Callable[..., Any], prompt: str, candidates: Sequence[str]) -> EncodedCandidates:
        """Tokenize a prompt with each candidate; `tokenize` gives offsets and marks special tokens.

        Raises:
            ValueError: no candidate, an empty one, or nothing before the first token of one.
        """
        check_candidates(candidates)
        rows, starts = [], []
        for candidate in candidates:
            encoding = tokenize(prompt + candidate)
            ids, offsets = _without_end(encoding), encoding["offset_mapping"]
            rows.append(ids)
            starts.append(next(place for place in range(len(ids)) if offsets[place][1] > len(prompt)))
        shared = 0
        while shared < min(starts) and len({row[shared] for row in rows}) == 1:
            shared += 1
        if shared == 0:
            raise ValueError(f"the prompt {prompt[:40]!r} leaves no token to come before the candidates")
        return cls(rows[0][:shared], [row[shared:] for row in rows], [start - shared for start in starts])

    @property
    def sizes(self) -> tuple[int, int]:
        """Tokens that come first, and of the longest rest."""
        return len(self.prefix), max(len(rest) for rest in self.rests)

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

    def chosen(self, written: Sequence[int]) -> int:
        """Return which candidate was written; of two that are equal the first."""
        complete = [rest for rest in self.rests if rest == list(written[: len(rest)])]
        return self.rests.index(max(complete, key=len))


def _without_end(encoding: Any) -> list[int]:
    """Return the tokens of a text, less those with which some tokenizers end every text."""
    ids: list[int] = encoding["input_ids"]
    end = len(ids)
    while end > 1 and encoding["special_tokens_mask"][end - 1]:  # alone, it begins an empty text
        end -= 1
    return ids[:end]
