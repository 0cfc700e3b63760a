"""Who answers, over which episodes: all of it, once, with intervals; a killed run goes on where it stopped."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from pixlex.data.sources import ImageSource
from pixlex.eval.evaluate import wilson_interval
from pixlex.eval.few_shot.episodes import EpisodeSet, digest
from pixlex.eval.few_shot.prompts import Answer, Episode, Setting, failed
from pixlex.files import Journal
from pixlex.messages import printable
from pixlex.progress import bar_or_lines

JOURNAL = "answers.jsonl"
_KINDS = {"episode": int, "credit": int | float | None, "text": str, "detail": str}


class Classifier(ABC):
    """Answers episodes: a classifier of features, or a language model that reads images as words."""

    name: str  # its row in the table: where the words come from, and who reads them
    scorer: str  # how an answer is judged: one of `SCORERS`, or `nearest`, `linear`, `exact`
    identity: str  # a fingerprint of all that decides the answers besides episodes and images

    @abstractmethod
    def answer(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Iterator[Answer]:
        """Yield one answer for each episode, in any order, each as soon as it is there.

        An episode that fails yields an answer without credit; it never ends the others. What makes all of
        them fail (a wrong key, an endpoint that is down) raises `ValueError`.
        """

    def check(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> str:
        """Return why episodes cannot be answered, with the numbers, or an empty text; nothing is sent.

        It begins with `DOES_NOT_FIT` or `NEEDS_EXAMPLE`.
        """
        return ""


@dataclass(frozen=True)
class Cell:
    """One classifier in one setting."""

    classifier: str  # name of its row
    scorer: str  # how answers were judged
    setting: Setting  # the column
    num_episodes: int
    num_failed: int  # episodes without an answer, which are in neither accuracy nor interval
    accuracy: float | None  # mean credit of the answers that came, in [0, 1]; None where none came
    low: float | None  # its 95 % interval
    high: float | None
    accuracy_with_failures: float | None  # counted as wrong; None where the episodes are not asked
    answers: tuple[Answer, ...]  # by number of the episode
    does_not_fit: str = (
        ""  # why they are not asked: longer than the language model reads, or no example shown
    )

    @property
    def num_cut_off(self) -> int:
        """Answers that were cut off before their end, or that are empty."""
        return sum(answer.is_cut_off for answer in self.answers)


class AnswerJournal(Journal):
    """A journal of answers, under the fingerprints of classifier and question; failures are written down too."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, {"answers": 1}, "key", _fits)

    def get(self, classifier: str, question: str) -> Answer | None:
        """Return the answer of a classifier (its identity) to one of `EpisodeSet.questions`, if there is one."""
        key = _key(classifier, question)
        return Answer(**{name: self[key][name] for name in _KINDS}) if key in self else None

    def add(self, classifier: str, question: str, answer: Answer) -> None:
        """Write down an answer; it survives the end of this process on return, not a power failure."""
        self.append([{"key": _key(classifier, question), **vars(answer)}])


def _key(classifier: str, question: str) -> str:
    return digest(classifier, question)[:24]


def _fits(entry: dict[str, Any]) -> bool:
    kinds = {"key": str, **_KINDS}
    return all(name in entry and isinstance(entry[name], kind) for name, kind in kinds.items())


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
    """Let every classifier answer every set of episodes; return their cells, classifier by classifier.

    What is in the folder's journal is not asked again, unless it failed; questions of an earlier run count in a
    larger set as well. Before the first question, every classifier checks that all its prompts can be asked; a set
    that does not fit its language model, or needs an example where none is shown, is not asked, and does not keep
    others from being asked. Where only the endpoint knows, the first episode that it refuses for its length ends
    the set.

    Raises:
        ValueError: episodes of other images, two classifiers or two sets of the same identity, a classifier that
            cannot answer, or a journal that another process writes.
    """
    if not classifiers or not episode_sets:
        raise ValueError(
            f"expected classifiers and episodes, got {len(classifiers)} and {len(episode_sets)} sets"
        )
    for kind, what in (("classifiers", classifiers), ("sets of episodes", episode_sets)):
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
        total = sum(len(one.episodes.episodes) for one in askings)
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
    known = (journal.get(classifier.identity, question) for question in episodes.questions)
    pairs = zip(episodes.episodes, known, strict=True)
    return [episode for episode, answer in pairs if answer is None or answer.credit is None]


def _ask(journal: AnswerJournal, one: _Asking, images: ImageSource, bar: tqdm[NoReturn]) -> str:
    """Have questions answered and write the answers down; a question without any answer is a failure.

    Where it shows that the episodes do not fit, the rest of them is not asked, and the reason is returned.
    """
    classifier, questions, does_not_fit = one.classifier, one.episodes.questions, ""
    left = {episode.number: episode for episode in one.open}

    def add(answer: Answer) -> None:
        journal.add(classifier.identity, questions[answer.episode], answer)
        bar.update()

    for answer in classifier.answer(one.episodes.setting, one.open, images):
        if left.pop(answer.episode, None) is None:
            raise ValueError(
                f"{classifier.name} answered episode {answer.episode} twice or without being asked"
            )
        add(answer)
        if answer.does_not_fit:
            does_not_fit = answer.detail
            break
    else:
        for episode in left.values():
            add(failed(episode, "no answer came"))
    journal.sync()
    return does_not_fit


def _cell(journal: AnswerJournal, one: _Asking) -> Cell:
    classifier, does_not_fit, answers = one.classifier, one.does_not_fit, []
    for episode, question in zip(one.episodes.episodes, one.episodes.questions, strict=True):
        known = journal.get(classifier.identity, question)
        if does_not_fit:
            answers.append(failed(episode, does_not_fit))
        elif known is not None:
            # An answer of an earlier run may have had another number.
            answers.append(replace(known, episode=episode.number))
    given = [answer.credit for answer in answers if answer.credit is not None]
    accuracy = low = high = None
    if given:
        accuracy = math.fsum(given) / len(given)
        # Chance is a number and no measurement.
        exact = classifier.scorer == "exact"
        low, high = (accuracy, accuracy) if exact else wilson_interval(accuracy, len(given))
    return Cell(
        classifier=classifier.name,
        scorer=classifier.scorer,
        setting=one.episodes.setting,
        num_episodes=len(answers),
        num_failed=len(answers) - len(given),
        accuracy=accuracy,
        low=low,
        high=high,
        accuracy_with_failures=None if does_not_fit else math.fsum(given) / len(answers),
        answers=tuple(answers),
        does_not_fit=does_not_fit,
    )
