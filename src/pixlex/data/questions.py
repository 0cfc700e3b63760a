"""Items to reason about, opened by description: questions, statements, hypotheses."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pixlex.data.annotations import (
    ID_FIELDS,
    PATH_FIELDS,
    FileImages,
    Format,
    LeftOut,
    ListedImages,
    NamedImages,
    Opened,
    ReadRow,
    Row,
    RowImages,
    Table,
    TableImages,
    field_of,
    found_in,
    genome_image,
    genome_paths,
    has_some,
    id_of,
    load_json,
    official_statements,
    read_annotations,
    read_records,
    sentence_of,
    text_of,
    truth,
)
from pixlex.data.images import open_embedded, open_source, remote_tables
from pixlex.data.records import Record, Records, items_of, join
from pixlex.data.remote import AnyPath
from pixlex.data.sources import (
    Options,
    SetDescription,
    count_in,
    read_descriptions,
    remark_left_out,
    remark_passed_over,
)
from pixlex.data.synthetic import ScenesSource, scene_items
from pixlex.data.tables import ParquetSource, columns_without_images, image_columns, table_rows
from pixlex.data.text import (
    CLASSES,
    clean_caption,
    clean_question,
    id_text,
    is_nothing,
    json_lines,
    json_value,
    list_in,
    list_rows,
    plain_text,
    whole_number,
)
from pixlex.files import open_regular
from pixlex.messages import quoted

# Those whose items lie in files; those of text assignment are made of captions.
ListedTask = Literal["vqa", "nlvr2", "entailment"]
# What is looked at in tables, besides the fields of images.
ITEM_FIELDS: Mapping[ListedTask, tuple[str, ...]] = {
    "vqa": ("question_id", "question", "answers", "answer", "dataset", "kind", "answer_type"),
    "nlvr2": ("identifier", "example_id", "permutation", "sentence", "label"),
    "entailment": ("hypothesis", "sentence", "sentence2", "label", "gold_label", "pairID", "pair_id"),
}
# ALBEF counts a question of Visual Genome half.
_GENOME_SCALE = 0.5
_PAIR_IMAGE = re.compile(r"(?:.*/)?(?P<set>[a-z]+\d*-\d+)-\d+-img[01]\.\w+")


def open_items(description: str, task: ListedTask, *, clean: bool = True, max_words: int = 30) -> Records:
    """Open items of a task.

    `PATH[?OPTION=VALUE&...]`, several such sets joined by ` + `, which must agree in images per item. PATH is
    one of

    - vqa: .json of VQA v2's questions (`annotations=FILE` with their answers, `split=` where the file does not
      say it), ALBEF's list of {question_id, question, image, answer, dataset}, Visual Genome's question_answers
      (`index=image_data.json`, where folder and file name cannot be told from the id).
    - nlvr2: .json or .jsonl with the lines of NLVR2, or of NLVR (`split=` where the file is not called by it),
      whose six pictures of a statement are an item each; ALBEF's list of {images, sentence, label}.
    - entailment: .jsonl with the lines of SNLI-VE; ALBEF's list of {image, sentence, label}.
    - every task: .parquet, .csv, .tsv, .jsonl with `path`, `filepath`, `image`, `file_name` or `image_id`, and
      `question` with `answers` or `answer` (or what `answers=COLUMN` names); `sentence`, `label`; `hypothesis`,
      `label`. Tables with image bytes in their rows: .parquet files, hf:NAME:SPLIT; two columns of images are a
      pair, the first by name the left one.
    - embedded:scenes:train|test[:COUNT], with `texts=` for so many items of each image.

    Images lie in `images=`: a folder, or a table with image bytes and image_id; else in STEM_images.parquet
    beside STEM.parquet, or in the folder of the file. Files that are missing are found out when they are read,
    unless all are. An item is left out, and `ignored` says so, if its table has no such image, its annotators
    did not agree on a label, or its text has no word. Answers are as given; labels are "true" or "false",
    "entailment", "neutral" or "contradiction"; text premises of hypotheses are never read.

    Args:
        clean: write texts as `clean_question` (vqa) or `clean_caption` do.
        max_words: most words kept of a text when cleaned, 1 or more; ALBEF tests questions with 50.

    Raises:
        ValueError: the description, or a file that it names, does not fit.
        ModuleNotFoundError: if the kind of source needs a package that is not installed.
    """
    sets = read_descriptions(description)
    if weighted := [one for one in sets if one.weight != 1]:
        raise ValueError(f"{weighted[0].path}: sets of items have no weights, got {weighted[0].weight:g}")
    sources = [_open_set(one, task) for one in sets]
    source = sources[0] if len(sources) == 1 else _join(description.strip(), sources)
    if clean:
        source = source.cleaned(max_words, clean_question if task == "vqa" else clean_caption)
    remark_left_out(source.name, source.ignored, "items")
    return source


def _join(name: str, sources: Sequence[Records]) -> Records:
    """Return items one after the other; ids are numbered by source if one occurs in two of them."""
    first = sources[0]
    for other in sources:
        if other.num_images != first.num_images:
            raise ValueError(
                f"items that are joined must have as many images each: {first.name} has "
                f"{first.num_images}, {other.name} has {other.num_images}"
            )
    joined = join(name, sources)
    if len(set(joined.ids)) == len(joined):
        return joined
    ids = tuple(f"{number}:{one}" for number, source in enumerate(sources, 1) for one in source.ids)
    return replace(joined, ids=ids)


def _open_scenes(described: SetDescription, task: ListedTask) -> Records:
    described.only(("texts",), "drawn scenes")
    name, texts = described.path, described.options.get("texts", "1")
    images = open_embedded(name.removeprefix("embedded:"))
    if not isinstance(images, ScenesSource):
        raise ValueError(
            f"{name} has no items; expected embedded:scenes:train[:COUNT] or embedded:scenes:test[:COUNT]"
        )
    count, records = count_in(texts, f"{name}: expected", "texts"), []
    for number, item in enumerate(scene_items(task, images, count)):
        key = images.key(item.images[0]) + ("" if texts == "1" else f"/{number % count}")
        records.append(Record(item.images, (item.text,), (item.answer,), key, kind=item.kind))
    name = name if texts == "1" else f"{name}?texts={texts}"
    return items_of(name, records, RowImages(name, (images,)).find)


def _open_set(described: SetDescription, task: ListedTask) -> Records:
    if described.path.startswith("embedded:"):
        return _open_scenes(described, task)
    path = Path(described.path).expanduser()
    suffix = path.suffix.lower() if os.path.isfile(path) else ""
    columns = columns_without_images(path) if suffix == ".parquet" else []
    column, ignored = described.options.get("answers"), list[str]()
    if not columns and suffix not in (".json", ".jsonl", ".csv", ".tsv"):
        described.only(("answers",), "tables of items with images")
        tables = _tables(described.path)
        own, table = (
            RowImages(described.path, tables),
            _rows_of_table(tables[0], (*ITEM_FIELDS[task], column)),
        )
        records, ignored = read_records(Path(own.name), "row", table, item_rows(task, own, column))
        return items_of(own.name, records, own.find, ignored)
    images = _images_of(path, described.options.get("images"))
    if suffix == ".json" and task == "vqa":
        _, records = read_annotations(path, QUESTION_FORMATS, images, described.options)
    elif suffix in (".json", ".jsonl") and task == "nlvr2" and _begins_with(path, "identifier"):
        described.only(("images", "split"), "NLVR2's and NLVR's lines")
        read_row = official_statements(images, described.options.get("split", path.stem))
        records, ignored = read_records(path, "line", json_lines(path), read_row)
    else:
        described.only(("images", "answers"), "tables of items" if columns else "lists of items")
        unit, rows = _rows_of(path, columns, (*ITEM_FIELDS[task], column))
        records, ignored = read_records(path, unit, rows, item_rows(task, images, column))
    return items_of(str(path), records, images.find, ignored)


def _rows_of(path: Path, columns: Sequence[str], fields: Sequence[str | None]) -> tuple[str, Iterable[Any]]:
    """Return what a row is called, and the rows of tables, of lists and of ALBEF's files."""
    if columns:
        wanted = (*fields, *ID_FIELDS, *PATH_FIELDS, "images")
        return "row", enumerate(table_rows(path, [name for name in columns if name in wanted]))
    if path.suffix.lower() != ".json":
        return "line", json_lines(path) if path.suffix.lower() == ".jsonl" else list_rows(path)
    content = load_json(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ValueError(f"{path}: expected ALBEF's list of objects; found {found_in(content)}")
    return "entry", enumerate(content)


def _begins_with(path: Path, name: str) -> bool:
    """Whether the first line of a file is an object with this field."""
    with open_regular(path) as file:
        first = next((line for line in file if line.strip()), b"")
    # A whole list in one line is not read twice.
    if not first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
        return False
    try:
        return name in json_value(first, path)
    except ValueError:
        return False


def _images_of(path: Path, named: str | None) -> FileImages | TableImages:
    """Return the images of a file of items: in the folder or table named, in STEM_images.parquet, or beside it."""
    if named is None:
        beside = path.with_name(f"{path.stem}_images.parquet")
        if path.suffix.lower() == ".parquet" and beside.is_file():
            return TableImages(ParquetSource(str(beside), [beside], numbered=True))
        return FileImages(str(path), path.parent)
    folder = Path(named).expanduser()
    if os.path.isdir(folder) and not any(folder.glob("*.parquet")) and not any(folder.glob("*.arrow")):
        return FileImages(str(path), folder)
    table = open_source(named, captioned=True)
    if not isinstance(table, Table):
        raise ValueError(f"{path}: images must be a folder or a table of images, got {named}")
    remark_passed_over(table)
    return TableImages(table)


def _rows_of_table(table: Table, wanted: Sequence[str | None]) -> Iterable[tuple[int, Row]]:
    """Return the rows of a table that holds its images, some columns alone."""
    names = [name for name in table.column_names if name in wanted]
    if not names:
        expected, found = ", ".join(filter(None, wanted)), ", ".join(table.column_names)
        raise ValueError(f"{table.name}: expected columns such as {expected}; found {found:.200}")
    columns = [table.values(name) for name in names]
    return enumerate(dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))


