"""Texts that come again are not taken apart again; rows of words are padded."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from pixlex.nn import tokenizer as texts
from pixlex.nn.tokenizer import CachedTexts, padded


class Letters:
    """A tokenizer whose words are letters; knows what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, some: Sequence[str], **options: object) -> SimpleNamespace:
        self.asked += some
        return SimpleNamespace(input_ids=[[ord(letter) for letter in text] for text in some])


def _words(some: Sequence[str]) -> list[list[int]]:
    return [[ord(letter) for letter in text] for text in some]


def test_each_text_is_taken_apart_once() -> None:
    tokenizer = Letters()
    words = CachedTexts(tokenizer)
    for some in (["ab", "c", "ab"], ["c", "", "ab"], ["d"], ["d", "", "c"]):
        assert [list(row) for row in words(some)] == _words(some)
    assert tokenizer.asked == ["ab", "c", "", "d"]
    assert words([]) == []


def test_no_more_are_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_MOST", 2)
    tokenizer = Letters()
    words = CachedTexts(tokenizer)
    for some in (["a", "b"], ["c", "a"], ["c", "b"]):
        assert [list(row) for row in words(some)] == _words(some)
    assert tokenizer.asked == ["a", "b", "c", "c"]


def test_long_texts_are_not_kept() -> None:
    tokenizer = Letters()
    words, long = CachedTexts(tokenizer), "a" * 501
    for _ in range(2):
        assert [list(row) for row in words([long, "b"])] == _words([long, "b"])
    assert tokenizer.asked == [long, "b", long]


def test_padding() -> None:
    words = padded([[5, 6], [], [7]], start=(1,), end_id=2, pad_id=0)
    assert words.word_ids.tolist() == [[1, 5, 6, 2], [1, 2, 0, 0], [1, 7, 2, 0]]
    assert words.key_padding.tolist() == [[False] * 4, [False, False, True, True], [False] * 3 + [True]]
    assert words.word_ids.dtype == torch.int64
    bare = padded([[5], [6, 7]], end_id=2, pad_id=2)
    assert bare.word_ids.tolist() == [[5, 2, 2], [6, 7, 2]]
    assert bare.key_padding.tolist() == [[False, False, True], [False] * 3]
