"""What an endpoint can do: found out by asking, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from pixlex.eval.llm.asking import (
    Choice,
    EndpointFacts,
    choosing,
    generation,
    read_choice,
    read_scores,
    scoring,
)
from pixlex.eval.llm.cache import Answer
from pixlex.eval.llm.faults import Refused, RequestFailed
from pixlex.eval.llm.sending import CHAT, COMPLETIONS, Route

Mode = Literal["auto", "chat", "completions"]
Ask = Callable[[Route, dict[str, Any], int | None], Answer]

PROMPT = "The words of an image are: red boat sea. This is a"
# Nobody writes one of these by chance.
_CHOICES = (" dax blicket perpo", " slation shously dax")
_CHOICE_TOKENS = 64
# A model that thinks before it writes refuses a limit of one token.
WRITING_TOKENS = 16
# What an endpoint breaks on again and again it cannot do.
_BRIEF = 2
# How servers call the number of tokens that a prompt and its answer may have together.
_CONTEXT_FIELDS = ("max_model_len", "context_length", "max_context_length", "context_window", "n_ctx_train")
# Said of an endpoint that was too busy, not of one that cannot.
_BUSY = (None, 408, 429, 502, 503, 504)


def probe(ask: Ask, model: str, mode: Mode, models: Answer) -> EndpointFacts:
    """Find out what an endpoint can do with a model, best first.

    Args:
        ask: sends a request to a path, again so often at most (None: as often as the user wants); raises
            `RequestFailed`.
        model: the endpoint's name of it.
        mode: where to continue texts; `auto` tries completions first.
        models: what the endpoint tells about its models.

    Raises:
        ValueError: it does not continue a text, or is too busy to show what it can do.
        Refused: the key is refused.
    """
    facts = _writing(ask, model, mode)
    if facts.path == COMPLETIONS:
        # Some servers write one token at least.
        rows = [replace(facts, echo_tokens=tokens) for tokens in (0, 1)]
        facts = next((row for row in rows if _scores(ask, model, row)), facts)
    rows = [replace(facts, choice=choice) for choice in _ways(facts)]
    facts = next((row for row in rows if _chooses(ask, model, row)), facts)
    if facts.choice is None and facts.echo_tokens is not None:
        facts = replace(facts, choice="scores")
    return replace(facts, context_size=context_size(models, model))


def _writing(ask: Ask, model: str, mode: Mode) -> EndpointFacts:
    """Find out where texts are continued, and with which parameters."""
    routes: dict[Mode, list[Route]] = {
        "auto": [COMPLETIONS, CHAT],
        "completions": [COMPLETIONS],
        "chat": [CHAT],
    }
    refusals: list[tuple[Route, RequestFailed]] = []
    for route in routes[mode]:
        facts = EndpointFacts(path=route)
        while True:
            body = generation(facts, model, PROMPT, limit=WRITING_TOKENS, stop=["\n"])
            # What is no answer is asked for again only where no other path is left to try.
            refusal = _refusal(ask, route, body, 0 if route != routes[mode][-1] else None)
            if refusal is None:
                return facts
            simpler = None if refusal.malformed else _simpler(facts, f"{refusal}")
            if simpler is None:
                refusals.append((route, refusal))
                break
            facts = simpler
    for _, refusal in refusals:
        if isinstance(refusal, Refused):
            raise refusal
    reasons = "; ".join(f"{route}: {refusal}" for route, refusal in refusals)
    raise ValueError(
        f"the endpoint does not continue texts with {model!r}: {reasons}; --llm-mode chat or completions tries "
        "one path alone, and the address ends with the version, as in http://host:8000/v1"
    )


def _refusal(ask: Ask, route: Route, body: dict[str, Any], retries: int | None) -> RequestFailed | None:
    """Return why a text is not continued; None where it is.

    Raises:
        ValueError: the endpoint is too busy to show.
    """
    try:
        ask(route, body, retries)
    except RequestFailed as refusal:
        if retries is not None and _is_busy(refusal):
            return _refusal(ask, route, body, None)
        _check_not_busy(refusal)
        return refusal
    return None


def _simpler(facts: EndpointFacts, refusal: str) -> EndpointFacts | None:
    """Return how to ask without the parameter that was refused; None where it is none of ours."""
    if "max_completion_tokens" in refusal and facts.limit_field == "max_tokens":
        return replace(facts, limit_field="max_completion_tokens")
    if "temperature" in refusal and facts.temperature:
        return replace(facts, temperature=False)
    if "stop" in refusal and facts.stops:
        return replace(facts, stops=False)
    return None


def _ways(facts: EndpointFacts) -> list[Choice]:
    """Return the ways to ask for one of several candidates, best first."""
    ways: list[Choice] = ["structured_outputs", "guided_choice"]
    return [*ways, "json_schema"] if facts.path == CHAT else ways


def _scores(ask: Ask, model: str, facts: EndpointFacts) -> bool:
    """Tell whether a text comes back with the likelihoods of its tokens."""
    answer = _asked(ask, facts.path, scoring(facts, model, PROMPT))
    try:
        return answer is not None and bool(read_scores(answer, PROMPT))
    except ValueError:
        return False


def _chooses(ask: Ask, model: str, facts: EndpointFacts) -> bool:
    """Tell whether one of several candidates is written; a server may also overlook what it does not know."""
    answer = _asked(ask, facts.path, choosing(facts, model, PROMPT, _CHOICES, limit=_CHOICE_TOKENS))
    return answer is not None and read_choice(facts, answer, _CHOICES).finish == "stop"


def _asked(ask: Ask, route: Route, body: dict[str, Any]) -> Answer | None:
    """Return what an endpoint answers to what it may not be able to do; None where it refuses or breaks."""
    try:
        return ask(route, body, _BRIEF)
    except RequestFailed as refusal:
        _check_not_busy(refusal)
        return None


def _is_busy(refusal: RequestFailed) -> bool:
    return refusal.status in _BUSY and not refusal.malformed


def _check_not_busy(refusal: RequestFailed) -> None:
    """Raise for an endpoint that might answer another time: what it can do is remembered."""
    if _is_busy(refusal):
        raise ValueError(f"the endpoint did not show what it can do: {refusal}") from refusal


def context_size(models: Answer, model: str) -> int | None:
    """Return the number of tokens that an endpoint says a prompt and its answer may have together."""
    entries = models.get("data")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("id") == model:
            meta = entry.get("meta")
            known = {**(meta if isinstance(meta, dict) else {}), **entry}
            sizes = [known[field] for field in _CONTEXT_FIELDS if isinstance(known.get(field), int)]
            return min((size for size in sizes if size > 1), default=None)
    return None
