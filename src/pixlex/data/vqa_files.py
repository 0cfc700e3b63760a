"""Questions and answers in files."""

from __future__ import annotations

from collections.abc import Iterable

from pixlex.data.item_images import ItemImages
from pixlex.data.listed import Item, ReadRow, Row, id_of, is_nothing, text_of

# What is looked at besides the fields of images.
FIELDS = ("question_id", "question", "answers", "answer", "dataset", "kind", "answer_type")
# ALBEF counts a question of Visual Genome half.
_GENOME_SCALE = 0.5


def question_rows(images: ItemImages, column: str | None = None) -> ReadRow:
    """Return what reads rows with a question: those of tables and lists, and ALBEF's.

    Args:
        images: where the images lie.
        column: the column of the answers, if it is neither `answers` nor `answer`.
    """

    def read(number: int, row: Row) -> Iterable[Item]:
        yield Item(
            images.of(number, row),
            text_of(row, ("question",)),
            row_answers(row) if column is None else answers_in(row[column]),
            id_of(row, ("question_id",)),
            scale=_GENOME_SCALE if row.get("dataset") == "vg" else 1.0,
            kind=id_of(row, ("kind", "answer_type")),
        )

    return read


def row_answers(row: Row) -> tuple[str, ...]:
    """Return the answers in a row: `answers`, or `answer` where that is all there is, or a set.

    DAQUAR answers some questions by a set: `answer` is then the whole, its members joined by commas, and
    `answers` holds the members, none of which is right alone. The whole is taken.
    """
    several = answers_in(row.get("answers"))
    whole = answers_in(row.get("answer"))
    if not several or (len(whole) == 1 and whole[0] == ", ".join(several)):
        return whole
    return several


def answers_in(value: object) -> tuple[str, ...]:
    """Return the answers in a cell: a text, a list of texts or of {answer}, or nothing.

    Raises:
        ValueError: it is something else.
    """
    if is_nothing(value):
        return ()
    given = value if isinstance(value, list) else [value]
    return tuple(map(_answer, given))


def _answer(value: object) -> str:
    text = value.get("answer") if isinstance(value, dict) else value
    if isinstance(text, int) and not isinstance(text, bool):
        return str(text)
    if not isinstance(text, str):
        raise ValueError(f"expected an answer, a list of answers or nothing, got {value!r:.80}")
    return text
