"""What others published: their episodes (Tsimpoukelli et al. 2021), and numbers to stand beside measured ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pixlex.data.folders import FileSource
from pixlex.data.labels import no_labels
from pixlex.data.sources import ImageSource
from pixlex.data.text import json_value, plain_text
from pixlex.eval.few_shot.episodes import EpisodeSet, source_identity
from pixlex.eval.few_shot.prompts import PAPER_COLUMNS, Episode, Naming, Setting, Shown
from pixlex.files import read_regular
from pixlex.messages import quoted

_QUESTIONS = re.compile(r"(?P<task>.+)_shots_(?P<shots>\d+)_ways_(?P<ways>\d+)_all_questions\.json")
_CAPTION = re.compile(r"\s*(?:this is (?:an?|the) )?(.+?)\s*\.?\s*", re.IGNORECASE)


def read_open_ended(
    folder: Path, settings: Sequence[Setting], *, task: str | None = None, limit: int | None = None
) -> tuple[ImageSource, list[EpisodeSet]]:
    """Read the questions of Open-Ended or Real-Name miniImageNet as a set for each setting, and their images.

    A file, TASK_shots_N_ways_M_all_questions.json, is a list of objects: `question_id`, `image_1` ... `image_k`
    and `caption_1` ... `caption_k` with k = ways x shots in the order in which they are shown,
    `question_image`, and `answer`. A name is what is left of a caption or an answer without "This is a" and
    the period. Repeats and induction are no part of the files: they belong to the prompt.

    Args:
        folder: where the files lie.
        settings: which to read; a task with "real_name" in its name has real names, any other nonsense names.
        task: which of several tasks in the folder.
        limit: read so many questions of a file at most.

    Raises:
        ValueError: no such file, a question without its images and captions, or an answer that is no name of
            its captions.
    """
    files = _files(folder, task)
    naming: Naming = "real" if all("real_name" in path.name for path in files.values()) else "nonsense"
    questions = {}
    for size in dict.fromkeys((one.ways, one.shots) for one in settings):
        if size not in files:
            there = ", ".join(f"{ways}-way {shots}-shot" for ways, shots in sorted(files))
            raise ValueError(f"{folder} has no {size[0]}-way {size[1]}-shot questions; it has {there}")
        path, found = files[size], _questions(files[size])[:limit]
        questions[size] = [(question, _image_names(path, question, *size)) for question in found]
    keys = tuple(sorted({key for pairs in questions.values() for _, names in pairs for key in names}))
    images = FileSource(str(folder), folder, keys, no_labels(len(keys)))
    identity, places = source_identity(images), {key: place for place, key in enumerate(keys)}
    sets = []
    for setting in settings:
        path = files[setting.ways, setting.shots]
        pairs = enumerate(questions[setting.ways, setting.shots])
        episodes = tuple(
            _episode(path, number, question, [places[name] for name in names], setting.ways)
            for number, (question, names) in pairs
        )
        classes = tuple(sorted({name for one in episodes for name in one.names}))
        named = replace(setting, naming=naming)
        sets.append(
            EpisodeSet(
                setting=named, seed=None, source=str(folder),
                source_identity=identity, class_names=classes, episodes=episodes,
            )
        )  # fmt: skip
    return images, sets


def _files(folder: Path, task: str | None) -> dict[tuple[int, int], Path]:
    found: dict[str, dict[tuple[int, int], Path]] = {}
    for path in sorted(folder.glob("*_all_questions.json")):
        match = _QUESTIONS.fullmatch(path.name)
        if match is not None:
            found.setdefault(match["task"], {})[int(match["ways"]), int(match["shots"])] = path
    if not found:
        raise ValueError(
            f"no published episodes in {folder}: expected TASK_shots_N_ways_M_all_questions.json and images"
        )
    if task is None and len(found) > 1:
        raise ValueError(f"{folder} holds several tasks, name one of {', '.join(found)}")
    if task is not None and task not in found:
        raise ValueError(f"{folder} has no task {quoted(task)}, only {', '.join(found)}")
    return found[task or next(iter(found))]


def _questions(path: Path) -> list[Any]:
    try:
        data = read_regular(path)
    except OSError as fault:
        raise ValueError(f"{path} cannot be read: {fault.strerror or fault}") from fault
    questions = json_value(data, path)
    if not isinstance(questions, list) or not questions:
        raise ValueError(f"{path}: expected a list of questions, got {type(questions).__name__} or none")
    return questions


def _image_names(path: Path, question: Any, ways: int, shots: int) -> list[str]:
    """Return the files of a question, the one asked about last."""
    numbers = range(1, ways * shots + 1)
    expected = [*(f"image_{number}" for number in numbers), "question_image"]
    for key in (*expected, *(f"caption_{number}" for number in numbers), "answer"):
        if not isinstance(question, dict) or not isinstance(question.get(key), str):
            raise ValueError(
                f"{path.name}: a question lacks the text {quoted(key)}; expected {ways * shots} images and "
                f"captions, got {', '.join(map(str, question))[:200]}"
            )
    # Whatever folder is written there, the images lie beside the file.
    return [Path(question[key]).name for key in expected]


def _episode(
    path: Path, number: int, question: Mapping[str, Any], images: Sequence[int], ways: int
) -> Episode:
    captions = [_name(question[f"caption_{place}"]) for place in range(1, len(images))]
    names, answer = tuple(dict.fromkeys(captions)), _name(question["answer"])
    where = f"{path.name}: question {question.get('question_id', number)}"
    if len(names) != ways:
        raise ValueError(f"{where}: expected {ways} names in its captions, got {', '.join(names)}")
    if answer not in names:
        raise ValueError(f"{where}: the answer {quoted(answer)} is none of its names ({', '.join(names)})")
    *support, query = images
    shown = tuple(Shown(image, names.index(name)) for image, name in zip(support, captions, strict=True))
    return Episode(number=number, names=names, support=shown, query=query, answer=names.index(answer))


def _name(caption: str) -> str:
    match = _CAPTION.fullmatch(caption)
    return plain_text(match[1] if match else caption).strip()


@dataclass(frozen=True)
class PublishedRow:
    """A row of a paper: accuracies in percent by `Setting.column`, their average where all seven are printed."""

    name: str
    ways: int
    source: str
    accuracy: dict[str, float]
    scorer: str = "strict"
    average: float | None = None


# LQAE, Tables 1 and 2, the seven columns and their average: miniImageNet test classes at 256 px, real names.
# LQAE and ASCII prompt GPT-3.5 (text-davinci-003). LQAE's 5-way "bare:1/0" is missing in the text at hand; it
# follows from the average and is quoted by De-Diffusion.
_LQAE: tuple[tuple[str, int, tuple[float, ...]], ...] = (
    ("ASCII 64x64", 2, (0.0, 5.2, 5.9, 6.5, 4.5, 4.8, 5.2, 4.59)),
    ("MAE + linear", 2, (0.0, 8.9, 11.4, 13.5, 12.8, 15.6, 19.8, 11.71)),
    ("Frozen", 2, (1.7, 33.7, 66.0, 66.0, 63.0, 65.0, 63.7, 51.3)),
    ("untrained LQAE", 2, (0.0, 8.2, 13.8, 14.5, 10.4, 12.7, 15.6, 10.74)),
    ("LQAE", 2, (1.5, 35.2, 68.2, 69.8, 68.5, 68.7, 65.9, 53.97)),
    ("ASCII 64x64", 5, (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
    ("MAE + linear", 5, (0.3, 2.0, 2.5, 3.2, 3.1, 3.5, 3.6, 2.6)),
    ("Frozen", 5, (0.9, 14.5, 34.7, 33.8, 33.8, 33.3, 32.8, 26.26)),
    ("untrained LQAE", 5, (0.0, 1.2, 1.6, 2.3, 2.1, 1.9, 2.3, 1.63)),
    ("LQAE", 5, (1.0, 15.7, 35.9, 36.5, 31.9, 36.4, 45.9, 29.04)),
)
# De-Diffusion, Table 3: one inner shot, without and with induction.
_DE_DIFFUSION = (
    ("SPAE (PaLM 2-L)", 2, 32.2, 85.4),
    ("De-Diffusion (PaLM 2-L)", 2, 78.9, 99.3),
    ("SPAE (PaLM 2-L)", 5, 23.6, 67.0),
    ("De-Diffusion (PaLM 2-L)", 5, 71.8, 97.0),
)


def published_rows(ways: int) -> list[PublishedRow]:
    """Return the published rows of a number of ways; none but for 2 and 5."""
    rows = [
        PublishedRow(
            name, ways, f"LQAE, Table {1 if ways == 2 else 2}",
            dict(zip(PAPER_COLUMNS, values[:-1], strict=True)), average=values[-1],
        )
        for name, size, values in _LQAE if size == ways
    ]  # fmt: skip
    rows += [
        PublishedRow(name, ways, "De-Diffusion, Table 3", {"bare:1/0": bare, "1/0": induced})
        for name, size, bare, induced in _DE_DIFFUSION
        if size == ways
    ]
    if ways == 2:
        rows.append(PublishedRow("V2L (LLaMA-2)", 2, "V2L-Tokenizer, issue 2", {"3/0": 91.2}, "v2l"))
    return rows
