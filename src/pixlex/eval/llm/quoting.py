"""What an endpoint says, fit to be shown and kept: without the key that was sent to it, and of bounded length."""

from __future__ import annotations

import base64
import json
import re
from typing import Any
from urllib.parse import quote, quote_plus

# A placeholder of servers that want no key ("none", "EMPTY") is no secret, and may be a word of an answer.
_SHORTEST_SECRET = 6
# So many characters in a row of a key are as good as a part of it.
_PIECE = 8
_HIDDEN = "***"
_MOST_SHOWN = 300
_USER = re.compile(r"//[^/@\s]+@")  # who logs in at an address, a proxy's for example


class Quoter:
    """The one place that quotes an endpoint; all that it says passes here before anyone else sees it.

    The key is hidden as it is, in parts of eight characters or more, and as it looks in a URL, in hexadecimal
    and in base64 (alone, or inside of something else such as `Bearer KEY`).

    Args:
        key: what must not be shown; None or a short placeholder for nothing.
    """

    def __init__(self, key: str | None) -> None:
        self._pattern: re.Pattern[str] | None = None
        self._pieces: tuple[str, ...] = ()
        if key is None or len(key) < _SHORTEST_SECRET:
            return
        pieces = {key[start : start + _PIECE] for start in range(len(key) - _PIECE + 1)}
        # Eight small letters may be an English word ("required") of an error message.
        self._pieces = tuple({one.lower() for one in pieces if not (one.isalpha() and one.islower())})
        plain = {key, quote(key, safe=""), quote_plus(key, safe=""), key.encode().hex()}
        cores = {core for text in (key, quote(key, safe="")) for core in _base64_cores(text.encode())}
        forms = sorted(plain | cores, key=len, reverse=True)
        self._pattern = re.compile("|".join(re.escape(one) for one in forms), re.IGNORECASE)
        self._forms = tuple({one.lower() for one in forms})

    def hide(self, said: str) -> str:
        """Return a text without the key."""
        if self._pattern is None:
            return said
        lowered = said.lower()
        if any(form in lowered for form in self._forms):
            said = self._pattern.sub(_HIDDEN, said)
            lowered = said.lower()
        found = [piece for piece in self._pieces if piece in lowered]
        return _without(said, found) if found else said

    def show(self, said: object) -> str:
        """Return what was said as one line for a message: without the key, printable, not too long."""
        hidden = _USER.sub(f"//{_HIDDEN}@", self.hide(f"{said}"))
        line = "".join(letter if letter.isprintable() else " " for letter in hidden)
        return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]} ..."

    def parse(self, said: bytes) -> Any:
        """Return a JSON text's values without the key, whatever escapes it was written with.

        Halves of characters come out as question marks.

        Raises:
            ValueError: it is no JSON; the message quotes nothing.
        """
        try:
            return self._walk(json.loads(said))
        except (ValueError, RecursionError):
            pass
        raise ValueError("expected JSON")  # outside: the decoder's own error holds the whole text

    def _walk(self, values: Any) -> Any:
        if isinstance(values, str):
            return self.hide(values.encode(errors="replace").decode())
        if isinstance(values, list):
            return [self._walk(value) for value in values]
        if isinstance(values, dict):
            return {self._walk(key): self._walk(value) for key, value in values.items()}
        return values


def _base64_cores(data: bytes) -> set[str]:
    """Return what base64 makes of bytes wherever they stand in something else: three alignments, two alphabets."""
    cores = set()
    for before in range(3):
        text = base64.b64encode(bytes(before) + data).decode().rstrip("=")
        # Characters that also hold bits of what stands before or behind.
        first, behind = (0, 2, 3)[before], (before + len(data)) % 3
        core = text[first : len(text) - (1 if behind else 0)]
        cores |= {core, core.replace("+", "-").replace("/", "_")}
    return cores


def _without(text: str, pieces: list[str]) -> str:
    """Return a text with every character hidden that belongs to one of the pieces."""
    marks = bytearray(len(text))
    for piece in pieces:
        for match in re.finditer(f"(?={re.escape(piece)})", text, re.IGNORECASE):
            marks[match.start() : match.start() + len(piece)] = b"\1" * len(piece)
    shown = []
    for place, letter in enumerate(text):
        if not marks[place]:
            shown.append(letter)
        elif place == 0 or not marks[place - 1]:
            shown.append(_HIDDEN)
    return "".join(shown)
