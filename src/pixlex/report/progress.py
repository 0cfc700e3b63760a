"""What a run measures of its validation images between steps, and the pictures and the page it leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from pixlex.config.cbvila import CBViLARun
from pixlex.config.frozen import FrozenRun
from pixlex.config.mae import MAERun
from pixlex.config.reasoning import ReasoningRun
from pixlex.config.run import Run
from pixlex.data.loader import Loader, LoaderConfig
from pixlex.data.records import PairSource, ReasoningSource
from pixlex.data.rows import Pairs
from pixlex.data.sources import ImageSource
from pixlex.distributed import pick_device
from pixlex.eval.evaluate import Evaluation
from pixlex.eval.pretraining import evaluate_captions, evaluate_masked_patches
from pixlex.eval.reconstruction import evaluate_reconstruction
from pixlex.models.frozen import Frozen
from pixlex.models.lqae import LQAE
from pixlex.models.mae import MAE
from pixlex.models.reasoner import Reasoner
from pixlex.models.vqvae import VQVAE
from pixlex.objectives.cbvila import CBViLAObjective
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

    def _measure(self, step: int) -> Mapping[str, float]:
        assert isinstance(self.model, LQAE | VQVAE)
        run, config = self.run, self.run.eval
        self.result = evaluate_reconstruction(
            self.model.to(pick_device(run.train.device)),
            self.batches(),
            self.how(len(self.validation)),
            num_folds=config.word_folds,
        )
        return self.result.numbers

    def _draw(self, step: int) -> None:
        assert isinstance(self.model, LQAE | VQVAE)
        examples, grid = self.result.examples, self.model.grid
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

    result: Evaluation

    def _measure(self, step: int) -> Mapping[str, float]:
        assert isinstance(self.model, MAE)
        assert isinstance(self.run, MAERun)
        self.result = evaluate_masked_patches(
            self.model.to(pick_device(self.run.train.device)),
            self.batches(),
            self.how(len(self.validation)),
            normalize=self.run.objective.normalize_targets,
        )
        return self.result.numbers

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
        assert isinstance(self.run, MAERun)
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

    def _measure(self, step: int) -> Mapping[str, float]:
        assert isinstance(self.model, Frozen)
        assert isinstance(self.run, FrozenRun)
        assert isinstance(self.validation, PairSource)
        config, max_words, model = self.run.eval, self.run.data.max_words, self.model
        batches = Loader(
            Pairs(self.validation, lambda texts: model.tokenize_texts(texts, max_words)),
            LoaderConfig(
                image_size=self.run.model.image_size,
                cut=self.run.model.cut,
                batch_size=config.batch_size,
                workers=self.run.data.workers,
            ),
        ).evaluation(config.limit or None)
        self.result = evaluate_captions(
            self.model.to(pick_device(self.run.train.device)),
            batches,
            self.how(len(self.validation)),
        )
        return self.result.numbers

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


def progress_of(
    run: Run,
    objective: Objective,
    training: ImageSource | ReasoningSource,
    validation: ImageSource | ReasoningSource,
    folder: Path,
) -> Progress:
    """Return what measures a run's model; see `Progress`."""
    model = objective.model
    if isinstance(validation, ReasoningSource):
        assert isinstance(run, ReasoningRun)
        assert isinstance(model, Reasoner)
        assert isinstance(training, ReasoningSource)
        return ReasoningProgress(run, model, training, validation, folder)
    match run:
        case MAERun():
            return MaskedProgress(run, model, validation, folder)
        case FrozenRun():
            return CaptionProgress(run, model, validation, folder)
        case CBViLARun():
            assert isinstance(objective, CBViLAObjective)
            assert isinstance(validation, PairSource)
            return PretrainingProgress(run, objective, validation, folder)
        case _:
            return TokenizerProgress(run, model, validation, folder)
