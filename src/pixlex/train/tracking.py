"""Where a run writes its numbers: JSON lines, TensorBoard events, and Weights & Biases if asked."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pixlex.files import Damaged, naming, sealed, unsealed, write_text
from pixlex.messages import not_installed

METRICS = "metrics.jsonl"


class Tracker:
    """Writes numbers by step; after a resume it goes on behind the checkpoint.

    Args:
        folder: the run folder.
        first_step: steps finished; lines of later steps, from work that is lost, are dropped.
        config: shown beside the numbers by Weights & Biases.
        wandb: log there as well.
    """

    def __init__(
        self, folder: Path, first_step: int, config: Mapping[str, Any] | None = None, wandb: bool = False
    ) -> None:
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._wandb = _start_wandb(folder, config) if wandb else None
        path = folder / METRICS
        kept = [line for line in read_metrics(path) if line["step"] <= first_step]
        write_text(path, "".join(json.dumps(sealed(line)) + "\n" for line in kept))
        self._path, self._file = path, path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of one step; keys read `phase/term`."""
        with naming(self._path):
            self._file.write(json.dumps(sealed({"step": step, **values})) + "\n")
            self._file.flush()
        for key, value in values.items():
            self._events.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def close(self) -> None:
        """Flush and close everything."""
        self._file.close()
        self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; one cut off by a kill, or damaged, is left out."""
    lines = []
    if path.is_file():
        for text in path.read_bytes().splitlines():
            try:
                line = unsealed(text)
            except Damaged:
                continue
            if isinstance(line.get("step"), int | float):
                lines.append(line)
    return lines


def write_environment(folder: Path) -> None:
    """Write what the run ran on: versions, processor count, GPUs, command."""
    packages = {}
    for name in ("pixlex", "torch", "transformers", "numpy", "Pillow", "pyarrow"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "not installed"
    environment = {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": packages,
    }
    (folder / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")


def _start_wandb(folder: Path, config: Mapping[str, Any] | None) -> Any:
    """Start a Weights & Biases run."""
    try:
        import wandb
    except ImportError as error:
        raise not_installed("train.wandb=true", "Weights & Biases", "wandb") from error
    return wandb.init(project="pixlex", name=folder.name, dir=str(folder), config=dict(config or {}))
