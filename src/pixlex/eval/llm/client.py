"""What a language model that continues text can be asked, wherever it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Ability = Literal["generate", "score", "choose", "mix"]

# The reason of an answer that failed begins with it where prompt and answer are longer than the context.
DOES_NOT_FIT = "does not fit"
# The same where the model wrote nothing, or thoughts alone, until its tokens were used up.
NO_TEXT = "no text"
_THINKING, _THOUGHT = "<think>", "</think>"


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A text that a language model wrote.

    Attributes:
        text: what it wrote, without the prompt and without the stop.
        finish: `stop` at its end or at a stop; `length` where the limit cut it; `failed` where nothing came.
        reason: why it failed.
    """

    text: str
    finish: Literal["stop", "length", "failed"]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class CandidateScores:
    """How likely a language model finds each continuation of a prompt.

    Attributes:
        log_probabilities: ln p(candidate | prompt) of each candidate, summed over its tokens, in nats; empty
            where nothing came.
        num_tokens: tokens of each candidate.
        reason: why nothing came.
    """

    log_probabilities: tuple[float, ...]
    num_tokens: tuple[int, ...]
    reason: str = ""


@runtime_checkable
class LanguageClient(Protocol):
    """A language model that continues text. Results come in any order, each with its prompt's position.

    What makes every request fail (a wrong key, an endpoint that is down, an unknown model) raises
    `ValueError`; what makes one fail is in its result. Nothing that was computed is asked for again.
    """

    @property
    def name(self) -> str:
        """What to call it in tables."""

    @property
    def identity(self) -> str:
        """A fingerprint of all that decides its answers besides the request."""

    @property
    def abilities(self) -> frozenset[Ability]:
        """What it can be asked."""

    @property
    def context_size(self) -> int | None:
        """Tokens that prompt and continuation may have together; None where it is not known."""

    @property
    def counts_exactly(self) -> bool:
        """Whether `count_tokens` counts; otherwise it bounds from above."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text (an upper bound where its tokenizer is not known)."""

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int, stop: Sequence[str]
    ) -> Iterator[tuple[int, Completion]]:
        """Continue each prompt greedily until one of the stops, the end of text, or the limit."""

    def score(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, CandidateScores]]:
        """Score each prompt's candidates as its continuation."""

    def choose(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, Completion]]:
        """Continue each prompt greedily, allowing nothing but one of its candidates."""


@runtime_checkable
class MixesCandidates(Protocol):
    """A client with the ability `mix`, which needs the likelihood of every token at every place."""

    def mix(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, Completion]]:
        """Continue each prompt greedily, allowing at each place the tokens that any candidate has there."""


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return a text up to the first of the stops."""
    places = [place for place in (text.find(mark) for mark in stop if mark) if place >= 0]
    return text[: min(places)] if places else text


def spoken(text: str) -> str | None:
    """Return what a model says behind its thoughts (`<think> ... </think>`); None where they do not end."""
    thoughts, end, said = text.rpartition(_THOUGHT)
    if end:
        return said.lstrip("\n")
    return None if thoughts or said.lstrip().startswith(_THINKING) else text
