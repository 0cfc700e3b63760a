"""Who answers, over which episodes: all of it, once, with intervals; a killed run goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from pixlex.data.sources import ImageSource
from pixlex.eval.evaluate import wilson_interval
from pixlex.eval.few_shot.classifiers import Answer, Classifier
from pixlex.eval.few_shot.episodes import Episode, EpisodeSet, Setting, digest
from pixlex.files import Journal
from pixlex.messages import printable
from pixlex.progress import bar_or_lines

JOURNAL = "answers.jsonl"
_KINDS = {"key": str, "episode": int, "credit": int | float | None, "text": str, "detail": str}


@dataclass(frozen=True)
class Cell:
    """One classifier in one setting.

    Attributes:
        answerer: name of its row.
        scorer: how answers were judged.
        setting: the column.
        num_episodes: episodes asked.
        num_failed: episodes without an answer; they are in neither accuracy nor interval.
        accuracy: mean credit of the answers that came, in [0, 1]; None where none came.
        low, high: its 95 % interval.
        accuracy_with_failures: with failures counted as wrong; None where the episodes do not fit.
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
        """Answers that were cut off before their end, or that are empty."""
        return sum(answer.is_cut_off for answer in self.answers)


class AnswerJournal(Journal):
    """A journal of answers, under the fingerprints of classifier and question; failures are written down too.

    Args:
        path: the file; its folder is made if missing.

    Raises:
        ValueError: another process holds it, or it is no journal of answers.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, {"answers": 1}, "key", _fits)

    def get(self, classifier: str, question: str) -> Answer | None:
        """Return the answer of a classifier (its identity) to one of `EpisodeSet.questions`, if there is one."""
        key = _key(classifier, question)
        if key not in self:
            return None
        entry = self[key]
        return Answer(**{name: entry[name] for name in _KINDS if name != "key"})

    def add(self, classifier: str, question: str, answer: Answer) -> None:
        """Write down an answer; it survives the end of this process on return, not a power failure."""
        self.append([{"key": _key(classifier, question), **vars(answer)}])


def _key(classifier: str, question: str) -> str:
    return digest(classifier, question)[:24]


def _fits(entry: dict[str, Any]) -> bool:
    return all(name in entry and isinstance(entry[name], kind) for name, kind in _KINDS.items())


@dataclass
class _Asking:
    """A classifier, a set of episodes, those without an answer, and why they are not asked."""

    classifier: Classifier
    episodes: EpisodeSet
    open: list[Episode]
    does_not_fit: str = ""


def run_few_shot(
    classifiers: Sequence[Classifier],
    episode_sets: Sequence[EpisodeSet],
    images: ImageSource,
    folder: Path,
    *,
    progress: bool = True,
) -> list[Cell]:
    """Let every classifier answer every set of episodes; what is in the folder's journal is not asked again.

    Before the first question, every classifier checks that all its prompts can be asked; a set that does not
    fit its language model is not asked, and does not keep others from being asked. Where only
    the endpoint knows, the first episode that it refuses for its length ends the set. An episode that failed
    in an earlier run is asked again. Questions of an earlier run count in a larger set as well.

    Args:
        classifiers: who answers; rows of the table.
        episode_sets: the episodes; columns of the table.
        images: what the episodes are about.
        folder: holds the journal, `answers.jsonl`; made if missing.
        progress: show a bar with rate and time left.

    Returns:
        One cell for each classifier and set, classifier by classifier.

    Raises:
        ValueError: episodes of other images, two classifiers or two sets of the same identity, a classifier that
            cannot answer, or a journal that another process writes.
    """
    if not classifiers or not episode_sets:
        raise ValueError(
            f"expected answerers and episodes, got {len(classifiers)} and {len(episode_sets)} sets"
        )
    for kind, what in (("answerers", classifiers), ("sets of episodes", episode_sets)):
        if len({one.identity for one in what}) < len(what):
            raise ValueError(f"two of the {kind} are the same: expected each once")
    for episodes in episode_sets:
        episodes.check(images)
    with AnswerJournal(folder / JOURNAL) as journal:
        askings = [
            _Asking(classifier, episodes, _unanswered(journal, classifier, episodes))
            for classifier in classifiers
            for episodes in episode_sets
        ]
        for one in askings:
            if one.open:
                one.does_not_fit = one.classifier.check(one.episodes.setting, one.open, images)
        total = sum(len(one.episodes) for one in episode_sets) * len(classifiers)
        done = total - sum(len(one.open) for one in askings)
        with bar_or_lines(
            total=total, initial=done, unit=" episodes", desc="few-shot", disable=not progress
        ) as bar:
            for one in askings:
                setting = one.episodes.setting
                bar.set_postfix_str(f"{printable(one.classifier.name)}: {setting.ways}-way {setting.column}")
                if one.open and not one.does_not_fit:
                    one.does_not_fit = _ask(journal, one, images, bar)
        return [_cell(journal, one) for one in askings]


def _unanswered(journal: AnswerJournal, classifier: Classifier, episodes: EpisodeSet) -> list[Episode]:
    """Return the episodes that have no answer yet, or failed."""
    known = (journal.get(classifier.identity, question) for question in episodes.questions)
    return [
        episode
        for episode, answer in zip(episodes.episodes, known, strict=True)
        if answer is None or answer.credit is None
    ]


def _ask(journal: AnswerJournal, one: _Asking, images: ImageSource, bar: tqdm[NoReturn]) -> str:
    """Have questions answered and write the answers down; a question without any answer is a failure.

    Returns:
        Why the episodes do not fit, where that shows when they are asked; the rest of them is not asked then.
    """
    classifier, questions = one.classifier, one.episodes.questions
    left = {episode.number for episode in one.open}

    def add(answer: Answer) -> None:
        journal.add(classifier.identity, questions[answer.episode], answer)
        bar.update()

    does_not_fit = ""
    for answer in classifier.answer(one.episodes.setting, one.open, images):
        if answer.episode not in left:
            raise ValueError(
                f"{classifier.name} answered episode {answer.episode} twice or without being asked"
            )
        left.remove(answer.episode)
        add(answer)
        if answer.does_not_fit:
            does_not_fit = answer.detail
            break
    for number in sorted(left if not does_not_fit else ()):
        add(Answer(episode=number, credit=None, detail="no answer came"))
    journal.sync()
    return does_not_fit


def _cell(journal: AnswerJournal, one: _Asking) -> Cell:
    classifier, episodes, does_not_fit = one.classifier, one.episodes, one.does_not_fit
    answers = []
    for number, question in enumerate(episodes.questions):
        known = journal.get(classifier.identity, question)
        if does_not_fit:
            answers.append(Answer(episode=number, credit=None, detail=does_not_fit))
        elif known is not None:
            # An answer of an earlier run may have had another number.
            answers.append(replace(known, episode=number))
    given = [answer.credit for answer in answers if answer.credit is not None]
    accuracy = low = high = None
    if given:
        accuracy = math.fsum(given) / len(given)
        # Chance is a number and no measurement.
        exact = classifier.scorer == "exact"
        low, high = (accuracy, accuracy) if exact else wilson_interval(accuracy, len(given))
    return Cell(
        answerer=classifier.name,
        scorer=classifier.scorer,
        setting=episodes.setting,
        num_episodes=len(answers),
        num_failed=len(answers) - len(given),
        accuracy=accuracy,
        low=low,
        high=high,
        accuracy_with_failures=None if does_not_fit else math.fsum(given) / len(answers),
        answers=tuple(answers),
        does_not_fit=does_not_fit,
    )
