"""Open items to reason about by their description: questions, statements about images, hypotheses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pixlex.data.assignment import assignment_items
from pixlex.data.descriptions import read_descriptions
from pixlex.data.embedded import open_embedded
from pixlex.data.item_files import open_item_file
from pixlex.data.pairs import open_pairs
from pixlex.data.reasoning import ListedTask, ReasoningSource, Task
from pixlex.data.scenes.source import ScenesSource
from pixlex.data.scenes.tasks import SceneEntailment, ScenePairs, SceneQuestions
from pixlex.data.sources import concatenate, remark_left_out, subset
from pixlex.data.text import clean_caption, clean_question
from pixlex.messages import quoted

_SCENES: Mapping[ListedTask, type[SceneQuestions | ScenePairs | SceneEntailment]] = {
    "vqa": SceneQuestions,
    "nlvr2": ScenePairs,
    "entailment": SceneEntailment,
}


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
    sources = []
    for one in sets:
        if one.path.startswith("embedded:"):
            one.only(("texts",), "drawn scenes")
            sources.append(_open_scenes(one.path, task, one.options.get("texts", "1")))
        else:
            sources.append(open_item_file(one, task))
    source = sources[0] if len(sources) == 1 else join_items(description.strip(), sources)
    source = clean_items(source, task, max_words) if clean else source
    remark_left_out(source.name, source.ignored, "items")
    return source


def clean_items(source: ReasoningSource, task: Task, max_words: int = 30) -> ReasoningSource:
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
            f"first {quoted(source.texts[0], 40)}"
        )
    whole = replace(source, texts=texts)
    if len(kept) == len(texts):
        return whole
    left_out = tuple(
        f"{source.ids[item]:.80}: nothing is left of the text {quoted(source.texts[item], 40)} after cleaning"
        for item, text in enumerate(texts)
        if not text
    )
    return replace(whole, ignored=source.ignored + left_out).take(kept)


def join_items(name: str, sources: Sequence[ReasoningSource]) -> ReasoningSource:
    """Return items one after the other; ids are numbered by source if one occurs in two of them.

    Args:
        name: what to call the source.
        sources: one or more.

    Raises:
        ValueError: they do not agree in images per item.
    """
    for other in sources:
        if other.num_images != sources[0].num_images:
            raise ValueError(
                f"items that are joined must have as many images each: {sources[0].name} has "
                f"{sources[0].num_images}, {other.name} has {other.num_images}"
            )
    ids = [name for source in sources for name in source.ids]
    if len(set(ids)) < len(ids):
        ids = [f"{number}:{name}" for number, source in enumerate(sources, 1) for name in source.ids]
    scaled, said, kinds = (
        any(getattr(one, what) for one in sources) for what in ("scales", "sentences", "kinds")
    )
    return ReasoningSource(
        name=name,
        images=concatenate(name, [source.images for source in sources]),
        num_images=sources[0].num_images,
        texts=tuple(text for source in sources for text in source.texts),
        answers=tuple(given for source in sources for given in source.answers),
        ids=tuple(ids),
        scales=tuple(one for each in sources for one in each.scales or (1.0,) * len(each)) if scaled else (),
        # A sentence that is not known to recur stands alone.
        sentences=tuple(one for each in sources for one in each.sentences or each.ids) if said else (),
        kinds=tuple(one for each in sources for one in each.kinds or ("",) * len(each)) if kinds else (),
        ignored=tuple(one for source in sources for one in source.ignored),
    )


def _open_scenes(description: str, task: ListedTask, texts: str) -> ReasoningSource:
    """Open drawn scenes."""
    images = open_embedded(description.removeprefix("embedded:"))
    if not isinstance(images, ScenesSource):
        raise ValueError(
            f"{description} has no items; expected embedded:scenes:train[:COUNT] or embedded:scenes:test[:COUNT]"
        )
    if not (texts.isascii() and texts.isdecimal() and int(texts) > 0):
        raise ValueError(f"{description}: expected a whole number of 1 or more as texts, got {quoted(texts)}")
    asked: SceneQuestions | ScenePairs | SceneEntailment
    asked = _SCENES[task](images.split, len(images), int(texts))
    items = [asked[number] for number in range(len(asked))]
    places = np.array([item.images for item in items], dtype=np.int64)
    return ReasoningSource(
        name=description if texts == "1" else f"{description}?texts={texts}",
        images=subset(images, places.ravel()),
        num_images=places.shape[1],
        texts=tuple(item.text for item in items),
        answers=tuple((item.answer,) for item in items),
        ids=tuple(asked.key(number) for number in range(len(items))),
        kinds=tuple(item.kind for item in items) if any(item.kind for item in items) else (),
    )
