"""What fine-tuning to a task shows of its validation items: accuracy, what needs no image, items with answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pixlex.config.finetune import ReasoningRun
from pixlex.data.records import ReasoningSource
from pixlex.eval.vqa import Answered, ReasoningResult
from pixlex.report.drawing import drawn
from pixlex.report.figures import Captioned, captioned_images
from pixlex.report.measuring import Progress, unreadable
from pixlex.report.page import write_page

_TITLES = {
    "vqa": "Questions",
    "nlvr2": "True or false",
    "entailment": "Entailment",
    "assignment": "First or second image",
}


class ReasoningProgress(Progress):
    """Measures and draws a model while it is fine-tuned to a task."""

    result: ReasoningResult
    run: ReasoningRun

    def _draw(self, step: int) -> None:
        drawn(
            self.picture("answers", step),
            lambda path: captioned_images(answered_items(self.result, self.validation), path),
        )

    def write_page(self, path: Path, commands: Sequence[str]) -> Path:
        """Write the page of the newest evaluation."""
        result, run = self.result, self.run
        return write_page(
            path,
            title=f"{_TITLES[result.task]}, {run.model.image_size} px: {run.data.train}",
            introduction=f"{result.protocol}. "
            + (
                f"It started from {run.start}."
                if run.start
                else "It started without pretraining on images and texts."
            ),
            numbers=self.numbers,
            examples=None,
            commands=commands,
            config=dataclasses.asdict(run),
            notes=[*answer_notes(result), *unreadable(result.skipped)],
            curves=self.curves,
            captioned=answered_items(result, self.validation),
        )


def answer_notes(result: ReasoningResult) -> list[str]:
    """Return what stands below the numbers: the interval of the accuracy, and the accuracy of each kind."""
    notes = [f"{kind}: {share:.1%}" for kind, share in result.by_kind.items()]
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
    pairs = zip(
        result.examples["images"], result.answered, strict=False
    )  # images of the first ones alone were kept
    return [Captioned(images, _said(one, items)) for images, one in pairs]


def _said(one: Answered, items: ReasoningSource) -> tuple[str, ...]:
    shares = [*one.probabilities, *([None] * (len(one.answers) - len(one.probabilities)))]
    ranked = [
        answer if share is None else f"{answer} ({share:.0%})"
        for answer, share in zip(one.answers, shares, strict=True)
    ]
    given = ", ".join(dict.fromkeys(items.answers[one.item])) or "unknown"
    mark = "" if one.credit is None else f" - {_judged(one.credit)}"
    return (items.texts[one.item], f"model: {', '.join(ranked[:3])}{mark}", f"people: {given}")


def _judged(credit: float) -> str:
    return {0.0: "wrong", 1.0: "right"}.get(credit, f"{credit:.0%} right")
