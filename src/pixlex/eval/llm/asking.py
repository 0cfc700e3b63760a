"""What is written to an endpoint, and how its answers are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from pixlex.eval.llm.cache import Answer
from pixlex.eval.llm.client import NO_TEXT, Ability, Completion, cut_at, spoken
from pixlex.eval.llm.sending import CHAT, Route

# OpenAI takes no more; all of them cut the text in any case, when it is read.
_MOST_STOPS = 4
# No vocabulary in use has longer tokens, but for rows of blanks.
_MOST_CHARACTERS = 64

Choice = Literal["structured_outputs", "guided_choice", "json_schema", "scores"]


@dataclass(frozen=True, kw_only=True)
class EndpointFacts:
    """What an endpoint can do with a model, as it showed.

    Attributes:
        path: where texts are continued; in a chat, prompts are a user's messages.
        limit_field: how the limit of new tokens is called.
        temperature: whether a temperature of 0 may be asked for; without it writing is not greedy.
        stops: whether stops may be given.
        echo_tokens: new tokens to ask for when a text is scored; None where texts cannot be scored.
        choice: how one of several candidates can be asked for; None where it cannot.
        context_size: tokens of prompt and answer together; None where it does not tell.
    """

    path: Route
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: bool = True
    stops: bool = True
    echo_tokens: int | None = None
    choice: Choice | None = None
    context_size: int | None = None

    @property
    def abilities(self) -> frozenset[Ability]:
        """What the endpoint can be asked."""
        abilities: set[Ability] = {"generate"}
        if self.echo_tokens is not None:
            abilities.add("score")
        if self.choice is not None:
            abilities.add("choose")
        return frozenset(abilities)


@dataclass(frozen=True)
class ScoredToken:
    """A token of a text.

    Attributes:
        text: its text, as the endpoint shows it.
        start: where it begins in the text.
        end: where it ends.
        log_probability: ln p given all before it; 0 for the first, which has nothing before it.
    """

    text: str
    start: int
    end: int
    log_probability: float


def generation(
    facts: EndpointFacts, model: str, prompt: str, *, limit: int, stop: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a request to continue a text greedily."""
    body: dict[str, Any] = {"model": model, facts.limit_field: limit}
    if facts.path == CHAT:
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    if facts.temperature:
        body["temperature"] = 0
    if facts.stops and stop:
        body["stop"] = list(stop[:_MOST_STOPS])
    return body


def scoring(facts: EndpointFacts, model: str, text: str) -> dict[str, Any]:
    """Return a request to score a text: it is sent back with the likelihood of its tokens."""
    return {
        "model": model,
        "prompt": text,
        "echo": True,
        "logprobs": 1,
        "max_tokens": facts.echo_tokens,
        "temperature": 0,
    }


def choosing(
    facts: EndpointFacts, model: str, prompt: str, candidates: Sequence[str], *, limit: int
) -> dict[str, Any]:
    """Return a request to continue a prompt with one of its candidates."""
    body = generation(facts, model, prompt, limit=limit)
    names = [shown(facts, candidate) for candidate in candidates]
    if facts.choice == "structured_outputs":
        return {**body, "structured_outputs": {"choice": names}}
    if facts.choice == "guided_choice":
        return {**body, "guided_choice": names}
    assert facts.choice == "json_schema", facts.choice
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": names}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    return {**body, "response_format": wanted}


def shown(facts: EndpointFacts, candidate: str) -> str:
    """Return a candidate as the endpoint is shown it: an answer in a chat does not begin with a space."""
    return candidate.strip() if facts.path == CHAT else candidate


