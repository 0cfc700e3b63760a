"""The formats of annotation files that the community shares: captions, questions, statements and hypotheses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pixlex.data.annotations import (
    Format,
    LeftOut,
    ListedImages,
    NamedImages,
    ReadRow,
    Row,
    field_of,
    found_in,
    has_some,
    id_of,
    is_nothing,
    load_json,
    text_of,
)
from pixlex.data.folders import image_path
from pixlex.data.records import CLASSES, ListedTask, Record
from pixlex.data.text import id_text, list_in, plain_text, texts_in, whole_number
from pixlex.messages import quoted

# What is looked at in tables, besides the fields of images.
ITEM_FIELDS: Mapping[ListedTask, tuple[str, ...]] = {
    "vqa": ("question_id", "question", "answers", "answer", "dataset", "kind", "answer_type"),
    "nlvr2": ("identifier", "example_id", "permutation", "sentence", "label"),
    "entailment": ("hypothesis", "sentence", "sentence2", "label", "gold_label", "pairID", "pair_id"),
}

# ALBEF counts a question of Visual Genome half.
_GENOME_SCALE = 0.5
# NLVR shows the three boxes of an example in every order.
_NUM_PERMUTATIONS = 6
_PAIR_IMAGE = re.compile(r"(?:.*/)?(?P<set>[a-z]+\d*-\d+)-\d+-img[01]\.\w+")
_GENOME_FOLDERS = ("VG_100K", "VG_100K_2")


def _albef(content: Any, images: ListedImages, options: Mapping[str, str]) -> tuple[str, Any, ReadRow]:
    def read(number: int, row: Row) -> Iterable[Record]:
        path = _path(row["image"], images)
        yield Record(
            (path,), texts_in(row["captions"] if "captions" in row else row["caption"], f"{path:.80}")
        )

    return "entry", content, read


def _karpathy(content: Any, images: ListedImages, options: Mapping[str, str]) -> tuple[str, Any, ReadRow]:
    def read(number: int, row: Row) -> Iterable[Record]:
        path = _path(str(PurePosixPath(row.get("filepath") or "", row["filename"])), images)
        sentences = (texts_in(sentence["raw"], f"{path:.80}") for sentence in row.get("sentences", ()))
        yield Record((path,), tuple(text for texts in sentences for text in texts), split=str(row["split"]))

    return "image", content["images"], read


def _coco(content: Any, images: ListedImages, options: Mapping[str, str]) -> tuple[str, Any, ReadRow]:
    known = {id_text(row["id"]) for row in content["images"] if isinstance(row, dict) and "id" in row}
    texts: dict[str, list[str]] = {}
    for place, row in enumerate(content["annotations"]):
        where = f"annotation {place}"
        if not isinstance(row, dict) or not {"image_id", "caption"} <= row.keys():
            raise ValueError(f"{where}: expected the fields image_id and caption, got {quoted(row)}")
        name = id_text(row["image_id"])
        if name not in known:
            raise ValueError(
                f"{where} belongs to image {quoted(row['image_id'])}, which is not among the images"
            )
        texts.setdefault(name, []).extend(texts_in(row["caption"], f"{where} (image {name:.80})"))

    def read(number: int, row: Row) -> Iterable[Record]:
        name = id_text(row["id"])
        yield Record((_path(row["file_name"], images),), tuple(texts.get(name, ())), id=name)

    return "image", content["images"], read


def _genome(content: Any, images: ListedImages, options: Mapping[str, str]) -> tuple[str, Any, ReadRow]:
    """Read [{id or image_id, regions: [{phrase}]}]; the phrase of a region is a text of the whole image."""
    paths = _genome_paths(images, options)

    def read(number: int, row: Row) -> Iterable[Record]:
        image, path = _genome_image(row, paths)
        phrases = (texts_in(region["phrase"], f"image {image}") for region in row["regions"])
        yield Record((path,), tuple(text for texts in phrases for text in texts))

    return "entry", content, read


def _path(value: object, images: ListedImages) -> str:
    assert images.folder is not None
    return image_path(value, "image", images.folder)


def _genome_image(row: Row, paths: Mapping[int, str]) -> tuple[int, str]:
    """Return number and path of an image of Visual Genome."""
    number = whole_number(row["id"] if "id" in row else row["image_id"])
    if number is None:
        raise ValueError(f"expected a whole number as id, got {quoted(dict(row))}")
    return number, paths.get(number, f"{_GENOME_FOLDERS[0]}/{number}.jpg")


def _genome_paths(images: ListedImages, options: Mapping[str, str]) -> dict[int, str]:
    """Return the path of each image below a folder, from the URLs in image_data.json or by looking."""
    if "index" in options:
        index = Path(options["index"]).expanduser()
        rows = load_json(index)
        if not isinstance(rows, list) or not all(has_some([row], "image_id", "url") for row in rows):
            raise ValueError(f"{index} is no image_data.json: expected a list of {{image_id, url}}")
        ids = [whole_number(row["image_id"]) for row in rows]
        if None in ids:
            raise ValueError(f"{index} entry {ids.index(None)}: expected a whole number as image_id")
        tails = ("/".join(str(row["url"]).split("/")[-2:]) for row in rows)
        return {number: tail for number, tail in zip(ids, tails, strict=True) if number is not None}
    paths: dict[int, str] = {}
    for folder in (*_GENOME_FOLDERS, ".") if images.folder is not None else ():
        assert images.folder is not None
        for name in (images.folder / folder).glob("*.jpg"):
            if name.stem.isdecimal():
                paths.setdefault(int(name.stem), str(PurePosixPath(folder, name.name)))
    return paths


CAPTION_FORMATS = (
    Format(
        "Karpathy's files", "{images: [{filename, split, sentences: [{raw}]}]}", ("split", "images", "rows"),
        lambda content: isinstance(content, dict) and has_some(content.get("images"), "sentences"), _karpathy,
    ),
    Format(
        "COCO's captions", "{images: [{id, file_name}], annotations: [{image_id, caption}]}",
        ("split", "images", "rows"),
        lambda content: isinstance(content, dict) and isinstance(content.get("images"), list)
        and has_some(content.get("annotations"), "image_id", "caption"), _coco,
    ),
    Format(
        "Visual Genome's region descriptions", "a list of {id, regions: [{phrase}]}",
        ("split", "images", "index", "rows"), lambda content: has_some(content, "regions"), _genome,
    ),
    Format(
        "ALBEF's captions", "a list of {image, caption}", ("split", "images", "rows"),
        lambda content: has_some(content, "image", "caption") or has_some(content, "image", "captions"), _albef,
    ),
)  # fmt: skip


def item_rows(task: ListedTask, images: NamedImages, column: str | None = None) -> ReadRow:
    """Return what reads rows of tables, of lists and of ALBEF's files; SNLI-VE's too.

    Args:
        task: what the texts are.
        images: where the images lie.
        column: the column of the answers of questions, if it is neither `answers` nor `answer`.
    """

    def question(number: int, row: Row) -> Iterable[Record]:
        yield Record(
            images.of(number, row), (text_of(row, "question"),),
            _row_answers(row) if column is None else _answers_in(row[field_of(row, column)]),
            id_of(row, "question_id"), scale=_GENOME_SCALE if row.get("dataset") == "vg" else 1.0,
            kind=id_of(row, "kind", "answer_type"),
        )  # fmt: skip

    def statement(number: int, row: Row) -> Iterable[Record]:
        name, permutation = id_of(row, "identifier", "example_id"), id_of(row, "permutation")
        sentence = sentence_of(name) if name else _sentence_of_image(row)
        name = f"{name}-{permutation}" if name and permutation else name
        texts = (text_of(row, "sentence"),)
        yield Record(images.of(number, row), texts, truth(row.get("label")), name, sentence=sentence)

    def hypothesis(number: int, row: Row) -> Iterable[Record]:
        label = next((row[name] for name in ("label", "gold_label") if name in row), None)
        if label == "-":
            raise LeftOut("the label is -, its annotators did not agree")
        answers = () if is_nothing(label) else (str(label).strip().lower(),)
        if not set(answers) <= set(CLASSES["entailment"]):
            raise ValueError(
                f"expected {', '.join(CLASSES['entailment'])} or - as label, got {quoted(label)}"
            )
        texts = (text_of(row, "hypothesis", "sentence", "sentence2"),)
        yield Record(images.of(number, row), texts, answers, id_of(row, "pairID", "pair_id"))

    return {"vqa": question, "nlvr2": statement, "entailment": hypothesis}[task]


def _official_questions(
    content: Any, images: ListedImages, options: Mapping[str, str]
) -> tuple[str, Any, ReadRow]:
    """Read VQA v2's questions, of photographs; answers are unknown without its annotations."""
    subtype = options.get("split", content.get("data_subtype"))
    if not isinstance(subtype, str) or content.get("data_type", "mscoco") != "mscoco":
        raise ValueError(
            "expected data_type mscoco and data_subtype train2014, val2014 or test2015 (or ?split=), got "
            f"{quoted(content.get('data_type'))} and {quoted(subtype)}"
        )
    # The questions of test-dev2015 are some of test2015, on its images.
    split = subtype.replace("test-dev", "test")
    inside = f"{split}/" if images.folder is not None and os.path.isdir(images.folder / split) else ""
    named = options.get("annotations")
    annotations = None if named is None else _annotations_of_questions(Path(named).expanduser())

    def read(number: int, row: Row) -> Iterable[Record]:
        name, image = id_of(row, "question_id"), id_of(row, "image_id")
        if not (name and image.isdecimal()):
            raise ValueError(f"expected question_id and a whole number image_id, got {quoted(dict(row))}")
        if annotations is not None and name not in annotations:
            raise ValueError(f"expected an annotation of question {name:.80} in {named}, found none")
        found: Row = {} if annotations is None else annotations[name]
        called = images.called(image, f"{inside}COCO_{split}_{int(image):012d}.jpg")
        texts, kind = (text_of(row, "question"),), id_of(found, "answer_type")
        yield Record((called,), texts, _answers_in(found.get("answers")), name, kind=kind)

    return "entry", content["questions"], read


