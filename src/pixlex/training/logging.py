"""Where a run writes its numbers: JSON lines, TensorBoard events, Weights & Biases if asked, a progress bar."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pixlex import distributed
from pixlex.config.fields import TrainConfig
from pixlex.files import naming, sealed, sealed_lines, write_text
from pixlex.messages import not_installed
from pixlex.progress import bar_or_lines

METRICS = "metrics.jsonl"
# Called with the finished steps and what is logged.
OnLog = Callable[[int, Mapping[str, float]], object]


class RunLog:
    """The log of a run, with images a second, peak memory and the fraction of the time spent waiting for data.

    Every process has one; the first one writes, the mean over all of them.

    Args:
        first_step: steps finished.
        settings: the whole configuration, for the trackers that show it.
        on_log: called with each line, on the first process.

    Attributes:
        bar: moves with each step.
        steps: taken since the last line; counted by the loop.
        waited: seconds since then in which the loop waited for data.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        config: TrainConfig,
        device: torch.device,
        settings: Mapping[str, Any] | None,
        on_log: OnLog | None = None,
    ) -> None:
        first = distributed.is_first()
        self._on_log = on_log if first else None
        self._tracker = Tracker(folder, first_step, settings, config.wandb) if first else None
        self.bar = bar_or_lines(
            total=config.steps, initial=first_step, unit=" steps", desc="train", disable=not first, smoothing=0.05,
            seconds=math.inf,  # a line for each of the log
        )  # fmt: skip
        self._batch_size, self._device = config.batch_size, device
        self._started, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def write_step(self, step: int, phase: str, numbers: Mapping[str, float]) -> None:
        """Write the numbers of a step, as the mean over all processes, and the speed since the last line."""
        numbers = distributed.mean_numbers(numbers)
        seconds = max(1e-9, time.perf_counter() - self._started)
        speed, wait = self.steps * self._batch_size / seconds, self.waited / seconds
        peak = peak_memory(self._device) / 2**20
        shown = {"images_per_s": f"{speed:.0f}", "peak": f"{peak:,.0f} MiB", "wait": f"{wait:.0%}"}
        self.bar.set_postfix({"loss": f"{numbers['total']:.4f}", **shown})
        terms = {f"{phase}/{name}": value for name, value in numbers.items()}
        self.write(step, {**terms, "speed/images": speed, "memory/peak": peak, "data/wait": wait})

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write numbers that are the same on all processes; what was done until now is no training."""
        if self._tracker is not None:
            self._tracker.log(step, numbers)
        if self._on_log is not None:
            self._on_log(step, numbers)
        self._started, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def close(self) -> None:
        """Flush and close everything."""
        self.bar.close()
        if self._tracker is not None:
            self._tracker.close()


class Tracker:
    """Writes numbers by step; after a resume it goes on behind the checkpoint.

    Args:
        first_step: steps finished; lines of later steps, from work that is lost, are dropped.
        config: shown beside the numbers by Weights & Biases.
    """

    def __init__(
        self, folder: Path, first_step: int, config: Mapping[str, Any] | None = None, wandb: bool = False
    ) -> None:
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._wandb = None
        if wandb:
            try:
                from wandb import init
            except ImportError as error:
                raise not_installed("train.wandb=true", "Weights & Biases", "wandb") from error
            self._wandb = init(project="pixlex", name=folder.name, dir=str(folder), config=dict(config or {}))
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
    return [line for line in sealed_lines(path) if isinstance(line.get("step"), int | float)]


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held so far: on the GPU by tensors, on the CPU by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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
