"""The answers that were given, written down as they come: a killed run goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixlex.eval.few_shot.answers import Answer
from pixlex.eval.few_shot.fingerprints import digest
from pixlex.files import Journal

_KINDS = {"key": str, "episode": int, "credit": int | float | None, "text": str, "detail": str}


class AnswerJournal(Journal):
    """A journal of answers, under the fingerprints of answerer and question; failures are written down too.

    Args:
        path: the file; its folder is made if missing.

    Raises:
        ValueError: another process holds it, or it is no journal of answers.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, {"answers": 1}, "key", _fits)

    def get(self, answerer: str, question: str) -> Answer | None:
        """Return the answer to a question, None where there is none yet.

        Args:
            answerer: identity of who answered.
            question: fingerprint of the episode, from `EpisodeSet.questions`.
        """
        key = _key(answerer, question)
        return Answer(**{name: self[key][name] for name in _KINDS if name != "key"}) if key in self else None

    def add(self, answerer: str, question: str, answer: Answer) -> None:
        """Write down an answer; it survives the end of this process on return, not a power failure."""
        self.append([{"key": _key(answerer, question), **vars(answer)}])


def _key(answerer: str, question: str) -> str:
    return digest(answerer, question)[:24]


def _fits(entry: dict[str, Any]) -> bool:
    return all(name in entry and isinstance(entry[name], kind) for name, kind in _KINDS.items())
