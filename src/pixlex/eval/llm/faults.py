"""What goes wrong between us and an endpoint: for one attempt, for one request, for all of them."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime

from pixlex.eval.llm.client import DOES_NOT_FIT

# A time-out, a conflict, too early, too many requests; and all that says that the server broke, but for 501,
# with which it says that it cannot.
_PASSING = frozenset({408, 409, 425, 429})
_NOT_IMPLEMENTED = 501
_REFUSED = frozenset({401, 403})
_PAYMENT_REQUIRED = 402
_OUT_OF_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
# How servers say that prompt and answer are longer than the context; each has words of its own.
_MAY_BE_TOO_LONG = frozenset({400, 422})
_TOO_LARGE = 413
_TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window)|maximum model length|too long|reduce the length|inputs`? tokens"
    r"|exceed\w*\b.{0,40}\b(tokens?|context)\b|\btokens?\b.{0,40}exceed",
    re.IGNORECASE,
)


class RequestFailed(Exception):
    """One request came to nothing; the others may be answered.

    Attributes:
        status: the endpoint's status code; None where it gave none.
        malformed: whether it answered, with something that is no answer.
        billed: whether it may have done, and charged, the work.
    """

    def __init__(
        self, reason: str, status: int | None = None, *, malformed: bool = False, billed: bool = False
    ) -> None:
        super().__init__(reason)
        self.status, self.malformed, self.billed = status, malformed, billed


class Refused(RequestFailed):
    """401 or 403: for the key, for one prompt, or for one path; another request shows which."""


class MayPass(RequestFailed):
    """An attempt failed in a way that may pass.

    Attributes:
        wait: seconds that the endpoint asks for.
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
        malformed: bool = False,
    ) -> None:
        super().__init__(reason, status, malformed=malformed, billed=billed)
        self.wait, self.down = wait, down


def status_fault(
    status: int, code: object, reason: str, retry_after: str, key_variable: str
) -> RequestFailed | ValueError:
    """Return what an answer with a status code above 399 means.

    Args:
        status: the code.
        code: the endpoint's own name of the error, where it gives one.
        reason: what it says, fit to be shown.
        retry_after: the header of that name; empty where there is none.
        key_variable: where the key was looked for.

    Returns:
        `MayPass`, `RequestFailed`, or `ValueError` where no request would be answered.
    """
    if status == _PAYMENT_REQUIRED or code in _OUT_OF_MONEY:
        return ValueError(f"no quota left for the key of {key_variable}: {reason}")
    if status in _REFUSED:
        return Refused(f"refused: {reason}", status)
    if status in _PASSING or (status >= 500 and status != _NOT_IMPLEMENTED):
        return MayPass(reason, status, wait=_retry_after(retry_after))
    if status == _TOO_LARGE or (status in _MAY_BE_TOO_LONG and _TOO_LONG.search(reason)):
        return RequestFailed(f"{DOES_NOT_FIT}: {reason}", status)
    return RequestFailed(reason, status)


def _retry_after(text: str) -> float:
    """Return the seconds that a server asks to wait, given as a number or as a date; 0 where it does not."""
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0
