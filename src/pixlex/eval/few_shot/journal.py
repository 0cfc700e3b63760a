"""The answers that were given, written down as they come: a killed run goes on where it stopped."""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from pixlex.eval.few_shot.answers import Answer
from pixlex.eval.few_shot.fingerprints import digest
from pixlex.files import Damaged, sealed, unsealed

_FORMAT = 1


class AnswerJournal:
    """A file of JSON lines, one for each answer, under the fingerprints of answerer and question.

    Lines are added and never changed; a line that a kill cut off is dropped at the next opening, one that is not
    what was written is passed over. A failure is written down too; the later answer of the same episode counts.

    Args:
        path: the file; it is locked while open.

    Raises:
        ValueError: another process holds it, or it is no journal of answers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._answers: dict[str, Answer] = {}
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._open()
        except BlockingIOError as fault:
            self._file.close()
            raise ValueError(f"{path} is being written by another process") from fault
        except ValueError:
            self._file.close()
            raise

    def _open(self) -> None:
        self._file.seek(0)
        begun = f"{json.dumps({'answers': _FORMAT})}\n".encode()
        first = self._file.readline()
        if first != begun and begun.startswith(first):  # nothing yet, or not even the whole first line
            self._file.truncate(0)
            self._file.write(begun)
            self._file.flush()
            return
        if first != begun:
            raise ValueError(f"{self.path} is no journal of answers that this version reads; move it away")
        end = len(first)
        damaged = 0
        for line in iter(self._file.readline, b""):
            if not line.endswith(b"\n"):
                break
            entry = _entry(line)
            if entry is None:
                damaged += 1
            else:
                self._keep(entry)
            end += len(line)
        self._file.truncate(end)
        if damaged:
            warnings.warn(
                f"{self.path}: {damaged} damaged lines are passed over and asked again", stacklevel=2
            )

    def _keep(self, entry: dict[str, Any]) -> None:
        fields = ("episode", "credit", "text", "detail")
        self._answers[entry["key"]] = Answer(**{field: entry[field] for field in fields})

    def get(self, answerer: str, question: str) -> Answer | None:
        """Return the answer to a question, None where there is none yet.

        Args:
            answerer: identity of who answered.
            question: fingerprint of the episode, from `EpisodeSet.questions`.
        """
        return self._answers.get(_key(answerer, question))

    def add(self, answerer: str, question: str, answer: Answer) -> None:
        """Write down an answer; it survives the end of this process on return, not a power failure."""
        entry = {"key": _key(answerer, question), **vars(answer)}
        self._file.write(f"{json.dumps(sealed(entry))}\n".encode())
        self._file.flush()
        self._keep(entry)

    def sync(self) -> None:
        """Have the disk hold all that was written."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> AnswerJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _key(answerer: str, question: str) -> str:
    return digest(answerer, question)[:24]


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return what a whole line holds, None where that is not what was written."""
    try:
        entry = unsealed(line)
    except Damaged:
        return None
    kinds = {"key": str, "episode": int, "credit": int | float | None, "text": str, "detail": str}
    fits = all(name in entry and isinstance(entry[name], kind) for name, kind in kinds.items())
    return entry if fits else None
