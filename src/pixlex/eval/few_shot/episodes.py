"""Sets of episodes: drawn, saved, loaded, or published ones (Tsimpoukelli et al. 2021; LQAE, appendix B)."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pixlex.data.decoding import ImageRecord, UnreadableImage
from pixlex.data.folders import FileSource
from pixlex.data.labels import Labeled, Labels, no_labels
from pixlex.data.sources import ImageSource, concatenate, evenly_spaced, subset
from pixlex.data.text import json_value, plain_text
from pixlex.eval.few_shot.prompts import Episode, Naming, Setting, Shown
from pixlex.files import read_regular, sealed, unsealed, write_text
from pixlex.messages import quoted

# Invented words, pronounceable and unlike each other; the first two are those of Tsimpoukelli et al. (2021).
NONSENSE_NAMES = (
    "dax", "blicket", "wug", "toma", "fep", "zorb", "kiki", "glorp", "perpo", "slation", "shously", "vonk",
    "tulver", "mibble", "quonk", "drassle", "yimp", "norvit", "plonder", "skraw", "hesk", "jubbin", "rimsy",
    "crelt",
)  # fmt: skip
# Sets the generator of the names apart from that of the images.
_NAMES = 1
# Version of the files of episodes.
_FORMAT = 1
# Images of a source whose bytes are looked at.
_SAMPLE = 16
# Files of published episodes, and their captions.
_QUESTIONS = re.compile(r"(?P<task>.+)_shots_(?P<shots>\d+)_ways_(?P<ways>\d+)_all_questions\.json")
_CAPTION = re.compile(r"\s*(?:this is (?:an?|the) )?(.+?)\s*\.?\s*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class EpisodeSet:
    """Episodes of one setting, and the images that they are about."""

    setting: Setting
    seed: int | None  # None where they came from elsewhere
    source: str  # name of the source of images
    source_identity: str  # its fingerprint, bytes included (`source_identity`)
    class_names: tuple[str, ...]  # that were drawn from
    episodes: tuple[Episode, ...]  # numbered from 0

    @cached_property
    def identity(self) -> str:
        """A fingerprint of setting, images and episodes; where the images lie does not matter."""
        return digest(*self.questions)

    @cached_property
    def questions(self) -> tuple[str, ...]:
        """A fingerprint of each episode, its setting and images included; the number of episodes is not."""
        entry = _entry(self)
        around = json.dumps([entry["setting"], entry["source_identity"]], sort_keys=True)
        return tuple(digest(around, json.dumps(one, sort_keys=True)) for one in entry["episodes"])

    @property
    def file_name(self) -> str:
        """The name that its file has beside others."""
        one = self.setting
        induction = "" if one.induction else "-bare"
        return f"{one.ways}-way-{one.shots}-shot-{one.repeats}-repeat{induction}-{one.naming}.json"

    def check(self, images: ImageSource) -> None:
        """Raise `ValueError` unless the episodes were drawn from these images."""
        found = source_identity(images)
        if found != self.source_identity:
            raise ValueError(
                f"the episodes ({self.setting.label}) were drawn from {self.source} with fingerprint "
                f"{self.source_identity[:12]}, but {images.name} ({len(images):,} images) has {found[:12]}: "
                "other images, another order or other labels"
            )


def digest(*parts: str) -> str:
    """Return a hash of texts; where one ends and the next begins matters."""
    state = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogateescape")
        state.update(len(encoded).to_bytes(8, "little") + encoded)
    return state.hexdigest()


def source_identity(images: ImageSource) -> str:
    """Return a fingerprint of a source: its listing, and the bytes of up to 16 images spread over it.

    `ImageSource.identity` alone knows no bytes: two files of one name with as many rows and the same labels
    are one listing, though the pictures be of another size or another data set.
    """
    return digest(images.identity, *_contents(images, evenly_spaced(len(images), _SAMPLE)))


def _contents(images: ImageSource, indices: Iterable[int]) -> list[str]:
    """Return a hash of each image's bytes, in the order of the source; "" for one that cannot be read."""
    contents = []
    for index in sorted(indices):
        try:
            data = images.read(index).data
        except UnreadableImage:
            contents.append("")
            continue
        contents.append(hashlib.sha256(data if isinstance(data, bytes) else data.tobytes()).hexdigest())
    return contents


