"""Who answers, over which episodes: all of it, once, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.answers import Answer, Answerer, ChecksEpisodes
from pixlex.eval.few_shot.episode_files import EpisodeSet
from pixlex.eval.few_shot.episodes import Setting
from pixlex.eval.few_shot.journal import AnswerJournal
from pixlex.eval.intervals import wilson_interval

JOURNAL = "answers.jsonl"


@dataclass(frozen=True)
class Cell:
    """One answerer in one setting.

    Attributes:
        answerer: what its row is called.
        scorer: how answers were judged.
        setting: the column.
        num_episodes: episodes asked.
        num_failed: episodes without an answer; they are in neither accuracy nor interval.
        accuracy: mean credit of the answers that came, in [0, 1]; None where none came.
        low: lower end of the 95 % interval.
        high: upper end of it.
        accuracy_with_failures: mean credit over all episodes, a failure counted as wrong.
        answers: all answers by number of the episode.
    """

    answerer: str
    scorer: str
    setting: Setting
    num_episodes: int
    num_failed: int
    accuracy: float | None
    low: float | None
    high: float | None
    accuracy_with_failures: float
    answers: tuple[Answer, ...]


def run_few_shot(
    answerers: Sequence[Answerer],
    episode_sets: Sequence[EpisodeSet],
    images: ImageSource,
    folder: Path,
    *,
    progress: bool = True,
) -> list[Cell]:
    """Let every answerer answer every set of episodes; what is in the folder's journal is not asked again.

    Before the first question, every answerer that can tell checks that all its prompts can be asked. An
    episode that failed in an earlier run is asked again. Questions of an earlier run count in a
    larger set as well.

    Args:
        answerers: who answers; rows of the table.
        episode_sets: the episodes; columns of the table.
        images: what the episodes are about.
        folder: holds the journal, `answers.jsonl`; made if missing.
        progress: show a bar with rate and time left.

    Returns:
        One cell for each answerer and set, answerer by answerer.

    Raises:
        ValueError: episodes of other images, two answerers or two sets of the same identity, an answerer that
            cannot answer, or a journal that another process writes.
    """
    _check_distinct(answerers, episode_sets)
    for episodes in episode_sets:
        episodes.check(images)
    with AnswerJournal(folder / JOURNAL) as journal:
        open_questions = [
            (answerer, episodes, _unanswered(journal, answerer, episodes))
            for answerer in answerers
            for episodes in episode_sets
        ]
        for answerer, episodes, numbers in open_questions:
            if numbers and isinstance(answerer, ChecksEpisodes):
                answerer.check(episodes.setting, [episodes.episodes[number] for number in numbers], images)
        total = sum(len(one.episodes) for one in episode_sets) * len(answerers)
        missing = sum(len(numbers) for _, _, numbers in open_questions)
        with tqdm(
            total=total, initial=total - missing, unit=" episodes", desc="few-shot", disable=not progress
        ) as bar:
            for answerer, episodes, numbers in open_questions:
                if numbers:
                    bar.set_postfix_str(
                        f"{answerer.name}: {episodes.setting.ways}-way {episodes.setting.column}"
                    )
                    _ask(journal, answerer, episodes, numbers, images, bar)
        return [_cell(journal, answerer, episodes) for answerer, episodes, _ in open_questions]


def _check_distinct(answerers: Sequence[Answerer], episode_sets: Sequence[EpisodeSet]) -> None:
    if not answerers or not episode_sets:
        raise ValueError(
            f"expected answerers and episodes, got {len(answerers)} and {len(episode_sets)} sets"
        )
    for kind, identities in (
        ("answerers", [one.identity for one in answerers]),
        ("sets of episodes", [one.identity for one in episode_sets]),
    ):
        if len(set(identities)) < len(identities):
            raise ValueError(f"two of the {kind} are the same: expected each once")


def _unanswered(journal: AnswerJournal, answerer: Answerer, episodes: EpisodeSet) -> list[int]:
    """Return the numbers of the episodes that have no answer yet, or failed."""
    known = (journal.get(answerer.identity, question) for question in episodes.questions)
    return [number for number, answer in enumerate(known) if answer is None or answer.credit is None]


def _ask(
    journal: AnswerJournal,
    answerer: Answerer,
    episodes: EpisodeSet,
    numbers: Sequence[int],
    images: ImageSource,
    bar: tqdm[NoReturn],
) -> None:
    """Have questions answered and write the answers down; a question without any answer is a failure."""
    left = set(numbers)
    asked = [episodes.episodes[number] for number in numbers]
    for answer in answerer.answer(episodes.setting, asked, images):
        if answer.episode not in left:
            raise ValueError(
                f"{answerer.name} answered episode {answer.episode} twice or without being asked"
            )
        left.remove(answer.episode)
        journal.add(answerer.identity, episodes.questions[answer.episode], answer)
        bar.update()
    for number in sorted(left):
        lost = Answer(episode=number, credit=None, detail="no answer came")
        journal.add(answerer.identity, episodes.questions[number], lost)
        bar.update()
    journal.sync()


def _cell(journal: AnswerJournal, answerer: Answerer, episodes: EpisodeSet) -> Cell:
    known = (journal.get(answerer.identity, question) for question in episodes.questions)
    # An answer of an earlier run may have had another number.
    answers = tuple(
        replace(answer, episode=number) for number, answer in enumerate(known) if answer is not None
    )
    credits_given = [answer.credit for answer in answers if answer.credit is not None]
    accuracy = low = high = None
    if credits_given:
        accuracy = math.fsum(credits_given) / len(credits_given)
        # Chance is a number and no measurement.
        exact = answerer.scorer == "exact"
        low, high = (accuracy, accuracy) if exact else wilson_interval(accuracy, len(credits_given))
    return Cell(
        answerer=answerer.name,
        scorer=answerer.scorer,
        setting=episodes.setting,
        num_episodes=len(answers),
        num_failed=len(answers) - len(credits_given),
        accuracy=accuracy,
        low=low,
        high=high,
        accuracy_with_failures=math.fsum(credits_given) / len(answers),
        answers=answers,
    )
