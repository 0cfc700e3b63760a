"""Sets of episodes as files that can be shared and used again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.episodes import Episode, Setting, Shown
from pixlex.eval.few_shot.fingerprints import digest, source_identity
from pixlex.files import read_regular, sealed, unsealed, write_atomically

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class EpisodeSet:
    """Episodes of one setting, and the images that they are about.

    Attributes:
        setting: ways, shots, repeats, induction, names.
        seed: what they were drawn with; None where they came from elsewhere.
        source: what the source of images is called.
        source_identity: the source's fingerprint, its bytes included (`fingerprints.source_identity`).
        class_names: the classes that were drawn from.
        episodes: numbered from 0.
    """

    setting: Setting
    seed: int | None
    source: str
    source_identity: str
    class_names: tuple[str, ...]
    episodes: tuple[Episode, ...]

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


def save_episodes(episodes: EpisodeSet, path: Path) -> None:
    """Write a set of episodes as one JSON file, one line for each episode."""
    entry = sealed(_entry(episodes))
    lines = ",\n".join(json.dumps(one) for one in entry.pop("episodes"))
    text = f'{json.dumps(entry)[:-1]}, "episodes": [\n{lines}\n]}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def load_episodes(path: Path, images: ImageSource) -> EpisodeSet:
    """Read a set of episodes.

    Args:
        path: what `save_episodes` wrote.
        images: the source of images that they are to be asked about.

    Raises:
        ValueError: the file cannot be read, is no set of episodes, or belongs to other images.
    """
    try:
        entry = unsealed(read_regular(path).decode("utf-8-sig"))
    except (OSError, ValueError) as fault:
        raise ValueError(f"{path} cannot be read as a file of episodes: {fault}") from fault
    if entry.get("format") != _FORMAT:
        raise ValueError(f"{path}: expected a file of episodes of format {_FORMAT}")
    try:
        episodes = _episodes(entry)
    except (KeyError, TypeError, ValueError) as fault:
        raise ValueError(f"{path} is no file of episodes: {type(fault).__name__} {fault}") from fault
    episodes.check(images)
    _check_episodes(episodes, len(images), path)
    return episodes


def _entry(episodes: EpisodeSet) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "setting": asdict(episodes.setting),
        "seed": episodes.seed,
        "source": episodes.source,
        "source_identity": episodes.source_identity,
        "class_names": list(episodes.class_names),
        "episodes": [
            {
                "names": list(one.names),
                "support": [[shown.image, shown.name] for shown in one.support],
                "query": one.query,
                "answer": one.answer,
            }
            for one in episodes.episodes
        ],
    }


def _episodes(entry: Mapping[str, Any]) -> EpisodeSet:
    return EpisodeSet(
        setting=Setting(**entry["setting"]),
        seed=entry["seed"],
        source=entry["source"],
        source_identity=entry["source_identity"],
        class_names=tuple(entry["class_names"]),
        episodes=tuple(
            Episode(
                number=number,
                names=tuple(one["names"]),
                support=tuple(Shown(image=image, name=name) for image, name in one["support"]),
                query=one["query"],
                answer=one["answer"],
            )
            for number, one in enumerate(entry["episodes"])
        ),
    )


def _check_episodes(episodes: EpisodeSet, num_images: int, path: Path) -> None:
    """Raise `ValueError` for what was changed by hand into something that is no episode."""
    setting = episodes.setting
    for episode in episodes.episodes:
        names = [shown.name for shown in episode.support]
        expected = sorted(list(range(setting.ways)) * setting.shots)
        if (
            len(set(episode.names)) != setting.ways
            or sorted(names) != expected
            or not 0 <= episode.answer < setting.ways
            or not all(0 <= image < num_images for image in episode.images)
            or episode.query in episode.images[:-1]
        ):
            raise ValueError(
                f"{path}: episode {episode.number} is none of {setting.label} over {num_images} images: "
                f"expected {setting.ways} names, {setting.shots} images of each, and another one asked about"
            )
