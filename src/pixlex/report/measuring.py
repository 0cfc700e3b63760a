"""What a run measures of its validation images between steps: the part that all families share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import nn

from pixlex import distributed
from pixlex.batch import ImageBatch, Skipped
from pixlex.config.run import Run
from pixlex.data.loader import Loader, LoaderConfig
from pixlex.data.rows import Images
from pixlex.data.sources import ImageSource
from pixlex.distributed import pick_device
from pixlex.eval.evaluate import Pass
from pixlex.models.inference import Precision
from pixlex.report.drawing import drawn
from pixlex.report.plots import curves
from pixlex.train.parallel import pick_precision
from pixlex.train.tracking import METRICS


class Progress(ABC):
    """Measures the validation images when called, and draws them.

    Args:
        run: the configuration.
        model: the network in training.
        validation: the images.
        folder: the run folder; pictures go to `pictures`.

    Attributes:
        numbers: of the newest evaluation; empty before the first.
    """

    def __init__(self, run: Run, model: nn.Module, validation: ImageSource, folder: Path) -> None:
        self.run, self.model, self.validation, self.folder = run, model, validation, folder
        self.numbers: Mapping[str, float] = {}

    def __call__(self, step: int) -> Mapping[str, float]:
        """Return the numbers of one evaluation, after leaving its picture and the curves.

        Several processes that all call it share the images; the first one draws.
        """
        self.numbers = self._measure(step)
        if distributed.is_first():
            self._draw(step)
            drawn(self.folder / "curves.png", lambda path: curves(self.folder / METRICS, path))
        return self.numbers

    @abstractmethod
    def write_page(self, path: Path, commands: Sequence[str]) -> Path:
        """Write the page of the newest evaluation; `commands` is what was typed, exactly."""

    @abstractmethod
    def _measure(self, step: int) -> Mapping[str, float]:
        """Measure."""

    @abstractmethod
    def _draw(self, step: int) -> None:
        """Leave the pictures of what was measured; see `drawn`."""

    def batches(self) -> Iterator[ImageBatch]:
        """Return this process's share of the images, each once."""
        run = self.run
        settings = LoaderConfig(
            image_size=run.model.image_size,
            cut=run.model.cut,
            batch_size=run.eval.batch_size,
            workers=run.data.workers,
        )
        return Loader(Images(self.validation), settings).evaluation(run.eval.limit or None)

    def how(self, count: int) -> Pass:
        """Return how a set of so many images or items is gone through."""
        config = self.run.eval
        return Pass(
            precision=self.precision, total=min(count, config.limit or count), save_examples=config.examples
        )

    def picture(self, kind: str, step: int) -> Path:
        """Return where a picture of an evaluation goes."""
        return self.folder / "pictures" / f"{kind}-{step:08d}.png"

    @property
    def precision(self) -> Precision:
        """What the run computes in."""
        train = self.run.train
        return pick_precision(train.precision, pick_device(train.device))

    @property
    def curves(self) -> Path | None:
        """The picture of the curves, once there is one."""
        path = self.folder / "curves.png"
        return path if path.is_file() else None


def unreadable(skipped: Sequence[Skipped]) -> list[str]:
    """Return a sentence for each of the first images that could not be read."""
    return [f"could not be read: {one.key}, {one.reason}" for one in skipped[:5]]