def _annotations_of_questions(path: Path) -> dict[str, Row]:
    content = load_json(path)
    entries = content.get("annotations") if isinstance(content, dict) else None
    if not has_some(entries, "question_id", "answers"):
        raise ValueError(
            f"{path}: expected VQA v2's {{annotations: [{{question_id, answers}}]}}; found {found_in(content)}"
        )
    annotations: dict[str, Row] = {}
    for number, entry in enumerate(entries or ()):
        if not isinstance(entry, dict) or not entry.keys() >= {"question_id", "answers"}:
            raise ValueError(f"{path} entry {number}: expected question_id and answers, got {quoted(entry)}")
        if annotations.setdefault(id_text(entry["question_id"]), entry) is not entry:
            raise ValueError(
                f"{path} entry {number}: expected questions that occur once, got "
                f"{quoted(entry['question_id'])} again"
            )
    return annotations


def _genome_questions(
    content: Any, images: ListedImages, options: Mapping[str, str]
) -> tuple[str, Any, ReadRow]:
    """Read Visual Genome's questions; `index` as for its region descriptions."""
    paths = _genome_paths(images, options)

    def read(number: int, row: Row) -> Iterable[Record]:
        image, path = _genome_image(row, paths)
        if not isinstance(row.get("qas"), list) or not all(isinstance(asked, dict) for asked in row["qas"]):
            raise ValueError(f"expected a list qas of {{qa_id, question, answer}}, got {quoted(dict(row))}")
        for asked in row["qas"]:
            texts, answers = (text_of(asked, "question"),), _answers_in(asked.get("answer"))
            name = (images.called(str(image), path),)
            yield Record(name, texts, answers, id_of(asked, "qa_id"), scale=_GENOME_SCALE)

    return "entry", content, read


