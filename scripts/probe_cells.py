"""What an image encoder knows of drawn scenes: color and shape of the object in each of the nine cells.

A query for each cell attends to the patch vectors; two linear maps name color and shape. With `--train` the
encoder learns along, from the model's weights or, without `--model`, from nothing. Shown is the mean over the
last hundred steps, on scenes that were never seen before.

    python scripts/probe_cells.py [--model M] [--train] [--size 96] [--steps 400] [--learning-rate 2e-3]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from pixlex.config.cbvila import CBViLARun
from pixlex.config.run import read_run
from pixlex.data.synthetic import COLORS, GRID, SHAPES, draw, make_scene
from pixlex.models import checkpoint
from pixlex.models.cbvila import CBViLA
from pixlex.models.finetuned import resized
from pixlex.training.parallel import mixed_precision

BATCH = 32


class CellProbe(nn.Module):
    """Logits of color and shape of what stands in each cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(GRID * GRID, width))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.heads = nn.ModuleList(nn.Linear(width, len(kinds)) for kinds in (COLORS, SHAPES))

    def forward(self, seen: Tensor) -> list[Tensor]:
        """Return the logits of colors and of shapes, (B, 9, 8) each, from patch vectors (B, N, D)."""
        queries = self.queries.expand(len(seen), -1, -1)
        gathered, _ = self.attention(queries, seen, seen, need_weights=False)
        return [head(gathered).float() for head in self.heads]


def labeled(step: int, size: int) -> tuple[Tensor, list[Tensor]]:
    """Return scenes with the color and the shape in each cell, -1 where it is empty."""
    scenes = [make_scene("train", step * BATCH + number) for number in range(BATCH)]
    images = torch.stack([torch.from_numpy(draw(scene, size).copy()) for scene in scenes])
    labels = [torch.full((BATCH, GRID * GRID), -1) for _ in range(2)]
    for row, scene in enumerate(scenes):
        for thing in scene.objects:
            cell = thing.row * GRID + thing.column
            labels[0][row, cell] = list(COLORS).index(thing.color)
            labels[1][row, cell] = SHAPES.index(thing.shape)
    return images.permute(0, 3, 1, 2).float() / 255, labels


def chosen_model(name: str | None, size: int) -> CBViLA:
    if name is not None:
        return resized(checkpoint.load_cbvila(name), size)
    run = read_run("cbvila/tiny", [f"model.image_size={size}"])
    assert isinstance(run, CBViLARun)
    return CBViLA.start(run.model)


def fit(
    see: Callable[[Tensor], Tensor],
    encoder: Iterable[nn.Parameter],
    width: int,
    size: int,
    steps: int,
    learning_rate: float,
) -> None:
    """Train a probe behind an encoder, and say how often it is right.

    Args:
        see: maps images, RGB in [0, 1], to vectors of the width, (B, N, width).
        encoder: what of it learns along.
        width: of the vectors.
        size: of the images in pixels.
        steps: of 32 scenes each, never repeated.
        learning_rate: at its peak; it falls to zero.
    """
    probe = CellProbe(width)
    learned = [*probe.parameters(), *encoder]
    optimizer = torch.optim.AdamW(learned, lr=learning_rate)
    right = []
    for step in tqdm(range(steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 50) * (1 - step / steps)
        images, labels = labeled(step, size)
        with mixed_precision(images.device, "auto"):
            logits = probe(see(images))
        pairs = [(one.flatten(0, 1), each.flatten()) for one, each in zip(logits, labels, strict=True)]
        loss = sum((F.cross_entropy(one, each, ignore_index=-1) for one, each in pairs), torch.zeros(()))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learned, 5.0)
        optimizer.step()
        optimizer.zero_grad()
        right.append([float((one.argmax(1) == each)[each >= 0].float().mean()) for one, each in pairs])
        if (step + 1) % 100 == 0:
            color, shape = torch.tensor(right[-100:]).mean(0).tolist()
            tqdm.write(f"{step + 1} steps: {color:.1%} of the colors right, {shape:.1%} of the shapes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = chosen_model(options.model, options.size)
    model.image_encoder.requires_grad_(options.train)
    encoder = model.image_encoder.parameters() if options.train else ()
    fit(model.see, encoder, model.config.image.width, options.size, options.steps, options.learning_rate)


if __name__ == "__main__":
    main()
