"""What the downstream tasks learn from: scenes with a question, a statement or a hypothesis each."""

from __future__ import annotations

from dataclasses import dataclass

from pixlex.data.scenes.entailment import LABELS, entailment
from pixlex.data.scenes.nouns import noun_of
from pixlex.data.scenes.questions import ANSWERS, question
from pixlex.data.scenes.scene import Scene, Split, generator_for, make_scene
from pixlex.data.scenes.source import ScenesSource
from pixlex.data.scenes.statements import statement

# Of so many candidates the first that shares a colored shape with the left scene is put on the right.
_NUM_PARTNERS = 4


@dataclass(frozen=True)
class SceneItem:
    """A text about one image or two, with its answer.

    Attributes:
        images: places of the images in the task's `images`: one, or left and right.
        text: a question, a statement or a hypothesis.
        answer: one of the task's `answers`.
        kind: kind of the question; empty for other tasks.
    """

    images: tuple[int, ...]
    text: str
    answer: str
    kind: str = ""


@dataclass(frozen=True)
class _SceneTask:
    """Items in the order of their (left) images, as many of each; every item is the same in every process.

    Args:
        split: "train" or "test".
        size: number of (left) images.
        texts: items of each, 1 or more; the first ones are the same whatever their number.

    Raises:
        ValueError: as `ScenesSource`, and for fewer texts than 1.
    """

    split: Split
    size: int
    texts: int = 1

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        ScenesSource(self.split, self.size)
        if self.texts < 1:
            raise ValueError(f"texts must be 1 or more, got {self.texts}")

    def __len__(self) -> int:
        return self.size * self.texts

    def key(self, item: int) -> str:
        """Return the name of an item: that of its (left) image, and a number where an image has several."""
        index, turn = divmod(item, self.texts)
        name = self.images.key(index)
        return name if self.texts == 1 else f"{name}/{turn}"

    @property
    def images(self) -> ScenesSource:
        """The images that items point into."""
        return ScenesSource(self.split, self.size)


class SceneQuestions(_SceneTask):
    """Questions about each image; see `question`."""

    @property
    def answers(self) -> tuple[str, ...]:
        """Every answer that occurs: 27 words."""
        return ANSWERS

    def __getitem__(self, item: int) -> SceneItem:
        """Return an item; raises `IndexError` outside [0, size * texts)."""
        index, turn = divmod(item, self.texts)
        asked = question(self.images.scene(index), generator_for("question", self.split, index, turn))
        return SceneItem((index,), asked.text, asked.answer, asked.kind)


class SceneEntailment(_SceneTask):
    """Hypotheses about each image; see `entailment`."""

    @property
    def answers(self) -> tuple[str, ...]:
        """The three labels."""
        return LABELS

    def __getitem__(self, item: int) -> SceneItem:
        """Return an item; raises `IndexError` outside [0, size * texts)."""
        index, turn = divmod(item, self.texts)
        found = entailment(self.images.scene(index), generator_for("entailment", self.split, index, turn))
        return SceneItem((index,), found.hypothesis, found.label)


class ScenePairs(_SceneTask):
    """Statements about each image and another one; see `statement`.

    Raises:
        ValueError: as `ScenesSource`, and for fewer than two images.
    """

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        super().__post_init__()
        if self.size < 2:
            raise ValueError(f"size must be 2 or more for pairs of images, got {self.size}")

    @property
    def answers(self) -> tuple[str, ...]:
        """Whether the statement is true."""
        return ("false", "true")

    def __getitem__(self, item: int) -> SceneItem:
        """Return an item; raises `IndexError` outside [0, size * texts)."""
        index, turn = divmod(item, self.texts)
        left = self.images.scene(index)
        partner, right = self._partner(index, left)
        said = statement(left, right, generator_for("statement", self.split, index, turn))
        return SceneItem((index, partner), said.text, self.answers[said.label])

    def _partner(self, index: int, left: Scene) -> tuple[int, Scene]:
        """Return the image on the right: two scenes that share nothing leave little to say."""
        generator = generator_for("pair", self.split, index)
        colored = {noun_of(thing) for thing in left.objects}
        for _ in range(_NUM_PARTNERS):
            partner = (index + 1 + int(generator.random() * (self.size - 1))) % self.size
            right = make_scene(self.split, partner)
            if any(noun_of(thing) in colored for thing in right.objects):
                break
        return partner, right
