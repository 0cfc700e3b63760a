"""Pictures and pages come after the numbers, and none of them takes the numbers down with it."""

from __future__ import annotations

import html
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from pixlex.files import write_atomically
from pixlex.messages import printable

# What disk, memory, fonts, names, values out of the ordinary and the libraries that draw raise. An AssertionError
# is not among them: that an invariant of ours is broken must not pass for a remark.
_FAULTS = (
    OSError, MemoryError, ImportError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError,
    RuntimeError, struct.error, yaml.YAMLError,
)  # fmt: skip


def drawn(path: Path, draw: Callable[[Path], object]) -> Path | None:
    """Let `draw(temporary_path)` make a picture or a page in one move; where it fails, say so and go on.

    Args:
        path: the final name; what an earlier call left there goes with a failure, for it shows other numbers.
        draw: called with a path in the same folder.

    Returns:
        The path; None where there is no picture.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, draw)
        return path
    except _FAULTS as fault:
        reason = " ".join(printable(line) for line in f"{type(fault).__name__}: {fault}".split())
        print(f"pixlex: {printable(path)} could not be made: {reason:.300}", file=sys.stderr)
    try:
        path.unlink(missing_ok=True)
    except OSError:  # it lies where nothing can be written
        return None
    return None


def escape(text: str) -> str:
    """Return a text as HTML shows it; see `printable`."""
    return html.escape(printable(text, keep="\n"))


def plotted(text: str) -> str:
    """Return a name as matplotlib shows it, which knows no broken UTF-8 and reads dollars as formulas."""
    return printable(text).replace("$", r"\$")
