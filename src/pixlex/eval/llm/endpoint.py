"""An OpenAI-compatible endpoint as a language model; what was answered before is not sent again."""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pixlex.eval.llm.client import (
    Ability,
    Candidates,
    CandidateScores,
    Completion,
    LanguageClient,
    LLMOptions,
    Prompts,
    check_candidates,
)
from pixlex.eval.llm.ledger import (
    Answer,
    AnswerCache,
    Budget,
    Check,
    Estimate,
    Usage,
    token_counter,
    upper_bounds,
)
from pixlex.eval.llm.protocol import (
    CHAT,
    PROMPT,
    PROMPT_LIMIT,
    EndpointFacts,
    RequestFailed,
    Route,
    ScoredToken,
    check_scores,
    probe,
    read_choice,
    read_completion,
    read_scores,
)
from pixlex.eval.llm.sending import Question, Sender

_K = TypeVar("_K")

# Versions of the probe, and of what is taken for an answer: others may have found something else.
_PROBE, _READING = 1, 2
# What a chat template puts around a message, at most; and JSON around a choice.
_FRAME_TOKENS = 64
# A key that was given in place of its variable's name, and its like, is no such name.
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class EndpointClient(LanguageClient):
    """Answers with an OpenAI-compatible endpoint; what was answered before is not sent again.

    Args:
        options: how to ask.

    Raises:
        ValueError: no URL, an endpoint that is down, a wrong key, a model that it does not have.
    """

    def __init__(self, options: LLMOptions) -> None:
        self.name, self.options = options.model, options
        self._url = _checked_url(options)
        self.budget = Budget(
            (options.input_price, options.output_price), options.max_cost, options.max_tokens
        )
        self._count = token_counter(options.tokenizer, options.model)
        self.counts_exactly = self._count is not upper_bounds
        self.cache = AnswerCache(options.cache)
        self._sender = Sender(options, self.budget)
        self._key_works = False
        self.facts = self._known_facts()
        self.abilities = self.facts.abilities
        self.context_size = options.context_size or self.facts.context_size

    @property
    def identity(self) -> str:
        """A fingerprint of URL, model, and how the endpoint is asked."""
        facts = replace(self.facts, context_size=None)
        parts = json.dumps([self._url, self.name, asdict(facts), _READING], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()

    def count_tokens(self, texts: Prompts) -> list[int]:
        """Return the number of tokens of each text, or a bound from above."""
        return self._count(texts)

    def generate(
        self, prompts: Prompts, *, max_new_tokens: int, stop: Sequence[str]
    ) -> Iterator[tuple[int, Completion]]:
        """Continue each prompt greedily until one of the stops, the end of text, or the limit."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, got {max_new_tokens}")
        questions = self._generations(prompts, max_new_tokens, stop)
        yield from self._completions(
            questions, lambda _, answer: read_completion(answer, stop, max_new_tokens)
        )

    def score(self, prompts: Prompts, candidates: Candidates) -> Iterator[tuple[int, CandidateScores]]:
        """Score each prompt's candidates as its continuation, by the tokens that reach into them."""
        self._check_able("score")
        for number, rows in self._scored(prompts, candidates):
            if isinstance(rows, RequestFailed):
                yield number, CandidateScores(reason=f"{rows}")
                continue
            own = [[token for token in row if token.end > len(prompts[number])] for row in rows]
            sums = tuple(sum(token.log_probability for token in row) for row in own)
            yield number, CandidateScores(log_probabilities=sums, num_tokens=tuple(map(len, own)))

    def choose(
        self, prompts: Prompts, candidates: Candidates, *, mix: bool = False
    ) -> Iterator[tuple[int, Completion]]:
        """Continue each prompt greedily, allowing nothing but one of its candidates."""
        self._check_able("mix" if mix else "choose")
        if self.facts.choice != "scores":
            yield from self._completions(
                self._choices(prompts, candidates),
                lambda number, answer: read_choice(self.facts, answer, candidates[number]),
            )
            return
        for number, rows in self._scored(prompts, candidates):
            if isinstance(rows, RequestFailed):
                yield number, Completion.failed(rows)
            else:
                yield number, Completion(text=candidates[number][choose_by_scores(rows)], finish="stop")

    def estimate(
        self,
        task: Ability,
        prompts: Prompts,
        *,
        candidates: Candidates = (),
        max_new_tokens: int = 0,
        stop: Sequence[str] = (),
    ) -> Estimate:
        """Return what a task would take at most, without sending anything; what is cached costs nothing."""
        if task == "generate":
            questions = self._generations(prompts, max_new_tokens, stop)
        elif task == "choose" and self.facts.choice != "scores":
            questions = self._choices(prompts, candidates)
        else:
            questions = (question for _, question in self._scorings(prompts, candidates))
        requests, cached, usage = 0, 0, Usage()
        for question in questions:
            if self.cache.get(self._request(question), question.check) is not None:
                cached += 1
            else:
                requests, usage = requests + 1, usage + question.worst
        return Estimate(requests=requests, cached=cached, usage=usage, cost=self.budget.cost(usage))

    def close(self) -> None:
        """Close the cache."""
        self.cache.close()

    def _question(self, text: str, body: dict[str, Any], limit: int, check: Check) -> Question:
        """Return a question with the tokens that it may take: those of the text, and as many as may be written."""
        frame = _FRAME_TOKENS if self.facts.path == CHAT else 0
        return Question(self.facts.path, body, Usage(self.count_tokens([text])[0] + frame, limit), check)

    def _generations(self, prompts: Prompts, limit: int, stop: Sequence[str]) -> Iterator[Question]:
        for prompt in prompts:
            body = self.facts.generation(self.name, prompt, limit, stop)
            yield self._question(prompt, body, limit, read_completion)

    def _choices(self, prompts: Prompts, candidates: Candidates) -> Iterator[Question]:
        for prompt, names in zip(prompts, candidates, strict=True):
            check_candidates(names)
            limit = max(self.count_tokens(names)) + _FRAME_TOKENS
            body = self.facts.choosing(self.name, prompt, names, limit)
            yield self._question(prompt, body, limit, read_completion)

    def _scorings(
        self, prompts: Prompts, candidates: Candidates
    ) -> Iterator[tuple[tuple[int, int], Question]]:
        """Yield a question for each candidate, under the numbers of its prompt and of itself."""
        for number, (prompt, names) in enumerate(zip(prompts, candidates, strict=True)):
            check_candidates(names)
            for place, name in enumerate(names):
                body = self.facts.scoring(self.name, prompt + name)
                limit = self.facts.echo_tokens or 0
                yield (number, place), self._question(prompt + name, body, limit, check_scores)

    def _completions(
        self, questions: Iterator[Question], read: Callable[[int, Answer], Completion]
    ) -> Iterator[tuple[int, Completion]]:
        for number, answer in self._answers(enumerate(questions)):
            if isinstance(answer, RequestFailed):
                yield number, Completion.failed(answer)
            else:
                yield number, read(number, answer)

    def _scored(
        self, prompts: Prompts, candidates: Candidates
    ) -> Iterator[tuple[int, list[list[ScoredToken]] | RequestFailed]]:
        """Yield the tokens of each prompt with each of its candidates, when all of them are there."""
        found: dict[int, dict[int, list[ScoredToken] | RequestFailed]] = {}
        for (number, place), answer in self._answers(self._scorings(prompts, candidates)):
            rows, names = found.setdefault(number, {}), candidates[number]
            rows[place] = (
                answer
                if isinstance(answer, RequestFailed)
                else _tokens(answer, prompts[number], names[place])
            )
            if len(rows) == len(names):
                failure = next((row for row in rows.values() if isinstance(row, RequestFailed)), None)
                full = [row for _, row in sorted(rows.items()) if not isinstance(row, RequestFailed)]
                yield number, failure or full
                del found[number]

    def _check_able(self, ability: Ability) -> None:
        if ability not in self.abilities:
            able = ", ".join(sorted(self.abilities))
            raise ValueError(f"{self._url} cannot {ability} with {self.name!r}; it can {able}")

    def _answers(
        self, questions: Iterable[tuple[_K, Question]]
    ) -> Iterator[tuple[_K, Answer | RequestFailed]]:
        """Yield what comes of each question, as soon as it is there.

        A question is sent when there is room for it. After a fault that concerns them all no other one is sent;
        the answers to those under way are paid, and are yielded before the fault is raised.
        """
        stopping, fault = threading.Event(), None
        under_way: dict[Future[Answer], _K] = {}
        left = iter(questions)
        with ThreadPoolExecutor(self.options.concurrency, thread_name_prefix="pixlex-requests") as pool:
            try:
                while True:
                    room = 0 if fault is not None else self.options.concurrency - len(under_way)
                    for key, question in islice(left, room):
                        under_way[pool.submit(self._ask, question, stopping)] = key
                    if not under_way:
                        break
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        key = under_way.pop(future)
                        try:
                            answer: Answer | RequestFailed = future.result()
                        except RequestFailed as failure:
                            if fault is not None:
                                continue  # given up because of the fault, not because of itself
                            answer = failure
                        except ValueError as reason:
                            fault = fault or reason
                            stopping.set()
                            continue
                        yield key, answer
            finally:
                stopping.set()
        if fault is not None:
            raise fault

    def _ask(self, question: Question, stopping: threading.Event) -> Answer:
        """Return the answer that is known, or the one that is sent for."""
        try:
            return self._known_or_sent(question, stopping)
        except RequestFailed as failure:
            if failure.is_refusal:
                self._check_key(failure, stopping)
            if failure.status == 404:
                raise ValueError(f"{self._url} does not know {self.name!r}: {failure}") from failure
            raise

    def _known_or_sent(
        self, question: Question, stopping: threading.Event, retries: int | None = None
    ) -> Answer:
        def send() -> Answer:
            answer = self._sender.send(question, stopping, retries)
            self._key_works = True
            return answer

        return self.cache.ask(self._request(question), send, question.check)

    def _check_key(self, refusal: RequestFailed, stopping: threading.Event) -> None:
        """Raise `ValueError` where a request was refused because of the key, and not because of its prompt.

        A request that was answered since the last refusal has shown that the key works; otherwise a harmless
        one is sent, whose answer does not matter.
        """
        if self._key_works:
            self._key_works = False
            return
        body = self.facts.generation(self.name, PROMPT, PROMPT_LIMIT)
        worst = Usage(self.count_tokens([PROMPT])[0] + _FRAME_TOKENS, PROMPT_LIMIT)
        try:
            self._sender.send(Question(self.facts.path, body, worst, lambda answer: None), stopping, 0)
        except RequestFailed as failure:
            if failure.is_refusal:
                raise self._key_refused(refusal) from None
            return  # it may be too busy to tell
        self._key_works = True

    def _key_refused(self, refusal: RequestFailed) -> ValueError:
        variable, said = self._sender.key_variable, f"{refusal}".removeprefix("refused: ")
        if not self._sender.has_key:
            expected = f"expected one in the environment variable {variable}"
            return ValueError(f"{self._url} asks for a key: {expected}; {said}")
        return ValueError(f"{self._url}: the key of {variable} is refused: {said}")

    def _request(self, question: Question) -> dict[str, Any]:
        return {"endpoint": self._url, "path": question.route, "body": question.body}

    def _known_facts(self) -> EndpointFacts:
        """Return what the endpoint can do, as it was found before or is found out now."""
        request = {"endpoint": self._url, "model": self.name, "mode": self.options.mode, "probe": _PROBE}
        known = self.cache.get(request)
        if known is not None and known.keys() == EndpointFacts.__dataclass_fields__.keys():
            return EndpointFacts(**known)
        self._sender.check_url()

        def ask(route: Route, body: dict[str, Any], retries: int | None) -> Answer:
            limit = int(body.get("max_tokens") or body.get("max_completion_tokens") or 0)
            worst = Usage(self.count_tokens([json.dumps(body)])[0] + _FRAME_TOKENS, limit)
            question = Question(route, body, worst, read_completion)
            return self._known_or_sent(question, threading.Event(), retries)

        try:
            facts = probe(ask, self.name, self.options.mode, self._sender.models())
        except RequestFailed as refusal:
            raise self._key_refused(refusal) from None
        self.cache.put(request, asdict(facts))
        return facts


def _tokens(answer: Answer, prompt: str, candidate: str) -> list[ScoredToken] | RequestFailed:
    """Read the tokens of a prompt with its candidate; the answer is paid, whether it can be used or not."""
    try:
        row = read_scores(answer, prompt + candidate)
    except ValueError as fault:
        return RequestFailed(f"the scores cannot be used: {fault}")
    if row[0].end > len(prompt):
        return RequestFailed(f"the prompt {prompt[:40]!r} leaves no token to come before the candidates")
    return row


def choose_by_scores(rows: Sequence[Sequence[ScoredToken]]) -> int:
    """Return the candidate that greedy choice would write, from the scores of all candidates' tokens.

    Greedy choice walks down the tree of the texts' tokens, to the likeliest at each fork; the scores of all
    of them are enough to walk it afterwards. Where a candidate ends and another goes on, the likelihood of an
    end is not known: the longer one is taken where its next token is likelier than all else together.

    Args:
        rows: the tokens of each text, prompt and candidate.
    """
    left, depth = list(range(len(rows))), 0
    while True:
        ended = [row for row in left if len(rows[row]) == depth]
        left = [row for row in left if len(rows[row]) > depth]
        if ended and (not left or max(rows[row][depth].log_probability for row in left) <= math.log(0.5)):
            return ended[0]
        best = max(left, key=lambda row: rows[row][depth].log_probability)
        left = [row for row in left if rows[row][depth].text == rows[best][depth].text]
        depth += 1


def _checked_url(options: LLMOptions) -> str:
    """Refuse a URL that is none, or that carries a secret, and a key in place of its variable's name.

    URL and name are kept beside the answers.
    """
    if options.key_variable is not None and not _VARIABLE.fullmatch(options.key_variable):
        raise ValueError(
            "expected the name of an environment variable that holds the key, got something else"
        )
    url = options.base_url or ""
    parts = urlsplit(url)
    secret = parts.username or parts.password or parts.query or parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        got = "something else" if secret or "@" in url else repr(url)
        raise ValueError(f"expected an address like http://localhost:8000/v1, got {got}")
    if secret:
        raise ValueError(
            f"the address of {parts.hostname} carries a name, a password or parameters; "
            "a key belongs into an environment variable"
        )
    return url.rstrip("/")
