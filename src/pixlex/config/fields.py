"""Fields of the configurations: default, sentence and range in one place; choices are checked from the type."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pixlex.messages import quoted


@dataclass(frozen=True)
class Range:
    """What the values of a field must be: the end of a sentence, and the test."""

    sentence: str
    holds: Callable[[Any], bool]


POSITIVE = Range("must be above 0", lambda value: value > 0)
NOT_NEGATIVE = Range("must be 0 or more", lambda value: value >= 0)
FRACTION = Range("must lie in [0, 1]", lambda value: 0 <= value <= 1)
INSIDE = Range("must lie in (0, 1)", lambda value: 0 < value < 1)
BELOW_ONE = Range("must lie in [0, 1)", lambda value: 0 <= value < 1)


def at_least(least: int, why: str = "") -> Range:
    """Return the range of the whole numbers from one on."""
    return Range(f"must be {least} or more{why}", lambda value: value >= least)


def naming(what: str) -> Range:
    """Return the range of the texts that are not blank."""
    return Range(f"must name {what}", lambda value: bool(value.strip()))


def describe(default: Any, sentence: str, range: Range | None = None) -> Any:
    """Return a dataclass field with its default, its range and the sentence that `pixlex describe` prints."""
    return field(default=default, metadata={"sentence": sentence, "range": range})


def part(kind: Callable[[], Any], sentence: str) -> Any:
    """Return a dataclass field holding another configuration with all its defaults."""
    return field(default_factory=kind, metadata={"sentence": sentence})


@dataclass(frozen=True, kw_only=True)
class Config:
    """A frozen dataclass whose fields are checked when it is made.

    Raises:
        ValueError: naming the field, the rule and the value.
    """

    def __post_init__(self) -> None:
        """Check each field, then what fields have to do with each other."""
        kind: Any = type(self)
        choices = _choices(kind)
        for one in fields(kind):
            value, allowed = getattr(self, one.name), choices.get(one.name)
            if allowed is not None:
                self.require(one.name, value in allowed, f"must be one of {', '.join(allowed)}")
            if isinstance(value, float | int):
                self.require(one.name, -math.inf < value < math.inf, "must be finite")
            values = one.metadata.get("range")
            if values is not None:
                self.require(one.name, values.holds(value), values.sentence)
        self.check()

    def check(self) -> None:
        """Check what fields have to do with each other."""

    def require(self, name: str, holds: bool, sentence: str) -> None:
        """Raise `ValueError` with the field, the rule and the value unless `holds`."""
        if not holds:
            value = getattr(self, name)
            got = "" if is_dataclass(value) else f", got {quoted(value)}"  # a whole part says nothing
            raise ValueError(f"{type(self).__name__}.{name} {sentence}{got}")


@cache
def _choices(kind: type[Any]) -> dict[str, tuple[str, ...]]:
    """Return the choices of each field that has some."""
    hints = get_type_hints(kind)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
