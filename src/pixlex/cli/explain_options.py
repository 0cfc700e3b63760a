"""What can be typed after `pixlex explain` and `pixlex evaluate pointing`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pixlex.cli.options import (
    add_command,
    folder_path,
    machine_options,
    model_options,
    picture_path,
    positive,
    size_options,
)


def explain_command(commands: Any) -> None:
    """Add `explain`."""
    explain = add_command(
        commands,
        "explain",
        "explaining:explain_pair",
        "draw where each word of a text finds itself in an image, or what speaks for an answer",
    )
    explain.add_argument(
        "paths", nargs="+", type=Path, metavar="IMAGE", help="an image file; two where the model reads two"
    )
    explain.add_argument("text", metavar="TEXT", help="what is said or asked of it, in quotes")
    model_options(explain)
    size_options(explain)
    explain.add_argument(
        "--answer", metavar="TEXT", help="of a fine-tuned model: the answer to explain; default its own"
    )
    explain.add_argument("--out", type=picture_path, required=True, metavar="FILE.png")
    _what_is_explained(explain)
    explain.add_argument("--raw-text", action="store_true", help="the text as it is, not cleaned")
    machine_options(explain)


def pointing_command(measures: Any) -> None:
    """Add `evaluate pointing`."""
    pointing = add_command(
        measures,
        "pointing",
        "explaining:pointing",
        "whether words point to the objects that they name",
        processes="shared",
    )
    model_options(pointing)
    pointing.add_argument(
        "--data", default="embedded:scenes:test", metavar="SCENES", help="drawn scenes; default %(default)s"
    )
    _what_is_explained(pointing)
    pointing.add_argument("--limit", type=positive, help="most scenes, evenly spaced; default all")
    pointing.add_argument(
        "--untrained",
        action="store_true",
        help="the same configuration untrained, from the same pretrained parts, seed 0",
    )
    pointing.add_argument("--out", type=folder_path, metavar="DIR", help="write results.json there")
    machine_options(pointing)


def _what_is_explained(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--score",
        choices=("matching", "masked_language"),
        help="what is explained of a pretrained model: that text and image belong together (the default), or that "
        "each word, hidden, is foretold from the image and the other words; of a fine-tuned one it is the answer",
    )
    parser.add_argument(
        "--layer",
        type=positive,
        metavar="N",
        help="of the fusion encoder, counted from 1; default the third, or the last but one of fewer than four",
    )
