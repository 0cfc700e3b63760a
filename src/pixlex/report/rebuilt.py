"""Pictures of masked images and of what was made of them with a text."""

from __future__ import annotations

from pathlib import Path

from pixlex.eval.pretraining import RebuiltExamples
from pixlex.report.pictures import labeled_rows


def rebuilt_images(examples: RebuiltExamples, path: Path) -> Path:
    """Write a PNG with one row for each image: original, masked, rebuilt, rebuilt with another text; both texts.

    Args:
        examples: one or more images.
        path: where to write.

    Returns:
        The path.
    """
    columns = {
        "original": examples.originals,
        "masked": examples.visible,
        "rebuilt": examples.rebuilt,
        "with another text": examples.rebuilt_otherwise,
    }
    pairs = zip(examples.texts, examples.other_texts, strict=True)
    return labeled_rows(columns, [f"{text}\nother text: {other or '(none)'}" for text, other in pairs], path)
