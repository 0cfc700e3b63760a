"""Sending requests to an OpenAI-compatible endpoint: until they are answered, refused, or given up."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pixlex.eval.llm.budget import Budget, Usage
from pixlex.eval.llm.cache import Answer
from pixlex.eval.llm.faults import MayPass, RequestFailed, connection_fault, status_fault

Route = Literal["completions", "chat/completions"]
COMPLETIONS: Route = "completions"
CHAT: Route = "chat/completions"

_LONGEST_DELAY = 60.0
# Who is told to come back later than this is better told so than kept waiting.
_LONGEST_WAIT = 600.0
_CONNECT_TIMEOUT = 10.0
# Requests in a row that came to nothing, each after all its repeats: the endpoint answers nobody.
_GIVE_UP_AFTER = 10
_NO_KEY = "none"


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where requests go, and how patiently.

    Attributes:
        base_url: the endpoint, up to and with its version.
        key_variable: environment variable that holds the key.
        key_required: whether it must be set; servers of one's own often ask for none.
        timeout: seconds until an attempt is given up.
        retries: how often a request is sent again.
        first_delay: seconds before the first repeat, on average three quarters of it; doubled each time.
    """

    base_url: str
    key_variable: str
    key_required: bool = False
    timeout: float = 120.0
    retries: int = 6
    first_delay: float = 1.0


