"""Answers of VQA: written alike, worth how much, and the list of those that are learned."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from pixlex.data.records import ReasoningSource

# Agreement of so many others makes an answer wholly right.
_ENOUGH = 3
# In this order: each mark is looked for in the answer as it was, and taken from what is left of it.
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))

# What stands before an ending that lost its apostrophe.
_ENDINGS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "'ve": "could might must not should they we what where who would you",
    "'d": "he how it someone something there they where who you",
    "'ll": "how it somebody someone something they what who why you",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
}
# What stands before two endings, one of which lost its apostrophe.
_TWO_ENDINGS = {
    "n't've": "could had might should would",
    "'d've": "he it she somebody someone something there they we who you",
}
_SINGLE = {
    "maam": "ma'am",
    "oclock": "o'clock",
    "twas": "'twas",
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "yall": "y'all",
    "yall'll": "y'all'll",
    "y'allll": "y'all'll",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
    "somebody'd": "somebodyd",  # the official table has these two the wrong way round
}


def _contractions() -> Iterator[tuple[str, str]]:
    """Yield words that lost an apostrophe, with it put back."""
    yield from _SINGLE.items()
    for ending, stems in (_ENDINGS | _TWO_ENDINGS).items():
        for stem in stems.split():
            whole = stem + ending
            first, second = whole.find("'"), whole.rfind("'")
            yield whole[:first] + whole[first + 1 :], whole
            yield whole[:second] + whole[second + 1 :], whole


CONTRACTIONS: Mapping[str, str] = dict(_contractions())


@lru_cache(maxsize=1 << 18)
def normalize_answer(text: str) -> str:
    r"""Return an answer as the official script of VQA v2 writes it before it compares.

    1. Line breaks and tabs become blanks; blanks around the whole are dropped.
    2. Marks `; / [ ] " { } ( ) = + \ _ - > < @ backtick , ? !` become blanks, so "yes/no" is "yes no". A mark
       that stands beside a blank anywhere in the answer is dropped instead, wherever it stands; all marks are,
       if there is a comma between digits: "1,000" is "1000", and "1,000-2,000" is "10002000".
    3. Periods that no digit follows are dropped: "3." is "3", "3.5" stays. Apostrophes and colons stay.
    4. Lower case; "zero" to "ten" become digits, and "none" 0; "a", "an" and "the" are dropped; contractions get
       their apostrophe: "dont" is "don't".

    Source: the script of Agrawal et al. 2015 for VQA v2 (GT-Vision-Lab/VQA). We differ where an answer has more
    than 32 periods, of which it drops the first 32.

    Args:
        text: an answer; it may become empty ("the").
    """
    given = text.replace("\n", " ").replace("\t", " ").strip()
    all_dropped = _COMMA_IN_NUMBER.search(given) is not None
    left = given
    for mark in _MARKS:
        dropped = all_dropped or f"{mark} " in given or f" {mark}" in given
        left = left.replace(mark, "" if dropped else " ")
    words = (_DIGITS.get(word, word) for word in _PERIOD.sub("", left).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def agreement(agreeing: int, given: int) -> float:
    """Return how right an answer is that some people gave: in turn each is left out, and the others asked.

    The mean of min(1, a / 3) over the sets of all answers but one, of which a agree: with ten answers 0, 0.3, 0.6,
    0.9 and 1 for none, one, two, three, and four or more that agree (Agrawal et al. 2015). With fewer the same
    formula, so that two that agree are 1/3 right and three 2/3; a single answer is right or wrong.

    Args:
        agreeing: people who gave this answer, in [0, given].
        given: people who answered, 1 or more.

    Returns:
        A share in [0, 1].
    """
    assert 0 <= agreeing <= given, (agreeing, given)
    if given == 1:
        return float(agreeing)
    with_it = min(_ENOUGH, agreeing)
    without_it = min(_ENOUGH, agreeing - 1)
    return (agreeing * without_it + (given - agreeing) * with_it) / (_ENOUGH * given)


def agreement_targets(answers: Sequence[str], scale: float = 1.0) -> dict[str, float]:
    """Return distinct answers, normalized, each with how right it is: weights for training.

    Those of ten people weigh 0.3, 0.6, 0.9 and 1 if one, two, three, or four or more gave them (Anderson et al.
    2018). `ReasoningSource.targets` counts instead (ALBEF): its weights add up to `scale`, these need not.

    Args:
        answers: as given, repeats included; those with nothing left after normalization are not counted as answers
            to learn, but as people who answered.
        scale: times which the weights are taken.
    """
    counts = Counter(map(normalize_answer, answers))
    return {answer: scale * agreement(count, len(answers)) for answer, count in counts.items() if answer}


def build_answers(source: ReasoningSource, min_count: int = 9) -> tuple[str, ...]:
    """Return the answers to choose from: those that are the most frequent answer of enough items (ViLT).

    Answers are normalized before they are counted; among an item's equally frequent ones the first given is its
    answer. On VQA v2's train and val this is the rule behind the 3,129 answers of ViLT, and the 3,128 of ALBEF's
    answer_list.json, which lack the empty one. Neither list can be made again exactly: which of equally frequent
    answers a question was counted for is not written down, nor is the normalization of ALBEF's list, whose
    files also leave out 7 questions (salesforce/ALBEF #40, #135).

    Args:
        source: items, some of them with answers.
        min_count: fewest items of an answer, 1 or more; 9 for VQA v2, 1 for all answers of a small set.

    Returns:
        Normalized answers, the most frequent first, equally frequent ones in the order in which they occur.

    Raises:
        ValueError: min_count is below 1, or no answer is frequent enough.
    """
    if min_count < 1:
        raise ValueError(f"min_count must be 1 or more, got {min_count}")
    counts: Counter[str] = Counter()
    for given in source.answers:
        normalized = Counter(answer for answer in map(normalize_answer, given) if answer)
        counts.update(answer for answer, _ in normalized.most_common(1))
    # most_common keeps the order of first occurrence among equals.
    chosen = tuple(answer for answer, count in counts.most_common() if count >= min_count)
    if not chosen:
        most = max(counts.values(), default=0)
        raise ValueError(
            f"{source.name}: expected an answer of {min_count} items or more, the most frequent one has {most}"
        )
    return chosen
