"""What an endpoint answered, and what that costs: nothing is paid twice, spending stays under its cap."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE_NAME = "answers.sqlite"
TIKTOKEN = "tiktoken:"
# A start token, and the space that SentencePiece puts before a text.
_ADDED = 2

Answer = dict[str, Any]
TokenCounter = Callable[[Sequence[str]], list[int]]
# Raises `ValueError` for an answer that is none.
Check = Callable[[Answer], object]


class AnswerCache:
    """Answers by their whole request: endpoint, model, every parameter, the prompt; never the key.

    An answer is on the disk before anyone is given it, so that a kill at any moment loses none. Failures are
    not kept. Each answer has a checksum: one that the disk changed is asked for again, with a warning; those
    of versions without checksums count. Two processes may share a folder; what both ask at the same moment is
    sent by both.

    Args:
        folder: where `answers.sqlite` lies, made if missing; None keeps answers in memory.

    Raises:
        ValueError: a folder that cannot be written, or a file that is no cache.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / FILE_NAME
        self._lock = threading.Lock()
        self._asked: dict[str, Future[Answer]] = {}
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            # One connection for all threads, used under the lock only.
            self._file = sqlite3.connect(
                self.path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False
            )
            for statement in (
                "PRAGMA journal_mode=WAL",
                "PRAGMA synchronous=FULL",
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, request TEXT, answer TEXT)",
            ):
                self._file.execute(statement)
            columns = {row[1] for row in self._file.execute("PRAGMA table_info(answers)")}
            if "checksum" not in columns:
                self._file.execute("ALTER TABLE answers ADD COLUMN checksum TEXT")
            self._file.execute("SELECT key, request, answer FROM answers LIMIT 1")
        except (OSError, sqlite3.Error, ValueError) as fault:  # damaged names are no UTF-8
            raise ValueError(
                f"cache {self.path}: expected a folder for answers, got: {fault}; where the file is damaged, move "
                "it away"
            ) from fault

    def get(self, request: Mapping[str, Any], check: Check | None = None) -> Answer | None:
        """Return the answer to a request; None where it was not asked yet, or is none by `check`."""
        key = _key(request)
        query = "SELECT answer, checksum FROM answers WHERE key = ?"
        try:
            with self._lock:
                row = self._file.execute(query, (key,)).fetchone()
            if row is None:
                return None
            text, checksum = row
            answer = json.loads(text) if isinstance(text, str) else None
            if not isinstance(answer, dict) or checksum not in (None, _checksum(key, text)):
                raise ValueError("it is not what was written")
        except (sqlite3.Error, ValueError) as fault:
            warnings.warn(
                f"cache {self.path}: an answer cannot be read ({fault}) and is asked for again", stacklevel=2
            )
            return None
        try:
            if check is not None:
                check(answer)
        except ValueError:
            return None
        return answer

    def put(self, request: Mapping[str, Any], answer: Answer) -> None:
        """Keep an answer; on return it is on the disk."""
        key, text = _key(request), json.dumps(answer)
        row = (key, json.dumps(request, sort_keys=True), text, _checksum(key, text))
        try:
            with self._lock:
                self._file.execute(
                    "INSERT OR REPLACE INTO answers (key, request, answer, checksum) VALUES (?, ?, ?, ?)", row
                )
        except (sqlite3.Error, ValueError) as fault:
            raise ValueError(
                f"cache {self.path}: an answer cannot be kept: {fault}; where the file is damaged, move it away"
            ) from fault

    def ask(
        self, request: Mapping[str, Any], send: Callable[[], Answer], check: Check | None = None
    ) -> Answer:
        """Return the answer to a request, sent only where it is not known, or known and no answer by `check`.

        A request that another thread is sending just now is waited for; its outcome, faults too, is shared.
        """
        key = _key(request)
        with self._lock:
            under_way = self._asked.get(key)
            if under_way is None:
                mine = self._asked[key] = Future[Answer]()
        if under_way is not None:
            return under_way.result()
        try:
            answer = self.get(request, check)
            if answer is None:
                answer = send()
                self.put(request, answer)
            mine.set_result(answer)
            return answer
        except BaseException as fault:  # handed on to those who wait, and raised again
            mine.set_exception(fault)
            raise
        finally:
            with self._lock:
                del self._asked[key]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()


def _checksum(key: str, answer: str) -> str:
    return hashlib.sha256(f"{key}\n{answer}".encode()).hexdigest()


