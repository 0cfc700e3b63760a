"""Models that commands name."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch

from pixlex.cli.explain import ExplainOptions
from pixlex.cli.options import ModelOptions, remark
from pixlex.config.run import Run, read_run
from pixlex.distributed import pick_device
from pixlex.models import checkpoint
from pixlex.models.cbvila import CBViLA
from pixlex.models.finetuned import Reasoner, resized

_Run = TypeVar("_Run", bound=Run)


def model_of(options: ExplainOptions) -> CBViLA | Reasoner:
    """Load the CB-ViLA, pretrained or fine-tuned, that a command names, where it computes.

    Raises:
        ValueError: no such model, or one of another family.
    """
    model = checkpoint.load_any(
        options.model, language_model=options.language_model, revision=options.revision
    )
    if not model.fuses:
        raise ValueError(
            f"{options.model} holds a model of family {model.family}, expected one of cbvila or a "
            "fine-tuned one"
        )
    return resized(model, options.image_size, options.resize_mode).to(pick_device(options.device))


def cbvila_of(options: ModelOptions) -> CBViLA:
    """Load the CB-ViLA that a command names, where it computes; with `--untrained` its shape with fresh weights.

    Raises:
        ValueError: no such model, or one of another family.
    """
    model = checkpoint.load_cbvila(
        options.model, language_model=options.language_model, revision=options.revision
    )
    if getattr(options, "untrained", False):
        torch.manual_seed(0)
        model = CBViLA.start(model.config).eval().requires_grad_(False)
    size, cut = getattr(options, "image_size", None), getattr(options, "resize_mode", None)
    return resized(model, size, cut).to(pick_device(options.device))


def run_of(name: str, kind: type[_Run]) -> _Run | None:
    """Return the run, of a kind, that a model came from, where its run folder is at hand."""
    folder = Path(name)
    path = (folder.parent if folder.name == "model" else folder) / "config.yaml"
    try:
        run = read_run(path) if path.is_file() else None
    except ValueError:  # of another version
        return None
    return run if isinstance(run, kind) else None


def remark_without_contrast(options: ModelOptions, model: CBViLA) -> None:
    """Say where similarities mean nothing; a shortlist is drawn up by them."""
    if not model.compares:
        remark(
            options,
            f"{options.model} was trained without contrast, so its similarities are those of random maps; judge "
            "by matching, of a shortlist that holds all",
        )