class Sender:
    """Sends requests, from any number of threads; connects when there is something to send.

    Args:
        connection: where to.
        budget: what may be spent; every attempt is counted, one without an answer with its worst case where
            the endpoint may have done the work.
    """

    def __init__(self, connection: Connection, budget: Budget) -> None:
        self._connection, self._budget = connection, budget
        self._lock = threading.Lock()
        self._client: Any = None
        self._reached = False
        self._failures = 0

    @cached_property
    def _key(self) -> str:
        variable = self._connection.key_variable
        key = os.environ.get(variable, "").strip()
        if not key and self._connection.key_required:
            raise ValueError(f"expected the endpoint's key in the environment variable {variable}, got none")
        return key or _NO_KEY

    @cached_property
    def _openai(self) -> Any:
        try:
            import openai
        except ImportError as fault:
            raise ValueError("an endpoint needs the openai client: pip install 'pixlex[llm]'") from fault
        return openai

    def _connect(self) -> Any:
        """Return the one client of all threads, made when there is something to send."""
        with self._lock:
            if self._client is None:
                seconds = self._connection.timeout
                self._client = self._openai.OpenAI(
                    base_url=self._connection.base_url,
                    api_key=self._key,
                    timeout=self._openai.Timeout(seconds, connect=min(seconds, _CONNECT_TIMEOUT)),
                    max_retries=0,  # our repeats know of the budget, and of answers that are none
                )
            return self._client

    def send(
        self,
        path: Route,
        body: Mapping[str, Any],
        *,
        worst: Usage,
        check: Callable[[Answer], object],
        stopping: threading.Event,
        retries: int | None = None,
    ) -> Answer:
        """Send a request until it is answered.

        Args:
            path: `COMPLETIONS` or `CHAT`.
            body: its parameters.
            worst: tokens that it may take.
            check: raises `ValueError` for an answer that is none.
            stopping: when set, nothing is sent again.
            retries: how often at most; None for the connection's own number.

        Raises:
            RequestFailed: it was refused, or given up.
            ValueError: no request would be answered: no connection, a wrong key, an unknown model, or the cap.
        """
        repeats = self._connection.retries if retries is None else retries
        for attempt in range(repeats + 1):
            if stopping.is_set():
                raise RequestFailed("not sent: the run stopped")
            try:
                answer = self._attempt(path, body, worst, check)
            except MayPass as failure:
                last = failure
                self._judge(failure)
                if attempt < repeats:
                    stopping.wait(self._delay(attempt, failure.wait))
            else:
                self._failures = 0
                return answer
        raise self._given_up(last, repeats + 1)

    def models(self) -> Answer:
        """Return what the endpoint tells about its models; nothing where it does not tell.

        Raises:
            ValueError: it is down, or refuses the key.
        """
        try:
            answer: Answer = self._read(lambda: self._connect().models.with_raw_response.list())
        except RequestFailed as failure:
            if isinstance(failure, MayPass):
                self._judge(failure)
            return {}
        return answer

    def _attempt(
        self, path: Route, body: Mapping[str, Any], worst: Usage, check: Callable[[Answer], object]
    ) -> Answer:
        """Send a request once; what it took is counted whatever comes of it."""
        client = self._connect()
        resource = client.completions if path == COMPLETIONS else client.chat.completions
        # Parameters that OpenAI does not know go beside those that it does.
        first = "prompt" if path == COMPLETIONS else "messages"
        rest = {name: value for name, value in body.items() if name not in ("model", first)}
        self._budget.reserve(worst)
        taken = Usage()
        try:
            answer = self._read(
                lambda: resource.with_raw_response.create(
                    model=body["model"], extra_body=rest, **{first: body[first]}
                )
            )
            taken = _usage(answer) or worst
            try:
                check(answer)
            except ValueError as fault:
                raise MayPass(f"expected an answer, got: {fault}") from fault
            return answer
        except MayPass as failure:
            if failure.billed:
                taken = worst
            raise
        finally:
            self._budget.settle(worst, taken)

    def _read(self, call: Callable[[], Any]) -> Answer:
        """Make a call and read its answer; sort what may go wrong."""
        openai = self._openai
        try:
            response = call().http_response
        except openai.APIConnectionError as fault:
            raise connection_fault(fault, self._hidden(fault)) from fault
        except openai.APIStatusError as fault:
            self._reached = True
            meaning = status_fault(fault, self._hidden(fault), self._connection.key_variable)
            if isinstance(meaning, ValueError):
                meaning = ValueError(f"{self._connection.base_url}: {meaning}")
            raise meaning from None  # the endpoint's own words may repeat the key
        self._reached = True
        try:
            answer = json.loads(response.text)
        except ValueError as fault:
            raise MayPass(f"expected JSON, got {response.text[:60]!r}", billed=True) from fault
        if not isinstance(answer, dict):
            raise MayPass(f"expected a JSON object, got {response.text[:60]!r}", billed=True)
        return answer

    def _hidden(self, fault: Exception) -> str:
        """Return what an error says, without the key, should the endpoint repeat it."""
        cause = f" ({fault.__cause__})" if fault.__cause__ is not None else ""
        text = f"{fault}{cause}"
        return text if self._key == _NO_KEY else text.replace(self._key, "***")

    def _judge(self, failure: MayPass) -> None:
        """Raise where it makes no sense to wait."""
        where = self._connection.base_url
        if failure.down and not self._reached:
            raise ValueError(f"{where} cannot be reached: {failure}") from failure
        if failure.wait > _LONGEST_WAIT:
            raise ValueError(f"{where} asks to wait {failure.wait:g} s: {failure}") from failure

    def _delay(self, attempt: int, asked: float) -> float:
        """Return seconds to wait: doubled each time, scattered, and never less than was asked for."""
        delay = min(_LONGEST_DELAY, self._connection.first_delay * 2.0**attempt)
        return max(asked, delay * random.uniform(0.5, 1.0))

    def _given_up(self, failure: MayPass, attempts: int) -> RequestFailed | ValueError:
        """Return what to raise after the last attempt."""
        where = self._connection.base_url
        if failure.down:
            return ValueError(f"{where} is down, after {attempts} attempts: {failure}")
        with self._lock:
            self._failures += 1
            if self._failures >= _GIVE_UP_AFTER:
                return ValueError(
                    f"{where} left {self._failures} requests in a row unanswered, the last one: {failure}"
                )
        return RequestFailed(f"given up after {attempts} attempts: {failure}", failure.status)


def _usage(answer: Answer) -> Usage | None:
    """Return the tokens that an endpoint says a request took."""
    told = answer.get("usage")
    if not isinstance(told, dict):
        return None
    counts = told.get("prompt_tokens"), told.get("completion_tokens", 0)
    if not all(isinstance(count, int) for count in counts):
        return None
    return Usage(*(int(count or 0) for count in counts))
