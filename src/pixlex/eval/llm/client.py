"""What a language model that continues text can be asked, wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pixlex.eval.llm.ledger import Estimate

Ability = Literal["generate", "score", "choose", "mix"]
Mode = Literal["auto", "chat", "completions"]
Prompts = Sequence[str]
Candidates = Sequence[Sequence[str]]

# How the reason of a failed answer begins where prompt and answer are longer than the context.
DOES_NOT_FIT = "does not fit"
# The same where the model wrote nothing, or only its reasoning, until the limit of tokens.
NO_TEXT = "no text"


@dataclass(frozen=True, kw_only=True)
class LLMOptions:
    """Which language model answers, and how it is asked.

    Attributes:
        model: the endpoint's name of the model; without an endpoint a directory or a name on the hub.
        base_url: an OpenAI-compatible endpoint, up to and with its version: `http://localhost:8000/v1`; None for a
            model in this process.
        key_variable: the environment variable that holds the endpoint's key; None for OPENAI_API_KEY, and
            for no key where that is not set.
        mode: whether prompts are continued as they are (`completions`) or sent as a user's message (`chat`);
            `auto` takes completions where they are to be had.
        concurrency: requests under way at the same time, 1 or more.
        timeout: seconds until a request is given up and sent again, above 0.
        retries: how often a request is sent again after a failure that may pass, 0 or more.
        cache: folder where the endpoint's answers are kept; None keeps them in memory only.
        input_price: what a million tokens of prompts cost; the currency is the user's.
        output_price: what a million tokens of answers cost.
        max_cost: spending stops before it exceeds so much; needs both prices.
        max_tokens: spending stops before prompts and answers together exceed so many tokens.
        context_size: tokens that prompt and answer may have together, 2 or more; None for what the server or the
            model says.
        tokenizer: directory, name on the hub, or `tiktoken:ENCODING`, to count an endpoint's tokens with;
            None for tiktoken where it is installed and knows the model, else an upper bound.
        device: of a local model: auto, cpu, cuda or cuda:N.
        precision: of a local model; `auto` takes bf16 on GPUs that compute it.
        batch_size: prompts that a local model reads at a time, 1 or more.

    Raises:
        ValueError: a value out of range.
    """

    model: str
    base_url: str | None = None
    key_variable: str | None = None
    mode: Mode = "auto"
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    cache: Path | None = None
    input_price: float | None = None
    output_price: float | None = None
    max_cost: float | None = None
    max_tokens: int | None = None
    context_size: int | None = None
    tokenizer: str | None = None
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("retries", 0), ("batch_size", 1), ("context_size", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0, got {self.timeout}")


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

    @classmethod
    def failed(cls, reason: object) -> Completion:
        """Return the answer that did not come."""
        return cls(text="", finish="failed", reason=f"{reason}")


@dataclass(frozen=True, kw_only=True)
class CandidateScores:
    """How likely a language model finds each continuation of a prompt.

    Attributes:
        log_probabilities: ln p(candidate | prompt) of each candidate, summed over its tokens, in nats; empty
            where nothing came.
        num_tokens: tokens of each candidate.
        reason: why nothing came.
    """

    log_probabilities: tuple[float, ...] = ()
    num_tokens: tuple[int, ...] = ()
    reason: str = ""


class LanguageClient(ABC):
    """A language model that continues text. Results come in any order, each with its prompt's position.

    What makes every request fail (a wrong key, an endpoint that is down, an unknown model) raises
    `ValueError`; what makes one fail is in its result. Nothing that was computed is asked for again.

    Attributes:
        name: its name in tables.
        abilities: what it can be asked.
        context_size: tokens that prompt and continuation may have together; None where it is not known.
        counts_exactly: whether `count_tokens` counts; otherwise it bounds from above.
    """

    name: str
    abilities: frozenset[Ability]
    context_size: int | None
    counts_exactly: bool

    @property
    @abstractmethod
    def identity(self) -> str:
        """A fingerprint of all that decides its answers besides the request."""

    @abstractmethod
    def count_tokens(self, texts: Prompts) -> list[int]:
        """Return the number of tokens of each text."""

    @abstractmethod
    def generate(
        self, prompts: Prompts, *, max_new_tokens: int, stop: Sequence[str]
    ) -> Iterator[tuple[int, Completion]]:
        """Continue each prompt greedily until one of the stops, the end of text, or the limit."""

    @abstractmethod
    def score(self, prompts: Prompts, candidates: Candidates) -> Iterator[tuple[int, CandidateScores]]:
        """Score each prompt's candidates as its continuation."""

    @abstractmethod
    def choose(
        self, prompts: Prompts, candidates: Candidates, *, mix: bool = False
    ) -> Iterator[tuple[int, Completion]]:
        """Continue each prompt greedily with one of its candidates.

        With `mix` (an ability of its own) each place allows the tokens that any candidate has there.
        """

    def estimate(
        self,
        task: Ability,
        prompts: Prompts,
        *,
        candidates: Candidates = (),
        max_new_tokens: int = 0,
        stop: Sequence[str] = (),
    ) -> Estimate | None:
        """Return what a task takes at most, without sending anything; None for a model that costs nothing."""
        return None


def check_candidates(candidates: Sequence[str]) -> None:
    """Raise `ValueError` for no candidate, or an empty one."""
    if not candidates or not all(candidates):
        raise ValueError(f"expected one or more candidates that are not empty, got {list(candidates)}")


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return a text up to the first of the stops."""
    places = [place for mark in stop if mark and (place := text.find(mark)) >= 0]
    return text[: min(places)] if places else text


def without_reasoning(text: str) -> str | None:
    """Return what stands behind `<think> ... </think>`; None where the reasoning does not end."""
    reasoning, end, answer = text.rpartition("</think>")
    if end:
        return answer.lstrip("\n")
    return None if reasoning or answer.lstrip().startswith("<think>") else text
