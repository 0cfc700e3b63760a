"""What an answer to an episode is, and what gives answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.episodes import Episode, Setting
from pixlex.eval.llm.client import DOES_NOT_FIT, NO_TEXT

# The detail of an answer that the limit of tokens cut off.
NOT_ENDED = "it did not end"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one episode.

    Attributes:
        episode: its number.
        credit: 1 for right, 0 for wrong, 1 / t where t names are equally good and the right one is among
            them; None where no answer could be had, which is a failure and no wrong answer.
        text: what was answered: a name, or the text that a language model wrote.
        detail: why there is no answer, or what else is worth keeping.
    """

    episode: int
    credit: float | None
    text: str = ""
    detail: str = ""

    @property
    def is_cut_off(self) -> bool:
        """Whether it was cut off before its end, or nothing was said."""
        said_nothing = self.credit == 0 and not self.text.strip()
        return said_nothing or self.detail.startswith((NOT_ENDED, NO_TEXT))

    @property
    def does_not_fit(self) -> bool:
        """Whether there is none because the episode is longer than what the language model reads."""
        return self.credit is None and self.detail.startswith(DOES_NOT_FIT)


@runtime_checkable
class Answerer(Protocol):
    """Answers episodes: a classifier of features, or a language model that reads images as words."""

    @property
    def name(self) -> str:
        """What the row of the table is called: where the words come from, and who reads them."""

    @property
    def scorer(self) -> str:
        """How an answer is judged: `strict`, `likelihood`, `constrained`; `nearest`, `linear` for classifiers."""

    @property
    def identity(self) -> str:
        """A fingerprint of all that decides the answers besides episodes and images."""

    def answer(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Iterator[Answer]:
        """Yield one answer for each episode, in any order, each as soon as it is there.

        An episode that fails yields an answer without credit; it never ends the others. What makes all of
        them fail (a wrong key, an endpoint that is down) raises `ValueError`.
        """


@runtime_checkable
class ChecksEpisodes(Protocol):
    """An answerer that can tell beforehand that episodes cannot be answered, such as prompts that do not fit."""

    def check(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> str:
        """Return why they cannot, with the numbers, or an empty text; nothing is sent to anybody."""


def fair_credit(episode: Episode, values: Sequence[float], *, tolerance: float) -> Answer:
    """Return the answer of whoever gives each name of an episode a value and takes the largest.

    Names whose values differ from the largest by no more than `tolerance` share the credit: whoever sees no
    difference scores exactly 1 / ways, where the first of the largest would score what the order of the names
    makes of it.

    Args:
        episode: the question.
        values: one for each of its names, the larger the better.
        tolerance: what rounding can make of equal values, 0 or more.
    """
    best = max(values)
    chosen = [name for name, value in enumerate(values) if value >= best - tolerance]
    credit = 1 / len(chosen) if episode.answer in chosen else 0.0
    text = " | ".join(episode.names[name] for name in chosen)
    return Answer(episode=episode.number, credit=credit, text=text)
