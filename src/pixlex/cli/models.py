"""Models that commands name."""

from __future__ import annotations

from argparse import Namespace

import torch

from pixlex.models import pretrained
from pixlex.models.cbvila import CBViLA
from pixlex.train.parallel import pick_device


def cbvila_of(options: Namespace) -> CBViLA:
    """Load the CB-ViLA that a command names, where it computes; with `--untrained` its shape with fresh weights.

    Raises:
        ValueError: no such model, or one of another family.
    """
    model = pretrained.load_cbvila(
        options.model, language_model=options.language_model, revision=options.revision
    )
    if getattr(options, "untrained", False):
        torch.manual_seed(0)
        model = CBViLA.start(model.config).eval().requires_grad_(False)
    return model.to(pick_device(options.device))
