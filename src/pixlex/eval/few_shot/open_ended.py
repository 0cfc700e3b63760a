"""The published episodes of Tsimpoukelli et al. (2021): Open-Ended and Real-Name miniImageNet."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pixlex.data.folders import FileSource
from pixlex.data.labels import no_labels
from pixlex.data.sources import ImageSource
from pixlex.data.text import json_value, plain_text
from pixlex.eval.few_shot.episode_files import EpisodeSet
from pixlex.eval.few_shot.episodes import Episode, Naming, Setting, Shown
from pixlex.eval.few_shot.fingerprints import source_identity
from pixlex.files import read_regular
from pixlex.messages import quoted

_QUESTIONS = re.compile(r"(?P<task>.+)_shots_(?P<shots>\d+)_ways_(?P<ways>\d+)_all_questions\.json")
_CAPTION = re.compile(r"\s*(?:this is (?:an?|the) )?(.+?)\s*\.?\s*", re.IGNORECASE)


def read_open_ended(
    folder: Path, settings: Sequence[Setting], *, task: str | None = None, limit: int | None = None
) -> tuple[ImageSource, list[EpisodeSet]]:
    """Read published questions and the images beside them.

    A file, TASK_shots_N_ways_M_all_questions.json, is a list of objects: `question_id`, `image_1` ... `image_k`
    and `caption_1` ... `caption_k` with k = ways x shots in the order in which they are shown,
    `question_image`, and `answer`. A name is what is left of a caption or an answer without "This is a" and
    the period. Repeats and induction are no part of the files: they are told to the prompt.

    Args:
        folder: where the files lie.
        settings: which of them to read; their naming is replaced: a task with "real_name" in its name has
            real names, any other has nonsense names.
        task: which of several tasks in the folder.
        limit: read so many questions of a file at most.

    Returns:
        The images that the questions name, and a set of episodes for each setting.

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
        questions[size] = _Questions(files[size], *size, limit)
    keys = tuple(sorted({key for one in questions.values() for key in one.images}))
    images = FileSource(str(folder), folder, keys, no_labels(len(keys)))
    identity = source_identity(images)
    places = {key: place for place, key in enumerate(keys)}
    sets = []
    for setting in settings:
        episodes = questions[setting.ways, setting.shots].episodes(places)
        sets.append(
            EpisodeSet(
                setting=replace(setting, naming=naming),
                seed=None,
                source=str(folder),
                source_identity=identity,
                class_names=tuple(sorted({name for one in episodes for name in one.names})),
                episodes=episodes,
            )
        )
    return images, sets


def _files(folder: Path, task: str | None) -> dict[tuple[int, int], Path]:
    """Return the files of a task by (ways, shots)."""
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
    return found[task] if task is not None else next(iter(found.values()))


class _Questions:
    """The questions of one file."""

    def __init__(self, path: Path, ways: int, shots: int, limit: int | None) -> None:
        self.path, self.ways, self.count = path, ways, ways * shots
        try:
            data = read_regular(path)
        except OSError as fault:
            raise ValueError(f"{path} cannot be read: {fault.strerror or fault}") from fault
        questions = json_value(data, path)
        if not isinstance(questions, list) or not questions:
            raise ValueError(f"{path}: expected a list of questions, got {type(questions).__name__} or none")
        self._questions = questions[:limit]
        self._image_lists = [self._image_names(one) for one in self._questions]

    @property
    def images(self) -> set[str]:
        """The files that the questions name."""
        return {name for names in self._image_lists for name in names}

    def episodes(self, places: Mapping[str, int]) -> tuple[Episode, ...]:
        """Return the questions over images whose positions are given."""
        return tuple(
            self._episode(question, images, number, places)
            for number, (question, images) in enumerate(zip(self._questions, self._image_lists, strict=True))
        )

    def _image_names(self, question: Any) -> list[str]:
        """Return the files of a question, the one asked about last."""
        expected = [f"image_{number}" for number in range(1, self.count + 1)]
        captions = [key.replace("image", "caption") for key in expected]
        for key in (*expected, *captions, "question_image", "answer"):
            if not isinstance(question, dict) or not isinstance(question.get(key), str):
                raise ValueError(
                    f"{self.path.name}: a question lacks the text {quoted(key)}; expected {self.count} images and "
                    f"captions, got {', '.join(map(str, question))[:200]}"
                )
        # Whatever folder is written there, the images lie beside the file.
        return [Path(question[key]).name for key in (*expected, "question_image")]

    def _episode(
        self, question: Mapping[str, Any], images: Sequence[str], number: int, places: Mapping[str, int]
    ) -> Episode:
        captions = [_name(question[f"caption_{place}"]) for place in range(1, self.count + 1)]
        names = tuple(dict.fromkeys(captions))
        answer = _name(question["answer"])
        where = f"{self.path.name}: question {question.get('question_id', number)}"
        if len(names) != self.ways:
            raise ValueError(f"{where}: expected {self.ways} names in its captions, got {', '.join(names)}")
        if answer not in names:
            raise ValueError(
                f"{where}: the answer {quoted(answer)} is none of its names ({', '.join(names)})"
            )
        *support, query = (places[image] for image in images)
        shown = (
            Shown(image=image, name=names.index(name)) for image, name in zip(support, captions, strict=True)
        )
        return Episode(
            number=number, names=names, support=tuple(shown), query=query, answer=names.index(answer)
        )


def _name(caption: str) -> str:
    match = _CAPTION.fullmatch(caption)
    return plain_text(match[1] if match else caption).strip()