def read_completion(answer: Answer, stop: Sequence[str] = (), limit: int | None = None) -> Completion:
    """Read what was written, behind the thoughts of a model that thinks; a refusal is an answer that failed.

    Args:
        answer: what came.
        stop: where to cut the text.
        limit: tokens that were asked for; what is longer than they can be is cut, as the endpoint should have.

    Raises:
        ValueError: no text in it.
    """
    choice = _first_choice(answer)
    message = choice.get("message")
    chat = isinstance(message, dict)
    said = _content(message.get("content")) if isinstance(message, dict) else choice.get("text")
    refusal = message.get("refusal") if isinstance(message, dict) else None
    finish = choice.get("finish_reason")
    if finish == "content_filter" or refusal:
        said = f"{refusal or 'content filter'}"
        return Completion(text="", finish="failed", reason=f"refused: {said[:200]}")
    text = spoken(said) if isinstance(said, str) else None
    if text is None or (chat and not text.strip()):
        # Until its tokens were used up it said nothing, or thought: it would do so again.
        if (chat and finish == "length") or (isinstance(said, str) and text is None):
            return Completion(text="", finish="failed", reason=f"{NO_TEXT} within the limit of tokens")
        raise ValueError(f"no text in {json.dumps(choice)[:80]}")
    cut = cut_at(text, stop)
    if limit is not None and len(cut) > limit * _MOST_CHARACTERS:
        return Completion(text=cut[: limit * _MOST_CHARACTERS], finish="length")
    return Completion(text=cut, finish="length" if cut == text and finish == "length" else "stop")


def _content(said: Any) -> Any:
    """Return the text of a message; some servers give it in parts, thoughts among them."""
    if not isinstance(said, list):
        return said
    parts = [part.get("text") for part in said if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(part for part in parts if isinstance(part, str))


def read_choice(facts: EndpointFacts, answer: Answer, candidates: Sequence[str]) -> Completion:
    """Read which candidate was chosen; anything else is an answer that failed.

    Raises:
        ValueError: no text in it.
    """
    written = read_completion(answer)
    if written.finish == "failed":
        return written
    text = written.text
    if facts.choice == "json_schema":
        # What is no such object is reported as it came.
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            text = f"{json.loads(text)['answer']}"
    for candidate in candidates:
        if text == shown(facts, candidate):
            return Completion(text=candidate, finish="stop")
    for candidate in candidates:
        if text.strip() == candidate.strip():
            return Completion(text=candidate, finish="stop")
    return Completion(text="", finish="failed", reason=f"answered {text[:60]!r}, which is no candidate")


def read_scores(answer: Answer, text: str) -> list[ScoredToken]:
    """Read the tokens of a text that was sent back, without what was written after it.

    Raises:
        ValueError: no likelihoods, or those of another text.
    """
    tokens, scores, offsets = _told_scores(answer)
    # Some servers show the start token, and count its name as text.
    hidden = len(tokens[0]) if not text.startswith(tokens[0]) and offsets[1:2] == [len(tokens[0])] else 0
    rows = []
    for place, (token, score) in enumerate(zip(tokens, scores, strict=True)):
        start = offsets[place] - hidden
        # A token that is part of a character is shown by its bytes, longer than it is.
        following = offsets[place + 1] - hidden if place + 1 < len(offsets) else len(text)
        if start >= len(text):
            break
        if score is None and place > 0:
            raise ValueError(f"expected the likelihood of token {place} ({token!r}), got none")
        rows.append(ScoredToken(token, start, min(start + len(token), following), score or 0.0))
    if not rows or rows[-1].end != len(text):
        raise ValueError(f"expected the tokens of {len(text)} characters, got {rows[-1:]}")
    return rows


def check_scores(answer: Answer) -> None:
    """Raise `ValueError` for an answer without the likelihoods of tokens."""
    _told_scores(answer)


def _told_scores(answer: Answer) -> tuple[list[str], list[float | None], list[int]]:
    told = _first_choice(answer).get("logprobs")
    if not isinstance(told, dict):
        raise ValueError("no log-probabilities")
    tokens, scores, offsets = (told.get(name) or [] for name in ("tokens", "token_logprobs", "text_offset"))
    for name, values, kinds in (
        ("tokens", tokens, str),
        ("scores", scores, float | int | None),
        ("places", offsets, int),
    ):
        if not isinstance(values, list) or not all(isinstance(value, kinds) for value in values):
            raise ValueError(f"{name} of another kind in {json.dumps(told)[:80]}")
    if not len(tokens) == len(scores) == len(offsets) or not tokens:
        raise ValueError(f"{len(tokens)} tokens with {len(scores)} scores and {len(offsets)} places")
    return tokens, scores, offsets


def _first_choice(answer: Answer) -> dict[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError(f"no choice in {json.dumps(answer)[:80]}")
    first: dict[str, Any] = choices[0]
    return first
