"""Values in messages: short, in one line, fit for a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixlex.messages import printable, quoted


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("cat", "'cat'"),
        (1.5, "1.5"),
        (None, "None"),
        ("\x1b[31m\0\ud83d", r"'\x1b[31m\x00\ud83d'"),
        ("a" * 81, f"'{'a' * 76}..."),
        (b"a" * 10**8, f"b'{'a' * 75}..."),
        ([1] * 100, f"[{'1, ' * 26}..."[:77] + "..."),
    ],
)
def test_values(value: object, expected: str) -> None:
    assert quoted(value) == expected


@given(st.one_of(st.text(max_size=200), st.lists(st.text()), st.binary(max_size=200)))
def test_short_and_printable(value: object) -> None:
    text = quoted(value)
    assert len(text) <= 80
    assert text.isprintable()
    assert text == repr(value) or text.endswith("...")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("caf\u00e9 \u65e5\u672c.png", "caf\u00e9 \u65e5\u672c.png"),
        ("caf\udce9.png", r"caf\xe9.png"),
        ("\x1b[31mred\n", r"\x1b[31mred\n"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\ud83d", r"\ud83d"),
    ],
)
def test_names_as_they_are_shown(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert printable(name, keep="\n") == shown.replace(r"\n", "\n")
