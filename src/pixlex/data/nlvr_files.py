"""Statements that are true or false of one image or two, in files: NLVR2 and NLVR."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pixlex.data.item_images import ItemImages, NamedImages
from pixlex.data.listed import Item, ReadRow, Row, id_of, is_nothing, text_of
from pixlex.data.text import id_text, list_in
from pixlex.messages import quoted

FIELDS = ("identifier", "example_id", "permutation", "sentence", "label")
# NLVR shows the three boxes of an example in every order.
_NUM_PERMUTATIONS = 6
_PAIR_IMAGE = re.compile(r"(?:.*/)?(?P<set>[a-z]+\d*-\d+)-\d+-img[01]\.\w+")


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
            sentence=sentence_of(name) if name else _sentence_of_image(row),
        )

    return read


def official_rows(images: NamedImages, split: str) -> ReadRow:
    """Return what reads the lines of NLVR2 and of NLVR, told apart by their identifiers.

    Their images are looked for by name in all folders below that of the images: `split-set-pair-img0.png` and
    `img1.png` of NLVR2, six `split-sentence-image-permutation.png` of NLVR, an item each.

    Args:
        images: where the images lie.
        split: of NLVR, whose identifiers do not say it.
    """

    def read(number: int, row: Row) -> Iterable[Item]:
        name = id_of(row, ("identifier",))
        text, answers = text_of(row, ("sentence",)), truth(row.get("label"))
        match name.split("-"):
            case [_, _, _, _]:
                pair = name.rpartition("-")[0]
                paths = tuple(images.located(f"{pair}-img{place}.png") for place in (0, 1))
                yield Item(paths, text, answers, name, sentence=sentence_of(name))
            case [_, _]:
                for permutation in range(_NUM_PERMUTATIONS):
                    image = f"{split}-{name}-{permutation}"
                    sentence = sentence_of(f"{split}-{name}")
                    yield Item((images.located(f"{image}.png"),), text, answers, image, sentence=sentence)
            case _:
                raise ValueError(
                    f"expected split-set-pair-sentence or sentence-image as identifier, got {quoted(name)}"
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
    raise ValueError(
        f"expected split-set-pair-sentence or split-sentence-image as identifier, got {name:.80}"
    )


def _sentence_of_image(row: Row) -> str:
    """Return what the items of one sentence share, from the set that ALBEF's names of images say."""
    pair = row.get("images")
    pair = list_in(pair) if isinstance(pair, str) else pair
    found = _PAIR_IMAGE.fullmatch(str(pair[0])) if isinstance(pair, list) and pair else None
    return f"{found['set']}: {row['sentence']}" if found else ""


def truth(label: object) -> tuple[str, ...]:
    """Return "true" or "false" for true, "True", 1 and the like; nothing for nothing.

    Raises:
        ValueError: for another label.
    """
    if is_nothing(label):
        return ()
    match id_text(label).lower():
        case "true" | "1":
            return ("true",)
        case "false" | "0":
            return ("false",)
    raise ValueError(f"expected true or false (or 1 or 0) as label, got {quoted(label)}")
