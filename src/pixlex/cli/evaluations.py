"""What can be typed after `pixlex evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixlex.cli.options import (
    DATA,
    add_command,
    batch_options,
    broken_option,
    machine_options,
    model_options,
    positive,
    share,
)


def evaluate_commands(commands: Any) -> None:
    """Add `evaluate` and the measures it knows."""
    evaluate = commands.add_parser("evaluate", help="measure a model", description="Measure a model.")
    measures = evaluate.add_subparsers(dest="measure", required=True, metavar="MEASURE")
    _reconstruction(measures)


def _reconstruction(measures: Any) -> None:
    reconstruction = add_command(
        measures, "reconstruction", "measures:evaluate", "how well images survive as words"
    )
    model_options(reconstruction)
    reconstruction.add_argument("--data", required=True, metavar="DATA", help=DATA)
    reconstruction.add_argument("--limit", type=positive, help="most images, evenly spaced; default all")
    reconstruction.add_argument(
        "--out", type=Path, metavar="DIR", help="write results.json, reconstruction.png and report.html there"
    )
    reconstruction.add_argument(
        "--mask-ratio", type=share, default=0.5, help="words hidden for masked_mse; default %(default)s"
    )
    reconstruction.add_argument(
        "--fid-features", type=Path, metavar="FILE", help="TorchScript network for rFID"
    )
    reconstruction.add_argument(
        "--lpips-network", type=Path, metavar="FILE", help="TorchScript network for LPIPS"
    )
    batch_options(reconstruction)
    broken_option(reconstruction)
    machine_options(reconstruction)
