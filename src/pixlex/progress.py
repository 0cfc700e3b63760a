"""How far something is: a bar on a terminal, whole lines in a file."""

from __future__ import annotations

import math
import sys
from typing import Any

from tqdm import tqdm

_SECONDS = 30.0  # between two lines
_LINE = "{desc}: {percentage:.0f}% {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def bar_or_lines(*given: Any, seconds: float = _SECONDS, **settings: Any) -> tqdm[Any]:
    """Return a bar of tqdm, which writes whole lines where stderr is no terminal: a log holds no carriage returns.

    Args:
        given: as for tqdm.
        seconds: between two lines, where lines are written; infinite for none but those of `set_postfix`.
        settings: as for tqdm; `disable=None` hides it where stderr is no terminal.
    """
    if not sys.stderr.isatty():
        settings["disable"] = settings.get("disable", False) is not False
        # A fixed number of rounds keeps tqdm's own thread from writing meanwhile, the delay the line of the start.
        settings |= {"mininterval": seconds, "miniters": 1, "delay": 1e-3, "leave": True}
        settings |= {"file": _Lines(sys.stderr), "ascii": True, "bar_format": _LINE}
    bar = tqdm(*given, **settings)
    if seconds < math.inf:
        bar.delay = 0  # a last line, however early
    return bar


class _Lines:
    """A stream that makes a line of whatever is written over the one before."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.replace("\x1b[A", "").strip()
        if line:
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()
