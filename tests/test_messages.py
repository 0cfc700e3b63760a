"""Values in messages: short, in one line, fit for a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixlex.messages import quoted


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
