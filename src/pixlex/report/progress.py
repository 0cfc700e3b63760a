"""What an evaluation of a run in training shows, for each kind of data: pictures, and what stands on its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixlex.batch import Skipped
from pixlex.data.records import Records
from pixlex.data.sources import ImageSource
from pixlex.eval.evaluate import Evaluation, write_arrays
from pixlex.eval.vqa import Answered, ReasoningResult
from pixlex.report.figures import Captioned, captioned_images, drawn, image_columns, reconstruction_grid
from pixlex.report.galleries import codeword_gallery, reconstructed_pairs

CODES = "validation-codes.npz"
# Headings of pictures.
REBUILT = "Original, what was visible of it, rebuilt with its caption, rebuilt with the next one's"
CODEWORDS = "Codewords, each with patches that it stands for"


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of a run after a step: its configuration, what was measured on, the run folder.

    What shows one draws pictures into the folder and returns the fields of its `Page`.
    """

    run: Any
    source: Any
    folder: Path
    step: int

    def path(self, kind: str) -> Path:
        """Return where a picture goes."""
        return self.folder / "pictures" / f"{kind}-{self.step:08d}.png"

    def title(self, name: str) -> str:
        """Return the heading of the page: what the network is, its images, what it was trained on."""
        model = self.run.model
        grid = f", {model.grid} x {model.grid}" if hasattr(model, "grid") else ""
        return f"{name}, {model.image_size} px{grid}: {self.run.data.train}"


def show_codes(one: Evaluated, result: Evaluation) -> dict[str, Any]:
    """Show images, words or codes, reconstructions."""
    examples, grid = result.examples, one.run.model.grid
    shown = examples["originals"], examples["reconstructions"], examples["words"], grid
    drawn(one.path("reconstruction"), lambda path: reconstruction_grid(*shown, path))
    name = "VQ-VAE"
    introduction = f"Each image was written as {grid} x {grid} codes and rebuilt from the codes alone."
    if examples["words"] is not None:
        name = "LQAE"
        introduction = (
            f"Each image was written as {grid} x {grid} words of a language model's vocabulary, and rebuilt from "
            "the words alone. The words are a code: they need not describe what is on the image."
        )
    notes = [*result.notes, *unreadable(result.skipped)]
    return _page(one.title(name), introduction, notes, examples=examples)


def show_patches(one: Evaluated, result: Evaluation) -> dict[str, Any]:
    """Show what a masked autoencoder makes of hidden patches."""
    found, model = result.examples, one.run.model
    columns = {"original": "originals", "visible": "visible", "rebuilt": "reconstructions"}
    images = {title: found[name] for title, name in columns.items()}
    drawn(one.path("masked"), lambda path: image_columns(images, path))
    note = f"The encoder saw {1 - model.mask_ratio:.0%} of the {model.grid} x {model.grid} patches."
    if one.run.objective.normalize_targets:
        note += " Each hidden patch is drawn with its own mean and spread, which the network need not know."
    return _page(one.title("MAE"), note, unreadable(result.skipped), examples=found)


def show_captions(one: Evaluated, result: Evaluation) -> dict[str, Any]:
    """Show what Frozen says of images."""
    rows = zip(*(result.examples[name] for name in ("originals", "written", "texts")), strict=True)
    said = [
        Captioned(image.unsqueeze(0), (f"written: {written}", f"caption: {text}"))
        for image, written, text in rows
    ]
    drawn(one.path("captions"), lambda path: captioned_images(said, path))
    title = f"Frozen, {one.run.model.image_size} px: {one.run.data.train}"
    introduction = "A vision encoder speaks through a language model that was not changed."
    return _page(title, introduction, unreadable(result.skipped), captioned=said)


def show_pretraining(one: Evaluated, result: Evaluation) -> dict[str, Any]:
    """Show reconstructions with two captions, and codewords; keep the codes, to see how many change."""
    codes, run = result.rows.get("codes"), one.run
    if codes is not None:
        stored = {"codes": codes.numpy(), "step": np.array(one.step)}
        drawn(one.folder / CODES, lambda path: write_arrays(path, **stored))
    introduction = (
        f"A vision-language model with {run.model.codebook.num_codewords} visual codewords. "
        f"{run.objective.mask_ratio:.0%} of the patches are hidden where pixels and codes are predicted. Recall "
        "is that of the first stage, contrast alone, over the validation pairs."
    )
    pictures = draw_pretraining(result, one.source.images, run.model, one.path)
    return _page(one.title("CB-ViLA"), introduction, unreadable(result.skipped), pictures=pictures)


def show_answers(one: Evaluated, result: ReasoningResult) -> dict[str, Any]:
    """Show items with what a fine-tuned model answers."""
    titles = {"vqa": "Questions", "nlvr2": "True or false", "entailment": "Entailment"}
    run, shown = one.run, answered_items(result, one.source)
    drawn(one.path("answers"), lambda path: captioned_images(shown, path))
    start = f"from {run.start}" if run.start else "without pretraining on images and texts"
    title = f"{titles.get(result.task, 'Assignment')}, {run.model.image_size} px: {run.data.train}"
    notes = [*answer_notes(result), *unreadable(result.skipped)]
    return _page(title, f"{result.protocol}. It started {start}.", notes, captioned=shown)


def _page(title: str, introduction: str, notes: Sequence[str], **more: Any) -> dict[str, Any]:
    return {"title": title, "introduction": introduction, "notes": notes, "pictures": {}, **more}


def draw_pretraining(
    result: Evaluation, pairs: ImageSource, model: Any, path_of: Callable[[str], Path]
) -> dict[str, Path | None]:
    """Draw what an evaluation of CB-ViLA found on images, the configuration of whose network is `model`.

    Returns:
        The pictures by their headings; None for one that could not be made.
    """
    pictures: dict[str, Path | None] = {}
    codes = result.rows.get("codes")
    if result.examples:
        pictures[REBUILT] = drawn(path_of("rebuilt"), lambda path: reconstructed_pairs(result.examples, path))
    if codes is not None:
        about = pairs, result.rows["indices"], codes
        size = {"image_size": model.image_size, "cut": model.cut}
        pictures[CODEWORDS] = drawn(path_of("codewords"), lambda path: codeword_gallery(*about, path, **size))
    return pictures


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


def answered_items(result: ReasoningResult, items: Records) -> list[Captioned]:
    """Return the first items, whose images were kept: texts, answers with probabilities, what people answered."""
    pairs = zip(result.examples["images"], result.answered, strict=False)
    return [Captioned(images, _said(one, items)) for images, one in pairs]


def _said(one: Answered, items: Records) -> tuple[str, ...]:
    """Return an item's text, the model's answers, people's answers."""
    likely = [f" ({probability:.0%})" for probability in one.probabilities]
    likely += [""] * (len(one.answers) - len(likely))
    ranked = [f"{answer}{probability}" for answer, probability in zip(one.answers, likely, strict=True)]
    given = ", ".join(dict.fromkeys(items.answers[one.item])) or "unknown"
    mark = ""
    if one.credit is not None:
        mark = f" - {({0.0: 'wrong', 1.0: 'right'}).get(one.credit, f'{one.credit:.0%} right')}"
    return (items.texts[one.item][0], f"model: {', '.join(ranked[:3])}{mark}", f"people: {given}")
