"""A run: everything once, killed or not; failures apart; intervals that are right."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.eval.few_shot.fakes import CLASSES, TWO_WAY, FakeClient, FakeReader, labeled

from pixlex.data.images import open_source
from pixlex.data.sources import ImageSource
from pixlex.eval.evaluate import wilson_interval
from pixlex.eval.few_shot.classifiers import Chance, Features, bag_of_words, nearest_class_mean
from pixlex.eval.few_shot.episodes import sample_episodes, with_support
from pixlex.eval.few_shot.prompted import PromptedClassifier
from pixlex.eval.few_shot.prompts import Answer, Episode, Setting
from pixlex.eval.few_shot.run import JOURNAL, AnswerJournal, Cell, Classifier, run_few_shot
from pixlex.eval.llm.client import Prompt, Reply

# Never a plain fork: a killed child would keep the locks that it shares.
SERVER = multiprocessing.get_context("forkserver")


def run(
    who: FakeClient | Classifier, images: ImageSource, out: Path, count: int = 10, setting: Setting = TWO_WAY
) -> Cell:
    if isinstance(who, FakeClient):
        who = PromptedClassifier(FakeReader(), who, template="frozen", scorer="strict")
    sets = [sample_episodes(images, setting, count=count, seed=0)]
    (cell,) = run_few_shot([who], sets, images, out, progress=False)
    return cell


def test_killed_and_run_again_equals_uninterrupted(tmp_path: Path) -> None:
    """kill -9, three times in the middle: every answer that was written stays, none is asked again."""
    draw, kills = random.Random(0), 3
    labeled(tmp_path / "pictures")
    labeled(tmp_path / "pictures-shown", seed=1)
    journal = tmp_path / "killed" / JOURNAL
    for _ in range(kills):
        before = journal.stat().st_size if journal.exists() else 0
        child = SERVER.Process(
            target=ask, args=(tmp_path / "pictures", tmp_path / "killed", tmp_path / "asked", 0.02)
        )
        child.start()
        while child.is_alive() and (not journal.exists() or journal.stat().st_size < before + 300):
            time.sleep(0.01)
        time.sleep(0.1 * draw.random())
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert 0 < journal.read_bytes().count(b"\n") - 1 < len(COLUMNS) * COUNT
    resumed = ask(tmp_path / "pictures", tmp_path / "killed", tmp_path / "asked")
    assert resumed == ask(tmp_path / "pictures", tmp_path / "whole", tmp_path / "other")
    asked = Counter((tmp_path / "asked").read_text().splitlines())
    assert len(asked) == len(COLUMNS) * COUNT
    # The question under way at a kill may be asked once more, no other.
    assert sum(asked.values()) - len(asked) <= kills


def test_a_finished_run_asks_nothing(images: ImageSource, tmp_path: Path) -> None:
    client, off = FakeClient(), FakeClient(says="whoever asks again gets this")
    first = run(client, images, tmp_path)
    assert len(client.sent) == 10
    assert run(off, images, tmp_path) == first
    assert off.sent == []
    assert first.accuracy == 1.0
    run(client, images, tmp_path, count=14)
    assert len(client.sent) == 14  # only the new ones


def test_failures_are_reported_and_asked_again(images: ImageSource, tmp_path: Path) -> None:
    cell = run(FakeClient(fails=frozenset((1, 2, 3))), images, tmp_path)
    assert (cell.num_episodes, cell.num_failed, cell.accuracy) == (10, 3, 1.0)
    assert cell.accuracy_with_failures == pytest.approx(0.7)
    assert (cell.low, cell.high) == wilson_interval(1.0, 7)
    client = FakeClient()
    cell = run(client, images, tmp_path)
    assert (len(client.sent), cell.num_failed, cell.accuracy) == (3, 0, 1.0)
    cell = run(FakeClient(fails=frozenset(range(4))), images, tmp_path / "all", count=4)
    assert (cell.accuracy, cell.low, cell.high, cell.num_failed) == (None, None, None, 4)
    assert cell.accuracy_with_failures == 0


@pytest.mark.parametrize("knows", [True, False])
def test_what_does_not_fit_is_a_cell_and_ends_no_other(
    images: ImageSource, tmp_path: Path, knows: bool
) -> None:
    """Known beforehand, nothing of it is sent; known by the endpoint's refusal, nothing more is."""
    sets = [sample_episodes(images, replace(TWO_WAY, repeats=repeats), count=3, seed=0) for repeats in (5, 0)]

    class Refusing(FakeClient):
        def ask(self, ability: Any, prompts: Sequence[Prompt], limit: int = 1) -> Iterator[tuple[int, Reply]]:
            for place, prompt in enumerate(prompts):
                if len(prompt.text.split()) > 40:
                    self.sent.append(prompt.text)
                    yield place, Reply.failed("does not fit: 40 tokens")
                else:
                    yield from ((place, one) for _, one in super().ask(ability, [prompt], limit))

    client = Refusing(context_size=40 if knows else None)
    classifier = PromptedClassifier(FakeReader(), client, template="frozen", scorer="strict")
    long, short = run_few_shot([classifier], sets, images, tmp_path, progress=False)
    assert long.does_not_fit.startswith("does not fit: ")
    assert (long.accuracy, long.accuracy_with_failures, long.num_episodes) == (None, None, 3)
    assert [answer.credit for answer in long.answers] == [None] * 3
    assert (short.accuracy, short.does_not_fit) == (1.0, "")
    assert len(client.sent) == (3 if knows else 4)
    assert run_few_shot([classifier], sets, images, tmp_path, progress=False) == [long, short]