def _key(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class SpendingCapReached(ValueError):
    """The next request could have exceeded what the user is willing to spend; it was not sent."""


@dataclass(frozen=True)
class Usage:
    """Tokens of prompts and of answers, of one request or of many."""

    prompt: int = 0
    answer: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt + other.prompt, self.answer + other.answer)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.prompt - other.prompt, self.answer - other.answer)

    @property
    def total(self) -> int:
        """Tokens read and written."""
        return self.prompt + self.answer


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What requests would take at most: how many beside the cached ones, tokens, cost (None without prices)."""

    requests: int
    cached: int
    usage: Usage
    cost: float | None


class Budget:
    """Keeps spending under a cap, whatever number of requests are under way.

    A request's worst case is reserved before it is sent and replaced by what it took when it is answered.
    The cap is one of this object, hence of one run; answers from the cache cost nothing.

    Args:
        prices: what a million tokens of prompts and of answers cost, in the user's currency, each 0 or more; None
            where money is not counted.
        max_cost: money, 0 or more; None for no cap.
        max_tokens: tokens read and written, 0 or more; None for no cap.

    Raises:
        ValueError: one price of two, a negative price or cap, or a cap on money without prices.
    """

    def __init__(
        self,
        prices: tuple[float | None, float | None] = (None, None),
        max_cost: float | None = None,
        max_tokens: int | None = None,
    ) -> None:
        prompt, answer = prices
        if (prompt is None) != (answer is None):
            raise ValueError(f"expected both prices or none, got {prompt} for input and {answer} for output")
        if prompt is not None and answer is not None and not (prompt >= 0 and answer >= 0):
            raise ValueError(f"prices must be 0 or more, got {prompt} for input and {answer} for output")
        if max_cost is not None and prompt is None:
            raise ValueError(f"a cap of {max_cost:g} on the cost needs the prices of input and output")
        for name, cap in (("max_cost", max_cost), ("max_tokens", max_tokens)):
            if cap is not None and not cap >= 0:
                raise ValueError(f"{name} must be 0 or more, got {cap}")
        self._prices, self.max_cost, self.max_tokens = prices, max_cost, max_tokens
        self._spent = Usage()
        self._reserved = Usage()
        self._changed = threading.Condition()

    @property
    def spent(self) -> Usage:
        """Tokens of all that was sent so far."""
        return self._spent

    def cost(self, usage: Usage) -> float | None:
        """Return what tokens cost; None without prices."""
        prompt, answer = self._prices
        if prompt is None or answer is None:
            return None
        return (usage.prompt * prompt + usage.answer * answer) / 1_000_000

    def reserve(self, worst: Usage) -> None:
        """Reserve a request's worst case; wait where requests under way may turn out cheaper.

        Raises:
            SpendingCapReached: it does not fit under the cap.
        """
        with self._changed:
            while excess := self._excess(self._spent + self._reserved + worst):
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
            self._spent += taken
            self._changed.notify_all()

    def _excess(self, usage: Usage) -> str:
        """Say how tokens exceed a cap; nothing where they do not."""
        spent = self._spent
        if self.max_tokens is not None and usage.total > self.max_tokens:
            return (
                f"{spent.total} tokens are spent, the next request may take {usage.total - spent.total}, "
                f"at most {self.max_tokens} are allowed"
            )
        cost, paid = self.cost(usage), self.cost(spent)
        if self.max_cost is not None and cost is not None and paid is not None and cost > self.max_cost:
            return (
                f"{paid:.6g} is spent, the next request may cost {cost - paid:.6g}, "
                f"at most {self.max_cost:g} is allowed"
            )
        return ""


def token_counter(tokenizer: str | None, model: str) -> TokenCounter:
    """Return what counts an endpoint's tokens.

    Args:
        tokenizer: as `LLMOptions.tokenizer`.
        model: the endpoint's name of the model.

    Returns:
        `upper_bounds` where nothing counts them.

    Raises:
        ValueError: a tokenizer that cannot be loaded.
    """
    if tokenizer is None:
        try:
            import tiktoken

            return _counter(tiktoken.encoding_for_model(model))
        except (ImportError, KeyError, OSError):  # an unknown model, or no network to fetch the encoding from
            return upper_bounds
    if not tokenizer.startswith(TIKTOKEN):
        return _pretrained(tokenizer)
    try:
        import tiktoken

        return _counter(tiktoken.get_encoding(tokenizer.removeprefix(TIKTOKEN)))
    except ImportError as fault:
        missing = f"tokenizer {tokenizer} needs tiktoken: pip install tiktoken"
        raise ModuleNotFoundError(missing, name="tiktoken") from fault
    except (OSError, ValueError) as fault:
        raise ValueError(f"tokenizer {tokenizer} cannot be loaded: {fault}") from fault


def upper_bounds(texts: Sequence[str]) -> list[int]:
    """Return a number that no tokenizer in use exceeds: the bytes of each text in UTF-8, and two more.

    Every token of a byte-level or byte-fallback vocabulary stands for a byte or more. English has about four
    bytes a token, so the bound is some four times the truth: name a tokenizer where that is too much.
    """
    return [len(text.encode()) + _ADDED for text in texts]


def _counter(encoding: Any) -> TokenCounter:
    # What looks like a special token in a text is text.
    return lambda texts: [len(encoding.encode(text, disallowed_special=())) for text in texts]


def _pretrained(name: str) -> TokenCounter:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as fault:
        raise ValueError(f"tokenizer {name!r} cannot be loaded: {fault}") from fault
    return lambda texts: [len(tokenizer(text)["input_ids"]) for text in texts]
