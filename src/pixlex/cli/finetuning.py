"""`finetune`: a recipe over a trained model."""

from __future__ import annotations

from typing import Any

from pixlex.cli.train import FinetuneOptions, overrides_of
from pixlex.cli.training import train_run
from pixlex.config.run import find_recipe, read_run, recipe_values


def finetune(options: FinetuneOptions) -> int:
    """Train a recipe from a model's weights, in the model's shape where the recipe says nothing."""
    from pixlex.models.pretrained import read_config

    family = recipe_values(find_recipe(options.recipe)).get("family")
    if family not in ("cbvila", "reasoning"):
        raise ValueError(
            f"{options.recipe} is a recipe of family {family}: expected one of cbvila (retrieval) or reasoning"
        )
    if options.start is None:
        if options.untrained:
            return train_run(options, read_run(options.recipe, overrides_of(options)))
        raise ValueError("expected --from MODEL, the model to go on with, or --untrained for fresh weights")
    described = read_config(options.start, options.revision)
    before = described["family"]
    if before not in ("cbvila", "reasoning"):
        raise ValueError(
            f"{options.start} holds a model of family {before}: fine-tuning starts from one of cbvila, or from a "
            "fine-tuned one"
        )
    if family == "cbvila" != before:
        raise ValueError(
            f"{options.start} was fine-tuned to a task and ranks images and texts no longer: "
            "expected the model that it was made from"
        )
    shape: dict[str, Any] = described["model"]["body"] if before == "reasoning" else described["model"]
    model = shape if family == "cbvila" else {"body": shape}
    start = "" if options.untrained else options.start
    return train_run(
        options, read_run(options.recipe, overrides_of(options), {"start": start, "model": model})
    )
