"""Open items to reason about by their description: questions, statements about images, hypotheses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pixlex.data import entailment_files, nlvr_files, vqa_files
from pixlex.data.chosen import choose, join
from pixlex.data.descriptions import SetDescription, read_descriptions
from pixlex.data.embedded import open_embedded
from pixlex.data.images import open_source
from pixlex.data.item_images import ID_FIELDS, PATH_FIELDS, ItemImages, RowImages, Table, images_of
from pixlex.data.listed import ReadRow, Rows, read_listing
from pixlex.data.reasoning import ReasoningSource, Task
from pixlex.data.scenes.source import ScenesSource
from pixlex.data.scenes.tasks import SceneEntailment, ScenePairs, SceneQuestions
from pixlex.data.tables import columns_without_images, table_rows
from pixlex.data.text import clean_caption, clean_question

_FIELDS = {"vqa": vqa_files.FIELDS, "nlvr2": nlvr_files.FIELDS, "entailment": entailment_files.FIELDS}
_SCENES: Mapping[Task, type[SceneQuestions | ScenePairs | SceneEntailment]] = {
    "vqa": SceneQuestions,
    "nlvr2": ScenePairs,
    "entailment": SceneEntailment,
}


def open_items(description: str, task: Task, *, clean: bool = True, max_words: int = 30) -> ReasoningSource:
    """Open items."""
    sets = read_descriptions(description)
    if weighted := [one for one in sets if one.weight != 1]:
        raise ValueError(f"{weighted[0].path}: sets of items have no weights, got {weighted[0].weight:g}")
    sources = [_open_set(one, task) for one in sets]
    source = sources[0] if len(sources) == 1 else join_items(description.strip(), sources)
    return cleaned(source, task, max_words) if clean else source


def cleaned(source: ReasoningSource, task: Task, max_words: int = 30) -> ReasoningSource:
    """Return the items with their texts as ALBEF cleans them; those with no word left are left out.

    Raises:
        ValueError: max_words is below 1, or nothing is left of all texts.
    """
    cleaner = clean_question if task == "vqa" else clean_caption
    texts = tuple(cleaner(text, max_words) for text in source.texts)
    kept = [item for item, text in enumerate(texts) if text]
    if not kept:
        raise ValueError(
            f"{source.name}: expected a word in some text, nothing is left of all of them after cleaning, the "
            f"first {source.texts[0]!r:.40}"
        )
    left_out = tuple(
        f"{source.ids[item]}: nothing is left of the text {source.texts[item]!r:.40} after cleaning"
        for item, text in enumerate(texts)
        if not text
    )
    whole = replace(source, texts=texts, ignored=source.ignored + left_out)
    return whole if len(kept) == len(texts) else whole.take(kept)


def join_items(name: str, sources: Sequence[ReasoningSource]) -> ReasoningSource:
    """Return items one after the other; ids are numbered by source if one occurs in two of them.

    Raises:
        ValueError: they do not agree in images per item.
    """
    first = sources[0]
    for other in sources:
        if other.num_images != first.num_images:
            raise ValueError(
                f"items that are joined must have as many images each: {first.name} has {first.num_images}, "
                f"{other.name} has {other.num_images}"
            )
    ids = [name for source in sources for name in source.ids]
    if len(set(ids)) < len(ids):
        ids = [f"{number}:{name}" for number, source in enumerate(sources, 1) for name in source.ids]
    scaled, said, kinds = (
        any(getattr(one, what) for one in sources) for what in ("scales", "sentences", "kinds")
    )
    return ReasoningSource(
        name=name,
        images=join(name, [source.images for source in sources]),
        num_images=first.num_images,
        texts=tuple(text for source in sources for text in source.texts),
        answers=tuple(given for source in sources for given in source.answers),
        ids=tuple(ids),
        scales=tuple(one for source in sources for one in source.scales or (1.0,) * len(source))
        if scaled
        else (),
        # A sentence that is not known to recur stands alone.
        sentences=tuple(one for source in sources for one in source.sentences or source.ids) if said else (),
        kinds=tuple(one for source in sources for one in source.kinds or ("",) * len(source))
        if kinds
        else (),
        ignored=tuple(one for source in sources for one in source.ignored),
    )


def _open_set(described: SetDescription, task: Task) -> ReasoningSource:
    if described.path.startswith("embedded:"):
        described.only((), "embedded sets")
        return _open_scenes(described.path, task)
    path = Path(described.path).expanduser()
    if path.suffix.lower() == ".parquet" and (columns := columns_without_images(path)):
        described.only(("images", "answers"), "tables of items")
        images: ItemImages = images_of(path, described.options.get("images"))
        wanted = (*_FIELDS[task], *ID_FIELDS, *PATH_FIELDS, described.options.get("answers"))
        rows = enumerate(table_rows(path, [name for name in columns if name in wanted]))
        return images.join(read_listing(Rows(path, "row", rows), _reader(task, images, described)))
    return _open_table(described, task)


def _open_table(described: SetDescription, task: Task) -> ReasoningSource:
    described.only(("answers",), "tables of items with images")
    table = open_source(described.path, captioned=True)
    if not isinstance(table, Table):
        raise ValueError(f"{described.path}: expected items for {task}")
    images = RowImages(described.path, (table,))
    wanted = (*_FIELDS[task], described.options.get("answers"))
    names = [name for name in table.column_names if name in wanted]
    columns = [table.values(name) for name in names]
    rows = (
        (number, dict(zip(names, row, strict=True))) for number, row in enumerate(zip(*columns, strict=True))
    )
    return images.join(
        read_listing(Rows(Path(described.path), "row", rows), _reader(task, images, described))
    )


def _reader(task: Task, images: ItemImages, described: SetDescription) -> ReadRow:
    match task:
        case "vqa":
            return vqa_files.question_rows(images, described.options.get("answers"))
        case "nlvr2":
            return nlvr_files.statement_rows(images)
        case "entailment":
            return entailment_files.hypothesis_rows(images)


def _open_scenes(description: str, task: Task) -> ReasoningSource:
    images = open_embedded(description.removeprefix("embedded:"))
    if not isinstance(images, ScenesSource):
        raise ValueError(
            f"{description} has no items; expected embedded:scenes:train[:COUNT] or embedded:scenes:test[:COUNT]"
        )
    asked: SceneQuestions | ScenePairs | SceneEntailment = _SCENES[task](images.split, len(images))
    items = [asked[index] for index in range(len(asked))]
    places = np.array([item.images for item in items], dtype=np.int64)
    return ReasoningSource(
        name=description,
        images=choose(images, places.ravel()),
        num_images=places.shape[1],
        texts=tuple(item.text for item in items),
        answers=tuple((item.answer,) for item in items),
        ids=tuple(images.key(index) for index in range(len(items))),
        kinds=tuple(item.kind for item in items) if any(item.kind for item in items) else (),
    )
