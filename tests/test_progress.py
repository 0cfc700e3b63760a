"""Progress bars: drawn on a terminal, lines in a file."""

from __future__ import annotations

import io
import math
import re

import pytest

from pixlex import progress
from pixlex.progress import bar_or_lines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", log)
    with bar_or_lines(range(3), unit=" rows", desc="outer", seconds=0.0) as rows:
        for _ in rows:
            with bar_or_lines(total=2, unit=" images", desc="inner", seconds=0.0, delay=5) as bar:
                bar.update(2)
    lines = log.getvalue().splitlines()
    assert not re.search(r"[\r\x1b]", log.getvalue())
    assert all(re.match(r"(outer|inner): \d+% \d/\d (rows|images) \[", line) for line in lines)


def test_only_lines_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", log)
    bar = bar_or_lines(total=4, unit=" steps", desc="train", seconds=math.inf)
    for step in range(4):
        bar.update()
        if step % 2:
            bar.set_postfix({"loss": f"{step}"})
    bar.close()
    first, second = log.getvalue().splitlines()
    assert re.fullmatch(r"train: 50% 2/4 steps \[.*loss=1\]", first)
    assert re.fullmatch(r"train: 100% 4/4 steps \[.*loss=3\]", second)


def test_hidden_where_asked_or_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, disable, hidden in (
        (io.StringIO(), None, True), (io.StringIO(), True, True), (io.StringIO(), False, False),
        (Terminal(), None, False), (Terminal(), True, True),
    ):  # fmt: skip
        monkeypatch.setattr(progress.sys, "stderr", stream)
        assert bool(bar_or_lines(total=1, disable=disable).disable) is hidden


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    bar_or_lines(total=1, desc="encode").close()
    assert "\r" in terminal.getvalue()
