"""What a run may cost, and what it has cost: tokens and money, counted before and after every request."""

from __future__ import annotations

import threading
from dataclasses import dataclass

_MILLION = 1_000_000


class SpendingCapReached(ValueError):
    """The next request could have exceeded what the user is willing to spend; it was not sent."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one request or of many.

    Attributes:
        prompt: tokens read.
        answer: tokens written.
    """

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


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost, in the user's currency.

    Attributes:
        prompt: tokens read, 0 or more.
        answer: tokens written, 0 or more.
    """

    prompt: float
    answer: float

    @staticmethod
    def of(prompt: float | None, answer: float | None) -> Prices | None:
        """Return prices where both are given.

        Raises:
            ValueError: one of two, or a negative one.
        """
        if prompt is None and answer is None:
            return None
        if prompt is None or answer is None:
            raise ValueError(f"expected both prices or none, got {prompt} for input and {answer} for output")
        if not (prompt >= 0 and answer >= 0):
            raise ValueError(f"prices must be 0 or more, got {prompt} for input and {answer} for output")
        return Prices(prompt, answer)

    def cost(self, usage: Usage) -> float:
        """Return what tokens cost."""
        return (usage.prompt * self.prompt + usage.answer * self.answer) / _MILLION


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What requests would take at most.

    Attributes:
        requests: how many would be sent.
        cached: how many are answered already and cost nothing.
        usage: tokens of those that would be sent, each answer as long as it may become.
        cost: what they cost; None without prices.
    """

    requests: int
    cached: int
    usage: Usage
    cost: float | None


class Budget:
    """Holds spending under a cap, whatever number of requests are under way.

    A request's worst case is set aside before it is sent and replaced by what it took when it is answered.
    The cap is one of this object, hence of one run; answers from the cache cost nothing.

    Args:
        prices: None where money is not counted.
        max_cost: money, 0 or more; None for no cap.
        max_tokens: tokens read and written, 0 or more; None for no cap.

    Raises:
        ValueError: a negative cap, or a cap on money without prices.
    """

    def __init__(
        self, prices: Prices | None = None, max_cost: float | None = None, max_tokens: int | None = None
    ) -> None:
        if max_cost is not None and prices is None:
            raise ValueError(f"a cap of {max_cost:g} on the cost needs the prices of input and output")
        for name, cap in (("max_cost", max_cost), ("max_tokens", max_tokens)):
            if cap is not None and not cap >= 0:
                raise ValueError(f"{name} must be 0 or more, got {cap}")
        self.prices, self.max_cost, self.max_tokens = prices, max_cost, max_tokens
        self._spent = Usage()
        self._reserved = Usage()
        self._changed = threading.Condition()

    @property
    def spent(self) -> Usage:
        """Tokens of all that was sent so far."""
        return self._spent

    @property
    def cost(self) -> float | None:
        """Money spent so far; None without prices."""
        return None if self.prices is None else self.prices.cost(self._spent)

    def reserve(self, worst: Usage) -> None:
        """Set a request's worst case aside; wait where requests under way may turn out cheaper.

        Raises:
            SpendingCapReached: it does not fit under the cap.
        """
        with self._changed:
            while excess := self._excess(self._spent + self._reserved + worst):
                if self._reserved.total == 0:
                    raise SpendingCapReached(
                        f"stopped before the spending cap: {excess}; what was answered is kept"
                    )
                self._changed.wait()
            self._reserved += worst

    def settle(self, worst: Usage, taken: Usage) -> None:
        """Replace what was set aside by what the request took."""
        with self._changed:
            self._reserved -= worst
            self._spent += taken
            self._changed.notify_all()

    def _excess(self, usage: Usage) -> str:
        """Say how tokens exceed a cap; nothing where they do not."""
        if self.max_tokens is not None and usage.total > self.max_tokens:
            return (
                f"{self._spent.total} tokens are spent, the next request may take "
                f"{usage.total - self._spent.total}, at most {self.max_tokens} are allowed"
            )
        if self.max_cost is not None and self.prices is not None and self.prices.cost(usage) > self.max_cost:
            spent = self.prices.cost(self._spent)
            return (
                f"{spent:.6g} is spent, the next request may cost {self.prices.cost(usage) - spent:.6g}, "
                f"at most {self.max_cost:g} is allowed"
            )
        return ""
