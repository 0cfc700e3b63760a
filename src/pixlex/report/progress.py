"""What a run measures of its validation data between steps, the pictures and the page it leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixlex import distributed
from pixlex.batch import Skipped
from pixlex.config.run import Run
from pixlex.data.records import ReasoningSource
from pixlex.data.sources import ImageSource
from pixlex.eval.evaluate import Evaluation, read_arrays, write_arrays
from pixlex.eval.pretraining import ReconstructedExamples
from pixlex.eval.vqa import Answered, ReasoningResult
from pixlex.families import FAMILIES, Validation
from pixlex.objectives.phase import Objective
from pixlex.report.drawing import drawn
from pixlex.report.figures import Captioned, captioned_images, image_columns, reconstruction_grid
from pixlex.report.galleries import codeword_gallery, reconstructed_pairs
from pixlex.report.page import Page, write_page
from pixlex.report.plots import curves
from pixlex.train.logging import METRICS

_CODES = "validation-codes.npz"
# Headings of pictures.
REBUILT = "Original, what was visible of it, rebuilt with its caption, rebuilt with the next one's"
CODEWORDS = "Codewords, each with patches that it stands for"


class Progress:
    """Measures the validation data when called, and draws them.

    Args:
        run: the configuration.
        objective: with the network in training.
        training: what it is trained on.
        validation: what is measured on.
        folder: the run folder; pictures go to `pictures`.

    Attributes:
        numbers: of the newest evaluation; empty before the first.
    """

    def __init__(self, run: Run, objective: Objective, training: Any, validation: Any, folder: Path) -> None:
        # Which kind of run it is, its family's function below knows.
        self.run: Any = run
        self.objective, self.training, self.validation, self.folder = objective, training, validation, folder
        self.numbers: Mapping[str, float] = {}
        self._shown: dict[str, Any] = {}

    def __call__(self, step: int) -> Mapping[str, float]:
        """Return the numbers of one evaluation, after leaving its pictures and the curves.

        Several processes that all call it share the images; the first one draws.
        """
        # Baselines without images once: they do not change from one evaluation to the next.
        training = self.training if step == self.run.train.steps else None
        codes = self._previous_codes(step) if distributed.is_first() else None
        one = Validation(self.run, self.objective, self.validation, training, codes)
        result, self.numbers = FAMILIES[self.run.family].evaluate(one)
        if distributed.is_first():
            self._shown = _SHOW[self.run.family](self, result, step)
            drawn(self.folder / "curves.png", lambda path: curves(self.folder / METRICS, path))
        return self.numbers

    def write_page(self, path: Path, commands: Sequence[str]) -> Path:
        """Write the page of the newest evaluation; `commands` is what was typed, exactly."""
        plot = self.folder / "curves.png"
        page = Page(
            numbers=self.numbers,
            commands=commands,
            config=dataclasses.asdict(self.run),
            **{
                **self._shown,
                "pictures": {**self._shown["pictures"], "Curves": plot if plot.is_file() else None},
            },
        )
        return write_page(path, page)

    def draw(self, kind: str, step: int, draw: Callable[[Path], object]) -> Path | None:
        """Leave a picture of an evaluation; see `drawn`."""
        return drawn(self.folder / "pictures" / f"{kind}-{step:08d}.png", draw)

    def title(self, name: str) -> str:
        """Return the heading of the page: what the network is, its images, what it was trained on."""
        model = self.run.model
        grid = f", {model.grid} x {model.grid}" if hasattr(model, "grid") else ""
        return f"{name}, {model.image_size} px{grid}: {self.run.data.train}"

    def _previous_codes(self, step: int) -> Tensor | None:
        """Return the codes of an earlier step; none where a run was resumed behind them, or they are damaged."""
        stored = read_arrays(self.folder / _CODES)
        if not {"codes", "step"} <= stored.keys() or int(stored["step"]) >= step:
            return None
        return torch.from_numpy(stored["codes"])


def _tokenizer(progress: Progress, result: Evaluation, step: int) -> dict[str, Any]:
    """Show images, words or codes, reconstructions."""
    examples, grid = result.examples, progress.run.model.grid
    progress.draw(
        "reconstruction",
        step,
        lambda path: reconstruction_grid(
            examples["originals"], examples["reconstructions"], examples["words"], grid, path
        ),
    )
    introduction = f"Each image was written as {grid} x {grid} codes and rebuilt from the codes alone."
    if examples["words"] is not None:
        introduction = (
            f"Each image was written as {grid} x {grid} words of a language model's vocabulary, and rebuilt from "
            "the words alone. The words are a code: they need not describe what is on the image."
        )
    return {
        "title": progress.title("LQAE" if examples["words"] is not None else "VQ-VAE"),
        "introduction": introduction,
        "examples": examples,
        "notes": [*result.notes, *unreadable(result.skipped)],
        "pictures": {},
    }


def _masked(progress: Progress, result: Evaluation, step: int) -> dict[str, Any]:
    """Show what a masked autoencoder makes of hidden patches."""
    found = result.examples
    columns = {
        "original": found["originals"],
        "visible": found["visible"],
        "rebuilt": found["reconstructions"],
    }
    progress.draw("masked", step, lambda path: image_columns(columns, path))
    model = progress.run.model
    note = f"The encoder saw {1 - model.mask_ratio:.0%} of the {model.grid} x {model.grid} patches."
    if progress.run.objective.normalize_targets:
        note += " Each hidden patch is drawn with its own mean and spread, which the network need not know."
    return {
        "title": progress.title("MAE"),
        "introduction": note,
        "examples": found,
        "notes": unreadable(result.skipped),
        "pictures": {},
    }


def _captions(progress: Progress, result: Evaluation, step: int) -> dict[str, Any]:
    """Show what Frozen says of images."""
    rows = zip(*(result.examples[name] for name in ("originals", "written", "texts")), strict=True)
    said = [
        Captioned(image.unsqueeze(0), (f"written: {written}", f"caption: {text}"))
        for image, written, text in rows
    ]
    progress.draw("captions", step, lambda path: captioned_images(said, path))
    return {
        "title": f"Frozen, {progress.run.model.image_size} px: {progress.run.data.train}",
        "introduction": "A vision encoder speaks through a language model that was not changed.",
        "captioned": said,
        "notes": unreadable(result.skipped),
        "pictures": {},
    }


def _pretraining(progress: Progress, result: Evaluation, step: int) -> dict[str, Any]:
    """Show reconstructions with two captions, and codewords; keep the codes, to see how many change."""
    codes, run = result.rows.get("codes"), progress.run
    if codes is not None:
        drawn(
            progress.folder / _CODES,
            lambda path: write_arrays(path, codes=codes.numpy(), step=np.array(step)),
        )
    return {
        "title": progress.title("CB-ViLA"),
        "introduction": f"A vision-language model with {run.model.codebook.num_codewords} visual codewords. "
        f"{run.objective.mask_ratio:.0%} of the patches are hidden where pixels and codes are predicted. Recall "
        "is that of the first stage, contrast alone, over the validation pairs.",
        "notes": unreadable(result.skipped),
        "pictures": draw_pretraining(
            result,
            progress.validation,
            run.model,
            lambda kind: progress.folder / "pictures" / f"{kind}-{step:08d}.png",
        ),
    }


def draw_pretraining(
    result: Evaluation, pairs: ImageSource, model: Any, path_of: Callable[[str], Path]
) -> dict[str, Path | None]:
    """Draw what an evaluation of CB-ViLA found.

    Args:
        result: what was found.
        pairs: the images that were measured.
        model: the configuration of the network.
        path_of: where a picture goes, "rebuilt" or "codewords".

    Returns:
        The pictures by their headings; None for one that could not be made.
    """
    pictures: dict[str, Path | None] = {}
    codes = result.rows.get("codes")
    if result.examples:
        examples = ReconstructedExamples(**result.examples)
        pictures[REBUILT] = drawn(path_of("rebuilt"), lambda path: reconstructed_pairs(examples, path))
    if codes is not None:
        size, cut = model.image_size, model.cut
        pictures[CODEWORDS] = drawn(
            path_of("codewords"),
            lambda path: codeword_gallery(
                pairs, result.rows["indices"], codes, path, image_size=size, cut=cut
            ),
        )
    return pictures


def _answers(progress: Progress, result: ReasoningResult, step: int) -> dict[str, Any]:
    """Show items with what a fine-tuned model answers."""
    titles = {"vqa": "Questions", "nlvr2": "True or false", "entailment": "Entailment"}
    run, shown = progress.run, answered_items(result, progress.validation)
    progress.draw("answers", step, lambda path: captioned_images(shown, path))
    start = f"from {run.start}" if run.start else "without pretraining on images and texts"
    return {
        "title": f"{titles.get(result.task, 'Assignment')}, {run.model.image_size} px: {run.data.train}",
        "introduction": f"{result.protocol}. It started {start}.",
        "captioned": shown,
        "notes": [*answer_notes(result), *unreadable(result.skipped)],
        "pictures": {},
    }


_SHOW: Mapping[str, Callable[[Progress, Any, int], dict[str, Any]]] = {
    "lqae": _tokenizer,
    "vqvae": _tokenizer,
    "mae": _masked,
    "frozen": _captions,
    "cbvila": _pretraining,
    "reasoning": _answers,
}


def unreadable(skipped: Sequence[Skipped]) -> list[str]:
    """Return a sentence on the images that could not be read, with the first of them."""
    if not skipped:
        return []
    first = skipped[0]
    return [f"{len(skipped)} images could not be read; the first: {first.key}, {first.reason}"]


def answer_notes(result: ReasoningResult) -> list[str]:
    """Return what stands below the numbers: the interval of the accuracy, and the accuracy of each kind."""
    notes = [f"{kind}: {accuracy:.1%}" for kind, accuracy in result.by_kind.items()]
    if result.interval is None:
        return notes
    low, high = result.interval
    return [f"95 % interval of the accuracy: {low:.1%} to {high:.1%}", *notes]


def answered_items(result: ReasoningResult, items: ReasoningSource) -> list[Captioned]:
    """Return the first items: their images, texts, answers with probabilities, what people answered.

    Args:
        result: with the images of the first items.
        items: the items that were answered.
    """
    # Images of the first ones alone were kept.
    pairs = zip(result.examples["images"], result.answered, strict=False)
    return [Captioned(images, _said(one, items)) for images, one in pairs]


def _said(one: Answered, items: ReasoningSource) -> tuple[str, ...]:
    """Return an item's text, the model's answers, people's answers."""
    missing = [None] * (len(one.answers) - len(one.probabilities))
    ranked = [
        answer if probability is None else f"{answer} ({probability:.0%})"
        for answer, probability in zip(one.answers, [*one.probabilities, *missing], strict=True)
    ]
    given = ", ".join(dict.fromkeys(items.answers[one.item])) or "unknown"
    mark = ""
    if one.credit is not None:
        mark = f" - {({0.0: 'wrong', 1.0: 'right'}).get(one.credit, f'{one.credit:.0%} right')}"
    return (items.texts[one.item], f"model: {', '.join(ranked[:3])}{mark}", f"people: {given}")
