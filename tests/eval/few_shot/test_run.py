"""A run: everything once, killed or not; failures apart; intervals that are right."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.eval.few_shot.fakes import TWO_WAY, FakeClient, FakeReader, labeled
from tests.eval.few_shot.killing import COLUMNS, COUNT, ask

from pixlex.data.images import ImageSource
from pixlex.eval.evaluate import wilson_interval
from pixlex.eval.few_shot.classifiers import Answer, Chance
from pixlex.eval.few_shot.episodes import sample_episodes
from pixlex.eval.few_shot.prompted import PromptedClassifier
from pixlex.eval.few_shot.run import JOURNAL, AnswerJournal, run_few_shot
from pixlex.eval.llm.client import Completion

# Never a plain fork: a killed child would keep the locks that it shares.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.eval.few_shot.killing"])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    return labeled(tmp_path_factory.mktemp("labeled"))


def prompted(client: FakeClient) -> PromptedClassifier:
    return PromptedClassifier(FakeReader(), client, template="frozen", scorer="strict")


def test_killed_and_run_again_equals_uninterrupted(tmp_path: Path) -> None:
    """kill -9, five times in the middle: every answer that was written stays, none is asked again."""
    draw, kills = random.Random(0), 0
    labeled(tmp_path / "pictures")
    journal = tmp_path / "killed" / JOURNAL
    while kills < 5:
        before = journal.stat().st_size if journal.exists() else 0
        child = SERVER.Process(
            target=ask, args=(tmp_path / "pictures", tmp_path / "killed", tmp_path / "asked", 0.05)
        )
        child.start()
        while child.is_alive() and (not journal.exists() or journal.stat().st_size < before + 300):
            time.sleep(0.01)
        time.sleep(0.1 * draw.random())
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        kills += 1
    written = journal.read_bytes().count(b"\n") - 1
    assert 0 < written < len(COLUMNS) * COUNT
    resumed = ask(tmp_path / "pictures", tmp_path / "killed", tmp_path / "asked")
    assert resumed == ask(tmp_path / "pictures", tmp_path / "whole", tmp_path / "other")
    asked = Counter((tmp_path / "asked").read_text().splitlines())
    assert len(asked) == len(COLUMNS) * COUNT
    # The question under way at a kill may be asked once more, no other.
    assert sum(asked.values()) - len(asked) <= kills


def test_a_finished_run_asks_nothing(images: ImageSource, tmp_path: Path) -> None:
    client = FakeClient()
    sets = [sample_episodes(images, TWO_WAY, count=10, seed=0)]
    first = run_few_shot([prompted(client)], sets, images, tmp_path, progress=False)
    assert len(client.sent) == 10
    off = FakeClient(says="whoever asks again gets this")
    assert run_few_shot([prompted(off)], sets, images, tmp_path, progress=False) == first
    assert off.sent == []
    assert first[0].accuracy == 1.0
    # More episodes: only the new ones are asked.
    more = [sample_episodes(images, TWO_WAY, count=14, seed=0)]
    run_few_shot([prompted(client)], more, images, tmp_path, progress=False)
    assert len(client.sent) == 14


def test_failures_are_reported_and_asked_again(images: ImageSource, tmp_path: Path) -> None:
    sets = [sample_episodes(images, TWO_WAY, count=10, seed=0)]
    (cell,) = run_few_shot(
        [prompted(FakeClient(fails=frozenset((1, 2, 3))))], sets, images, tmp_path, progress=False
    )
    assert (cell.num_episodes, cell.num_failed, cell.accuracy) == (10, 3, 1.0)
    assert cell.accuracy_with_failures == pytest.approx(0.7)
    assert (cell.low, cell.high) == wilson_interval(1.0, 7)
    client = FakeClient()
    (cell,) = run_few_shot([prompted(client)], sets, images, tmp_path, progress=False)
    assert len(client.sent) == 3
    assert (cell.num_failed, cell.accuracy) == (0, 1.0)


def test_all_failures_give_no_accuracy(images: ImageSource, tmp_path: Path) -> None:
    sets = [sample_episodes(images, TWO_WAY, count=4, seed=0)]
    client = FakeClient(fails=frozenset(range(4)))
    (cell,) = run_few_shot([prompted(client)], sets, images, tmp_path, progress=False)
    assert (cell.accuracy, cell.low, cell.high, cell.num_failed) == (None, None, None, 4)
    assert cell.accuracy_with_failures == 0


@pytest.mark.parametrize("knows", [True, False])
def test_what_does_not_fit_is_a_cell_and_ends_no_other(
    images: ImageSource, tmp_path: Path, knows: bool
) -> None:
    """Known beforehand, nothing of it is sent; known by the endpoint's refusal, nothing more is."""
    sets = [sample_episodes(images, replace(TWO_WAY, repeats=repeats), count=3, seed=0) for repeats in (5, 0)]

    class Refusing(FakeClient):
        def generate(self, prompts: Sequence[str], **limit: Any) -> Iterator[tuple[int, Completion]]:
            for place, prompt in enumerate(prompts):
                if len(prompt.split()) > 40:
                    self.sent.append(prompt)
                    yield place, Completion(text="", finish="failed", reason="does not fit: 40 tokens")
                else:
                    yield from ((place, one) for _, one in super().generate([prompt], **limit))

    client = Refusing(context_size=40 if knows else None)
    long, short = run_few_shot([prompted(client)], sets, images, tmp_path, progress=False)
    assert long.does_not_fit.startswith("does not fit: ")
    assert (long.accuracy, long.accuracy_with_failures, long.num_episodes) == (None, None, 3)
    assert [answer.credit for answer in long.answers] == [None] * 3
    assert (short.accuracy, short.does_not_fit) == (1.0, "")
    assert len(client.sent) == (3 if knows else 4)
    again = run_few_shot([prompted(client)], sets, images, tmp_path, progress=False)
    assert again == [long, short]


