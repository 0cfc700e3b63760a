"""Statements that are true or false of one image or two, in files: NLVR2 and NLVR."""

from __future__ import annotations

from collections.abc import Iterable

from pixlex.data.item_images import ItemImages
from pixlex.data.listed import Item, ReadRow, Row, id_of, is_nothing, text_of

FIELDS = ("identifier", "example_id", "permutation", "sentence", "label")


def statement_rows(images: ItemImages) -> ReadRow:
    """Return what reads rows with a statement and its images: those of tables, and ALBEF's."""

    def read(number: int, row: Row) -> Iterable[Item]:
        name = id_of(row, ("identifier", "example_id"))
        permutation = id_of(row, ("permutation",))
        yield Item(
            images.of(number, row),
            text_of(row, ("sentence",)),
            truth(row.get("label")),
            f"{name}-{permutation}" if name and permutation else name,
            sentence=sentence_of(name) if name else "",
        )

    return read


def sentence_of(name: str) -> str:
    """Return what the items of one sentence share, as the official scripts group them.

    NLVR2: split-set-pair-sentence without the pair. NLVR: split-sentence-image without the image.

    Raises:
        ValueError: the name has another form.
    """
    match name.split("-"):
        case [split, images, _, sentence]:
            return f"{split}-{images}-{sentence}"
        case [split, sentence, _]:
            return f"{split}-{sentence}"
    raise ValueError(f"expected split-set-pair-sentence or split-sentence-image as identifier, got {name}")


def truth(label: object) -> tuple[str, ...]:
    """Return "true" or "false" for true, "True", 1 and the like; nothing for nothing.

    Raises:
        ValueError: for another label.
    """
    if is_nothing(label):
        return ()
    match str(label).strip().lower():
        case "true" | "1":
            return ("true",)
        case "false" | "0":
            return ("false",)
    raise ValueError(f"expected true or false (or 1 or 0) as label, got {label!r:.80}")