def _tables(description: str) -> tuple[Table, ...]:
    """Open the columns of images of a table, in the order of their names."""
    path = Path(description).expanduser()
    files: Sequence[AnyPath] = sorted(path.glob("*.parquet")) if os.path.isdir(path) else [path]
    remote = remote_tables(description)
    if remote or (files and files[0].suffix.lower() == ".parquet" and os.path.isfile(str(files[0]))):
        files = remote or files
        names = sorted(image_columns(files[0]))
        if len(names) > 1:
            return tuple(ParquetSource(description, files, numbered=True, column=name) for name in names)
    table = open_source(description, captioned=True)
    if not isinstance(table, Table):
        raise ValueError(
            f"{description} holds no items: expected .json, .jsonl, .csv, .tsv, .parquet, hf:NAME:SPLIT or "
            "embedded:scenes:train|test"
        )
    remark_passed_over(table)
    return (table,)


def item_rows(task: ListedTask, images: NamedImages, column: str | None = None) -> ReadRow:
    """Return what reads rows of tables, of lists and of ALBEF's files; SNLI-VE's too.

    `column` is that of the answers of questions, if it is neither `answers` nor `answer`.
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
        known = CLASSES["entailment"]
        answers = () if is_nothing(label) else (str(label).strip().lower(),)
        if not set(answers) <= set(known):
            raise ValueError(f"expected {', '.join(known)} or - as label, got {quoted(label)}")
        texts = (text_of(row, "hypothesis", "sentence", "sentence2"),)
        yield Record(images.of(number, row), texts, answers, id_of(row, "pairID", "pair_id"))

    return {"vqa": question, "nlvr2": statement, "entailment": hypothesis}[task]


def _official_questions(content: Any, images: ListedImages, options: Options) -> Opened:
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
        if not has_some([entry], "question_id", "answers"):
            raise ValueError(f"{path} entry {number}: expected question_id and answers, got {quoted(entry)}")
        if annotations.setdefault(id_text(entry["question_id"]), entry) is not entry:
            again = quoted(entry["question_id"])
            raise ValueError(f"{path} entry {number}: expected questions that occur once, got {again} again")
    return annotations


def _genome_questions(content: Any, images: ListedImages, options: Options) -> Opened:
    """Read Visual Genome's questions; `index` as for its region descriptions."""
    paths = genome_paths(images, options)

    def read(number: int, row: Row) -> Iterable[Record]:
        image, path = genome_image(row, paths)
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


def _sentence_of_image(row: Row) -> str:
    """Return what the items of one sentence share, from the set that ALBEF's names of images say."""
    pair = row.get("images")
    pair = list_in(pair) if isinstance(pair, str) else pair
    found = _PAIR_IMAGE.fullmatch(str(pair[0])) if isinstance(pair, list) and pair else None
    return f"{found['set']}: {row['sentence']}" if found else ""


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
