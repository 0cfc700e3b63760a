"""Open items to reason about by description: questions, statements about images, hypotheses, text assignment."""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixlex.data.annotations import (
    ID_FIELDS,
    PATH_FIELDS,
    FileImages,
    RowImages,
    Table,
    TableImages,
    found_in,
    load_json,
    read_annotations,
    read_records,
)
from pixlex.data.captions import SetDescription, open_pairs, read_descriptions
from pixlex.data.embedded import ScenesSource, open_embedded, scene_items
from pixlex.data.formats import ITEM_FIELDS, QUESTION_FORMATS, item_rows, official_statements
from pixlex.data.images import open_source, remote_tables
from pixlex.data.records import (
    CLASSES,
    ListedTask,
    PairSource,
    ReasoningSource,
    Record,
    Task,
    items_of,
    join_items,
)
from pixlex.data.remote import AnyPath
from pixlex.data.sources import remark_left_out, remark_passed_over
from pixlex.data.tables import ParquetSource, columns_without_images, image_columns, table_rows
from pixlex.data.text import json_lines, json_value, list_rows, normalize_answer
from pixlex.files import open_regular
from pixlex.messages import quoted

# Sets the generator of an item's partners apart from others that are seeded with a number.
_PARTNERS = 1 << 61
# How often a partner is drawn before one is given up that does not have the caption itself.
_MOST_DRAWS = 100


