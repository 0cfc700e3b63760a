"""Every recipe takes a step: its own settings, with sizes cut to what a test can hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pixlex.batch import ImageBatch, ImageTextBatch, ReasoningBatch
from pixlex.config.run import read_run, recipe_names
from pixlex.objectives.phase import Step
from pixlex.runs import build_objective

SMALL = ("width=32", "depth=1", "heads=2")


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_takes_a_step(name: str, language: Path, causal_language: Path) -> None:
    """Loss finite, gradients finite, housekeeping done."""
    family = read_run(name).family
    model = "model.body" if family == "reasoning" else "model"
    overrides = [f"{model}.image_size=32", f"{model}.patch_size=8"]
    sides = {"frozen": ("encoder",), "cbvila": ("image",), "reasoning": ("image",)}.get(
        family, ("encoder", "decoder")
    )
    overrides += [f"{model}.{side}.{size}" for side in sides for size in SMALL]
    if family == "lqae":
        overrides.append(f"model.language.name={language}")
    elif family == "vqvae":
        overrides += ["model.num_codewords=64", "model.codebook_dim=16"]
    elif family == "frozen":
        overrides.append(f"model.language.name={causal_language}")
    elif family in ("cbvila", "reasoning"):
        overrides += [f"{model}.text.{size}" for size in (*SMALL, f"tokenizer={language}", "positions=60")]
        overrides += [f"{model}.{side}.pretrained=" for side in ("image", "text", "fusion")]
        overrides += [f"{model}.fusion.depth=1", f"{model}.codebook.num_codewords=16", "data.max_words=12"]
    if family == "reasoning":
        overrides += ["model.answers=['about', 'also']"]
    run = read_run(name, overrides)
    torch.manual_seed(0)
    objective = build_objective(run).train()
    parts = (torch.rand(4, 3, 32, 32), torch.zeros(4, dtype=torch.long), ("",) * 4, torch.arange(4))
    batch = ImageBatch(*parts)
    padding = torch.zeros(4, 5, dtype=torch.bool)
    word_ids = torch.randint(0, 300, (4, 5))
    texts, ids = tuple("abcd"), torch.arange(4)
    if family == "reasoning":
        batch = ReasoningBatch(*parts, items=ids, texts=texts, word_ids=word_ids, key_padding=padding,
                               answers=(("about",),) * 4, targets=({"about": 1.0},) * 4)  # fmt: skip
    if family in ("frozen", "cbvila"):
        batch = ImageTextBatch(*parts, texts=texts, image_ids=ids, word_ids=word_ids, key_padding=padding)
    step = Step(0, torch.Generator().manual_seed(0))
    loss = objective(batch, objective.phases[0], step)
    assert torch.isfinite(loss.total)
    loss.total.backward()
    gradients = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    housekeeping = objective.after_step(step)
    if family in ("lqae", "vqvae") or (family == "cbvila" and run.objective.has_codebook_terms):
        assert housekeeping["distinct_codewords"] >= 1
