"""What an endpoint answered, and what that costs: nothing is paid twice, spending stays under its cap."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from pixlex.eval.llm.client import Answer, LLMOptions, Usage

FILE_NAME = "answers.sqlite"
_TIKTOKEN = "tiktoken:"
# A start token, and the space that SentencePiece puts before a text.
_ADDED = 2

Request = Mapping[str, Any]
# Raises `ValueError` for an answer that is none.
Check = Callable[[Answer], object]


class AnswerCache:
    """Answers by their whole request: endpoint, model, every parameter, the prompt; never the key.

    An answer is on the disk before anyone is given it, so that a kill at any moment loses none. One whose
    checksum does not fit is asked for again, with a warning; one of a version without checksums counts. Two
    processes may share a folder; what both ask at the same moment is sent by both. None keeps answers in memory;
    a folder that cannot be written, or a file that is no cache, raises `ValueError`.
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
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=FULL")
            columns = "key TEXT PRIMARY KEY, request TEXT, answer TEXT, checksum TEXT"
            self._file.execute(f"CREATE TABLE IF NOT EXISTS answers ({columns})")
            if "checksum" not in {row[1] for row in self._file.execute("PRAGMA table_info(answers)")}:
                self._file.execute("ALTER TABLE answers ADD COLUMN checksum TEXT")
            self._file.execute("SELECT key, request, answer FROM answers LIMIT 1")
        except (OSError, sqlite3.Error, ValueError) as fault:  # damaged names are no UTF-8
            raise self._unusable("expected a folder for answers, got", fault) from fault

    def get(self, request: Request, check: Check | None = None) -> Answer | None:
        """Return the answer to a request; None where it was not asked yet, or is none by `check`."""
        key = _key(request)
        try:
            with self._lock:
                row = self._file.execute(
                    "SELECT answer, checksum FROM answers WHERE key = ?", (key,)
                ).fetchone()
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

    def put(self, request: Request, answer: Answer) -> None:
        """Keep an answer; on return it is on the disk."""
        key, text = _key(request), json.dumps(answer)
        row = (key, json.dumps(request, sort_keys=True), text, _checksum(key, text))
        columns = "(key, request, answer, checksum)"
        try:
            with self._lock:
                self._file.execute(f"INSERT OR REPLACE INTO answers {columns} VALUES (?, ?, ?, ?)", row)
        except (sqlite3.Error, ValueError) as fault:
            raise self._unusable("an answer cannot be kept:", fault) from fault

    def ask(self, request: Request, send: Callable[[], Answer], check: Check | None = None) -> Answer:
        """Return the answer to a request, sent only where it is not known, or known and no answer by `check`.

        A request that another thread is sending just now is waited for; its outcome, faults too, is shared.
        """
        key, mine = _key(request), Future[Answer]()
        with self._lock:
            under_way = self._asked.setdefault(key, mine)
        if under_way is not mine:
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

    def _unusable(self, what: str, fault: Exception) -> ValueError:
        return ValueError(f"cache {self.path}: {what} {fault}; where the file is damaged, move it away")


def _checksum(key: str, answer: str) -> str:
    return hashlib.sha256(f"{key}\n{answer}".encode()).hexdigest()


def _key(request: Request) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


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


def token_counter(tokenizer: str | None, model: str) -> Callable[[Sequence[str]], list[int]]:
    """Return what counts an endpoint's tokens, as `LLMOptions.tokenizer` says; else `upper_bounds`."""
    if tokenizer is not None and not tokenizer.startswith(_TIKTOKEN):
        from transformers import AutoTokenizer

        try:
            pretrained = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        except (OSError, ValueError) as fault:
            raise ValueError(f"tokenizer {tokenizer!r} cannot be loaded: {fault}") from fault
        return lambda texts: [len(pretrained(text)["input_ids"]) for text in texts]
    try:
        import tiktoken

        if tokenizer is None:
            encoding = tiktoken.encoding_for_model(model)
        else:
            encoding = tiktoken.get_encoding(tokenizer.removeprefix(_TIKTOKEN))
    except (ImportError, KeyError, OSError, ValueError) as fault:
        if tokenizer is None:  # an unknown model, or no network to fetch the encoding from
            return upper_bounds
        if isinstance(fault, ImportError):
            missing = f"tokenizer {tokenizer} needs tiktoken: pip install tiktoken"
            raise ModuleNotFoundError(missing, name="tiktoken") from fault
        raise ValueError(f"tokenizer {tokenizer} cannot be loaded: {fault}") from fault
    # What looks like a special token in a text is text.
    return lambda texts: [len(encoding.encode(text, disallowed_special=())) for text in texts]


def upper_bounds(texts: Sequence[str]) -> list[int]:
    """Return a number that no tokenizer in use exceeds: the bytes of each text in UTF-8, and two more.

    Every token of a byte-level or byte-fallback vocabulary stands for a byte or more. English has about four
    bytes a token, so the bound is some four times the truth: name a tokenizer where that is too much.
    """
    return [len(text.encode()) + _ADDED for text in texts]
