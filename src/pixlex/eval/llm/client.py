"""What a language model that continues text can be asked, wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Ability = Literal["generate", "score", "choose", "mix"]
Mode = Literal["auto", "chat", "completions"]
# What an endpoint sends back, as JSON.
Answer = dict[str, Any]

# How the reason of a failed answer begins where prompt and answer are longer than the context.
DOES_NOT_FIT = "does not fit"
# The same where the model wrote nothing, or only its reasoning, until the limit of tokens.
NO_TEXT = "no text"
_LEAST = {
    "concurrency": 1, "retries": 0, "batch_size": 1, "context_size": 2,
    "input_price": 0, "output_price": 0, "max_cost": 0, "max_tokens": 0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LLMOptions:
    """Which language model answers, and how it is asked; a value out of range raises `ValueError`."""

    # The endpoint's name of it; without one a directory, a name on the hub, or a GGUF (`nn.gguf.gguf_files`).
    model: str
    # An OpenAI-compatible endpoint, as http://localhost:8000/v1; None: this process.
    base_url: str | None = None
    # Environment variable of its key; None: OPENAI_API_KEY, no key without it.
    key_variable: str | None = None
    # Prompts are continued as they are (`completions`) or sent as a user's message (`chat`); `auto` takes
    # completions where they are to be had.
    mode: Mode = "auto"
    concurrency: int = 8  # requests under way at the same time, 1 or more
    timeout: float = 120.0  # seconds until a request is given up and sent again, above 0
    retries: int = 6  # how often it is sent again after a failure that may pass
    cache: Path | None = None  # folder where the endpoint's answers are kept; None: in memory
    input_price: float | None = None  # of a million tokens of prompts, in the user's currency
    output_price: float | None = None  # of a million tokens of answers
    max_cost: float | None = None  # spending stops before it exceeds so much; needs both prices
    max_tokens: int | None = None  # it stops before prompts and answers together exceed so many tokens
    context_size: int | None = None  # tokens of both, 2 or more; None: what the server or the model says
    # Counts an endpoint's tokens: a directory, a name on the hub, or `tiktoken:ENCODING`; None: tiktoken where it
    # is installed and knows the model, else an upper bound.
    tokenizer: str | None = None
    device: str = "auto"  # of a local model: auto, cpu, cuda, cuda:N or mps
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of a local one; auto: bf16 on GPUs that compute it
    batch_size: int = 16  # prompts that a local model reads at a time, 1 or more

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name} must be {least} or more, got {value}")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0, got {self.timeout}")
        prices = self.input_price, self.output_price
        if None in prices and prices != (None, None):
            raise ValueError(
                "expected both prices or none, got {} for input and {} for output".format(*prices)
            )
        if self.max_cost is not None and self.input_price is None:
            raise ValueError(f"a cap of {self.max_cost:g} on the cost needs the prices of input and output")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a language model is asked, and how its answer can look.

    Candidates are continuations, leading blanks included, and the text ends without one: a tokenizer makes another
    token of a word behind a blank than of a word behind nothing.
    """

    text: str
    candidates: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()  # where a written answer ends


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came of a prompt: a text, or how likely its candidates are.

    It finished with `stop` at its end or at a stop, `length` where the limit cut it, `failed` where nothing came.
    """

    text: str = ""  # without prompt and stop
    finish: Literal["stop", "length", "failed"] = "stop"
    reason: str = ""  # why nothing came
    # ln p(candidate | prompt) in nats, summed over the tokens of each.
    log_probabilities: tuple[float, ...] = ()
    num_tokens: tuple[int, ...] = ()  # of each candidate

    @classmethod
    def failed(cls, reason: object) -> Reply:
        """Return the answer that did not come."""
        return cls(finish="failed", reason=f"{reason}")


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


class LanguageClient(ABC):
    """A language model that continues text.

    What makes every request fail (a wrong key, an endpoint that is down, an unknown model) raises
    `ValueError`; what makes one fail is in its reply. Nothing that was computed is asked for again.

    It can be asked to `generate` a text greedily until a stop, the end or a limit; to `score` candidates by the
    tokens that reach into them; to `choose` one of them greedily, token by token; to `mix` the tokens that any of
    them has at each place (as V2L's code decodes, Zhu et al. 2024: parts of several may follow each other).
    """

    name: str
    abilities: frozenset[Ability]
    identity: str  # a fingerprint of all that decides its answers besides the request
    context_size: int | None  # tokens that prompt and continuation may have together, where it is known
    counts_exactly: bool  # whether `count_tokens` counts; otherwise it bounds from above

    @abstractmethod
    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""

    @abstractmethod
    def ask(self, ability: Ability, prompts: Sequence[Prompt], limit: int = 1) -> Iterator[tuple[int, Reply]]:
        """Yield the reply to each prompt with its position, in any order; `limit` bounds what is written."""

    def estimate(self, ability: Ability, prompts: Sequence[Prompt], limit: int = 1) -> Estimate | None:
        """Return what `ask` takes at most, without sending anything; None for a model that costs nothing."""
        return None


def check_prompt(ability: Ability, prompt: Prompt, limit: int) -> None:
    """Raise `ValueError` for a limit below one token, no candidate where one is needed, or an empty one."""
    if ability == "generate" and limit < 1:
        raise ValueError(f"the limit of new tokens must be 1 or more, got {limit}")
    names = prompt.candidates
    if ability != "generate" and not (names and all(names)):
        raise ValueError(f"expected one or more candidates that are not empty, got {list(names)}")


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return a text up to the first of the stops."""
    return text[: min((place for mark in stop if mark and (place := text.find(mark)) >= 0), default=None)]


def without_reasoning(text: str) -> str | None:
    """Return what stands behind `<think> ... </think>`; None where the reasoning does not end."""
    reasoning, end, answer = text.rpartition("</think>")
    if end:
        return answer.lstrip("\n")
    return None if reasoning or answer.lstrip().startswith("<think>") else text
