"""Episodes: a few labeled images, one image asked about (Tsimpoukelli et al. 2021; LQAE, appendix B)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from pixlex.messages import quoted

Naming = Literal["real", "nonsense"]

_BARE = "bare:"
_LABEL = re.compile(rf"({_BARE})?(\d+)/(\d+)")


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

    def __post_init__(self) -> None:
        for name, smallest in (("ways", 2), ("shots", 1), ("repeats", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < smallest:
                raise ValueError(f"{name} must be an integer of {smallest} or more, got {quoted(value)}")
        if type(self.induction) is not bool:
            raise ValueError(f"induction must be true or false, got {quoted(self.induction)}")
        if self.naming not in get_args(Naming):
            raise ValueError(
                f"naming must be one of {', '.join(get_args(Naming))}, got {quoted(self.naming)}"
            )

    @property
    def column(self) -> str:
        """The column's short name: shots/repeats, "bare:" before it without induction."""
        return f"{'' if self.induction else _BARE}{self.shots}/{self.repeats}"

    @property
    def label(self) -> str:
        """The setting in words."""
        shots = f"{self.shots} shot{'s' * (self.shots != 1)}"
        repeats = f"{self.repeats} repeat{'s' * (self.repeats != 1)}"
        induction = "" if self.induction else ", no induction"
        return f"{self.ways}-way, {shots}, {repeats}{induction}, {self.naming} names"


def setting_of(column: str, ways: int, naming: Naming = "real") -> Setting:
    """Return the setting that the short name of a column stands for.

    Args:
        column: shots/repeats, such as "3/0"; "bare:1/0" is without induction.
        ways: classes of an episode.
        naming: what the classes are called.

    Raises:
        ValueError: it is no name of a column, or a number is out of range.
    """
    match = _LABEL.fullmatch(column)
    if match is None:
        raise ValueError(f"expected a setting like 3/0 (shots/repeats) or bare:1/0, got {quoted(column)}")
    bare, shots, repeats = match.groups()
    return Setting(ways=ways, shots=int(shots), repeats=int(repeats), induction=bare is None, naming=naming)


# The seven columns of the paper's Tables 1 and 2, in their order.
PAPER_COLUMNS = ("bare:1/0", "1/0", "3/0", "5/0", "1/1", "1/3", "1/5")


def paper_settings(ways: int, naming: Naming = "real") -> tuple[Setting, ...]:
    """Return the paper's seven settings for a number of ways (LQAE, Tables 1 and 2)."""
    return tuple(setting_of(column, ways, naming) for column in PAPER_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A labeled image of an episode.

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
        support: the labeled images, each once, interleaved by class: c1, c2, c1, c2 ...
        query: position of the image asked about in the source of images; no support image.
        answer: position of its class in `names`.
    """

    number: int
    names: tuple[str, ...]
    support: tuple[Shown, ...]
    query: int
    answer: int

    @property
    def images(self) -> tuple[int, ...]:
        """The positions of all its images, the one asked about last."""
        return (*(shown.image for shown in self.support), self.query)


def images_of(episodes: Iterable[Episode]) -> list[int]:
    """Return the positions of all images of several episodes, each once, sorted."""
    return sorted({image for episode in episodes for image in episode.images})
