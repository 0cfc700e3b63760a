"""Hypotheses about images in files: SNLI-VE and what has its form; the text premise is never looked at."""

from __future__ import annotations

from collections.abc import Iterable

from pixlex.data.item_images import ItemImages
from pixlex.data.listed import Item, LeftOut, ReadRow, Row, id_of, is_nothing, text_of
from pixlex.data.reasoning import CLASSES
from pixlex.messages import quoted

_TEXT_FIELDS = ("hypothesis", "sentence", "sentence2")
_LABEL_FIELDS = ("label", "gold_label")
_ID_FIELDS = ("pairID", "pair_id")
FIELDS = (*_TEXT_FIELDS, *_LABEL_FIELDS, *_ID_FIELDS)

# What annotators did not agree on.
_UNDECIDED = "-"


def hypothesis_rows(images: ItemImages) -> ReadRow:
    """Return what reads rows with a hypothesis: SNLI-VE's, those of tables, and ALBEF's."""

    def read(number: int, row: Row) -> Iterable[Item]:
        label = next((row[name] for name in _LABEL_FIELDS if name in row), None)
        if label == _UNDECIDED:
            raise LeftOut("the label is -, its annotators did not agree")
        yield Item(
            images.of(number, row),
            text_of(row, _TEXT_FIELDS),
            _checked(label),
            id_of(row, _ID_FIELDS),
        )

    return read


def _checked(label: object) -> tuple[str, ...]:
    if is_nothing(label):
        return ()
    name = str(label).strip().lower()
    if name not in CLASSES["entailment"]:
        raise ValueError(f"expected {', '.join(CLASSES['entailment'])} or - as label, got {quoted(label)}")
    return (name,)