def test_who_needs_an_example_has_an_empty_cell_and_stops_nobody(images: ImageSource, tmp_path: Path) -> None:
    sets = [sample_episodes(images, replace(TWO_WAY, shots=shots), count=3, seed=0) for shots in (0, 1)]
    who = [nearest_class_mean(bag_of_words(FakeReader())), Chance()]
    none, one, guessed, _ = run_few_shot(who, sets, images, tmp_path, progress=False)
    assert none.does_not_fit.startswith("needs an example: 2-way, 0 shots")
    assert (none.accuracy, none.accuracy_with_failures, none.num_failed) == (None, None, 3)
    assert (one.accuracy, one.does_not_fit, guessed.accuracy) == (1.0, "", 0.5)


def test_chance_is_no_measurement(images: ImageSource, tmp_path: Path) -> None:
    cell = run(Chance(), images, tmp_path, setting=replace(TWO_WAY, ways=5))
    assert cell.accuracy == cell.low == cell.high == pytest.approx(0.2)


def test_what_it_refuses(images: ImageSource, tmp_path: Path) -> None:
    sets = [sample_episodes(images, TWO_WAY, count=3, seed=0)]
    for who, what, source, message in (
        ([Chance(), Chance()], sets, images, "two of the classifiers are the same"),
        ([Chance()], sets * 2, images, "two of the sets of episodes are the same"),
        ([], sets, images, "expected classifiers and episodes"),
        ([Chance()], sets, labeled(tmp_path / "others", seed=3), "were drawn from"),
    ):
        with pytest.raises(ValueError, match=message):
            run_few_shot(who, what, source, tmp_path / "out", progress=False)


def test_the_journal(tmp_path: Path) -> None:
    """Cut off anywhere, it holds the answers that are full lines, and goes on."""
    path = tmp_path / "answers.jsonl"
    answer = Answer(episode=2, credit=0.5, text="dax | wug")
    with AnswerJournal(path) as journal:
        journal.add("who", "what", answer)
        journal.add("who", "else", Answer(episode=3, credit=None, detail="lost"))
        with pytest.raises(ValueError, match="written by another process"):
            AnswerJournal(path)
    data = path.read_bytes()
    for cut in range(0, len(data), 3):
        path.write_bytes(data[:cut])
        with AnswerJournal(path) as journal:
            found = journal.get("who", "what")
            assert found == (answer if cut >= data.index(b"\n", 20) + 1 else None)
            assert journal.get("what", "who") is None
            journal.add("who", "after", answer)
        with AnswerJournal(path) as journal:
            assert journal.get("who", "after") == answer
    path.write_text(json.dumps({"something": "else"}) + "\n")
    with pytest.raises(ValueError, match="is not a journal that"):
        AnswerJournal(path)


COLUMNS = tuple(Setting(ways=5, shots=shots) for shots in (0, 1, 2))
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
    """Ask three settings of forty episodes whose support comes from elsewhere."""
    images = with_support(open_source(str(pictures)), open_source(f"{pictures}-shown"))
    sets = [sample_episodes(images, setting, count=COUNT, seed=0) for setting in COLUMNS]

    def vector(name: str) -> np.ndarray:
        return np.eye(len(CLASSES))[CLASSES.index(name)]

    features = Features(
        "classes",
        "classes",
        lambda images, indices: {one: vector(images.class_names[images.read(one).label]) for one in indices},
        names=lambda names: np.stack([vector(name) for name in names]),
    )
    answerer = Logged(nearest_class_mean(features), log, pause)
    return run_few_shot([answerer], sets, images, out, progress=False)
