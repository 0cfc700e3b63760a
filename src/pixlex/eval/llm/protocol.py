"""OpenAI's protocol: requests, how their answers are read, and what an endpoint shows it can do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from pixlex.eval.llm.client import NO_TEXT, Ability, Completion, Mode, cut_at, without_reasoning
from pixlex.eval.llm.ledger import Answer

Route = Literal["completions", "chat/completions"]
COMPLETIONS: Route = "completions"
CHAT: Route = "chat/completions"
Choice = Literal["structured_outputs", "guided_choice", "json_schema", "scores"]

# OpenAI takes no more; all of them cut the text in any case, when it is read.
_MAX_STOPS = 4
# No vocabulary in use has longer tokens, but for rows of blanks.
_MAX_CHARACTERS = 64
# A harmless prompt; a model that reasons first refuses a limit of one token.
PROMPT = "The words of an image are: red boat sea. This is a"
PROMPT_LIMIT = 16
# Nobody writes one of these by chance.
_CANDIDATES = (" dax blicket perpo", " slation shously dax")
_CHOICE_LIMIT = 64
# What an endpoint breaks on again and again it cannot do.
_FEW_RETRIES = 2
# How servers call the number of tokens that a prompt and its answer may have together.
_CONTEXT_FIELDS = ("max_model_len", "context_length", "max_context_length", "context_window", "n_ctx_train")
# Of an endpoint that was too busy, not of one that cannot.
_BUSY = (None, 408, 429, 502, 503, 504)


@dataclass(eq=False)
class RequestFailed(Exception):
    """One request came to nothing; the others may be answered.

    Attributes:
        reason: what happened.
        status: the endpoint's status code; None where it gave none.
        again: whether another attempt may be answered.
        malformed: whether it answered, with something that is no answer.
        billed: whether it may have done, and charged, the work.
        down: whether no connection came about.
        wait: seconds that the endpoint asks to wait.
    """

    reason: str
    status: int | None = None
    again: bool = False
    malformed: bool = False
    billed: bool = False
    down: bool = False
    wait: float = 0.0

    def __str__(self) -> str:
        return self.reason

    @property
    def is_refusal(self) -> bool:
        """Whether it is for the key, for one prompt, or for one path; another request shows which."""
        return self.status in (401, 403)

    @property
    def is_busy(self) -> bool:
        """Whether the endpoint might answer another time."""
        return self.status in _BUSY and not self.malformed


@dataclass(frozen=True, kw_only=True)
class EndpointFacts:
    """What an endpoint can do with a model, as it showed.

    Attributes:
        path: where texts are continued; in a chat, prompts are a user's messages.
        limit_field: how the limit of new tokens is called.
        temperature: whether a temperature of 0 may be asked for; without it writing is not greedy.
        stops: whether stops may be given.
        echo_tokens: new tokens to ask for when a text is scored; None where it cannot be.
        choice: how one of several candidates can be asked for; None where it cannot.
        context_size: tokens of prompt and answer together; None where it is not known.
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
        able: dict[Ability, bool] = {
            "generate": True,
            "score": self.echo_tokens is not None,
            "choose": self.choice is not None,
        }
        return frozenset(ability for ability, has in able.items() if has)

    def shown(self, candidate: str) -> str:
        """Return a candidate as the endpoint is shown it: an answer in a chat does not begin with a space."""
        return candidate.strip() if self.path == CHAT else candidate

    def generation(self, model: str, prompt: str, limit: int, stop: Sequence[str] = ()) -> dict[str, Any]:
        """Return a request to continue a text greedily."""
        body: dict[str, Any] = {"model": model, self.limit_field: limit}
        if self.path == CHAT:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if self.temperature:
            body["temperature"] = 0
        if self.stops and stop:
            body["stop"] = list(stop[:_MAX_STOPS])
        return body

    def scoring(self, model: str, text: str) -> dict[str, Any]:
        """Return a request to score a text: it is sent back with the likelihood of its tokens."""
        return {
            "model": model,
            "prompt": text,
            "echo": True,
            "logprobs": 1,
            "max_tokens": self.echo_tokens,
            "temperature": 0,
        }

    def choosing(self, model: str, prompt: str, candidates: Sequence[str], limit: int) -> dict[str, Any]:
        """Return a request to continue a prompt with one of its candidates."""
        body = self.generation(model, prompt, limit)
        names = [self.shown(candidate) for candidate in candidates]
        if self.choice == "structured_outputs":
            return {**body, "structured_outputs": {"choice": names}}
        if self.choice == "guided_choice":
            return {**body, "guided_choice": names}
        assert self.choice == "json_schema", self.choice
        schema = {
            "type": "object",
            "properties": {"answer": {"type": "string", "enum": names}},
            "required": ["answer"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        return {**body, "response_format": form}


@dataclass(frozen=True)
class ScoredToken:
    """A token as the endpoint shows it, where it stands, and its ln p given all before it (0 for the first)."""

    text: str
    start: int
    end: int
    log_probability: float


def read_completion(answer: Answer, stop: Sequence[str] = (), limit: int | None = None) -> Completion:
    """Read what was written, without reasoning, up to a stop; a refusal is an answer that failed.

    What is longer than the limit of tokens can be is cut, as the endpoint should have.

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
        return Completion.failed(f"refused: {said[:200]}")
    text = without_reasoning(said) if isinstance(said, str) else None
    if text is None or (chat and not text.strip()):
        # Until its limit of tokens it said nothing, or reasoned: it would do so again.
        if (chat and finish == "length") or (isinstance(said, str) and text is None):
            return Completion.failed(f"{NO_TEXT} within the limit of tokens")
        raise ValueError(f"no text in {json.dumps(choice)[:80]}")
    cut = cut_at(text, stop)
    if limit is not None and len(cut) > limit * _MAX_CHARACTERS:
        return Completion(text=cut[: limit * _MAX_CHARACTERS], finish="length")
    return Completion(text=cut, finish="length" if cut == text and finish == "length" else "stop")


def _content(said: Any) -> Any:
    """Return the text of a message; some servers give it in parts, reasoning among them."""
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
    exact = [candidate for candidate in candidates if facts.shown(candidate) == text]
    nearly = [candidate for candidate in candidates if candidate.strip() == text.strip()]
    if not nearly:
        return Completion.failed(f"answered {text[:60]!r}, which is no candidate")
    return Completion(text=(exact or nearly)[0], finish="stop")


def read_scores(answer: Answer, text: str) -> list[ScoredToken]:
    """Read the tokens of a text that was sent back, without what was written after it.

    Raises:
        ValueError: no likelihoods, or those of another text.
    """
    tokens, scores, offsets = check_scores(answer)
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


def check_scores(answer: Answer) -> tuple[list[str], list[float | None], list[int]]:
    """Return tokens, their log-probabilities and where they begin; raise `ValueError` where they are missing."""
    given = _first_choice(answer).get("logprobs")
    if not isinstance(given, dict):
        raise ValueError("no log-probabilities")
    tokens, scores, offsets = (given.get(name) or [] for name in ("tokens", "token_logprobs", "text_offset"))
    for name, values, kinds in (
        ("tokens", tokens, str),
        ("scores", scores, float | int | None),
        ("places", offsets, int),
    ):
        if not isinstance(values, list) or not all(isinstance(value, kinds) for value in values):
            raise ValueError(f"{name} of another kind in {json.dumps(given)[:80]}")
    if not len(tokens) == len(scores) == len(offsets) or not tokens:
        raise ValueError(f"{len(tokens)} tokens with {len(scores)} scores and {len(offsets)} places")
    return tokens, scores, offsets


def _first_choice(answer: Answer) -> dict[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError(f"no choice in {json.dumps(answer)[:80]}")
    first: dict[str, Any] = choices[0]
    return first


# Sends a request to a path, again so often at most (None: as often as the user wants); raises `RequestFailed`.
Ask = Callable[[Route, dict[str, Any], int | None], Answer]


def probe(ask: Ask, model: str, mode: Mode, models: Answer) -> EndpointFacts:
    """Find out what an endpoint can do with a model, best first; `models` is what it says about its models.

    Raises:
        ValueError: it does not continue a text, or is too busy to show what it can do.
        RequestFailed: the key is refused.
    """
    facts = _writing(ask, model, mode)
    if facts.path == COMPLETIONS:
        # Some servers write one token at least.
        for scoring in (replace(facts, echo_tokens=tokens) for tokens in (0, 1)):
            answer = _try(ask, scoring.path, scoring.scoring(model, PROMPT))
            with suppress(ValueError):
                if isinstance(answer, dict) and read_scores(answer, PROMPT):
                    facts = scoring
                    break
    ways: list[Choice] = ["structured_outputs", "guided_choice"]
    if facts.path == CHAT:
        ways.append("json_schema")
    for choosing in [replace(facts, choice=way) for way in ways]:
        answer = _try(ask, facts.path, choosing.choosing(model, PROMPT, _CANDIDATES, _CHOICE_LIMIT))
        # A server may also overlook what it does not know.
        if isinstance(answer, dict) and read_choice(choosing, answer, _CANDIDATES).finish == "stop":
            facts = choosing
            break
    if facts.choice is None and facts.echo_tokens is not None:
        facts = replace(facts, choice="scores")
    return replace(facts, context_size=_context_size(models, model))


def _writing(ask: Ask, model: str, mode: Mode) -> EndpointFacts:
    """Find out where texts are continued, and with which parameters."""
    routes = [route for route, other in ((COMPLETIONS, "chat"), (CHAT, "completions")) if mode != other]
    failures: list[tuple[Route, RequestFailed]] = []
    for route in routes:
        facts: EndpointFacts | None = EndpointFacts(path=route)
        while facts is not None:
            body = facts.generation(model, PROMPT, PROMPT_LIMIT, ["\n"])
            # What is no answer is asked for again only where no other path is left to try.
            failure = _try(ask, route, body, None if route == routes[-1] else 0)
            if isinstance(failure, dict):
                return facts
            facts = None if failure.malformed else next(_simpler(facts, f"{failure}"), None)
            if facts is None:
                failures.append((route, failure))
    for _, failure in failures:
        if failure.is_refusal:
            raise failure
    reasons = "; ".join(f"{route}: {failure}" for route, failure in failures)
    raise ValueError(
        f"the endpoint does not continue texts with {model!r}: {reasons}; --llm-mode chat or completions tries "
        "one path alone, and the address ends with the version, as in http://host:8000/v1"
    )


def _simpler(facts: EndpointFacts, refusal: str) -> Iterator[EndpointFacts]:
    """Yield how to ask without the parameter that was refused, if it is one of ours."""
    if "max_completion_tokens" in refusal and facts.limit_field == "max_tokens":
        yield replace(facts, limit_field="max_completion_tokens")
    if "temperature" in refusal and facts.temperature:
        yield replace(facts, temperature=False)
    if "stop" in refusal and facts.stops:
        yield replace(facts, stops=False)


def _try(
    ask: Ask, route: Route, body: dict[str, Any], retries: int | None = _FEW_RETRIES
) -> Answer | RequestFailed:
    """Return what an endpoint answers to what it may not be able to do, or why it does not.

    Raises:
        ValueError: it is busy, and might answer another time: what it can do is remembered.
    """
    try:
        return ask(route, body, retries)
    except RequestFailed as failure:
        if failure.is_busy and retries == 0:
            return _try(ask, route, body, None)
        if failure.is_busy:
            raise ValueError(f"the endpoint did not show what it can do: {failure}") from failure
        return failure


def _context_size(models: Answer, model: str) -> int | None:
    """Return the number of tokens that an endpoint says a prompt and its answer may have together."""
    entries = models.get("data")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("id") == model:
            meta = entry.get("meta")
            known = {**(meta if isinstance(meta, dict) else {}), **entry}
            sizes = [known[field] for field in _CONTEXT_FIELDS if isinstance(known.get(field), int)]
            return min((size for size in sizes if size > 1), default=None)
    return None
