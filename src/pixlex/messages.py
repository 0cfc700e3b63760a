"""How values of users and their data stand in messages."""

from __future__ import annotations

_MOST_CHARACTERS = 80


def quoted(value: object, limit: int = _MOST_CHARACTERS) -> str:
    """Return a value as Python writes it, in one line of at most so many characters.

    Control characters and halves of characters come out escaped, so that a terminal can show them.

    Args:
        value: a cell, an option, a configuration.
        limit: most characters, 4 or more; what is longer ends in "...".
    """
    # Long texts and bytes are cut before they are written: a cell may hold a whole picture.
    cut = value[: limit + 1] if isinstance(value, str | bytes | bytearray) else value
    text = repr(cut).replace("\n", " ")
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
