"""What an answer to an episode is, and what gives answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.episodes import Episode, Setting


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


class Answerer(Protocol):
    """Answers episodes: a classifier of features, or a language model that reads images as words."""

    @property
    def name(self) -> str:
        """What the row of the table is called: where the words come from, and who reads them."""

    @property
    def scorer(self) -> str:
        """How an answer is judged: `strict`, `likelihood`, `constrained`, or `nearest` for classifiers."""

    @property
    def identity(self) -> str:
        """A fingerprint of all that decides the answers besides episodes and images."""

    def answer(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Iterator[Answer]:
        """Yield one answer for each episode, in any order, each as soon as it is there.

        An episode that fails yields an answer without credit; it never ends the others. What makes all of
        them fail (a wrong key, an endpoint that is down, a prompt that does not fit) raises `ValueError`.
        """