@dataclass(frozen=True)
class WithSupport(Labeled):
    """Images to ask about, and behind them images of another source to show with the names that both have.

    Attributes:
        parts: Both sources.
        images: The rows of both that belong to a class of both.
        labels: Their classes, numbered in sorted order of the names.
        num_queries: So many of the images, the first ones, are asked about; the others are shown.
    """

    parts: tuple[ImageSource, ImageSource]
    images: ImageSource
    labels: Labels
    num_queries: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def name(self) -> str:
        """What to call both in messages and tables."""
        return self.images.name

    @cached_property
    def identity(self) -> str:
        """A fingerprint of the listings of both, which images of theirs are here, and their classes."""
        numbers = [str(self.num_queries), *map(str, self.labels.indices.tolist())]
        return digest(self.images.identity, *self.class_names, *numbers)

    def key(self, index: int) -> str:
        """Return the name of an image inside its source, behind a number where both have some name."""
        return self.images.key(index)

    def read(self, index: int) -> ImageRecord:
        """Return a stored image; raises `UnreadableImage` if it cannot be fetched."""
        return replace(self.images.read(index), label=int(self.labels.indices[index]))


def with_support(images: ImageSource, support: ImageSource) -> WithSupport:
    """Return images to ask about together with images of another source to show.

    Classes are matched by their names; those that one of the two lacks are left out. No image serves for both:
    what may be asked about is never shown, whatever it is called; the bytes of all images of these classes tell.

    Raises:
        ValueError: no labels, a label without a name, no class that both have, or a support whose images of these
            classes are all to be asked about.
    """
    asked, shown = (_by_name(_classes(source)) for source in (images, support))
    names = sorted(asked.keys() & shown.keys())
    if not names:
        few = [", ".join(quoted(name) for name in list(found)[:3]) for found in (asked, shown)]
        raise ValueError(
            f"no class of {images.name} ({len(asked)}, such as {few[0]}) is one of {support.name} ({len(shown)}, "
            f"such as {few[1]}): expected the same names in both"
        )
    pairs = [(row, label) for label, name in enumerate(names) for row in asked[name]]
    known = set(_contents(images, (row for row, _ in pairs))) - {""}
    others = sorted((row, label) for label, name in enumerate(names) for row in shown[name])
    contents = _contents(support, (row for row, _ in others))
    others = [one for one, content in zip(others, contents, strict=True) if content not in known]
    if not others:
        raise ValueError(
            f"all images of {support.name} that could be shown are asked about, for they are in {images.name} "
            "too: expected other images, or no support of its own"
        )
    title = f"{images.name}, support {support.name}"
    parts = [subset(one, [row for row, _ in rows]) for one, rows in ((images, pairs), (support, others))]
    labels = np.array([label for _, label in (*pairs, *others)], dtype=np.int64)
    return WithSupport((images, support), concatenate(title, parts), Labels(labels, tuple(names)), len(pairs))