QUESTION_FORMATS = (
    Format(
        "VQA v2's questions", "{questions: [{question_id, image_id, question}]}",
        ("images", "annotations", "split"),
        lambda content: isinstance(content, dict) and isinstance(content.get("questions"), list),
        _official_questions,
    ),
    Format(
        "Visual Genome's questions", "a list of {id, qas: [{qa_id, question, answer}]}", ("images", "index"),
        lambda content: has_some(content, "qas"), _genome_questions,
    ),
    Format(
        "ALBEF's questions", "a list of {image, question, answer}", ("images", "answers"),
        lambda content: has_some(content, "image", "question"),
        lambda content, images, options: ("entry", content, item_rows("vqa", images, options.get("answers"))),
    ),
)  # fmt: skip


def official_statements(images: ListedImages, split: str) -> ReadRow:
    """Return what reads the lines of NLVR2 and of NLVR, told apart by their identifiers.

    Their images are looked for by name in all folders below that of the images: `split-set-pair-img0.png` and
    `img1.png` of NLVR2, six `split-sentence-image-permutation.png` of NLVR, an item each.

    Args:
        images: where the images lie.
        split: of NLVR, whose identifiers do not say it.
    """

    def read(number: int, row: Row) -> Iterable[Record]:
        name = id_of(row, "identifier")
        texts, answers = (text_of(row, "sentence"),), truth(row.get("label"))
        match len(name.split("-")):
            case 4:
                pair = name.rpartition("-")[0]
                paths = tuple(images.located(f"{pair}-img{place}.png") for place in (0, 1))
                yield Record(paths, texts, answers, name, sentence=sentence_of(name))
            case 2:
                sentence = sentence_of(f"{split}-{name}")
                for permutation in range(_NUM_PERMUTATIONS):
                    image = f"{split}-{name}-{permutation}"
                    yield Record((images.located(f"{image}.png"),), texts, answers, image, sentence=sentence)
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
    """Return "true" or "false" for true, "True", 1 and the like; nothing for nothing; raises `ValueError` else."""
    if is_nothing(label):
        return ()
    match id_text(label).lower():
        case "true" | "1":
            return ("true",)
        case "false" | "0":
            return ("false",)
    raise ValueError(f"expected true or false (or 1 or 0) as label, got {quoted(label)}")


