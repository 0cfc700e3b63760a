"""A small training run that tests start, cut off and compare: a folder of noise pictures, a tiny LQAE."""

from __future__ import annotations

import hashlib
import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from tests.tiny import IMAGE_SIZE, tiny_lqae, tiny_vqvae, training_batches

from pixlex.batch import ImageBatch
from pixlex.config.data import DataConfig
from pixlex.config.lqae import LQAEObjectiveConfig
from pixlex.config.train import TrainConfig
from pixlex.data.images import open_source
from pixlex.objectives.lqae import LQAEObjective, VQVAEObjective
from pixlex.objectives.phase import Objective
from pixlex.train.loop import Callbacks, fit

STEPS = 12


def write_pictures(path: Path, count: int = 20) -> Path:
    """Write a parquet file of random blotches."""
    rows = []
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((40, 40), Image.Resampling.BICUBIC).save(buffer, "PNG")
        rows.append(buffer.getvalue())
    pq.write_table(pa.table({"image": rows}), path)
    return path


def settings(**changes: object) -> TrainConfig:
    """Return a training of a dozen steps on the CPU in float32."""
    values: dict[str, object] = {
        "steps": STEPS, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 2, "precision": "fp32",
        "device": "cpu", "log_every": 1, "checkpoint_every": 2, "evaluate_every": 0, "weight_decay": 0.1,
    }  # fmt: skip
    return TrainConfig(**(values | changes))  # type: ignore[arg-type]


def objective(language: Path | None, config: TrainConfig) -> Objective:
    """Return LQAE with all its terms, or VQ-VAE with restarts where there is no language model."""
    if language is None:
        from pixlex.config.lqae import VQVAEObjectiveConfig

        return VQVAEObjective(tiny_vqvae(), VQVAEObjectiveConfig(restart_after=2), config.steps)
    weights = LQAEObjectiveConfig(
        masked_language_weight=0.1, commitment_weight=0.1, entropy_weight=0.1, entropy_temperature=0.5
    )
    return LQAEObjective(tiny_lqae(language), weights, config.steps)


def run(
    folder: Path,
    pictures: Path,
    language: Path | None,
    config: TrainConfig,
    callbacks: Callbacks | None = None,
    workers: int = 0,
) -> Objective:
    """Train from the newest checkpoint in the folder, or from the start."""
    trained = objective(language, config)
    source = open_source(str(pictures))

    def batches(first_step: int) -> Iterator[ImageBatch]:
        return training_batches(
            source, config=DataConfig(workers=workers), image_size=IMAGE_SIZE, batch_size=config.batch_size,
            seed=config.seed, first_step=first_step,
        )  # fmt: skip

    fit(trained, batches, config, folder, callbacks)
    return trained


def interrupted_before(number: int) -> Callbacks:
    """Send this process the signal of Ctrl-C before step `number`."""
    seen = 0

    def observe(batch: object) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGINT)

    return Callbacks(observe=observe)


def digest(module: torch.nn.Module) -> str:
    """Return a hash of every bit of a module's state."""
    content = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()
