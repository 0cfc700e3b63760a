"""Questions and answers in files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pixlex.data.annotations import GENOME_FOLDERS, found_in, genome_paths, has_some, load_json
from pixlex.data.descriptions import SetDescription
from pixlex.data.item_images import FileImages, ItemImages, NamedImages
from pixlex.data.listed import Item, ReadRow, Row, Rows, field_of, id_of, is_nothing, text_of
from pixlex.data.text import id_text, list_in, plain_text, whole_number
from pixlex.messages import quoted

# What is looked at besides the fields of images.
FIELDS = ("question_id", "question", "answers", "answer", "dataset", "kind", "answer_type")
# ALBEF counts a question of Visual Genome half.
_GENOME_SCALE = 0.5
_EXPECTED = (
    "expected VQA v2's {questions: [{question_id, image_id, question}]}, ALBEF's list of {image, question, "
    "answer} or Visual Genome's list of {id, qas: [{qa_id, question, answer}]}"
)


def question_file(path: Path, images: NamedImages, described: SetDescription) -> tuple[Rows, ReadRow]:
    """Open a .json file of questions, of a kind told by its content.

    VQA v2's questions take the options `annotations` (its annotations; without them answers are unknown) and
    `split` (where `data_subtype` does not say it); Visual Genome's `index`, as for its region descriptions.

    Raises:
        ValueError: the file is none of the three kinds, or an option does not belong to its kind.
    """
    content = load_json(path, _without_bulk)
    if isinstance(content, dict) and isinstance(content.get("questions"), list):
        described.only(("images", "annotations", "split"), "VQA v2's questions")
        return _entries(path, content["questions"]), _official_rows(content, images, described)
    if has_some(content, {"qas"}):
        described.only(("images", "index"), "Visual Genome's questions")
        index = described.options.get("index")
        return _entries(path, content), _genome_rows(images, Path(index).expanduser() if index else None)
    if has_some(content, {"image", "question"}):
        described.only(("images", "answers"), "ALBEF's questions")
        return _entries(path, content), question_rows(images, described.options.get("answers"))
    raise ValueError(f"{path}: {_EXPECTED}; found {found_in(content)}")


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
            row_answers(row) if column is None else answers_in(row[field_of(row, (column,))]),
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
    given = list_in(value) if isinstance(value, str) else value
    if isinstance(value, str) and not _are_answers(given):
        given = [value]
    given = given if isinstance(given, list) else [given]
    return tuple([plain_text(one if type(one) is str else _answer(one)) for one in given])


def _are_answers(value: object) -> bool:
    """Whether a list that a text writes down is one of answers, and no answer in brackets."""
    return isinstance(value, list) and all(
        isinstance(one, str) or (isinstance(one, dict) and "answer" in one) for one in value
    )


def _answer(value: object) -> str:
    text = value.get("answer") if isinstance(value, dict) else value
    if isinstance(text, str):
        return text
    if whole_number(text) is None:
        raise ValueError(f"expected an answer, a list of answers or nothing, got {quoted(value)}")
    return id_text(text)


def _official_rows(content: Mapping[str, Any], images: NamedImages, described: SetDescription) -> ReadRow:
    """Return what reads {question_id, image_id, question} of VQA v2, of photographs."""
    subtype = described.options.get("split", content.get("data_subtype"))
    if not isinstance(subtype, str) or content.get("data_type", "mscoco") != "mscoco":
        raise ValueError(
            f"{described.path}: expected data_type mscoco and data_subtype train2014, val2014 or test2015 (or "
            f"?split=), got {quoted(content.get('data_type'))} and "
            f"{quoted(subtype)}"
        )
    # The questions of test-dev2015 are some of test2015, on its images.
    split = subtype.replace("test-dev", "test")
    inside = f"{split}/" if isinstance(images, FileImages) and os.path.isdir(images.folder / split) else ""
    named = described.options.get("annotations")
    annotations = None if named is None else _annotations(Path(named).expanduser())

    def read(number: int, row: Row) -> Iterable[Item]:
        name = id_of(row, ("question_id",))
        image = id_of(row, ("image_id",))
        if not (name and image.isdecimal()):
            raise ValueError(f"expected question_id and a whole number image_id, got {quoted(dict(row))}")
        found: Mapping[str, Any] = {}
        if annotations is not None:
            if name not in annotations:
                raise ValueError(f"expected an annotation of question {name:.80} in {named}, found none")
            found = annotations[name]
        path = f"{inside}COCO_{split}_{int(image):012d}.jpg"
        yield Item(
            (images.called(image, path),),
            text_of(row, ("question",)),
            answers_in(found.get("answers")),
            name,
            kind=id_of(found, ("answer_type",)),
        )

    return read


def _annotations(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return the annotation of each question."""
    content = load_json(path, _without_bulk)
    entries = content.get("annotations") if isinstance(content, dict) else None
    if not has_some(entries, {"question_id", "answers"}):
        raise ValueError(
            f"{path}: expected VQA v2's {{annotations: [{{question_id, answers}}]}}; found {found_in(content)}"
        )
    assert isinstance(entries, list)
    annotations: dict[str, Mapping[str, Any]] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not entry.keys() >= {"question_id", "answers"}:
            raise ValueError(f"{path} entry {number}: expected question_id and answers, got {quoted(entry)}")
        if annotations.setdefault(id_text(entry["question_id"]), entry) is not entry:
            raise ValueError(
                f"{path} entry {number}: expected questions that occur once, got "
                f"{quoted(entry['question_id'])} again"
            )
    return annotations


def _genome_rows(images: NamedImages, index: Path | None) -> ReadRow:
    """Return what reads {id, qas: [{qa_id, question, answer}]}."""
    paths = genome_paths(images.folder, index) if isinstance(images, FileImages) else {}

    def read(number: int, row: Row) -> Iterable[Item]:
        image = id_of(row, ("id", "image_id"))
        if not image.isdecimal() or not isinstance(row.get("qas"), list):
            raise ValueError(f"expected a whole number id and a list qas, got {quoted(dict(row))}")
        path = paths.get(int(image), f"{GENOME_FOLDERS[0]}/{image}.jpg")
        for asked in row["qas"]:
            if not isinstance(asked, dict):
                raise ValueError(f"expected qas of {{qa_id, question, answer}}, got {quoted(asked)}")
            yield Item(
                (images.called(image, path),),
                text_of(asked, ("question",)),
                answers_in(asked.get("answer")),
                id_of(asked, ("qa_id",)),
                scale=_GENOME_SCALE,
            )

    return read


def _entries(path: Path, content: list[Any]) -> Rows:
    """Return the objects of a list."""
    for number, entry in enumerate(content):
        if not isinstance(entry, dict):
            raise ValueError(f"{path} entry {number}: expected an object, got {quoted(entry)}")
    return Rows(path, "entry", enumerate(content))


def _without_bulk(entry: dict[str, Any]) -> Any:
    """Keep of an answer or a question what is used: VQA v2 has 6.6 million answers, Visual Genome 1.7 million."""
    if "answer_id" in entry and "answer" in entry:
        return entry["answer"]
    if "qa_id" in entry:
        return {name: entry.get(name) for name in ("qa_id", "question", "answer")}
    return entry
