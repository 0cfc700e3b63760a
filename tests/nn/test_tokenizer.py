"""The tokenizer of the text encoder; texts that come again are not taken apart again."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from pixlex.nn import bert as tokenizer_module
from pixlex.nn.bert import CachedTexts, TextTokenizer, load_tokenizer, padded


def test_texts_have_start_and_end_and_are_cut_before_their_end(language: Path) -> None:
    tokenizer = load_tokenizer(str(language))
    vocabulary = transformers.AutoTokenizer.from_pretrained(language)
    texts = ["about the class", "and", "about and the class about and the class"]
    words = tokenizer.encode(texts, 6)
    for row, padding, text in zip(words.word_ids, words.key_padding, texts, strict=True):
        bare = vocabulary(text, add_special_tokens=False).input_ids[:4]
        expected = [vocabulary.cls_token_id, *bare, vocabulary.sep_token_id]
        assert row[~padding].tolist() == expected
    assert words.word_ids.shape == (3, 6)
    special = tokenizer.special(words.word_ids, words.key_padding)
    assert special[1].tolist() == [True, False, True, True, True, True]
    assert tokenizer.words(words.word_ids[1][:2]) == ["[CLS]", "and"]


def test_threads_with_other_limits_do_not_cut_each_other(language: Path) -> None:
    """Texts are encoded ahead in a thread while a step encodes answers."""
    tokenizer = load_tokenizer(str(language))

    def lengths(limit: int) -> set[int]:
        texts = [["about and the class " * (8 + number) + "and " * limit] * 20 for number in range(40)]
        return {tokenizer.encode(some, limit).word_ids.shape[1] for some in texts}

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lengths, (30, 8))) == [{30}, {8}]


def test_another_vocabulary_has_another_fingerprint(language: Path) -> None:
    tokenizer, other = load_tokenizer(str(language)), load_tokenizer(str(language))
    assert tokenizer.fingerprint == other.fingerprint
    other.tokenizer.add_tokens(["xyzzy"])
    assert TextTokenizer(other.tokenizer, name="more").fingerprint != tokenizer.fingerprint


def test_what_is_no_tokenizer_of_a_bert_is_refused(causal_language: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a BERT's tokenizer .* found none for"):
        load_tokenizer(str(causal_language))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path))


class Letters:
    """A tokenizer whose words are letters; knows what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, some: Sequence[str], **options: object) -> SimpleNamespace:
        self.asked += some
        return SimpleNamespace(input_ids=[[ord(letter) for letter in text] for text in some])


def _words(some: Sequence[str]) -> list[list[int]]:
    return [[ord(letter) for letter in text] for text in some]


def test_each_text_is_taken_apart_once_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long ones are not kept."""
    tokenizer, long = Letters(), "a" * 501
    words = CachedTexts(tokenizer)
    for some in (["ab", "c", "ab"], ["c", "", "ab"], ["d"], ["d", "", "c"]):
        assert [list(row) for row in words(some)] == _words(some)
    assert tokenizer.asked == ["ab", "c", "", "d"]
    monkeypatch.setattr(tokenizer_module, "_MOST", 2)
    tokenizer = Letters()
    words = CachedTexts(tokenizer)
    for some in ([long, "a"], [long, "b"], ["c", "a"], ["c", "b"]):
        assert [list(row) for row in words(some)] == _words(some)
    assert tokenizer.asked == [long, "a", long, "b", "c", "c"]


def test_padding() -> None:
    words = padded([[5, 6], [], [7]], start=(1,), end_id=2, pad_id=0)
    assert words.word_ids.tolist() == [[1, 5, 6, 2], [1, 2, 0, 0], [1, 7, 2, 0]]
    assert words.key_padding.tolist() == [[False] * 4, [False, False, True, True], [False] * 3 + [True]]
    assert words.word_ids.dtype == torch.int64
    bare = padded([[5], [6, 7]], end_id=2, pad_id=2)
    assert bare.word_ids.tolist() == [[5, 2, 2], [6, 7, 2]]
    assert bare.key_padding.tolist() == [[False, False, True], [False] * 3]
