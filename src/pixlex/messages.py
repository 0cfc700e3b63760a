"""How values of users and their data stand in messages, and their names wherever they are shown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST_CHARACTERS = 80


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


def counted(number: int, what: str) -> str:
    """Return a number of things, such as "1 image" or "2,000 images"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def not_installed(what: str, package: str, extra: str) -> ModuleNotFoundError:
    """Return the error of an optional package that is missing, with the extra of pixlex that brings it."""
    return ModuleNotFoundError(f"{what} needs {package}: pip install 'pixlex[{extra}]'", name=package)


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
