"""Captions and questions: read from a cell, cleaned as the pretraining sets of ALBEF and its heirs are."""

from __future__ import annotations

_CLEANED = str.maketrans({**dict.fromkeys(",.'!?\"()*#:;~", ""), "-": " ", "/": " "})


def texts_in(value: object, where: str) -> tuple[str, ...]:
    """Return the captions in a cell: a text, a list of texts, or nothing (None, "", NaN).

    Args:
        value: what the cell holds.
        where: the row, for the error.

    Raises:
        ValueError: if it is something else.
    """
    if value is None or value != value:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts if text is not None):
        raise ValueError(f"{where}: expected a caption or a list of captions, got {value!r:.80}")
    return tuple(text.strip() for text in texts if text and text.strip())


def clean_caption(text: str, max_words: int = 30) -> str:
    """Return a caption in lower case, without punctuation, cut to some words.

    The marks ,.'!?"()*#:;~ are dropped, - and / become blanks, <person> (as Conceptual Captions hides names)
    becomes person, and blanks are collapsed (Li et al. 2021, ALBEF). May be empty.

    Args:
        text: a caption.
        max_words: most words kept, 1 or more.

    Raises:
        ValueError: if max_words is below 1.
    """
    return _first_words(text.lower().translate(_CLEANED).replace("<person>", "person"), max_words)


def clean_question(text: str, max_words: int = 30) -> str:
    """Return a question in lower case, without punctuation, cut to some words.

    As `clean_caption`, but <person> stays as it is.

    Args:
        text: a question.
        max_words: most words kept, 1 or more; ALBEF keeps 30 in training, 50 in testing.

    Raises:
        ValueError: if max_words is below 1.
    """
    return _first_words(text.lower().translate(_CLEANED), max_words)


def _first_words(text: str, max_words: int) -> str:
    if max_words < 1:
        raise ValueError(f"max_words must be 1 or more, got {max_words}")
    return " ".join(text.split()[:max_words])
