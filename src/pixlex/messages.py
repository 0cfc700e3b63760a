"""How values of users and their data stand in messages, and their names wherever they are shown."""

from __future__ import annotations

import difflib
import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

_MOST_CHARACTERS = 80
_P = ParamSpec("_P")
_R = TypeVar("_R")


def quoted(value: object, limit: int = _MOST_CHARACTERS) -> str:
    """Return a value as Python writes it, in one line of at most so many characters.

    Control characters and halves of characters come out escaped, so that a terminal can show them.
    """
    # Long texts and bytes are cut before they are written: a cell may hold a whole picture.
    cut = value[: limit + 1] if isinstance(value, str | bytes | bytearray) else value
    text = repr(cut).replace("\n", " ")
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a question for the names that a misspelt one may have meant, or what is known where none is near.

    Each name stands behind a prefix.
    """
    names = list(known)
    near = [f"{prefix}{name}" for name in difflib.get_close_matches(word, names, n=2)]
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"


def not_installed(what: str, package: str, extra: str) -> ModuleNotFoundError:
    """Return the error of an optional package that is missing, with the extra of pixlex that brings it."""
    return ModuleNotFoundError(f"{what} needs {package}: pip install 'pixlex[{extra}]'", name=package)


def renamed(old: str, new: str) -> Callable[..., Any]:
    """Return a method by its old name, which warns and calls the one of the new name."""

    def method(self: Any, *given: Any, **named: Any) -> Any:
        warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(self, new)(*given, **named)

    return method


def renamed_keyword(old: str, new: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let a function also take a keyword by its old name, with a warning."""

    def wrap(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def call(*given: _P.args, **named: _P.kwargs) -> _R:
            if old in named:
                warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
                named[new] = named.pop(old)
            return function(*given, **named)

        return call

    return wrap


def printable(text: object, keep: str = "") -> str:
    r"""Return a text as it may be shown: on a terminal, in a log, on a page, in a picture.

    File names may hold bytes that are no UTF-8, and characters that move the cursor or turn the direction of
    writing. They are shown as Python writes them, such as `\xff` and `\x1b`, but for those to keep; what is data
    keeps them.
    """
    return "".join(mark if mark.isprintable() or mark in keep else _escaped(mark) for mark in str(text))


def _escaped(mark: str) -> str:
    """Return a character as an escape; a byte that is no UTF-8 as that byte."""
    number = ord(mark)
    return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else ascii(mark)[1:-1]
