"""OpenAI's protocol: requests, how their answers are read, and what an endpoint shows it can do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from pixlex.eval.llm.client import NO_TEXT, Ability, Answer, Mode, Prompt, Reply, cut_at, without_reasoning

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
    """One request came to nothing; the others may be answered."""

    reason: str
    status: int | None = None  # the endpoint's, if it gave one
    again: bool = False  # another attempt may be answered
    malformed: bool = False  # it answered, with something that is no answer
    billed: bool = False  # it may have done, and charged, the work
    down: bool = False  # no connection came about
    wait: float = 0.0  # seconds that the endpoint asks to wait

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
    """What an endpoint can do with a model, as it showed; None where it cannot, or where it is not known."""

    path: Route  # where texts are continued; in a chat, prompts are a user's messages
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: bool = True  # 0 may be asked for; without it writing is not greedy
    stops: bool = True  # they may be given
    echo_tokens: int | None = None  # new tokens to ask for when a text is scored
    choice: Choice | None = None  # how one of several candidates can be asked for
    context_size: int | None = None  # tokens of prompt and answer together

    @property
    def abilities(self) -> frozenset[Ability]:
        """What the endpoint can be asked."""
        scores: set[Ability] = set() if self.echo_tokens is None else {"score"}
        chooses: set[Ability] = set() if self.choice is None else {"choose"}
        return frozenset({"generate", *scores, *chooses})

    def scores(self, ability: Ability) -> bool:
        """Whether candidates are scored one by one, so that each is a request of its own."""
        return ability == "score" or (ability == "choose" and self.choice == "scores")

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
        body = {"model": model, "prompt": text, "echo": True, "logprobs": 1}
        return {**body, "max_tokens": self.echo_tokens, "temperature": 0}

    def choosing(self, model: str, prompt: str, candidates: Sequence[str], limit: int) -> dict[str, Any]:
        """Return a request to continue a prompt with one of its candidates."""
        names = [self.shown(candidate) for candidate in candidates]
        schema = {
            "type": "object",
            "properties": {"answer": {"type": "string", "enum": names}},
            "required": ["answer"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        ways: dict[Choice | None, dict[str, Any]] = {
            "structured_outputs": {"structured_outputs": {"choice": names}},
            "guided_choice": {"guided_choice": names},
            "json_schema": {"response_format": form},
        }
        return {**self.generation(model, prompt, limit), **ways[self.choice]}


class ScoredToken(NamedTuple):
    """A token as the endpoint shows it, where it stands, and its ln p given all before it (0 for the first)."""

    text: str
    start: int
    end: int
    log_probability: float


def read_completion(answer: Answer, stop: Sequence[str] = (), limit: int | None = None) -> Reply:
    """Read what was written, without reasoning, up to a stop; a refusal is an answer that failed.

    What is longer than the limit of tokens can be is cut, as it should have been; no text raises `ValueError`.
    """
    choice = _first_choice(answer)
    finish = choice.get("finish_reason")
    message: Any = choice.get("message")
    chat = isinstance(message, dict)
    said, refusal = (message.get("content"), message.get("refusal")) if chat else (choice.get("text"), None)
    if isinstance(said, list):  # some servers give a message in parts, reasoning among them
        parts = [part.get("text") for part in said if isinstance(part, dict) and part.get("type") == "text"]
        said = "".join(part for part in parts if isinstance(part, str))
    if finish == "content_filter" or refusal:
        reason = f"{refusal or 'content filter'}"
        return Reply.failed(f"refused: {reason[:200]}")
    text = without_reasoning(said) if isinstance(said, str) else None
    if text is None or (chat and not text.strip()):
        # Until its limit of tokens it said nothing, or reasoned: it would do so again.
        if (chat and finish == "length") or (isinstance(said, str) and text is None):
            return Reply.failed(f"{NO_TEXT} within the limit of tokens")
        raise ValueError(f"no text in {json.dumps(choice)[:80]}")
    cut = cut_at(text, stop)
    if limit is not None and len(cut) > limit * _MAX_CHARACTERS:
        return Reply(text=cut[: limit * _MAX_CHARACTERS], finish="length")
    return Reply(text=cut, finish="length" if cut == text and finish == "length" else "stop")


def read_choice(facts: EndpointFacts, answer: Answer, candidates: Sequence[str]) -> Reply:
    """Read which candidate was chosen; anything else is an answer that failed, no text raises `ValueError`."""
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
        return Reply.failed(f"answered {text[:60]!r}, which is no candidate")
    return Reply(text=(exact or nearly)[0], finish="stop")


def read_candidates(ability: Ability, answers: Sequence[Answer], prompt: Prompt) -> Reply:
    """Read the scores of a prompt's candidates, as they are or as the candidate that greedy choice would write."""
    size, names = len(prompt.text), prompt.candidates
    try:
        rows = [read_scores(answer, prompt.text + name) for answer, name in zip(answers, names, strict=True)]
    except ValueError as fault:
        return Reply.failed(f"the scores cannot be used: {fault}")
    if any(row[0].end > size for row in rows):
        return Reply.failed(f"the prompt {prompt.text[:40]!r} leaves no token to come before the candidates")
    if ability == "choose":
        return Reply(text=names[choose_by_scores(rows)])
    own = [[token.log_probability for token in row if token.end > size] for row in rows]
    return Reply(log_probabilities=tuple(map(sum, own)), num_tokens=tuple(map(len, own)))


