"""Sending requests with openai's client, under a cap of what they cost: every attempt passes here."""

from __future__ import annotations

import base64
import importlib
import json
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, Literal
from urllib.parse import quote, quote_plus

from pixlex.eval.llm.client import DOES_NOT_FIT, Answer, LLMOptions, Usage
from pixlex.eval.llm.protocol import RequestFailed, Route
from pixlex.messages import not_installed

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
# A placeholder of servers that want no key ("none", "EMPTY") is no secret, and may be a word of an answer.
_SHORTEST_SECRET = 6
# So many characters in a row of a key are as good as a part of it.
_PIECE = 8
_HIDDEN, _MOST_SHOWN = "***", 300
_USER = re.compile(r"//[^/@\s]+@")  # who logs in at an address, a proxy's for example


# Raises `ValueError` for an answer that is none.
Check = Callable[[Answer], object]


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
    outcome: Answer | RequestFailed | ValueError | None = None


class SpendingCapReached(ValueError):
    """The next request could have exceeded what the user is willing to spend; it was not sent."""


class Budget:
    """Keeps spending under the caps of its options, whatever number of requests are under way.

    A request's worst case is reserved before it is sent and replaced by what it took when it is answered.
    The caps are those of this object, hence of one run; answers from the cache cost nothing.
    """

    def __init__(self, options: LLMOptions) -> None:
        self._options = options
        self.spent, self._reserved = Usage(), Usage()
        self._changed = threading.Condition()

    def cost(self, usage: Usage) -> float | None:
        """Return what tokens cost; None without prices."""
        prompt, answer = self._options.input_price, self._options.output_price
        if prompt is None or answer is None:
            return None
        return (usage.prompt * prompt + usage.answer * answer) / 1_000_000

    def reserve(self, worst: Usage) -> None:
        """Reserve a request's worst case under the cap; wait where requests under way may turn out cheaper."""
        with self._changed:
            while excess := self._excess(self.spent + self._reserved + worst):
                if self._reserved.total == 0:
                    raise SpendingCapReached(
                        f"stopped before the spending cap: {excess}; what was answered is kept"
                    )
                self._changed.wait()
            self._reserved += worst

    def settle(self, worst: Usage, taken: Usage) -> None:
        """Replace what was reserved by what the request took."""
        with self._changed:
            self._reserved -= worst
            self.spent += taken
            self._changed.notify_all()

    def _excess(self, usage: Usage) -> str:
        spent, most = self.spent.total, self._options.max_tokens
        if most is not None and usage.total > most:
            return (
                f"{spent} tokens are spent, the next request may take {usage.total - spent}, "
                f"at most {most} are allowed"
            )
        cost, paid, cap = self.cost(usage), self.cost(self.spent), self._options.max_cost
        if cost is not None and paid is not None and cap is not None and cost > cap:
            return f"{paid:.6g} is spent, the next request may cost {cost - paid:.6g}, at most {cap:g} is allowed"
        return ""