def _row_answers(row: Row) -> tuple[str, ...]:
    """Return the answers in a row: `answers`, or `answer` where that is all there is, or a set.

    DAQUAR answers some questions by a set: `answer` is then the whole, its members joined by commas, and
    `answers` holds the members, none of which is right alone. The whole is taken.
    """
    several, whole = _answers_in(row.get("answers")), _answers_in(row.get("answer"))
    return whole if not several or (len(whole) == 1 and whole[0] == ", ".join(several)) else several


def _answers_in(value: object) -> tuple[str, ...]:
    """Return the answers in a cell: a text, a list of texts or of {answer}, nothing; raises `ValueError` else."""
    if is_nothing(value):
        return ()
    given = list_in(value) if isinstance(value, str) else value
    # A list that a text writes down may be an answer in brackets.
    if isinstance(value, str) and not (
        isinstance(given, list)
        and all(isinstance(one, str) or (isinstance(one, dict) and "answer" in one) for one in given)
    ):
        given = [value]
    given = given if isinstance(given, list) else [given]
    return tuple([plain_text(one if type(one) is str else _answer(one)) for one in given])


def _answer(value: object) -> str:
    text = value.get("answer") if isinstance(value, dict) else value
    if isinstance(text, str):
        return text
    if whole_number(text) is None:
        raise ValueError(f"expected an answer, a list of answers or nothing, got {quoted(value)}")
    return id_text(text)