def open_items(description: str, task: Task, *, clean: bool = True, max_words: int = 30) -> ReasoningSource:
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
    - assignment: images with captions as `open_pairs` reads them; see `assignment_items`.

    Images lie in `images=`: a folder, or a table with image bytes and image_id; else in STEM_images.parquet
    beside STEM.parquet, or in the folder of the file. Files that are missing are found out when they are read,
    unless all are. An item is left out, and `ignored` says so, if its table has no such image, its annotators
    did not agree on a label, or its text has no word. Answers are as given; labels are "true" or "false",
    "entailment", "neutral" or "contradiction"; text premises of hypotheses are never read.

    Args:
        description: one set or several.
        task: what the texts are.
        clean: write texts as `clean_question` (vqa) or `clean_caption` do.
        max_words: most words kept of a text when cleaned, 1 or more; ALBEF tests questions with 50.

    Raises:
        ValueError: nothing of the kind, an unknown option, a malformed row, an unknown label, an id that occurs
            twice, no item, none with its image, or sets that do not agree.
        ModuleNotFoundError: if the kind of source needs a package that is not installed.
    """
    if task == "assignment":
        pairs = open_pairs(description)
        return assignment_items(pairs.cleaned(max_words) if clean else pairs)
    sets = read_descriptions(description)
    if weighted := [one for one in sets if one.weight != 1]:
        raise ValueError(f"{weighted[0].path}: sets of items have no weights, got {weighted[0].weight:g}")
    source = join_items(description.strip(), [_open_set(one, task) for one in sets])
    source = source.cleaned(task, max_words) if clean else source
    remark_left_out(source.name, source.ignored, "items")
    return source


def assignment_items(pairs: PairSource) -> ReasoningSource:
    """Return an item for each caption: two images, to the first of which it belongs, the second, or neither.

    The three are equally likely. Partners are drawn at random from all images but those that have the same
    caption; ALBEF draws them by similarity in a batch (Li et al. 2021, section 4.2, NLVR2). The draws hang on the
    number of the caption alone, so an item is the same in every epoch and process.

    Args:
        pairs: three distinct images or more.

    Raises:
        ValueError: fewer images, or a caption that all of them share.
    """
    if len({pairs.image_of(row) for row in range(len(pairs))}) < 3:
        raise ValueError(f"{pairs.name}: expected three images or more to assign texts to, got fewer")
    classes = CLASSES["assignment"]
    records: list[Record] = []
    for row, captions in enumerate(pairs.captions):
        for place, text in enumerate(captions):
            generator = np.random.default_rng((len(records), _PARTNERS))
            label = int(generator.integers(len(classes)))
            one = _partner(pairs, text, [row], generator)
            other = _partner(pairs, text, [row, one], generator)
            images = ((row, one), (one, row), (one, other))[label]
            records.append(Record(images, (text,), (classes[label],), f"{pairs.image_id(row)}#{place}"))
    rows = np.array([record.images for record in records], dtype=np.int64).ravel()
    return items_of(pairs.name, records, pairs.images, rows, pairs.ignored)


def _partner(pairs: PairSource, text: str, taken: list[int], generator: np.random.Generator) -> int:
    """Return the row of an image that is none of those taken and has another caption."""
    seen = {pairs.image_of(row) for row in taken}
    for _ in range(_MOST_DRAWS):
        row = int(generator.integers(len(pairs)))
        if pairs.image_of(row) not in seen and text not in pairs.captions[row]:
            return row
    raise ValueError(
        f"{pairs.name}: nearly every image has the caption {quoted(text, 60)}: it can be assigned to none"
    )


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


def _open_scenes(described: SetDescription, task: ListedTask) -> ReasoningSource:
    described.only(("texts",), "drawn scenes")
    name, texts = described.path, described.options.get("texts", "1")
    images = open_embedded(name.removeprefix("embedded:"))
    if not isinstance(images, ScenesSource):
        raise ValueError(
            f"{name} has no items; expected embedded:scenes:train[:COUNT] or embedded:scenes:test[:COUNT]"
        )
    if not (texts.isascii() and texts.isdecimal() and int(texts) > 0):
        raise ValueError(f"{name}: expected a whole number of 1 or more as texts, got {quoted(texts)}")
    records = []
    for number, item in enumerate(scene_items(task, images, int(texts))):
        key = images.key(item.images[0]) + ("" if texts == "1" else f"/{number % int(texts)}")
        records.append(Record(item.images, (item.text,), (item.answer,), key, kind=item.kind))
    rows = np.array([record.images for record in records], dtype=np.int64).ravel()
    return items_of(name if texts == "1" else f"{name}?texts={texts}", records, images, rows)


def _open_set(described: SetDescription, task: ListedTask) -> ReasoningSource:
    """Open one set; its weight is not looked at."""
    if described.path.startswith("embedded:"):
        return _open_scenes(described, task)
    path = Path(described.path).expanduser()
    suffix = path.suffix.lower() if os.path.isfile(path) else ""
    columns = columns_without_images(path) if suffix == ".parquet" else []
    if not columns and suffix not in (".json", ".jsonl", ".csv", ".tsv"):
        return _open_rows_with_images(described, task)
    images = _images_of(path, described.options.get("images"))
    ignored: list[str] = []
    if suffix == ".json" and task == "vqa":
        _, records = read_annotations(path, QUESTION_FORMATS, images, described.options)
    elif suffix in (".json", ".jsonl") and task == "nlvr2" and _begins_with(path, "identifier"):
        described.only(("images", "split"), "NLVR2's and NLVR's lines")
        read_row = official_statements(images, described.options.get("split", path.stem))
        records, ignored = read_records(path, "line", json_lines(path), read_row)
    else:
        described.only(("images", "answers"), "tables of items" if columns else "lists of items")
        column = described.options.get("answers")
        unit, rows = _rows_of(path, columns, (*ITEM_FIELDS[task], column))
        records, ignored = read_records(path, unit, rows, item_rows(task, images, column))
    names = [name for record in records for name in record.images]
    return items_of(str(path), records, *images.find(names), ignored)


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
        found = json_value(first, path)
    except ValueError:
        return False
    return isinstance(found, dict) and name in found


def _images_of(path: Path, named: str | None) -> FileImages | TableImages:
    """Return the images of a file of items.

    Args:
        path: the file; for a .parquet file, a table of the same name with `_images` behind it is taken.
        named: a folder of images, or a table of images: a path, a pattern or hf:NAME:SPLIT.

    Raises:
        ValueError: what is named is neither.
    """
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


def _open_rows_with_images(described: SetDescription, task: ListedTask) -> ReasoningSource:
    """Open a table that holds its images."""
    described.only(("answers",), "tables of items with images")
    tables, column = _tables(described.path), described.options.get("answers")
    wanted = ITEM_FIELDS[task] if column is None else (*ITEM_FIELDS[task], column)
    names = [name for name in tables[0].column_names if name in wanted]
    if not names:
        found = ", ".join(tables[0].column_names)
        raise ValueError(
            f"{described.path}: expected columns such as {', '.join(ITEM_FIELDS[task])}; found {found:.200}"
        )
    columns: list[list[Any]] = [tables[0].values(name) for name in names]
    rows = enumerate(dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
    images = RowImages(described.path, tables)
    records, ignored = read_records(Path(described.path), "row", rows, item_rows(task, images, column))
    found_images = images.find([name for record in records for name in record.images])
    return items_of(described.path, records, *found_images, ignored)


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
