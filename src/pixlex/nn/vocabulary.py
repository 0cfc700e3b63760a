"""Which words of a language model may be codewords, and words <-> text, exactly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pixlex.nn.language import LanguageModel

VocabularyKind = Literal["whole-words", "all"]

# What a whole word may look like: ASCII letters, so that any later reader (another tokenizer, a human, a
# shell) gets the same words; digits and punctuation are left out because tokenizers split and glue them by
# context, one and two letters because those are mostly abbreviations and fragments ("kw", "ng"; 387 of
# MiniLM's 21,745 words).
_WHOLE_WORD = re.compile(r"[A-Za-z]{3,}")
# Rows shorter than this share of the median norm were never trained: under l2 normalization they attract
# everything.
_SMALLEST_NORM_SHARE = 0.05
_WORDS_PER_LINE = 16


class Vocabulary:
    """Words that may be codewords, numbered 0 ... K-1, and their exact text form: joined by single spaces.

    `to_text` and `from_text` are inverses on every sequence of codes. For `whole-words` the language model's
    own tokenizer agrees: `tokenizer.encode(" " + text, add_special_tokens=False)` gives the word ids back.
    The space in front makes the first word a word like the others where words carry their space (byte-level
    BPE: RoBERTa, ModernBERT); the other families ignore it.

    Args:
        kind: which words were let in.
        word_ids: the language model's id of each codeword.
        words: the text of each codeword, distinct and without whitespace.
    """

    def __init__(self, kind: VocabularyKind, word_ids: Int[Tensor, " K"], words: Sequence[str]) -> None:
        self.kind = kind
        self.word_ids = word_ids
        self.words = tuple(words)
        self._codes = {word: code for code, word in enumerate(self.words)}
        assert len(self._codes) == len(self.words) == len(word_ids), "words must be distinct, one per id"

    def __len__(self) -> int:
        return len(self.words)

    def to_text(self, codes: Sequence[int] | Int[Tensor, " T"]) -> str:
        """Write codes as words joined by single spaces.

        Args:
            codes: integers in [0, K), in any order and number.

        Returns:
            The text; the empty text for no codes.

        Raises:
            ValueError: a code outside [0, K).
        """
        numbers = codes.tolist() if isinstance(codes, Tensor) else [int(code) for code in codes]
        for number in numbers:
            if not 0 <= number < len(self.words):
                raise ValueError(f"expected codes in [0, {len(self.words)}), got {number}")
        return " ".join(self.words[number] for number in numbers)

    def from_text(self, text: str) -> list[int]:
        """Read words separated by whitespace back into codes.

        Args:
            text: what `to_text` wrote.

        Returns:
            The code of each word.

        Raises:
            ValueError: a word that is no codeword (upper and lower case differ).
        """
        try:
            return [self._codes[word] for word in text.split()]
        except KeyError as missing:
            raise ValueError(
                f"the word {missing.args[0]!r} is not one of the {len(self.words)} codewords ({self.kind})"
            ) from None


def build_vocabulary(language: LanguageModel, kind: VocabularyKind = "whole-words") -> Vocabulary:
    """Choose the words of a language model that may be codewords.

    `whole-words` (ours): words of three or more ASCII letters that the tokenizer reads back as the same
    single word id in any order and number; no special words, no pieces of words, no row of the embedding
    matrix that was never trained. `all` (LQAE, section 3.1): every row, special words and pieces included;
    its text form is the tokenizer's own token strings (`<row:ID>` where there is none, or one with
    whitespace), which only `from_text` reads back.

    Args:
        language: the language model whose rows become codewords.
        kind: "whole-words" or "all".

    Returns:
        The vocabulary, in the order of the language model's ids.

    Raises:
        ValueError: an unknown kind, or no word left.
    """
    if kind == "all":
        return Vocabulary("all", torch.arange(language.vocab_size), _token_strings(language))
    if kind != "whole-words":
        raise ValueError(f"expected vocabulary 'whole-words' or 'all', got {kind!r}")
    words = _stable_in_context(language.tokenizer, _single_words(language))
    if not words:
        raise ValueError(
            f"language model {language.name!r} has no whole word of ASCII letters; use vocabulary 'all'"
        )
    return Vocabulary(
        "whole-words", torch.tensor(sorted(words)), [words[word_id] for word_id in sorted(words)]
    )


def _token_strings(language: LanguageModel) -> list[str]:
    """The tokenizer's string of every row; rows without a usable one are named by their number."""
    count = min(language.vocab_size, len(language.tokenizer))
    strings: list[str | None] = language.tokenizer.convert_ids_to_tokens(list(range(count)))
    strings += [None] * (language.vocab_size - count)
    seen: set[str] = set()
    words = []
    for row, string in enumerate(strings):
        usable = string is not None and string.split() == [string] and string not in seen
        word = string if usable and string is not None else f"<row:{row}>"
        seen.add(word)
        words.append(word)
    return words


def _single_words(language: LanguageModel) -> dict[int, str]:
    """Trained rows whose text is a whole word that alone is read back as that row."""
    tokenizer = language.tokenizer
    norms = language.word_embedding.detach().float().norm(dim=1)
    trained = (norms > _SMALLEST_NORM_SHARE * norms.median()).tolist()
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    rows = range(min(language.vocab_size, len(tokenizer)))
    texts = tokenizer.batch_decode([[row] for row in rows], clean_up_tokenization_spaces=False)
    words = {
        row: text.removeprefix(" ")
        for row, text in zip(rows, texts, strict=True)
        if trained[row] and row not in special and _WHOLE_WORD.fullmatch(text.removeprefix(" "))
    }
    read = _read(tokenizer, list(words.values()))
    return {row: word for (row, word), ids in zip(words.items(), read, strict=True) if ids == [row]}


def _stable_in_context(tokenizer: Any, words: dict[int, str]) -> dict[int, str]:
    """Drop words that are misread beside others, until two random orders of all of them are read exactly."""
    generator = np.random.default_rng(0)
    clean_rounds = 0
    while words and clean_rounds < 2:
        order = generator.permutation(list(words)).tolist()
        lines = [order[start : start + _WORDS_PER_LINE] for start in range(0, len(order), _WORDS_PER_LINE)]
        wrong = {
            row for line in _misread(tokenizer, words, lines) for row in _culprits(tokenizer, words, line)
        }
        words = {row: word for row, word in words.items() if row not in wrong}
        clean_rounds = 0 if wrong else clean_rounds + 1
    return words


def _misread(tokenizer: Any, words: dict[int, str], lines: list[list[int]]) -> list[list[int]]:
    """The lines of words that are read as other ids."""
    read = _read(tokenizer, [" ".join(words[row] for row in line) for line in lines])
    return [line for line, ids in zip(lines, read, strict=True) if line != ids]


def _culprits(tokenizer: Any, words: dict[int, str], line: list[int]) -> set[int]:
    """Both words of every neighboring pair that is misread by itself; the whole line if none is."""
    pairs = [[first, second] for first, second in pairwise(line)]
    return {row for pair in _misread(tokenizer, words, pairs) for row in pair} or set(line)


def _read(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Word ids of texts, each with the leading space that makes its first word a word like the others."""
    if not texts:
        return []
    settings = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    ids: list[list[int]] = tokenizer([f" {text}" for text in texts], add_special_tokens=False, **settings)[
        "input_ids"
    ]
    return ids
