"""What goes wrong between us and an endpoint: for one attempt, for one request, for all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

# A time-out, a conflict, too early, too many requests; and all that says that the server broke, but for 501,
# with which it says that it cannot.
_PASSING = frozenset({408, 409, 425, 429})
_NOT_IMPLEMENTED = 501
_REFUSED = frozenset({401, 403})
_PAYMENT_REQUIRED = 402
_OUT_OF_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached"})


class RequestFailed(Exception):
    """One request came to nothing; the others may be answered.

    Attributes:
        status: the endpoint's status code; None where it gave none.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class MayPass(RequestFailed):
    """An attempt failed in a way that may pass.

    Attributes:
        wait: seconds that the endpoint asks for.
        billed: whether the endpoint may have done, and charged, the work.
        down: whether no connection came about.
    """

    def __init__(
        self,
        reason: str,
        status: int | None = None,
        *,
        wait: float = 0.0,
        billed: bool = False,
        down: bool = False,
    ) -> None:
        super().__init__(reason, status)
        self.wait, self.billed, self.down = wait, billed, down


def status_fault(fault: Any, reason: str, key_variable: str) -> RequestFailed | ValueError:
    """Return what an answer with a status code above 399 means.

    Args:
        fault: an `openai.APIStatusError`.
        reason: what it says, fit to be shown.
        key_variable: where the key was looked for.

    Returns:
        `MayPass`, `RequestFailed`, or `ValueError` where no request would be answered.
    """
    status: int = fault.status_code
    if status == _PAYMENT_REQUIRED or fault.code in _OUT_OF_MONEY:
        return ValueError(f"no quota left for the key of {key_variable}: {reason}")
    if status in _REFUSED:
        return ValueError(f"the key of {key_variable} is refused: {reason}")
    if status in _PASSING or (status >= 500 and status != _NOT_IMPLEMENTED):
        return MayPass(reason, status, wait=_retry_after(fault.response.headers))
    return RequestFailed(reason, status)


def connection_fault(fault: Any, reason: str) -> MayPass:
    """Return what a connection that broke, or never came about, means.

    Args:
        fault: an `openai.APIConnectionError`.
        reason: what it says, fit to be shown.
    """
    # The names are those of the library below openai's, which is another one since version 3.
    down = type(fault.__cause__).__name__ in ("ConnectError", "ConnectTimeout")
    return MayPass(reason, billed=not down, down=down)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a server asks to wait, given as a number or as a date; 0 where it does not."""
    text = headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0
