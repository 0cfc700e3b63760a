"""An OpenAI-compatible endpoint as a language model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pixlex.eval.llm.asking import (
    ScoredToken,
    check_scores,
    choosing,
    generation,
    read_choice,
    read_completion,
    read_scores,
    scoring,
)
from pixlex.eval.llm.budget import Budget, Estimate
from pixlex.eval.llm.cache import Answer
from pixlex.eval.llm.candidates import choose_by_scores
from pixlex.eval.llm.client import Ability, CandidateScores, Completion
from pixlex.eval.llm.exchange import EndpointOptions, Exchange, Question
from pixlex.eval.llm.faults import RequestFailed
from pixlex.eval.llm.tokens import upper_bounds

# JSON around a choice, and what a count of its tokens may miss.
_CHOICE_FRAME = 64
# Another version may have taken something else for an answer (an empty text for a wrong one).
_READING = 2


class EndpointClient:
    """Answers with an OpenAI-compatible endpoint; what was answered before is not sent again.

    Args:
        options: how to ask.
        budget: what may be spent.
        cache: folder of the answers; None keeps them in memory.

    Raises:
        ValueError: no address, an endpoint that is down, a wrong key, a model that it does not have.
    """

    def __init__(
        self, options: EndpointOptions, *, budget: Budget | None = None, cache: Path | None = None
    ) -> None:
        self.name, self.budget = options.model, budget or Budget()
        self._exchange = Exchange(options, self.budget, cache)
        self.facts = self._exchange.facts
        self.abilities: frozenset[Ability] = self.facts.abilities
        self.context_size = options.context_size or self.facts.context_size
        self.counts_exactly = self._exchange.count is not upper_bounds

    @property
    def record(self) -> dict[str, Any]:
        """What to keep beside the answers: where they come from, and how the endpoint was asked."""
        facts = {**asdict(self.facts), "context_size": self.context_size}
        return {
            "model": self.name,
            "base_url": self._exchange.address,
            "counting": self._exchange.counting,
            **facts,
        }

    @property
    def identity(self) -> str:
        """A fingerprint of address, model, and how the endpoint is asked."""
        facts = replace(self.facts, context_size=None)
        parts = json.dumps([self._exchange.address, self.name, asdict(facts), _READING], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text; `record` says how exact it is."""
        return self._exchange.count(texts)

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int, stop: Sequence[str]
    ) -> Iterator[tuple[int, Completion]]:
        """Continue each prompt greedily until one of the stops, the end of text, or the limit."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, got {max_new_tokens}")
        for number, answer in self._exchange.answers(
            enumerate(self._generations(prompts, max_new_tokens, stop))
        ):
            if isinstance(answer, RequestFailed):
                yield number, _failed(answer)
            else:
                yield number, read_completion(answer, stop, max_new_tokens)

    def score(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, CandidateScores]]:
        """Score each prompt's candidates as its continuation, by the tokens that reach into them."""
        self._check_able("score")
        for number, rows in self._scored(prompts, candidates):
            if isinstance(rows, RequestFailed):
                yield number, CandidateScores(log_probabilities=(), num_tokens=(), reason=f"{rows}")
                continue
            own = [[token for token in row if token.end > len(prompts[number])] for row in rows]
            yield (
                number,
                CandidateScores(
                    log_probabilities=tuple(sum(token.log_probability for token in row) for row in own),
                    num_tokens=tuple(len(row) for row in own),
                ),
            )

    def choose(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, Completion]]:
        """Continue each prompt greedily, allowing nothing but one of its candidates."""
        self._check_able("choose")
        if self.facts.choice == "scores":
            yield from self._chosen_by_scores(prompts, candidates)
            return
        for number, answer in self._exchange.answers(enumerate(self._choices(prompts, candidates))):
            if isinstance(answer, RequestFailed):
                yield number, _failed(answer)
            else:
                yield number, read_choice(self.facts, answer, candidates[number])

    def estimate(
        self,
        task: Ability,
        prompts: Sequence[str],
        *,
        candidates: Sequence[Sequence[str]] = (),
        max_new_tokens: int = 0,
        stop: Sequence[str] = (),
    ) -> Estimate:
        """Return what a task would take at most, without sending anything; what is cached costs nothing.

        Args:
            task: what would be asked.
            prompts: as for the task, like the rest.
            candidates: of `score` and `choose`.
            max_new_tokens: of `generate`.
            stop: of `generate`.
        """
        if task == "generate":
            questions = self._generations(prompts, max_new_tokens, stop)
        elif task == "choose" and self.facts.choice != "scores":
            questions = self._choices(prompts, candidates)
        else:
            questions = (question for _, question in self._scorings(prompts, candidates))
        return self._exchange.estimate(questions)

    def close(self) -> None:
        """Close the cache."""
        self._exchange.cache.close()

    def _generations(self, prompts: Sequence[str], limit: int, stop: Sequence[str]) -> Iterator[Question]:
        for prompt in prompts:
            body = generation(self.facts, self.name, prompt, limit=limit, stop=stop)
            yield self._exchange.question(prompt, body, limit, read_completion)

    def _choices(self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]) -> Iterator[Question]:
        for prompt, names in zip(prompts, candidates, strict=True):
            _check_candidates(names)
            limit = max(self.count_tokens(names)) + _CHOICE_FRAME
            body = choosing(self.facts, self.name, prompt, names, limit=limit)
            yield self._exchange.question(prompt, body, limit, read_completion)

    def _scorings(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> Iterator[tuple[tuple[int, int], Question]]:
        """Yield a question for each candidate, under the numbers of its prompt and of itself."""
        for number, (prompt, names) in enumerate(zip(prompts, candidates, strict=True)):
            _check_candidates(names)
            for place, name in enumerate(names):
                body = scoring(self.facts, self.name, prompt + name)
                limit = self.facts.echo_tokens or 0
                yield (number, place), self._exchange.question(prompt + name, body, limit, check_scores)

    def _scored(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[list[ScoredToken]] | RequestFailed]]:
        """Yield the tokens of each prompt with each of its candidates, when all of them are there."""
        found: dict[int, dict[int, list[ScoredToken] | RequestFailed]] = {}
        for (number, place), answer in self._exchange.answers(self._scorings(prompts, candidates)):
            rows = found.setdefault(number, {})
            rows[place] = (
                answer
                if isinstance(answer, RequestFailed)
                else self._tokens(answer, prompts[number], candidates[number][place])
            )
            if len(rows) == len(candidates[number]):
                failure = next((row for row in rows.values() if isinstance(row, RequestFailed)), None)
                whole = [row for _, row in sorted(rows.items()) if not isinstance(row, RequestFailed)]
                yield number, failure or whole
                del found[number]

    def _chosen_by_scores(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, Completion]]:
        for number, rows in self._scored(prompts, candidates):
            if isinstance(rows, RequestFailed):
                yield number, _failed(rows)
                continue
            choice = choose_by_scores(
                [[token.text for token in row] for row in rows],
                [[token.log_probability for token in row] for row in rows],
            )
            yield number, Completion(text=candidates[number][choice], finish="stop")

    def _tokens(self, answer: Answer, prompt: str, candidate: str) -> list[ScoredToken] | RequestFailed:
        """Read the tokens of a prompt with its candidate; the answer is paid, whether it can be used or not."""
        try:
            row = read_scores(answer, prompt + candidate)
        except ValueError as fault:
            return RequestFailed(f"the scores cannot be used: {fault}")
        if row[0].end > len(prompt):
            return RequestFailed(f"the prompt {prompt[:40]!r} leaves no token to come before the candidates")
        return row

    def _check_able(self, ability: Ability) -> None:
        if ability not in self.abilities:
            able = ", ".join(sorted(self.abilities))
            raise ValueError(f"{self._exchange.address} cannot {ability} with {self.name!r}; it can {able}")


def _failed(failure: RequestFailed) -> Completion:
    return Completion(text="", finish="failed", reason=f"{failure}")


def _check_candidates(candidates: Sequence[str]) -> None:
    if not candidates or not all(candidates):
        raise ValueError(f"expected one or more candidates that are not empty, got {list(candidates)}")
