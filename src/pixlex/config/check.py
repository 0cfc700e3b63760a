"""Checks shared by the configuration dataclasses: one sentence for every value out of range."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from pixlex.messages import quoted


def describe(default: Any, sentence: str) -> Any:
    """Return a dataclass field with its default and the sentence that `pixlex describe` prints."""
    return field(default=default, metadata={"sentence": sentence})


def part(kind: Callable[[], Any], sentence: str) -> Any:
    """Return a dataclass field holding another configuration with all its defaults."""
    return field(default_factory=kind, metadata={"sentence": sentence})


@dataclass(frozen=True)
class Check:
    """Raises `ValueError` naming the field, the rule and the value.

    Args:
        owner: the configuration whose fields are checked.
    """

    owner: Any

    def positive(self, *names: str) -> None:
        """Require each named field to be above 0, and finite."""
        self._finite(*names)
        for name in names:
            self.rule(name, getattr(self.owner, name) > 0, "must be above 0")

    def not_negative(self, *names: str) -> None:
        """Require each named field to be 0 or more, and finite."""
        self._finite(*names)
        for name in names:
            self.rule(name, getattr(self.owner, name) >= 0, "must be 0 or more")

    def _finite(self, *names: str) -> None:
        """Require each named field to be a number that is not infinite."""
        for name in names:
            self.rule(name, -math.inf < getattr(self.owner, name) < math.inf, "must be finite")

    def share(self, *names: str) -> None:
        """Require each named field to lie in [0, 1]."""
        for name in names:
            self.rule(name, 0 <= getattr(self.owner, name) <= 1, "must lie in [0, 1]")

    def one_of(self, name: str, allowed: tuple[str, ...]) -> None:
        """Require the named field to be one of the allowed words."""
        self.rule(name, getattr(self.owner, name) in allowed, f"must be one of {', '.join(allowed)}")

    def rule(self, name: str, holds: bool, sentence: str) -> None:
        """Raise `ValueError` unless `holds`."""
        if not holds:
            kind, value = type(self.owner).__name__, getattr(self.owner, name)
            got = "" if is_dataclass(value) else f", got {quoted(value)}"  # a whole part says nothing
            raise ValueError(f"{kind}.{name} {sentence}{got}")
