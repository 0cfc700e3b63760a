"""Every recipe takes a step: its own settings, with sizes cut to what a test can hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pixlex.batch import ImageBatch, ImageTextBatch
from pixlex.config.run import read_run, recipe_names
from pixlex.objectives.phase import Step
from pixlex.runs import build_objective

SMALL = ("width=32", "depth=1", "heads=2")


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_takes_a_step(name: str, language: Path, causal_language: Path) -> None:
    """Loss finite, gradients finite, housekeeping done."""
    family = read_run(name).family
    overrides = ["model.image_size=32", "model.patch_size=8"]
    sides = {"frozen": ("encoder",), "cbvila": ("image",)}.get(family, ("encoder", "decoder"))
    overrides += [f"model.{side}.{size}" for side in sides for size in SMALL]
    if family == "lqae":
        overrides.append(f"model.language.name={language}")
    elif family == "vqvae":
        overrides += ["model.num_codewords=64", "model.codebook_dim=16"]
    elif family == "frozen":
        overrides.append(f"model.language.name={causal_language}")
    elif family == "cbvila":
        overrides += [f"model.text.{size}" for size in (*SMALL, f"tokenizer={language}", "positions=60")]
        overrides += ["model.image.pretrained=", "model.text.pretrained=", "model.fusion.pretrained="]
        overrides += ["model.fusion.depth=1", "model.codebook.num_codewords=16", "data.max_words=12"]
    run = read_run(name, overrides)
    torch.manual_seed(0)
    objective = build_objective(run).train()
    parts = (torch.rand(4, 3, 32, 32), torch.zeros(4, dtype=torch.long), ("",) * 4, torch.arange(4))
    batch = ImageBatch(*parts)
    if family in ("frozen", "cbvila"):
        padding = torch.zeros(4, 5, dtype=torch.bool)
        word_ids = torch.randint(0, 300, (4, 5))
        texts, ids = tuple("abcd"), torch.arange(4)
        batch = ImageTextBatch(*parts, texts=texts, image_ids=ids, word_ids=word_ids, key_padding=padding)
    step = Step(0, torch.Generator().manual_seed(0))
    loss = objective(batch, objective.phases[0], step)
    assert torch.isfinite(loss.total)
    loss.total.backward()
    gradients = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    housekeeping = objective.after_step(step)
    if family in ("lqae", "vqvae", "cbvila"):
        assert housekeeping["distinct_codewords"] >= 1
