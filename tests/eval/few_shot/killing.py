"""What a child process of a test runs until it is killed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.eval.few_shot.fakes import FakeReader

from pixlex.data.images import open_source
from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.classifiers import bag_of_words, nearest_class_mean
from pixlex.eval.few_shot.episodes import sample_episodes
from pixlex.eval.few_shot.prompts import Answer, Episode, Setting
from pixlex.eval.few_shot.run import Cell, Classifier, run_few_shot

COLUMNS = tuple(Setting(ways=2, shots=shots) for shots in (1, 2))
COUNT = 40


@dataclass
class Logged(Classifier):
    """Another answerer that writes down every question before it answers, and takes its time."""

    answerer: Classifier
    log: Path
    pause: float = 0.0
    scorer: str = "nearest"
    name: str = "logged"
    identity: str = "logged"

    def answer(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Iterator[Answer]:
        for one in self.answerer.answer(setting, episodes, images):
            with self.log.open("a") as file:
                file.write(f"{setting.column} {one.episode}\n")
            time.sleep(self.pause)
            yield one


def ask(pictures: Path, out: Path, log: Path, pause: float = 0.0) -> list[Cell]:
    """Ask two settings of forty episodes."""
    images = open_source(str(pictures))
    sets = [sample_episodes(images, setting, count=COUNT, seed=0) for setting in COLUMNS]
    answerer = Logged(nearest_class_mean(bag_of_words(FakeReader())), log, pause)
    return run_few_shot([answerer], sets, images, out, progress=False)
