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
from pixlex.eval.few_shot.episodes import Episode, Setting
from pixlex.eval.few_shot.journal import AnswerJournal
from pixlex.eval.intervals import wilson_interval
from pixlex.messages import printable
from pixlex.progress import bar_or_lines

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
        accuracy_with_failures: mean credit over all episodes, a failure counted as wrong; None where the
            episodes do not fit.
        answers: all answers by number of the episode.
        does_not_fit: why the episodes are longer than what the language model reads; empty where they fit.
    """

    answerer: str
    scorer: str
    setting: Setting
    num_episodes: int
    num_failed: int
    accuracy: float | None
    low: float | None
    high: float | None
    accuracy_with_failures: float | None
    answers: tuple[Answer, ...]
    does_not_fit: str = ""

    @property
    def num_cut_off(self) -> int:
        """Answers that were cut off before their end, or that say nothing."""
        return sum(answer.is_cut_off for answer in self.answers)


def run_few_shot(
    answerers: Sequence[Answerer],
    episode_sets: Sequence[EpisodeSet],
    images: ImageSource,
    folder: Path,
    *,
    progress: bool = True,
) -> list[Cell]:
    """Let every answerer answer every set of episodes; what is in the folder's journal is not asked again.

    Before the first question, every answerer that can tell checks that all its prompts can be asked; a set
    that does not fit its language model is not asked, and does not keep others from being asked. Where only
    the endpoint knows, the first episode that it refuses for its length ends the set. An episode that failed
    in an earlier run is asked again. Questions of an earlier run count in a larger set as well.

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
            _OpenQuestions(answerer, episodes, _unanswered(journal, answerer, episodes))
            for answerer in answerers
            for episodes in episode_sets
        ]
        for one in open_questions:
            if one.numbers and isinstance(one.answerer, ChecksEpisodes):
                one.does_not_fit = one.answerer.check(one.episodes.setting, one.asked, images)
        total = sum(len(one.episodes) for one in episode_sets) * len(answerers)
        missing = sum(len(one.numbers) for one in open_questions)
        with bar_or_lines(
            total=total, initial=total - missing, unit=" episodes", desc="few-shot", disable=not progress
        ) as bar:
            for one in open_questions:
                setting = one.episodes.setting
                bar.set_postfix_str(f"{printable(one.answerer.name)}: {setting.ways}-way {setting.column}")
                if one.numbers and not one.does_not_fit:
                    one.does_not_fit = _ask(journal, one, images, bar)
        return [_cell(journal, one) for one in open_questions]


@dataclass
class _OpenQuestions:
    """An answerer, a set of episodes, the numbers of those without an answer, and why they are not asked."""

    answerer: Answerer
    episodes: EpisodeSet
    numbers: list[int]
    does_not_fit: str = ""

    @property
    def asked(self) -> list[Episode]:
        return [self.episodes.episodes[number] for number in self.numbers]


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


def _ask(journal: AnswerJournal, one: _OpenQuestions, images: ImageSource, bar: tqdm[NoReturn]) -> str:
    """Have questions answered and write the answers down; a question without any answer is a failure.

    Returns:
        Why the episodes do not fit, where that shows when they are asked; the rest of them is not asked then.
    """
    answerer, questions = one.answerer, one.episodes.questions
    left = set(one.numbers)
    does_not_fit = ""
    for answer in answerer.answer(one.episodes.setting, one.asked, images):
        if answer.episode not in left:
            raise ValueError(
                f"{answerer.name} answered episode {answer.episode} twice or without being asked"
            )
        left.remove(answer.episode)
        journal.add(answerer.identity, questions[answer.episode], answer)
        bar.update()
        if answer.does_not_fit:
            does_not_fit = answer.detail
            break
    for number in sorted(left if not does_not_fit else ()):
        lost = Answer(episode=number, credit=None, detail="no answer came")
        journal.add(answerer.identity, questions[number], lost)
        bar.update()
    journal.sync()
    return does_not_fit


def _cell(journal: AnswerJournal, one: _OpenQuestions) -> Cell:
    answerer, episodes = one.answerer, one.episodes
    if one.does_not_fit:
        count = len(episodes.episodes)
        return Cell(
            answerer=answerer.name,
            scorer=answerer.scorer,
            setting=episodes.setting,
            num_episodes=count,
            num_failed=count,
            accuracy=None,
            low=None,
            high=None,
            accuracy_with_failures=None,
            answers=tuple(
                Answer(episode=number, credit=None, detail=one.does_not_fit) for number in range(count)
            ),
            does_not_fit=one.does_not_fit,
        )
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