class Sender:
    """Sends requests, from any number of threads; connects when there is something to send.

    Every attempt of openai's client passes `_attempt`: it is paid from the budget (one without an answer with its
    worst case, where the endpoint may have done the work), read up to a limit, freed of the key and judged;
    `x-should-retry` says to the client whether to send it again.
    """

    def __init__(self, options: LLMOptions, budget: Budget) -> None:
        self._options, self._budget, self._url = options, budget, f"{options.base_url}"
        self.key_variable = options.key_variable or "OPENAI_API_KEY"
        self._lock = threading.Lock()
        self._thread = threading.local()  # openai's client sends in the thread that asks
        self._reached, self._failures = False, 0

    @cached_property
    def key(self) -> str:
        """The key to send, empty where there is none."""
        key = os.environ.get(self.key_variable, "").strip()
        if not key and self._options.key_variable is not None:
            # Some keys look like a name, and are given in its place.
            shown = self.key_variable if self.key_variable.isupper() else "whose name was given"
            raise ValueError(f"expected the endpoint's key in the environment variable {shown}, got none")
        if key and not _KEY.fullmatch(key):
            raise ValueError(
                f"the key of {self.key_variable} has characters that cannot be sent (blanks, line ends)"
            )
        return key

    @cached_property
    def _quoter(self) -> Quoter:
        return Quoter(self.key)

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
        retries = self._options.retries if retries is None else retries
        sending = self._thread.sending = _Sending(question, stopping, retries)
        with self._lock:
            client = self._client
        path, settings = f"/{question.route}", {"cast_to": object, "options": {"max_retries": retries}}
        # openai's own faults carry along what the endpoint said; `outcome` says why.
        with suppress(importlib.import_module("openai").APIStatusError):
            if question.body is None:
                client.get(path, **settings)
            else:
                client.post(path, body=question.body, **settings)
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
            return self.send(Question("models", None, Usage(), bool), threading.Event(), 0)
        except RequestFailed:
            # Some keys may ask models and not list them: what may be asked shows when something is asked.
            return {}

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
            headers = {"x-should-retry": f"{isinstance(outcome, RequestFailed) and outcome.again}".lower()}
            if isinstance(outcome, RequestFailed) and 0 < outcome.wait <= _OPENAI_WAIT:
                headers["retry-after"] = f"{outcome.wait}"
            status = 200 if isinstance(outcome, dict) else 503
            return below.Response(status, headers=headers, json={}, request=request)

        seconds = self._options.timeout
        return openai.OpenAI(
            base_url=self._url,
            api_key=self.key or "none",
            timeout=openai.Timeout(seconds, connect=min(seconds, _CONNECT_TIMEOUT)),
            http_client=type("Wire", (plain,), {"send": send})(),
        )

    def _attempt(self, send: Callable[[], Any], below: Any) -> Answer | RequestFailed | ValueError:
        """Send this thread's question once; what it took is counted whatever comes of it."""
        sending: _Sending = self._thread.sending
        outcome: Answer | RequestFailed | ValueError
        try:
            if sending.stopping.is_set():
                raise RequestFailed("not sent: the run stopped")
            outcome = self._paid(sending.question, send, below)
        except (RequestFailed, ValueError) as fault:
            outcome = fault
        sending.outcome, sending.attempts = outcome, sending.attempts + 1
        seconds = outcome.wait if isinstance(outcome, RequestFailed) else 0
        if seconds > _OPENAI_WAIT and sending.attempts <= sending.retries:
            sending.stopping.wait(seconds)
        return outcome

    def _paid(self, question: Question, send: Callable[[], Any], below: Any) -> Answer:
        self._budget.reserve(question.worst)
        taken = question.worst
        try:
            answer = self._received(send, question.most_bytes, below)
            taken = _usage(answer) or taken
        except (RequestFailed, ValueError) as fault:
            if not getattr(fault, "billed", False):
                taken = Usage()
            raise
        finally:
            self._budget.settle(question.worst, taken)
        try:
            question.check(answer)
        except ValueError as fault:
            reason = f"expected an answer, got: {self._quoter.show(fault)}"
        else:
            return answer
        raise RequestFailed(reason, again=True, malformed=True)

    def _received(self, send: Callable[[], Any], most: int, below: Any) -> Answer:
        """Return the answer of an endpoint without the key, or raise the fault that takes its place."""
        data, failure = bytearray(), None
        try:
            response = send()
            self._reached = True
            with closing(response):
                for part in response.iter_bytes():
                    data += part
                    if len(data) > most:
                        break
        except below.RequestError as fault:
            down = isinstance(fault, below.ConnectError | below.ConnectTimeout)
            reason = self._quoter.show(fault) or type(fault).__name__
            failure = RequestFailed(reason, again=True, billed=not down, down=down)
        # Outside of the handler: the library's own fault holds the request.
        if failure is not None and failure.down and not self._reached:
            raise ValueError(f"{self._url} cannot be reached: {failure}")
        if failure is not None:
            raise failure
        if len(data) > most:
            reason = f"an answer of more than {most:,} bytes, far beyond the limit asked for"
            raise RequestFailed(f"{reason}; the rest was not read", billed=True)
        text, answer = data[:1000].decode(errors="replace"), self._quoter.parse(bytes(data))
        if response.is_success and not isinstance(answer, dict):
            reason = f"expected a JSON object, got {self._quoter.show(text)[:80]!r}"
            raise RequestFailed(reason, again=True, malformed=True, billed=True)
        if response.is_success and (not answer.get("error") or answer.get("choices")):
            found: Answer = answer
            return found
        error: Any = answer.get("error", answer) if isinstance(answer, dict) else {}
        error = error if isinstance(error, dict) else {"message": error}
        code, status, said = error.get("code"), response.status_code, text if answer is None else answer
        if response.is_success:
            said = error.get("message", error)
            if not (f"{code}".isdecimal() and 400 <= int(f"{code}") < 600):
                reason = f"expected an answer, got an error: {self._quoter.show(said)}"
                raise RequestFailed(reason, again=True, malformed=True, billed=True)
            status = int(f"{code}")
        reason = self._quoter.show(f"Error code: {status} - {said}")
        raise self._meaning(status, code, reason, _seconds(response.headers.get("retry-after", "")))

    def _meaning(self, status: int, code: object, reason: str, seconds: float) -> RequestFailed | ValueError:
        if status == 402 or code in _OUT_OF_MONEY:
            return ValueError(f"{self._url}: no quota left for the key of {self.key_variable}: {reason}")
        if status in (401, 403):
            return RequestFailed(f"refused: {reason}", status)
        if status in _MAY_PASS or (status >= 500 and status != 501):
            if seconds > _LONGEST_WAIT:
                return ValueError(f"{self._url} asks to wait {seconds:g} s: {reason}")
            return RequestFailed(reason, status, again=True, wait=seconds)
        if status == 413 or (status in (400, 422) and _TOO_LONG.search(reason)):
            return RequestFailed(f"{DOES_NOT_FIT}: {reason}", status)
        return RequestFailed(reason, status)

    def _given_up(self, failure: RequestFailed, attempts: int) -> RequestFailed | ValueError:
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
    with suppress(ValueError):
        return max(0.0, float(retry_after))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return 0.0


