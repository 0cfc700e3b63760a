"""Sending requests with openai's client: repeats and time-outs are its own, every attempt passes here."""

from __future__ import annotations

import importlib
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, Literal

from pixlex.eval.llm.client import DOES_NOT_FIT, LLMOptions
from pixlex.eval.llm.ledger import Answer, Budget, Check, SpendingCapReached, Usage
from pixlex.eval.llm.protocol import RequestFailed, Route
from pixlex.eval.llm.quoting import Quoter
from pixlex.messages import not_installed

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
_NO_KEY = "none"
_KEY = re.compile(r"[\x21-\x7e]+")
_CONNECT_TIMEOUT = 10.0
# openai's client waits up to the first as it is asked to, a run up to the second; then it ends.
_OPENAI_WAIT, _LONGEST_WAIT = 60.0, 600.0
# Requests in a row that came to nothing, each after all its repeats: the endpoint answers nobody.
_GIVE_UP_AFTER = 10
# No more is read of an answer: what JSON needs beside the tokens, and for each of them; and of models.
_FRAME_BYTES, _TOKEN_BYTES, _MODELS_BYTES = 2**18, 2**10, 2**24
_OUT_OF_MONEY = ("insufficient_quota", "billing_hard_limit_reached")
# Beside what says that the server broke, but for 501, with which it says that it cannot.
_MAY_PASS = (408, 409, 425, 429)
# How servers say that prompt and answer are longer than the context; each has words of its own.
_TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window)|maximum model length|too long|reduce the length|inputs`? tokens"
    r"|exceed\w*\b.{0,40}\b(tokens?|context)\b|\btokens?\b.{0,40}exceed",
    re.IGNORECASE,
)

Outcome = Answer | RequestFailed | ValueError


@dataclass(frozen=True)
class Question:
    """A request: its parameters (None for a list), the tokens that it may take, what raises for no answer."""

    route: Route | Literal["models"]
    body: dict[str, Any] | None
    worst: Usage
    check: Check

    @property
    def most_bytes(self) -> int:
        """Bytes of the longest answer that can be one."""
        if self.body is None:
            return _MODELS_BYTES
        tokens = self.worst.answer + (self.worst.prompt if self.body.get("echo") else 0)
        return _FRAME_BYTES + _TOKEN_BYTES * tokens


@dataclass
class _Sending:
    """A question while it is sent, with what came of the last attempt."""

    question: Question
    stopping: threading.Event
    retries: int
    attempts: int = 0
    outcome: Outcome | None = None


class Sender:
    """Sends requests, from any number of threads; connects when there is something to send.

    Every attempt of openai's client passes `_attempt`: it is paid from the budget, read up to a limit, freed of
    the key and judged; `x-should-retry` says to the client whether to send it again.

    Args:
        options: where to, and how patiently.
        budget: what may be spent; every attempt is counted, one without an answer with its worst case where
            the endpoint may have done the work.
    """

    def __init__(self, options: LLMOptions, budget: Budget) -> None:
        self._options, self._budget, self._url = options, budget, f"{options.base_url}"
        self.key_variable = options.key_variable or DEFAULT_KEY_VARIABLE
        self._lock = threading.Lock()
        self._thread = threading.local()  # openai's client sends in the thread that asks
        self._reached = False
        self._failures = 0

    @cached_property
    def _key(self) -> str:
        variable = self.key_variable
        key = os.environ.get(variable, "").strip()
        if not key and self._options.key_variable is not None:
            # Some keys look like a name, and are given in its place.
            shown = variable if variable.isupper() else "whose name was given"
            raise ValueError(f"expected the endpoint's key in the environment variable {shown}, got none")
        if key and not _KEY.fullmatch(key):
            raise ValueError(f"the key of {variable} has characters that cannot be sent (blanks, line ends)")
        return key or _NO_KEY

    @property
    def has_key(self) -> bool:
        """Whether there is a key to send."""
        return self._key != _NO_KEY

    @cached_property
    def _quoter(self) -> Quoter:
        return Quoter(self._key if self.has_key else None)

    def check_url(self) -> None:
        """Raise `ValueError` for a URL that holds the key: it is kept beside the answers."""
        if self._quoter.hide(self._url) != self._url:
            raise ValueError(f"the endpoint's address holds the key of {self.key_variable}")

    def send(self, question: Question, stopping: threading.Event, retries: int | None = None) -> Answer:
        """Send a request until it is answered, again so often at most, and not once `stopping` is set.

        Raises:
            RequestFailed: it was refused, or given up.
            ValueError: no request would be answered: no connection, a wrong key, an unknown model, or the cap.
        """
        sending = _Sending(question, stopping, self._options.retries if retries is None else retries)
        self._let_openai(sending)
        outcome = sending.outcome
        if isinstance(outcome, RequestFailed) and outcome.again:
            outcome = self._given_up(outcome, sending.attempts)
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is not None
        self._failures = 0
        return outcome

    def models(self) -> Answer:
        """Return what the endpoint says about its models, if it does; raise `ValueError` where it is down."""
        try:
            return self.send(Question("models", None, Usage(), lambda answer: None), threading.Event(), 0)
        except RequestFailed:
            # Some keys may ask models and not list them: what may be asked shows when something is asked.
            return {}

    def _let_openai(self, sending: _Sending) -> None:
        """Let openai's client send; its own faults are dropped, for they carry along what the endpoint said."""
        with self._lock:
            client = self._client
        self._thread.sending = sending
        question, settings = (
            sending.question,
            {"cast_to": object, "options": {"max_retries": sending.retries}},
        )
        with suppress(importlib.import_module("openai").APIStatusError):  # `outcome` says why
            if question.body is None:
                client.get(f"/{question.route}", **settings)
            else:
                client.post(f"/{question.route}", body=question.body, **settings)

    @cached_property
    def _client(self) -> Any:
        """The one client of all threads, made under the lock when there is something to send."""
        try:
            import openai
        except ImportError as fault:
            raise not_installed("an endpoint", "the openai client", "llm") from fault
        plain: Any = openai.DefaultHttpxClient
        # The library below openai's: httpx before its version 3, httpx2 since.
        below = importlib.import_module(plain.__base__.__module__.partition(".")[0])

        def send(wire: Any, request: Any, **settings: Any) -> Any:
            outcome = self._attempt(lambda: plain.send(wire, request, **settings | {"stream": True}), below)
            again = isinstance(outcome, RequestFailed) and outcome.again
            headers = {"x-should-retry": "true" if again else "false"}
            if isinstance(outcome, RequestFailed) and 0 < outcome.wait <= _OPENAI_WAIT:
                headers["retry-after"] = f"{outcome.wait}"
            status = 200 if isinstance(outcome, dict) else 503
            return below.Response(status, headers=headers, json={}, request=request)

        seconds = self._options.timeout
        return openai.OpenAI(
            base_url=self._url,
            api_key=self._key,
            timeout=openai.Timeout(seconds, connect=min(seconds, _CONNECT_TIMEOUT)),
            http_client=type("Wire", (plain,), {"send": send})(),
        )

    def _attempt(self, send: Callable[[], Any], below: Any) -> Outcome:
        """Send a request once; what it took is counted whatever comes of it."""
        sending = self._thread.sending
        sending.outcome = outcome = self._paid(sending, send, below)
        sending.attempts += 1
        waits = isinstance(outcome, RequestFailed) and outcome.wait > _OPENAI_WAIT
        if isinstance(outcome, RequestFailed) and waits and sending.attempts <= sending.retries:
            sending.stopping.wait(outcome.wait)
        return outcome

    def _paid(self, sending: _Sending, send: Callable[[], Any], below: Any) -> Outcome:
        question = sending.question
        if sending.stopping.is_set():
            return RequestFailed("not sent: the run stopped")
        try:
            self._budget.reserve(question.worst)
        except SpendingCapReached as fault:
            return fault
        taken = question.worst
        try:
            outcome = self._received(send, question.most_bytes, below)
            if isinstance(outcome, dict):
                taken = _usage(outcome) or taken
                try:
                    question.check(outcome)
                except ValueError as fault:
                    reason = f"expected an answer, got: {self._quoter.show(fault)}"
                    return RequestFailed(reason, again=True, malformed=True)
            elif not (isinstance(outcome, RequestFailed) and outcome.billed):
                taken = Usage()
            return outcome
        finally:
            self._budget.settle(question.worst, taken)

    def _received(self, send: Callable[[], Any], most: int, below: Any) -> Outcome:
        """Return the answer of an endpoint without the key, or the fault that takes its place."""
        data = bytearray()
        try:
            response = send()
            self._reached = True
            try:
                for part in response.iter_bytes():
                    data += part
                    if len(data) > most:
                        reason = f"an answer of more than {most:,} bytes, far beyond the limit asked for"
                        return RequestFailed(f"{reason}; the rest was not read", billed=True)
            finally:
                response.close()
        except below.RequestError as fault:
            down = isinstance(fault, below.ConnectError | below.ConnectTimeout)
            reason = self._quoter.show(fault) or type(fault).__name__
            if down and not self._reached:
                return ValueError(f"{self._url} cannot be reached: {reason}")
            return RequestFailed(reason, again=True, billed=not down, down=down)
        try:
            answer = self._quoter.parse(bytes(data))
        except ValueError:
            answer = None
        text = data[:1000].decode(errors="replace")
        if response.is_success and not isinstance(answer, dict):
            reason = f"expected a JSON object, got {self._quoter.show(text)[:80]!r}"
            return RequestFailed(reason, again=True, malformed=True, billed=True)
        if (
            response.is_success
            and isinstance(answer, dict)
            and (not answer.get("error") or answer.get("choices"))
        ):
            return answer
        error: Any = answer.get("error", answer) if isinstance(answer, dict) else {}
        code = error.get("code") if isinstance(error, dict) else None
        if not response.is_success:
            said = f"Error code: {response.status_code} - {text if answer is None else answer}"
            return self._meaning(response.status_code, code, said, response.headers.get("retry-after", ""))
        said = f"{error.get('message', error) if isinstance(error, dict) else error}"
        if f"{code}".isdecimal() and 400 <= int(f"{code}") < 600:
            return self._meaning(int(f"{code}"), code, f"Error code: {code} - {said}")
        reason = f"expected an answer, got an error: {self._quoter.show(said)}"
        return RequestFailed(reason, again=True, malformed=True, billed=True)

    def _meaning(
        self, status: int, code: object, said: object, retry_after: str = ""
    ) -> RequestFailed | ValueError:
        """Return what an error means, by its status and by the endpoint's own code."""
        reason = self._quoter.show(said)
        if status == 402 or code in _OUT_OF_MONEY:
            return ValueError(f"{self._url}: no quota left for the key of {self.key_variable}: {reason}")
        if status in (401, 403):
            return RequestFailed(f"refused: {reason}", status)
        if status in _MAY_PASS or (status >= 500 and status != 501):
            seconds = _seconds(retry_after)
            if seconds > _LONGEST_WAIT:
                return ValueError(f"{self._url} asks to wait {seconds:g} s: {reason}")
            return RequestFailed(reason, status, again=True, wait=seconds)
        if status == 413 or (status in (400, 422) and _TOO_LONG.search(reason)):
            return RequestFailed(f"{DOES_NOT_FIT}: {reason}", status)
        return RequestFailed(reason, status)

    def _given_up(self, failure: RequestFailed, attempts: int) -> RequestFailed | ValueError:
        """Return what to raise after the last attempt."""
        if failure.down:
            return ValueError(f"{self._url} is down, after {attempts} attempts: {failure}")
        with self._lock:
            self._failures += 1
            if self._failures >= _GIVE_UP_AFTER:
                return ValueError(
                    f"{self._url} left {self._failures} requests in a row unanswered, the last one: {failure}"
                )
        reason = f"given up after {attempts} attempt{'s' * (attempts > 1)}: {failure}"
        return RequestFailed(reason, failure.status, malformed=failure.malformed)


def _seconds(retry_after: str) -> float:
    """Return the seconds that a server asks to wait, given as a number or as a date; 0 where it does not."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0


def _usage(answer: Answer) -> Usage | None:
    """Return the tokens that an endpoint says a request took."""
    given = answer.get("usage")
    if not isinstance(given, dict):
        return None
    counts = given.get("prompt_tokens"), given.get("completion_tokens", 0)
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        return None
    return Usage(*(int(count or 0) for count in counts))
