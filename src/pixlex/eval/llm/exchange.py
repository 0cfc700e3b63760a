"""Questions to an endpoint and its answers: known ones from the cache, the others sent for, each once."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pixlex.eval.llm.asking import EndpointFacts, generation, read_completion
from pixlex.eval.llm.budget import Budget, Estimate, Usage
from pixlex.eval.llm.cache import Answer, AnswerCache
from pixlex.eval.llm.faults import Refused, RequestFailed
from pixlex.eval.llm.probe import PROMPT, WRITING_TOKENS, Mode, probe
from pixlex.eval.llm.sending import CHAT, Connection, Route, Sender
from pixlex.eval.llm.tokens import token_counter
from pixlex.eval.llm.workers import in_parallel

_K = TypeVar("_K")

# A probe of another version may have found something else.
_PROBE = 1
# What a chat template puts around a message, at most; and JSON around a choice.
_FRAME_TOKENS = 64
_UNKNOWN_MODEL = 404
# A key that was given in its place, and its like, is no such name.
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """How to ask an endpoint.

    Attributes:
        model: its name of the model.
        connection: where it is.
        mode: whether prompts are continued as they are or sent as a user's message; `auto` takes completions
            where they are to be had.
        concurrency: requests under way at the same time.
        context_size: tokens that prompt and answer may have together; None for what the endpoint tells.
        tokenizer: see `token_counter`.
    """

    model: str
    connection: Connection
    mode: Mode = "auto"
    concurrency: int = 8
    context_size: int | None = None
    tokenizer: str | None = None


@dataclass(frozen=True)
class Question:
    """A request.

    Attributes:
        body: its parameters.
        worst: tokens that it may take.
        check: raises `ValueError` for an answer that is none.
    """

    body: dict[str, Any]
    worst: Usage
    check: Callable[[Answer], object]


class Exchange:
    """Asks one model of one endpoint.

    Args:
        options: how to ask.
        budget: what may be spent.
        cache: folder of the answers; None keeps them in memory.

    Raises:
        ValueError: no address, an endpoint that is down, a wrong key, a model that it does not have.
    """

    def __init__(self, options: EndpointOptions, budget: Budget, cache: Path | None) -> None:
        _check_connection(options.connection)
        self.options, self.budget = options, budget
        self.address = options.connection.base_url.rstrip("/")
        self.count, self.counting = token_counter(options.tokenizer, options.model)
        self.cache = AnswerCache(cache)
        self._sender = Sender(options.connection, budget)
        self._key_works = False
        self.facts = self._known_facts()

    def question(
        self, text: str, body: dict[str, Any], limit: int, check: Callable[[Answer], object]
    ) -> Question:
        """Return a question with the tokens that it may take.

        Args:
            text: what the model reads.
            body: parameters of the request.
            limit: tokens that it may write.
            check: raises `ValueError` for an answer that is none.
        """
        frame = _FRAME_TOKENS if self.facts.path == CHAT else 0
        return Question(body, Usage(self.count([text])[0] + frame, limit), check)

    def answers(
        self, questions: Iterable[tuple[_K, Question]]
    ) -> Iterator[tuple[_K, Answer | RequestFailed]]:
        """Yield what comes of each question, in any order, as soon as it is there."""

        def work(question: Question, stopping: threading.Event) -> Answer:
            try:
                return self._ask(self.facts.path, question, stopping)
            except Refused as refusal:
                self._check_key(refusal, stopping)
                raise
            except RequestFailed as failure:
                if failure.status == _UNKNOWN_MODEL:
                    model = self.options.model
                    raise ValueError(f"{self.address} does not know {model!r}: {failure}") from failure
                raise

        yield from in_parallel(questions, work, self.options.concurrency)

    def estimate(self, questions: Iterable[Question]) -> Estimate:
        """Return what questions would take at most; those that are answered cost nothing."""
        requests, cached, usage = 0, 0, Usage()
        for question in questions:
            request = self._request(self.facts.path, question.body)
            if self.cache.get(request, question.check) is not None:
                cached += 1
            else:
                requests, usage = requests + 1, usage + question.worst
        prices = self.budget.prices
        cost = None if prices is None else prices.cost(usage)
        return Estimate(requests=requests, cached=cached, usage=usage, cost=cost)

    def _ask(
        self, route: Route, question: Question, stopping: threading.Event, retries: int | None = None
    ) -> Answer:
        """Return the answer that is known, or the one that is sent for."""

        def send() -> Answer:
            answer = self._sender.send(
                route,
                question.body,
                worst=question.worst,
                check=question.check,
                stopping=stopping,
                retries=retries,
            )
            self._key_works = True
            return answer

        return self.cache.ask(self._request(route, question.body), send, question.check)

    def _check_key(self, refusal: Refused, stopping: threading.Event) -> None:
        """Raise `ValueError` where a request was refused because of the key, and not because of its prompt.

        A request that was answered since the last refusal has shown that the key works; otherwise a harmless
        one is sent, whose answer does not matter.
        """
        if self._key_works:
            self._key_works = False
            return
        body = generation(self.facts, self.options.model, PROMPT, limit=WRITING_TOKENS)
        worst = Usage(self.count([PROMPT])[0] + _FRAME_TOKENS, WRITING_TOKENS)
        try:
            self._sender.send(
                self.facts.path, body, worst=worst, check=lambda answer: None, stopping=stopping, retries=0
            )
        except Refused:
            raise self._key_refused(refusal) from None
        except RequestFailed:
            return  # it may be too busy to tell
        self._key_works = True

    def _key_refused(self, refusal: Refused) -> ValueError:
        variable, said = self.options.connection.key_variable, f"{refusal}".removeprefix("refused: ")
        if not self._sender.has_key:
            return ValueError(
                f"{self.address} asks for a key: expected one in the environment variable {variable}; {said}"
            )
        return ValueError(f"{self.address}: the key of {variable} is refused: {said}")

    def _request(self, route: Route, body: dict[str, Any]) -> dict[str, Any]:
        return {"endpoint": self.address, "path": route, "body": body}

    def _known_facts(self) -> EndpointFacts:
        """Return what the endpoint can do, as it was found before or is found out now."""
        options = self.options
        request = {"endpoint": self.address, "model": options.model, "mode": options.mode, "probe": _PROBE}
        known = self.cache.get(request)
        if known is not None and known.keys() == EndpointFacts.__dataclass_fields__.keys():
            return EndpointFacts(**known)
        self._sender.check_address()

        def ask(route: Route, body: dict[str, Any], retries: int | None) -> Answer:
            text = json.dumps(body)
            limit = int(body.get("max_tokens") or body.get("max_completion_tokens") or 0)
            worst = Usage(self.count([text])[0] + _FRAME_TOKENS, limit)
            question = Question(body, worst, read_completion)
            return self._ask(route, question, threading.Event(), retries)

        try:
            facts = probe(ask, options.model, options.mode, self._sender.models())
        except Refused as refusal:
            raise self._key_refused(refusal) from None
        self.cache.put(request, asdict(facts))
        return facts


def _check_connection(connection: Connection) -> None:
    """Refuse an address that is none, or that carries a secret, and a key in place of its variable's name.

    Address and name are kept beside the answers.
    """
    if not _VARIABLE.fullmatch(connection.key_variable):
        raise ValueError(
            "expected the name of an environment variable that holds the key, got something else"
        )
    address = connection.base_url
    parts = urlsplit(address)
    secret = parts.username or parts.password or parts.query or parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        got = "something else" if secret or "@" in address else repr(address)
        raise ValueError(f"expected an address like http://localhost:8000/v1, got {got}")
    if secret:
        raise ValueError(
            f"the address of {parts.hostname} carries a name, a password or parameters; "
            "a key belongs into an environment variable"
        )