def sample_episodes(
    images: ImageSource, setting: Setting, *, count: int, seed: int, most_shots: int = 0
) -> EpisodeSet:
    """Draw episodes (LQAE, appendix B).

    Episode i is a function of images, seed, ways and i: its classes, their order and the image asked about
    are those of every setting with as many ways, and the support images of fewer shots are the first of more.
    So columns of a table differ by what is shown, not by luck. Every class is as likely to be asked about;
    two of one name never meet in an episode.

    Args:
        images: with labels; of `with_support` the one asked about is drawn from the first images, what is shown
            from the others, and classes with too few to show are left out.
        count: of episodes, 1 or more.
        seed: 0 or more.
        most_shots: the most of the settings that are to share their questions; of this one alone by default.

    Raises:
        ValueError: no labels, a label without a name, too few classes, or a class with too few images.
    """
    if count < 1 or seed < 0:
        raise ValueError(f"expected 1 or more episodes and a seed of 0 or more, got {count} and {seed}")
    classes = _usable(images, setting, max(most_shots, setting.shots))
    queries = images.num_queries if isinstance(images, WithSupport) else None
    if setting.naming == "nonsense" and setting.ways > len(NONSENSE_NAMES):
        raise ValueError(f"there are {len(NONSENSE_NAMES)} nonsense names, too few for {setting.ways} ways")
    return EpisodeSet(
        setting=setting,
        seed=seed,
        source=images.name,
        source_identity=source_identity(images),
        class_names=tuple(name for name, _ in classes),
        episodes=tuple(_sample(classes, setting, seed, number, queries) for number in range(count)),
    )


# The name of a class and the positions of its images.
_Class = tuple[str, list[int]]


def _sample(
    classes: list[_Class], setting: Setting, seed: int, number: int, num_queries: int | None
) -> Episode:
    generator = np.random.default_rng((seed, setting.ways, number))
    chosen: dict[str, list[int]] = {}
    for place in generator.permutation(len(classes)):
        if len(chosen) < setting.ways:
            chosen.setdefault(*classes[place])
    answer = int(generator.integers(setting.ways))
    # Of each class an image is kept for the question, whatever the class that is asked about.
    drawn = [_drawn(generator.permutation(one).tolist(), num_queries) for one in chosen.values()]
    ways, shots = range(setting.ways), range(setting.shots)
    support = tuple(Shown(drawn[name][1 + shot], name) for shot in shots for name in ways)
    names = tuple(chosen)
    if setting.naming == "nonsense":
        shuffled = np.random.default_rng((seed, setting.ways, number, _NAMES)).permutation(NONSENSE_NAMES)
        names = tuple(shuffled[: setting.ways].tolist())
    return Episode(number=number, names=names, support=support, query=drawn[answer][0], answer=answer)


def _drawn(order: list[int], num_queries: int | None) -> list[int]:
    """Return the image to ask about, then those to show: of the others, or of those of the support."""
    if num_queries is None:
        return order
    asked = next(image for image in order if image < num_queries)
    return [asked, *(image for image in order if image >= num_queries)]


def _usable(images: ImageSource, setting: Setting, most_shots: int) -> list[_Class]:
    """Return the classes that episodes are drawn from, if there are enough with enough images."""
    classes, ways, shots = _classes(images), setting.ways, setting.shots
    enough = ""
    if isinstance(images, WithSupport):
        first, enough = images.num_queries, f" with {most_shots} images to show" if most_shots else ""
        classes = [one for one in classes if sum(image >= first for image in one[1]) >= most_shots]
    distinct = len({name for name, _ in classes})
    if distinct < ways:
        raise ValueError(f"{ways}-way episodes need {ways} classes{enough}, {images.name} has {distinct}")
    small = [(name, len(positions)) for name, positions in classes if len(positions) < shots + 1]
    if small:
        more = f", and so have {len(small) - 1} other classes too few" if len(small) > 1 else ""
        raise ValueError(
            f"{images.name}: class {quoted(small[0][0])} has {small[0][1]} images, but {shots} "
            f"shots and the image asked about need {shots + 1}{more}"
        )
    return classes


def _classes(images: ImageSource) -> list[_Class]:
    labels = getattr(images, "labels", None)
    if isinstance(labels, Labels):
        indices = labels.indices.tolist()
    else:
        indices = [images.read(position).label for position in range(len(images))]
    found: defaultdict[int, list[int]] = defaultdict(list)
    for position, label in enumerate(indices):
        if label >= 0:
            found[label].append(position)
    if not found:
        raise ValueError(
            f"{images.name} has no labels: episodes need images with a label and a class_name, a folder for each "
            "class, or a table whose column of names is named, such as DATA.parquet?label=COLUMN"
        )
    classes = []
    for label, positions in sorted(found.items()):
        name = images.class_names[label].strip() if label < len(images.class_names) else ""
        if not name:
            raise ValueError(f"{images.name}: label {label} has no name, and an answer is a name")
        classes.append((name, positions))
    return classes


