"""What a run measures of its validation images between steps, and the pictures and the page it leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pixlex.config.lqae import MAERun
from pixlex.config.run import Run
from pixlex.eval.evaluate import Evaluation
from pixlex.objectives.phase import Objective
from pixlex.report.drawing import drawn
from pixlex.report.figures import Captioned, captioned_images, image_columns, reconstruction_grid
from pixlex.report.measuring import Progress, unreadable
from pixlex.report.page import run_page, write_page
from pixlex.report.pretraining import PretrainingProgress
from pixlex.report.reasoning import ReasoningProgress


class TokenizerProgress(Progress):
    """Image to words or codes and back: reconstructions, and the words where they belong."""

    result: Evaluation

    def _draw(self, step: int) -> None:
        examples, grid = self.result.examples, self.run.model.grid
        drawn(
            self.picture("reconstruction", step),
            lambda path: reconstruction_grid(
                examples["originals"], examples["reconstructions"], examples["words"], grid, path
            ),
        )

    def write_page(self, path: Path, commands: Sequence[str]) -> Path:
        """Write the page of the newest evaluation."""
        return run_page(path, self.result, self.run, commands, self.curves)


class MaskedProgress(Progress):
    """A masked autoencoder: what it makes of hidden patches."""

    run: MAERun
    result: Evaluation

    def _draw(self, step: int) -> None:
        found = self.result.examples
        columns = {
            "original": found["originals"],
            "seen": found["visible"],
            "rebuilt": found["reconstructions"],
        }
        drawn(self.picture("masked", step), lambda path: image_columns(columns, path))

    def write_page(self, path: Path, commands: Sequence[str]) -> Path:
        """Write the page of the newest evaluation."""
        model, result = self.run.model, self.result
        note = f"The encoder saw {1 - model.mask_ratio:.0%} of the {model.grid} x {model.grid} patches."
        if self.run.objective.normalize_targets:
            note += (
                " Each hidden patch is drawn with its own mean and spread, which the network need not know."
            )
        return write_page(
            path,
            title=f"MAE, {model.image_size} px, {model.grid} x {model.grid}: {self.run.data.train}",
            introduction=note,
            numbers=result.numbers,
            examples=result.examples,
            commands=commands,
            config=dataclasses.asdict(self.run),
            notes=unreadable(result.skipped),
            curves=self.curves,
        )


class CaptionProgress(Progress):
    """Frozen: how well captions are foretold, and what is said of images."""

    result: Evaluation

    def _draw(self, step: int) -> None:
        drawn(self.picture("captions", step), lambda path: captioned_images(self._said(), path))

    def _said(self) -> list[Captioned]:
        rows = zip(*(self.result.examples[name] for name in ("originals", "written", "texts")), strict=True)
        return [
            Captioned(image.unsqueeze(0), (f"written: {written}", f"caption: {text}"))
            for image, written, text in rows
        ]

    def write_page(self, path: Path, commands: Sequence[str]) -> Path:
        """Write the page of the newest evaluation."""
        model, result = self.run.model, self.result
        return write_page(
            path,
            title=f"Frozen, {model.image_size} px: {self.run.data.train}",
            introduction="A vision encoder speaks through a language model that was not changed.",
            numbers=result.numbers,
            examples=None,
            commands=commands,
            config=dataclasses.asdict(self.run),
            notes=unreadable(result.skipped),
            captioned=self._said(),
            curves=self.curves,
        )


_PROGRESS: Mapping[str, type[Progress]] = {
    "lqae": TokenizerProgress,
    "vqvae": TokenizerProgress,
    "mae": MaskedProgress,
    "frozen": CaptionProgress,
    "cbvila": PretrainingProgress,
    "reasoning": ReasoningProgress,
}


def progress_of(run: Run, objective: Objective, training: Any, validation: Any, folder: Path) -> Progress:
    """Return what measures a run's model; see `Progress`."""
    return _PROGRESS[run.family](run, objective, training, validation, folder)
