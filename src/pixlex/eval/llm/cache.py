"""What an endpoint answered, on disk: a run that is started again sends, and pays, nothing twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

FILE_NAME = "answers.sqlite"

Answer = dict[str, Any]


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
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=FULL")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, request TEXT, answer TEXT)"
            )
            columns = {row[1] for row in self._file.execute("PRAGMA table_info(answers)")}
            if "checksum" not in columns:
                self._file.execute("ALTER TABLE answers ADD COLUMN checksum TEXT")
            self._file.execute("SELECT key, request, answer FROM answers LIMIT 1")
        except (OSError, sqlite3.Error, ValueError) as fault:  # damaged names are no UTF-8
            raise ValueError(
                f"cache {self.path}: expected a folder for answers, got: {fault}; where the file is damaged, move "
                "it away"
            ) from fault

    def __len__(self) -> int:
        with self._lock:
            count: int = self._file.execute("SELECT count(*) FROM answers").fetchone()[0]
        return count

    def get(
        self, request: Mapping[str, Any], check: Callable[[Answer], object] | None = None
    ) -> Answer | None:
        """Return the answer to a request; None where it was not asked yet, or is none by `check`."""
        return self._read(_key(request), check)

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
        self,
        request: Mapping[str, Any],
        send: Callable[[], Answer],
        check: Callable[[Answer], object] | None = None,
    ) -> Answer:
        """Return the answer to a request, sent only where it is not known, or known and no answer by `check`.

        A request that another thread is sending just now is waited for; what that thread meets, this one
        meets too.
        """
        key = _key(request)
        with self._lock:
            under_way = self._asked.get(key)
            if under_way is None:
                mine = self._asked[key] = Future[Answer]()
        if under_way is not None:
            return under_way.result()
        try:
            answer = self._read(key, check)
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

    def _read(self, key: str, check: Callable[[Answer], object] | None) -> Answer | None:
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


def _checksum(key: str, answer: str) -> str:
    return hashlib.sha256(f"{key}\n{answer}".encode()).hexdigest()


def _key(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