def _usage(answer: Answer) -> Usage | None:
    given = answer.get("usage")
    if not isinstance(given, dict):
        return None
    counts = [given.get("prompt_tokens"), given.get("completion_tokens", 0)]
    return Usage(*counts) if all(isinstance(count, int) and count >= 0 for count in counts) else None


class Quoter:
    """The one place that quotes an endpoint; all that it says passes here before anyone else sees it.

    The key is hidden as it is, in parts of eight characters or more, and as it looks in a URL, in hexadecimal
    and in base64 (alone, or inside of something else such as `Bearer KEY`); a short placeholder is not.
    """

    def __init__(self, key: str) -> None:
        self._secrets: tuple[str, ...] = ()
        if len(key) < _SHORTEST_SECRET:
            return
        pieces = {key[start : start + _PIECE] for start in range(len(key) - _PIECE + 1)}
        # Eight small letters may be an English word ("required") of an error message.
        secrets = {one for one in pieces if not (one.isalpha() and one.islower())}
        secrets |= {key, quote(key, safe=""), quote_plus(key, safe=""), key.encode().hex()}
        for text in (key, quote(key, safe="")):
            secrets |= _base64_cores(text.encode())
        self._secrets = tuple({one.lower() for one in secrets})

    def hide(self, said: str) -> str:
        """Return a text without the key."""
        lowered, marks = said.lower(), bytearray(len(said))
        found = [secret for secret in self._secrets if secret in lowered]
        for secret in found:
            for match in re.finditer(f"(?={re.escape(secret)})", said, re.IGNORECASE):
                marks[match.start() : match.start() + len(secret)] = b"\1" * len(secret)
        if not found:
            return said
        runs = re.finditer(rb"\x00+|\x01+", marks)
        return "".join(_HIDDEN if marks[run.start()] else said[run.start() : run.end()] for run in runs)

    def show(self, said: object) -> str:
        """Return what was said as one line for a message: without the key, printable, not too long."""
        hidden = _USER.sub(f"//{_HIDDEN}@", self.hide(f"{said}"))
        line = "".join(letter if letter.isprintable() else " " for letter in hidden)
        return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]} ..."

    def parse(self, said: bytes) -> Any:
        """Return a JSON text's values without the key, whatever escapes it was written with; None for no JSON.

        Halves of characters come out as question marks.
        """
        with suppress(ValueError, RecursionError):
            return self._walk(json.loads(said))
        return None

    def _walk(self, values: Any) -> Any:
        if isinstance(values, str):
            return self.hide(values.encode(errors="replace").decode())
        if isinstance(values, list):
            return [self._walk(value) for value in values]
        if isinstance(values, dict):
            return {self._walk(key): self._walk(value) for key, value in values.items()}
        return values


def _base64_cores(data: bytes) -> set[str]:
    """Return what base64 makes of bytes wherever they stand in something else: three alignments, two alphabets."""
    cores = set()
    for before in range(3):
        text = base64.b64encode(bytes(before) + data).decode().rstrip("=")
        # Without characters that also hold bits of what stands before or behind.
        core = text[(0, 2, 3)[before] : len(text) - bool((before + len(data)) % 3)]
        cores |= {core, core.replace("+", "-").replace("/", "_")}
    return cores
