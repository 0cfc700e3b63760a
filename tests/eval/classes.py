"""Folders of small pictures whose class shows in their color."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("blue", "green", "red")


def write_classes(
    folder: Path, count: int, *, names: Sequence[str] = CLASSES, seed: int = 0, noise: float = 40.0
) -> Path:
    """Write `count` noisy pictures of 36 x 36 pixels for each class; colors follow the sorted names."""
    random = np.random.default_rng(seed)
    colors = np.random.default_rng(7).uniform(40, 215, (64, 3))
    for place, name in enumerate(sorted(names)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = colors[place] + noise * random.normal(size=(36, 36, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{number}.png")
    return folder
