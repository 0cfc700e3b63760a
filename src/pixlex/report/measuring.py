"""What a run measures of its validation images between steps: the part that all families share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pixlex import distributed
from pixlex.batch import Skipped
from pixlex.config.run import Run
from pixlex.families import FAMILIES, Validation
from pixlex.objectives.phase import Objective
from pixlex.report.drawing import drawn
from pixlex.report.plots import curves
from pixlex.train.logging import METRICS


class Progress(ABC):
    """Measures the validation data when called, and draws them.

    Args:
        run: the configuration.
        objective: with the network in training.
        training: what it is trained on.
        validation: what is measured on.
        folder: the run folder; pictures go to `pictures`.

    Attributes:
        numbers: of the newest evaluation; empty before the first.
        result: all that it found.
        pictures: for the page, by their headings.
    """

    run: Any
    result: Any

    def __init__(self, run: Run, objective: Objective, training: Any, validation: Any, folder: Path) -> None:
        self.run, self.objective, self.folder = run, objective, folder
        self.training, self.validation = training, validation
        self.numbers: Mapping[str, float] = {}
        self.pictures: dict[str, Path] = {}

    def __call__(self, step: int) -> Mapping[str, float]:
        """Return the numbers of one evaluation, after leaving its picture and the curves.

        Several processes that all call it share the images; the first one draws.
        """
        # Baselines without images once: they do not change from one evaluation to the next.
        training = self.training if step == self.run.train.steps else None
        codes = self._previous_codes(step)
        one = Validation(self.run, self.objective, self.validation, training, codes)
        self.result, self.numbers = FAMILIES[self.run.family].evaluate(one)
        if distributed.is_first():
            self._draw(step)
            drawn(self.folder / "curves.png", lambda path: curves(self.folder / METRICS, path))
        return self.numbers

    @abstractmethod
    def write_page(self, path: Path, commands: Sequence[str]) -> Path:
        """Write the page of the newest evaluation; `commands` is what was typed, exactly."""

    @abstractmethod
    def _draw(self, step: int) -> None:
        """Leave the pictures of what was measured; see `drawn`."""

    def _previous_codes(self, step: int) -> Tensor | None:
        """Return the codes of an earlier evaluation, where they are kept."""
        return None

    def picture(self, kind: str, step: int) -> Path:
        """Return where a picture of an evaluation goes."""
        return self.folder / "pictures" / f"{kind}-{step:08d}.png"

    @property
    def curves(self) -> Path | None:
        """The picture of the curves, once there is one."""
        path = self.folder / "curves.png"
        return path if path.is_file() else None


def unreadable(skipped: Sequence[Skipped]) -> list[str]:
    """Return a sentence for each of the first images that could not be read."""
    return [f"could not be read: {one.key}, {one.reason}" for one in skipped[:5]]
