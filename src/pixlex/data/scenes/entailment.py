"""Hypotheses about a scene: entailed, contradicted, or left open by the picture, as SNLI-VE has them.

N. Xie et al., "Visual Entailment: A Novel Task for Fine-Grained Image Understanding", 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from pixlex.data.scenes.claims import contrast, say
from pixlex.data.scenes.scene import Scene, pick

EntailmentLabel = Literal["entailment", "neutral", "contradiction"]
LABELS: tuple[EntailmentLabel, ...] = get_args(EntailmentLabel)

# What no picture of shapes can tell.
_OPEN = (
    "a child drew the picture",
    "a school has hung up the picture",
    "somebody painted the picture yesterday",
    "an artist made the picture in the morning",
    "a museum has bought the picture",
    "someone likes the picture",
    "nobody has seen the picture before",
    "a secret is hidden behind the picture",
    "an old man has sold the picture",
    "people in a village dream of the picture",
)

# Forms with the rate of each. A form of two labels could tell which one it is not; the three-way one cannot.
_FORMS = ("plain", "and", "or", "nested", "nested", "nested")


@dataclass(frozen=True)
class Entailment:
    """A hypothesis about a scene.

    Attributes:
        hypothesis: the sentence, without a capital letter or a full stop.
        label: whether the picture makes it true, leaves it open, or makes it false.
    """

    hypothesis: str
    label: EntailmentLabel


def entailment(scene: Scene, generator: np.random.Generator) -> Entailment:
    """Make a hypothesis; the three labels are equally likely.

    A sentence is made of claims D that the picture decides and claims U that it cannot decide, such as who
    drew it. Its label follows from which D are true ("or" includes "both"):

    - "D": entailed or contradicted.
    - "D and U": open or contradicted.
    - "D or U": entailed or open.
    - "D, and it is true that E or U": contradicted without D, entailed with both, open with D alone.

    The coin falls before the claims are put into words, and claims that hold and that do not are built alike
    (see `contrast`). From the sentence alone the best guess is right in one of three cases of the last form,
    which is half of all, and in one of two of the others: 5/12 in all.

    Args:
        scene: what is drawn.
        generator: decides what is said.
    """
    match pick(generator, _FORMS):
        case "plain":
            truth = bool(generator.random() < 0.5)
            return Entailment(_decided(scene, truth, generator), "entailment" if truth else "contradiction")
        case "and":
            truth = bool(generator.random() < 0.5)
            parts = (_decided(scene, truth, generator), pick(generator, _OPEN))
            return Entailment(" and ".join(parts), "neutral" if truth else "contradiction")
        case "or":
            truth = bool(generator.random() < 0.5)
            parts = (_decided(scene, truth, generator), pick(generator, _OPEN))
            return Entailment(" or ".join(parts), "entailment" if truth else "neutral")
        case _:
            return _nested(scene, generator)


def _nested(scene: Scene, generator: np.random.Generator) -> Entailment:
    """Return "D, and it is true that E or U"."""
    label = pick(generator, LABELS)
    # In a contradiction E is true in half of the cases, as it is in the other two labels together.
    second = label == "entailment" or (label == "contradiction" and bool(generator.random() < 0.5))
    first = _decided(scene, label != "contradiction", generator)
    parts = (_decided(scene, second, generator), pick(generator, _OPEN))
    return Entailment(f"{first}, and it is true that {parts[0]} or that {parts[1]}", label)


def _decided(scene: Scene, truth: bool, generator: np.random.Generator) -> str:
    """Return a claim that is true or false of the scene, in words."""
    found = contrast(scene, generator)
    return say(found.true if truth else found.false, generator)
