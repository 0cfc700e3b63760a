"""Every objective over its settings: two steps each on fixed images and texts, boiled down to numbers."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from tests.tiny import tiny_run

from pixlex.batch import ImageBatch, ImageTextBatch, ReasoningBatch
from pixlex.objectives.phase import Objective, Step
from pixlex.run import build_objective

TEXTS = ("about the class", "and any other class", "about the class", "also an argument of another")
ANSWERS = {
    "vqa": (("about", "about", "also"), ("class and",), ("other", "any", "other"), ("also",)),
    "nlvr2": (("true",), ("false",), ("true",), ("true",)),
    "entailment": (("neutral",), ("entailment",), ("contradiction",), ("neutral",)),
    "assignment": (("first",), ("second",), ("first",), ("second",)),
}
OWN: Mapping[str, Mapping[str, Any]] = {
    "lqae": {"objective.masked_language_weight": 0.1, "objective.commitment_weight": 0.1},
    "cbvila": {"objective.burn_in_steps": 0, "objective.masked_language_ratio": 0.4, "data.max_words": 12},
}


def _case(line: str) -> tuple[str, tuple[str, dict[str, Any]]]:
    name, _, rest = line.partition(": ")
    family, *settings = rest.split()
    pairs = (one.split("=", 1) for one in settings)
    return name, (family, {key: yaml.safe_load(value) for key, value in pairs})


# Name of a case -> family and the settings that differ from the family's own, with dots.
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = dict(
    _case(line) for line in Path(__file__).with_suffix(".txt").read_text().splitlines() if line[0] != "#"
)


def built(name: str, language: Path, causal_language: Path) -> tuple[Objective, ImageBatch]:
    """Return the objective of a case, of the same weights each time, and a batch."""
    family, changes = CASES[name]
    torch.manual_seed(0)
    named = causal_language if family == "frozen" else language
    objective = build_objective(tiny_run(family, named, OWN.get(family, {}) | changes, depth=2))
    for one, parameter in objective.model.named_parameters():
        if one.endswith(
            "patches.weight"
        ):  # images decide: the codes of an untrained encoder are nearly the same
            parameter.data.mul_(20)
    return objective, _batch(family, changes, objective)


def objective_numbers(name: str, language: Path, causal_language: Path) -> dict[str, float]:
    """Return loss, terms, measures, gradients and housekeeping of two steps of a case."""
    objective, batch = built(name, language, causal_language)
    numbers: dict[str, float] = {}
    for number in (0, 1):
        step = Step(number, torch.Generator().manual_seed(number))
        torch.manual_seed(number)
        phase = objective.phase_at(number)
        for one, parameter in objective.named_parameters():
            parameter.requires_grad_(one.startswith(phase.trains))
            parameter.grad = None
        loss = objective.train()(batch, phase, step)
        loss.total.backward()
        found = {"total": loss.total, **loss.terms, **loss.measures, **dict(_gradients(objective))}
        with torch.no_grad():
            for parameter in objective.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.1 * parameter.grad)
        found |= objective.after_step(step, loss)
        numbers |= {
            f"{phase.name} {number} {key}": float(torch.as_tensor(value).detach())
            for key, value in found.items()
        }
    return numbers


def _gradients(objective: Objective) -> Iterator[tuple[str, float]]:
    """Yield for each part of the model its gradient's norm and its product with a fixed random direction."""
    squares: dict[str, float] = {}
    products: dict[str, float] = {}
    for name, parameter in objective.named_parameters():
        if parameter.grad is None:
            continue
        part = ".".join(name.split(".")[1:-1][:2]) or name
        direction = torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))
        )
        gradient = parameter.grad.double()
        squares[part] = squares.get(part, 0.0) + float(gradient.square().sum())
        products[part] = products.get(part, 0.0) + float((gradient * direction).sum())
    for part, square in squares.items():
        yield f"|gradient of {part}|", square**0.5
        yield f"gradient of {part}, projected", products[part]


def _batch(family: str, changes: Mapping[str, Any], objective: Objective) -> ImageBatch:
    """Return four images of noise with what the family reads beside them."""
    each = changes.get("model.num_images", 1)
    count = len(TEXTS) * each
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    parts = (images, torch.zeros(count, dtype=torch.long), tuple(map(str, range(count))), torch.arange(count))
    if family in ("lqae", "vqvae", "mae"):
        return ImageBatch(*parts)
    words = objective.model.tokenize_texts(TEXTS, 12)
    texts = {"texts": TEXTS, "word_ids": words.word_ids, "key_padding": words.key_padding}
    if family != "reasoning":
        return ImageTextBatch(*parts, **texts, image_ids=torch.arange(count))
    given = ANSWERS[changes["model.task"]]
    shares = tuple({text: one.count(text) / len(one) for text in one} for one in given)
    return ReasoningBatch(*parts, **texts, items=torch.arange(len(TEXTS)), answers=given, targets=shares)