def test_chance_is_no_measurement(images: ImageSource, tmp_path: Path) -> None:
    sets = [sample_episodes(images, replace(TWO_WAY, ways=5), count=3, seed=0)]
    (cell,) = run_few_shot([Chance()], sets, images, tmp_path, progress=False)
    assert cell.accuracy == cell.low == cell.high == pytest.approx(0.2)


def test_what_it_refuses(images: ImageSource, tmp_path: Path) -> None:
    sets = [sample_episodes(images, TWO_WAY, count=3, seed=0)]
    with pytest.raises(ValueError, match="two of the answerers are the same"):
        run_few_shot([Chance(), Chance()], sets, images, tmp_path, progress=False)
    with pytest.raises(ValueError, match="two of the sets of episodes are the same"):
        run_few_shot([Chance()], sets * 2, images, tmp_path, progress=False)
    with pytest.raises(ValueError, match="expected answerers and episodes"):
        run_few_shot([], sets, images, tmp_path, progress=False)
    other = labeled(tmp_path / "others", seed=3)
    with pytest.raises(ValueError, match="were drawn from"):
        run_few_shot([Chance()], sets, other, tmp_path / "out", progress=False)


def test_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answer = Answer(episode=2, credit=0.5, text="dax | wug")
    with AnswerJournal(path) as journal:
        journal.add("who", "what", answer)
        journal.add("who", "else", Answer(episode=3, credit=None, detail="lost"))
        with pytest.raises(ValueError, match="written by another process"):
            AnswerJournal(path)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with AnswerJournal(path) as journal:
            found = journal.get("who", "what")
            assert found == (answer if cut >= whole.index(b"\n", 20) + 1 else None)
            assert journal.get("what", "who") is None
            journal.add("who", "after", answer)
        with AnswerJournal(path) as journal:
            assert journal.get("who", "after") == answer
    path.write_text(json.dumps({"something": "else"}) + "\n")
    with pytest.raises(ValueError, match="is not a journal that"):
        AnswerJournal(path)


def test_wilson_covers() -> None:
    """Over 4,000 draws the interval holds the truth in about 95 %; its ends solve the quadratic of the test."""
    generator = np.random.default_rng(0)
    for truth in (0.05, 0.5, 0.8):
        shares = generator.binomial(200, truth, 4000) / 200
        covered = np.mean([low <= truth <= high for low, high in (wilson_interval(s, 200) for s in shares)])
        assert 0.93 < covered < 0.97
    for share in (0.1, 0.5, 0.93):
        for end in wilson_interval(share, 50):
            assert abs(share - end) / math.sqrt(end * (1 - end) / 50) == pytest.approx(1.959963984540054)
    assert wilson_interval(0.0, 10)[0] == 0.0
    assert wilson_interval(1.0, 10)[1] == pytest.approx(1.0)
