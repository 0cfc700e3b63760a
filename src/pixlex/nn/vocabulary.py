"""Which words of a language model may be codewords, and words <-> text, exactly."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pixlex.messages import quoted

if TYPE_CHECKING:
    from pixlex.nn.language_model import LanguageModel, LanguageWords

VocabularyKind = Literal["clean-words", "whole-words", "all"]

# What a whole word may look like: ASCII letters, so that any later reader (another tokenizer, a human, a
# shell) gets the same words; digits and punctuation are left out because tokenizers split and glue them by
# context, one and two letters because those are mostly abbreviations and fragments ("kw", "ng"; 387 of
# MiniLM's 21,745 words).
_WHOLE_WORD = re.compile(r"[A-Za-z]{3,}")
# Rows shorter than this fraction of the median norm were never trained: normalized they attract everything.
_SMALLEST_NORM_RATIO = 0.05
_WORDS_PER_LINE = 16
_UNFIT = Path(__file__).parent / "data" / "unfit_words.txt"
_HASH_DIGITS = 12


class Vocabulary:
    """Words that may be codewords, numbered 0 ... K-1, and the text of a sequence of them.

    Whole words are joined by single spaces; `to_text` and `from_text` are inverses on every sequence of codes,
    and the language model's own tokenizer agrees: `tokenizer.encode(" " + text, add_special_tokens=False)`
    gives the word ids back. The space in front makes the first word a word like the others where words carry
    their space (byte-level BPE); the other families ignore it.

    With `all` the tokenizer itself (given for it alone) writes the text, on one line: pieces are glued to words,
    what cannot be printed becomes a space, and `from_text` gives the words of the text, which may be others, and
    more or fewer. `survivors` counts what comes back.

    Args:
        word_ids: The language model's id of each codeword.
        words: The text of each codeword by itself, without whitespace; distinct but for `all`.
    """

    def __init__(
        self, kind: VocabularyKind, word_ids: Int[Tensor, " K"], words: Sequence[str], tokenizer: Any = None
    ) -> None:
        self.kind, self.word_ids, self.words = kind, word_ids, tuple(words)
        self._tokenizer = tokenizer
        self._codes = {word: code for code, word in enumerate(self.words)}
        assert len(self.words) == len(word_ids), "one word per id"
        assert not self.is_exact or len(self._codes) == len(self.words), "words must be distinct"

    def __len__(self) -> int:
        return len(self.words)

    @property
    def is_exact(self) -> bool:
        """Whether every sequence of codes survives as text."""
        return self._tokenizer is None

    def to_text(self, codes: Sequence[int] | Int[Tensor, " T"]) -> str:
        """Return codes, integers in [0, K) in any order and number, as text on one line.

        Raises:
            ValueError: A code outside [0, K).
        """
        numbers = codes.tolist() if isinstance(codes, Tensor) else [int(code) for code in codes]
        for number in numbers:
            if not 0 <= number < len(self.words):
                raise ValueError(f"expected codes in [0, {len(self.words)}), got {number}")
        if self._tokenizer is None:
            return " ".join(self.words[number] for number in numbers)
        ids = self.word_ids[numbers].tolist()
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())

    def from_text(self, text: str) -> list[int]:
        """Return the codes of text: of words separated by whitespace, or with `all` as the tokenizer divides it.

        Raises:
            ValueError: A word that is no codeword (upper and lower case differ).
        """
        if self._tokenizer is not None:
            read = _read(self._tokenizer, [text])[0] if text.strip() else []
            for unknown in (code for code in read if code >= len(self.words)):
                word = self._tokenizer.decode([unknown])
                raise ValueError(
                    f"the word {word!r} has no row among the {len(self.words)} of the language model"
                )
            return read
        try:
            return [self._codes[word] for word in text.split()]
        except KeyError as missing:
            raise ValueError(
                f"the word {quoted(missing.args[0])} is not one of the {len(self.words)} codewords ({self.kind})"
            ) from None

    def survivors(self, codes: Sequence[int]) -> int:
        """Return how many words of a sequence come back, in their order, when its text is read."""
        try:
            read = self.from_text(self.to_text(codes))
        except ValueError:
            return 0  # a word that cannot be read back at all
        if read == list(codes):
            return len(read)
        matcher = SequenceMatcher(None, list(codes), read, autojunk=False)
        return sum(block.size for block in matcher.get_matching_blocks())


def build_vocabulary(
    language: LanguageModel | LanguageWords, kind: VocabularyKind = "clean-words"
) -> Vocabulary:
    """Return the words of a language model that may be codewords, in the order of its ids.

    `whole-words` (ours): words of three or more ASCII letters that the tokenizer reads back as the same
    single word id in any order and number; no special words, no pieces of words, no row of the embedding
    matrix that was never trained. `clean-words`: those of them that are fit to print (`is_fit_to_print`).
    `all` (LQAE, section 3.1): every row, special words and pieces included; a row by itself is shown as the
    tokenizer decodes it (`<row:ID>` where nothing can be seen).

    Raises:
        ValueError: An unknown kind, or no word left.
    """
    if kind == "all":
        rows = torch.arange(language.vocab_size)
        return Vocabulary("all", rows, _shown_rows(language), language.tokenizer)
    if kind not in get_args(VocabularyKind):
        raise ValueError(f"expected a vocabulary of {', '.join(get_args(VocabularyKind))}, got {kind!r}")
    words = _stable_in_context(language.tokenizer, _single_words(language))
    if kind == "clean-words":
        words = {row: word for row, word in words.items() if is_fit_to_print(word)}
    if not words:
        raise ValueError(
            f"language model {language.name!r} has no whole word of ASCII letters; use vocabulary 'all'"
        )
    return Vocabulary(kind, torch.tensor(sorted(words)), [words[word_id] for word_id in sorted(words)])


def is_fit_to_print(word: str) -> bool:
    """Tell whether a word is none of a list of slurs, sexual words and swearing (nn/data/unfit_words.txt)."""
    return hashlib.sha256(word.lower().encode()).hexdigest()[:_HASH_DIGITS] not in _unfit_words()


@cache
def _unfit_words() -> frozenset[str]:
    lines = _UNFIT.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def _shown_rows(language: LanguageModel | LanguageWords) -> list[str]:
    """Every row as the tokenizer decodes it by itself; what cannot be seen is escaped, or named by its number."""
    count = min(language.vocab_size, len(language.tokenizer))
    texts = _texts(language.tokenizer, range(count)) + [""] * (language.vocab_size - count)

    def visible(mark: str) -> str:
        return mark if mark.isprintable() and not mark.isspace() else f"\\x{ord(mark):02x}"

    shown = ("".join(map(visible, text.strip(" "))) for text in texts)
    return [text or f"<row:{row}>" for row, text in enumerate(shown)]


def _single_words(language: LanguageModel | LanguageWords) -> dict[int, str]:
    """Trained rows whose text is a whole word that alone is read back as that row."""
    tokenizer = language.tokenizer
    norms = language.word_embedding.detach().float().norm(dim=1)
    trained = (norms > _SMALLEST_NORM_RATIO * norms.median()).tolist()
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    rows = range(min(language.vocab_size, len(tokenizer)))
    texts = _texts(tokenizer, rows)
    words = {
        row: text.removeprefix(" ")
        for row, text in zip(rows, texts, strict=True)
        if trained[row] and row not in special and _WHOLE_WORD.fullmatch(text.removeprefix(" "))
    }
    read = _read(tokenizer, list(words.values()))
    return {row: word for (row, word), ids in zip(words.items(), read, strict=True) if ids == [row]}


def _texts(tokenizer: Any, rows: range) -> list[str]:
    """The text of each row by itself."""
    ids = [[row] for row in rows]
    if tokenizer.is_fast:
        texts: list[str] = tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False)
        return texts
    return [tokenizer.decode(one, clean_up_tokenization_spaces=False) for one in ids]


def _stable_in_context(tokenizer: Any, words: dict[int, str]) -> dict[int, str]:
    """Drop words that are misread beside others, until two random orders of all of them are read exactly."""

    def misread(lines: list[list[int]]) -> list[list[int]]:
        """The lines of words that are read as other ids."""
        read = _read(tokenizer, [" ".join(words[row] for row in line) for line in lines])
        return [line for line, ids in zip(lines, read, strict=True) if line != ids]

    generator = np.random.default_rng(0)
    clean_rounds = 0
    while words and clean_rounds < 2:
        order = generator.permutation(list(words)).tolist()
        wrong: set[int] = set()
        for line in misread(
            [order[at : at + _WORDS_PER_LINE] for at in range(0, len(order), _WORDS_PER_LINE)]
        ):
            # Both words of every neighboring pair that is misread by itself; the whole line if none is.
            pairs = misread([[first, second] for first, second in pairwise(line)])
            wrong.update({row for pair in pairs for row in pair} or line)
        words = {row: word for row, word in words.items() if row not in wrong}
        clean_rounds = 0 if wrong else clean_rounds + 1
    return words


def _read(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Word ids of texts, each with the leading space that makes its first word a word like the others."""
    spaced = [f" {text}" for text in texts]
    if tokenizer.is_fast:  # without what transformers adds around it, in a third of the time
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return [one.ids for one in backend.encode_batch_fast(spaced, add_special_tokens=False)]
    return [tokenizer.encode(text, add_special_tokens=False, verbose=False) for text in spaced]
