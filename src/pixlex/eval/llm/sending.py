"""Sending requests to an OpenAI-compatible endpoint: until they are answered, refused, or given up."""

from __future__ import annotations

import importlib
import os
import random
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pixlex.eval.llm.budget import Budget, Usage
from pixlex.eval.llm.cache import Answer
from pixlex.eval.llm.faults import MayPass, RequestFailed, status_fault
from pixlex.eval.llm.quoting import Quoter
from pixlex.messages import not_installed

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
_KEY = re.compile(r"[\x21-\x7e]+")
# More than this is read of no answer: what JSON needs beside the tokens, and for each of them; and of models.
_FRAME_BYTES, _TOKEN_BYTES = 2**18, 2**10
_MOST_OF_MODELS = 2**24


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

    def check_address(self) -> None:
        """Raise `ValueError` for an address that holds the key: it is kept beside the answers."""
        if self.quoter.hide(self._connection.base_url) != self._connection.base_url:
            raise ValueError(f"the endpoint's address holds the key of {self._connection.key_variable}")

    @cached_property
    def quoter(self) -> Quoter:
        """What quotes the endpoint, without the key."""
        return Quoter(self._key if self.has_key else None)

    @cached_property
    def _openai(self) -> Any:
        try:
            import openai
        except ImportError as fault:
            raise not_installed("an endpoint", "the openai client", "llm") from fault
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
            ValueError: it is down.
        """
        try:
            client = self._connect()
            return self._read(client.models.with_streaming_response.list, _MOST_OF_MODELS)
        except RequestFailed as failure:
            # Some keys may ask models and not list them: what may be asked shows when something is asked.
            if isinstance(failure, MayPass):
                self._judge(failure)
            return {}

    def _attempt(
        self, path: Route, body: Mapping[str, Any], worst: Usage, check: Callable[[Answer], object]
    ) -> Answer:
        """Send a request once; what it took is counted whatever comes of it."""
        client = self._connect()
        resource = client.completions if path == COMPLETIONS else client.chat.completions
        # Parameters that OpenAI does not know go beside those that it does.
        first = "prompt" if path == COMPLETIONS else "messages"
        rest = {name: value for name, value in body.items() if name not in ("model", first)}
        tokens = worst.answer + (worst.prompt if body.get("echo") else 0)
        self._budget.reserve(worst)
        taken = Usage()
        try:
            answer = self._read(
                lambda: resource.with_streaming_response.create(
                    model=body["model"], extra_body=rest, **{first: body[first]}
                ),
                _FRAME_BYTES + _TOKEN_BYTES * tokens,
            )
            taken = _usage(answer) or worst
            try:
                check(answer)
            except ValueError as fault:
                reason = self.quoter.show(fault)
                raise MayPass(f"expected an answer, got: {reason}", malformed=True) from None
            return answer
        except RequestFailed as failure:
            if failure.billed:
                taken = worst
            raise
        finally:
            self._budget.settle(worst, taken)

    def _read(self, call: Callable[[], AbstractContextManager[Any]], most: int) -> Answer:
        """Make a call and read its answer, so many bytes at most; sort what may go wrong.

        Faults are raised outside of all handlers: what they would carry along says the endpoint's own words.
        """
        said = self._said(call, most)
        if isinstance(said, Exception):
            raise said
        self._reached = True
        try:
            answer = self.quoter.parse(said)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            shown = self.quoter.show(said[:1000].decode(errors="replace"))
            raise MayPass(f"expected a JSON object, got {shown[:80]!r}", billed=True, malformed=True)
        if answer.get("error") and not answer.get("choices"):
            raise self._error_in(answer["error"])
        return answer

    def _said(
        self, call: Callable[[], AbstractContextManager[Any]], most: int
    ) -> bytes | RequestFailed | ValueError:
        """Return the bytes of an answer, or the fault that takes its place."""
        openai = self._openai
        # The library below openai's: httpx before its version 3, httpx2 since.
        below = importlib.import_module(openai.DefaultHttpxClient.__base__.__module__.partition(".")[0])
        data = bytearray()
        try:
            with call() as response:
                for part in response.iter_bytes():
                    data += part
                    if len(data) > most:
                        reason = f"an answer of more than {most:,} bytes, far beyond the limit asked for"
                        return RequestFailed(f"{reason}; the rest was not read", billed=True)
        except openai.APIStatusError as fault:
            self._reached = True
            retry_after = fault.response.headers.get("retry-after", "")
            # A body that is no JSON is not part of the message.
            said = f"{fault}" if isinstance(fault.body, dict) else f"{fault} - {fault.response.text[:1000]}"
            return self._status(fault.status_code, fault.code, said, retry_after)
        except (openai.APIConnectionError, below.RequestError) as fault:
            cause = fault.__cause__
            down = type(cause).__name__ in ("ConnectError", "ConnectTimeout")
            reason = self.quoter.show(f"{fault}" if cause is None else f"{fault} ({cause})")
            return MayPass(reason or type(fault).__name__, billed=not down, down=down)
        return bytes(data)

    def _status(
        self, status: int, code: object, said: object, retry_after: str = ""
    ) -> RequestFailed | ValueError:
        reason = self.quoter.show(said)
        meaning = status_fault(status, code, reason, retry_after, self._connection.key_variable)
        if isinstance(meaning, ValueError):
            return ValueError(f"{self._connection.base_url}: {meaning}")
        return meaning

    def _error_in(self, error: object) -> RequestFailed | ValueError:
        """Return what an error means that came with status 200."""
        code = error.get("code") if isinstance(error, dict) else None
        said = error.get("message", error) if isinstance(error, dict) else error
        if f"{code}".isdecimal() and 400 <= int(f"{code}") < 600:
            return self._status(int(f"{code}"), code, f"Error code: {code} - {said}")
        reason = f"expected an answer, got an error: {self.quoter.show(said)}"
        return MayPass(reason, billed=True, malformed=True)

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
        reason = f"given up after {attempts} attempt{'s' * (attempts > 1)}: {failure}"
        return RequestFailed(reason, failure.status, malformed=failure.malformed)


def _usage(answer: Answer) -> Usage | None:
    """Return the tokens that an endpoint says a request took."""
    told = answer.get("usage")
    if not isinstance(told, dict):
        return None
    counts = told.get("prompt_tokens"), told.get("completion_tokens", 0)
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        return None
    return Usage(*(int(count or 0) for count in counts))
