"""Which words of a language model may be codewords, and words <-> text, exactly; words that name images."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixlex.messages import quoted

if TYPE_CHECKING:
    from pixlex.nn.language_model import LanguageModel, LanguageWords

VocabularyKind = Literal["clean-words", "neutral-words", "whole-words", "all"]

# What a whole word may look like: ASCII letters, so that any later reader (another tokenizer, a human, a
# shell) gets the same words; digits and punctuation are left out because tokenizers split and glue them by
# context, one and two letters because those are mostly abbreviations and fragments ("kw", "ng"; 387 of
# MiniLM's 21,745 words).
_WHOLE_WORD = re.compile(r"[A-Za-z]{3,}")
# Rows shorter than this fraction of the median norm were never trained: normalized they attract everything.
_SMALLEST_NORM_RATIO = 0.05
_WORDS_PER_LINE = 16
_UNFIT = Path(__file__).parent / "data" / "unfit_words.txt"
_CHARGED = Path(__file__).parent / "data" / "charged_words.txt"
_HASH_DIGITS = 12
# Words that say nothing by themselves. scikit-learn's list has bill, cry, fire and system, which name things.
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
    a about above across after again against all almost along also although always am among an and another
    any are around as at away back be because been before behind being below beside besides between beyond
    both but by can could did do does doing down during each either else ever every few for from get getting
    had has have having he her here hers him his how i if in inside into is it its itself just like many may
    me might mine more most much must my near neither next no nor not of off on once one only onto or other
    others our ours out outside over own per quite rather same several she should since so some something
    such than that the their theirs them then there these they this those though through to together too
    toward towards under until up upon us very via was we were what when where whether which while who whom
    whose why will with within without would yet you your yours
    """,
    )
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_SHORT = 3  # words of a caption that is a name
# Words of an image, and the cosine of two words from which on one repeats the other.
TOP_K, DISTINCT = 8, 0.9


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
    `neutral-words`: of these the ones that label nobody (nn/data/charged_words.txt has the others).
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
    if kind in ("clean-words", "neutral-words"):
        words = {row: word for row, word in words.items() if is_fit_to_print(word)}
    if kind == "neutral-words":
        charged = set(_entries(_CHARGED))
        words = {row: word for row, word in words.items() if word.lower() not in charged}
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
    return frozenset(_entries(_UNFIT))


def _entries(path: Path) -> Iterator[str]:
    """Yield what stands in a list, less its comments."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            yield from line.split()


@dataclass(frozen=True)
class RankedWord:
    """A word or phrase of an image; its similarity is the cosine of its vector and the image's."""

    text: str
    similarity: float


@dataclass(frozen=True)
class Namer:
    """Names images by the words whose vectors are nearest to theirs, without near-duplicates.

    The global words of V2L-Tokenizer (Zhu et al. 2024, arXiv:2403.07874, section 3.2) without its bigrams, by any
    model that compares images and texts.

    Attributes:
        words: distinct words or phrases.
        vectors: of each, of length 1, on the CPU.
        top_k: most words of an image, 1 or more; fewer where the others repeat those it has.
        distinct: cosine in (0, 1] from which on a word repeats another, as does its plural. The one that is nearer
            to the image stays.

    Raises:
        ValueError: no words, fewer than `top_k`, or a number out of range.
    """

    words: tuple[str, ...]
    vectors: Float[Tensor, "V e"]
    top_k: int
    distinct: float = DISTINCT

    def __post_init__(self) -> None:
        """Check what there is to choose from."""
        if not 0 < self.distinct <= 1:
            raise ValueError(f"distinct must lie in (0, 1], got {self.distinct}")
        if not 1 <= self.top_k <= len(self.words):
            raise ValueError(
                f"top_k must lie in [1, {len(self.words)}], the number of words to choose from, got {self.top_k}"
            )

    def rank(self, images: Float[Tensor, "B e"]) -> list[list[RankedWord]]:
        """Return the words of images, whose vectors have length 1, the nearest first."""
        vectors = self.vectors.double().numpy()  # so that no number hangs on how many images there are
        found = []
        for row in images.cpu().double().numpy() @ vectors.T:
            chosen: list[int] = []
            for place in np.argsort(-row, kind="stable").tolist():
                if not self._repeats(place, chosen, vectors):
                    chosen.append(place)
                if len(chosen) == self.top_k:
                    break
            found.append([RankedWord(self.words[place], round(float(row[place]), 4)) for place in chosen])
        return found

    def _repeats(self, place: int, chosen: list[int], vectors: np.ndarray) -> bool:
        """Whether a word says what one of those chosen says."""
        near = bool((vectors[chosen] @ vectors[place] >= self.distinct).any())
        return near or any(_same(self.words[place], self.words[one]) for one in chosen)


def _same(one: str, other: str) -> bool:
    """Whether two words are one, or one is the plural of the other."""
    short, long = sorted((one, other), key=len)
    return long in (short, f"{short}s", f"{short}es") or (short[-1:] == "y" and long == f"{short[:-1]}ies")


def as_text(ranked: Sequence[RankedWord]) -> str:
    """Return as many words as were ranked on one line, each once; phrases give theirs, without function words."""
    said: list[str] = []
    for one in ranked:
        words = one.text.split()
        for word in [word for word in words if word.lower() not in _FUNCTION_WORDS] or words:
            if not any(_same(word, other) for other in said):
                said.append(word)
    return " ".join(said[: len(ranked)])


def words_in(texts: Sequence[str]) -> list[str]:
    """Return the distinct words of an image's captions: lower case, two letters or more, no function words."""
    found = dict.fromkeys(word for text in texts for word in _WORD.findall(text.lower()))
    return [word for word in found if word not in _FUNCTION_WORDS]


def content_words(captions: Iterable[Sequence[str]], most: int = 2000, least: int = 2) -> tuple[str, ...]:
    """Return the words that name what is on images: those of the captions of `least` images, `most` at most.

    Function words of English are left out. The most frequent come first, equally frequent ones in the order in
    which they occur.
    """
    return _frequent((words_in(texts) for texts in captions), most, least)


def naming_words(captions: Sequence[Sequence[str]], most: int = 2000) -> tuple[str, ...]:
    """Return words or phrases to name images by: captions of `_SHORT` words at most that images share, or words.

    What was a caption itself is read by a text encoder as in training, a word alone is not. So captions are
    taken where half of the images share one with another image (names, keywords), else `content_words`
    (sentences).
    """
    short = [
        {text for text in texts if len(text.split()) <= _SHORT and words_in([text])} for texts in captions
    ]
    shared = _frequent((sorted(one) for one in short), most, 2)
    known = set(shared)
    covers = 2 * sum(not known.isdisjoint(one) for one in short) >= len(short)
    return shared if covers else content_words(captions, most)


def _frequent(several: Iterable[Iterable[str]], most: int, least: int) -> tuple[str, ...]:
    counts = Counter(one for some in several for one in some)
    return tuple(one for one, count in counts.most_common(most) if count >= least)


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
