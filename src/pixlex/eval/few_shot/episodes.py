"""Episodes: a few labelled images, one image asked about (Tsimpoukelli et al. 2021; LQAE, appendix B)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Naming = Literal["real", "nonsense"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One column of the paper's Tables 1 and 2.

    Attributes:
        ways: classes of an episode, 2 or more.
        shots: different images of each class, 1 or more.
        repeats: how many more times each of them is shown, 0 or more.
        induction: whether a sentence that lists the names comes first.
        naming: the classes' real names, or nonsense names ("dax") dealt anew in every episode.
    """

    ways: int
    shots: int
    repeats: int = 0
    induction: bool = True
    naming: Naming = "real"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A labelled image of an episode.

    Attributes:
        image: its position in the source of images.
        name: the position of its class in `Episode.names`.
    """

    image: int
    name: int


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One question.

    Attributes:
        number: position in its set of episodes.
        names: what the classes are called, in the order in which they are shown first.
        support: the labelled images, each once, interleaved by class: c1, c2, c1, c2 ...
        query: position of the image asked about in the source of images; no support image.
        answer: position of its class in `names`.
    """

    number: int
    names: tuple[str, ...]
    support: tuple[Shown, ...]
    query: int
    answer: int