def _by_name(classes: Iterable[_Class]) -> dict[str, list[int]]:
    """Return the positions of the images of each name, which several classes may share."""
    found: dict[str, list[int]] = {}
    for name, positions in classes:
        found.setdefault(name, []).extend(positions)
    return found


def save_episodes(episodes: EpisodeSet, path: Path) -> None:
    """Write a set of episodes as one JSON file, one line for each episode."""
    entry = sealed(_entry(episodes))
    lines = ",\n".join(json.dumps(one) for one in entry.pop("episodes"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f'{json.dumps(entry)[:-1]}, "episodes": [\n{lines}\n]}}\n')


def load_episodes(path: Path, images: ImageSource) -> EpisodeSet:
    """Read a set of episodes; raise `ValueError` where the file is none, or belongs to other images."""
    try:
        entry = unsealed(read_regular(path).decode("utf-8-sig"))
    except (OSError, ValueError) as fault:
        raise ValueError(f"{path} cannot be read as a file of episodes: {fault}") from fault
    if entry.pop("format", None) != _FORMAT:
        raise ValueError(f"{path}: expected a file of episodes of format {_FORMAT}")
    try:
        drawn = tuple(_episode(number, one) for number, one in enumerate(entry["episodes"]))
        setting, classes = Setting(**entry["setting"]), tuple(entry["class_names"])
        episodes = EpisodeSet(**entry | {"setting": setting, "class_names": classes, "episodes": drawn})
    except (KeyError, TypeError, ValueError) as fault:
        raise ValueError(f"{path} is no file of episodes: {type(fault).__name__} {fault}") from fault
    episodes.check(images)
    expected = sorted(list(range(setting.ways)) * setting.shots)
    for episode in episodes.episodes:
        if (
            len(set(episode.names)) != setting.ways
            or sorted(shown.name for shown in episode.support) != expected
            or not 0 <= episode.answer < setting.ways
            or not all(0 <= image < len(images) for image in episode.images)
            or episode.query in episode.images[:-1]
        ):
            raise ValueError(
                f"{path}: episode {episode.number} is none of {setting.label} over {len(images)} images: "
                f"expected {setting.ways} names, {setting.shots} images of each, and another one asked about"
            )
    return episodes


def _entry(episodes: EpisodeSet) -> dict[str, Any]:
    """Return what is written of a set; an episode's number is its place."""
    entry = asdict(episodes)
    for one in entry["episodes"]:
        del one["number"]
    return {"format": _FORMAT, **entry}


def _episode(number: int, entry: dict[str, Any]) -> Episode:
    names, support = tuple(entry["names"]), tuple(Shown(*shown) for shown in entry["support"])
    return Episode(**entry | {"number": number, "names": names, "support": support})


def read_open_ended(
    folder: Path, settings: Sequence[Setting], *, task: str | None = None, limit: int | None = None
) -> tuple[ImageSource, list[EpisodeSet]]:
    """Read the questions of Open-Ended or Real-Name miniImageNet as a set for each setting, and their images.

    A file, TASK_shots_N_ways_M_all_questions.json, is a list of objects: `question_id`, `image_1` ... `image_k`
    and `caption_1` ... `caption_k` with k = ways x shots in the order in which they are shown,
    `question_image`, and `answer`. A name is what is left of a caption or an answer without "This is a" and
    the period. Repeats and induction are no part of the files: they belong to the prompt.

    Args:
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
            _published_episode(path, number, question, [places[name] for name in names], setting.ways)
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


def _published_episode(
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
