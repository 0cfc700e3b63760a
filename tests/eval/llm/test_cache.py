"""The cache of answers on a disk that changes bits: no answer that was not given, and no traceback."""

from __future__ import annotations

import random
import sqlite3
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pixlex.eval.llm.endpoint import FILE_NAME, AnswerCache


def request(number: int) -> dict[str, Any]:
    return {"endpoint": "http://127.0.0.1:1/v1", "path": "completions", "body": {"prompt": f"image {number}"}}


def answer(number: int) -> dict[str, Any]:
    return {"choices": [{"text": f" boat number {number}", "finish_reason": "stop"}]}


def filled(folder: Path, count: int = 40) -> Path:
    cache = AnswerCache(folder)
    for number in range(count):
        cache.put(request(number), answer(number))
    cache.close()
    return folder / FILE_NAME


def test_no_flipped_bit_changes_an_answer(tmp_path: Path) -> None:
    """100 flips: an answer is the one that was given, or is asked for again; or the file is refused."""
    whole = filled(tmp_path).read_bytes()
    generator = random.Random(0)
    outcomes = Counter(_outcome(tmp_path, flipped(whole, generator)) for _ in range(100))
    assert outcomes["asked again"] > 10
    assert outcomes["refused"] < 20


def flipped(data: bytes, generator: random.Random) -> bytes:
    damaged = bytearray(data)
    damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
    return bytes(damaged)


def _outcome(folder: Path, data: bytes) -> str:
    """Ask all questions of a damaged cache; say what came of it."""
    for path in folder.iterdir():
        path.unlink()
    (folder / FILE_NAME).write_bytes(data)
    sent = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(?!cache .* asked for again)")
        warnings.filterwarnings("ignore", message="cache .* asked for again")
        try:
            cache = AnswerCache(folder)
            for number in range(40):
                found = cache.ask(
                    request(number), lambda number=number: sent.append(number) or answer(number)
                )
                assert found == answer(number)
            cache.close()
        except ValueError as fault:
            return "refused" if FILE_NAME in f"{fault}" else f"{fault}"
    return "asked again" if sent else "unharmed"


def test_a_bad_answer_is_asked_again_and_one_of_a_version_without_checksums_counts(tmp_path: Path) -> None:
    with sqlite3.connect(filled(tmp_path, 2)) as file:
        file.execute("UPDATE answers SET answer = replace(answer, 'boat', 'coat')")
    cache = AnswerCache(tmp_path)
    with pytest.warns(UserWarning, match="cannot be read .* and is asked for again"):
        assert cache.get(request(0)) is None
    with pytest.warns(UserWarning, match="asked for again"):
        assert cache.ask(request(1), lambda: answer(1)) == answer(1)
    assert cache.get(request(1)) == answer(1)
    cache.close()
    with sqlite3.connect(filled(tmp_path / "old", 2)) as file:
        file.execute("ALTER TABLE answers DROP COLUMN checksum")
        file.execute("UPDATE answers SET answer = '7' WHERE rowid = 2")
    cache = AnswerCache(tmp_path / "old")
    assert cache.get(request(0)) == answer(0)
    with pytest.warns(UserWarning, match="asked for again"):
        assert cache.get(request(1)) is None
    cache.put(request(3), answer(3))
    assert cache.get(request(3)) == answer(3)