def choose_by_scores(rows: Sequence[Sequence[ScoredToken]]) -> int:
    """Return the text that greedy choice would write, from the scores of the tokens of all of them.

    Greedy choice walks down the tree of the texts' tokens, to the likeliest at each fork; the scores of all
    of them are enough to walk it afterwards. Where a candidate ends and another goes on, the likelihood of an
    end is not known: the longer one is taken where its next token is likelier than all else together.
    """
    left, depth = list(range(len(rows))), 0
    while True:
        ended = [row for row in left if len(rows[row]) == depth]
        left = [row for row in left if len(rows[row]) > depth]
        if ended and (not left or max(rows[row][depth].log_probability for row in left) <= math.log(0.5)):
            return ended[0]
        best = max(left, key=lambda row: rows[row][depth].log_probability)
        left = [row for row in left if rows[row][depth].text == rows[best][depth].text]
        depth += 1


def read_scores(answer: Answer, text: str) -> list[ScoredToken]:
    """Read the tokens of a text that was sent back; raise `ValueError` for no likelihoods, or another text's."""
    tokens, scores, offsets = check_scores(answer)
    # Some servers show the start token, and count its name as text.
    hidden = len(tokens[0]) if not text.startswith(tokens[0]) and offsets[1:2] == [len(tokens[0])] else 0
    starts = [offset - hidden for offset in offsets]
    rows: list[ScoredToken] = []
    # A token that is part of a character is shown by its bytes, longer than it is.
    for token, score, start, following in zip(tokens, scores, starts, [*starts[1:], len(text)], strict=True):
        if start >= len(text):
            break
        if score is None and rows:
            raise ValueError(f"expected the likelihood of token {len(rows)} ({token!r}), got none")
        rows.append(ScoredToken(token, start, min(start + len(token), following), score or 0.0))
    if not rows or rows[-1].end != len(text):
        raise ValueError(f"expected the tokens of {len(text)} characters, got {rows[-1:]}")
    return rows


def _num_written(answer: Answer, text: str) -> int:
    """Return how many scored tokens stand behind a text that was sent back; errors as of `read_scores`."""
    return len(check_scores(answer)[0]) - len(read_scores(answer, text))


def check_scores(answer: Answer) -> tuple[list[str], list[float | None], list[int]]:
    """Return tokens, their log-probabilities and where they begin; raise `ValueError` where they are missing."""
    given = _first_choice(answer).get("logprobs")
    if not isinstance(given, dict):
        raise ValueError("no log-probabilities")
    fields = {"tokens": str, "token_logprobs": float | int | None, "text_offset": int}
    columns = [given.get(name) or [] for name in fields]
    for (name, kind), values in zip(fields.items(), columns, strict=True):
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            raise ValueError(f"{name} of another kind in {json.dumps(given)[:80]}")
    tokens, scores, offsets = columns
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
        for tokens in (0, 1):
            scoring = replace(facts, echo_tokens=tokens)
            answer = _try(ask, facts.path, scoring.scoring(model, PROMPT))
            with suppress(ValueError):
                # llama.cpp's server takes 0 for no limit, and writes until its context is full.
                if isinstance(answer, dict) and _num_written(answer, PROMPT) <= tokens:
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
    failures: list[RequestFailed] = []
    for route in routes:
        facts: EndpointFacts | None = EndpointFacts(path=route)
        while facts is not None:
            body = facts.generation(model, PROMPT, PROMPT_LIMIT, ["\n"])
            # What is no answer is asked for again only where no other path is left to try.
            failure = _try(ask, route, body, None if route == routes[-1] else 0)
            if isinstance(failure, dict):
                return facts
            simpler = None if failure.malformed else _simpler(facts, f"{failure}")
            if simpler is None:
                failures.append(failure)
            facts = simpler
    for failure in failures:
        if failure.is_refusal:
            raise failure
    reasons = "; ".join(f"{route}: {failure}" for route, failure in zip(routes, failures, strict=True))
    raise ValueError(
        f"the endpoint does not continue texts with {model!r}: {reasons}; --llm-mode chat or completions tries "
        "one path alone, and the address ends with the version, as in http://host:8000/v1"
    )


def _simpler(facts: EndpointFacts, refusal: str) -> EndpointFacts | None:
    """Return how to ask without the parameter that was refused, if it is one of ours."""
    if "max_completion_tokens" in refusal and facts.limit_field == "max_tokens":
        return replace(facts, limit_field="max_completion_tokens")
    if "temperature" in refusal and facts.temperature:
        return replace(facts, temperature=False)
    return replace(facts, stops=False) if "stop" in refusal and facts.stops else None


def _try(
    ask: Ask, route: Route, body: dict[str, Any], retries: int | None = _FEW_RETRIES
) -> Answer | RequestFailed:
    """Return what an endpoint answers to what it may not be able to do, or why it does not.

    A busy one, which might answer another time, raises `ValueError`: what it can do is remembered.
    """
    try:
        return ask(route, body, retries)
    except RequestFailed as failure:
        if not failure.is_busy:
            return failure
        if retries != 0:
            raise ValueError(f"the endpoint did not show what it can do: {failure}") from failure
    return _try(ask, route, body, None)


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
