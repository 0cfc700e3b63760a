"""`finetune`: a recipe over a trained model."""

from __future__ import annotations

from pixlex.cli.train import FinetuneOptions, overrides_of
from pixlex.cli.training import train_run
from pixlex.config.run import find_recipe, read_run, recipe_values


def finetune(options: FinetuneOptions) -> int:
    """Train a recipe from a model's weights, in the model's shape where the recipe says nothing."""
    from pixlex.families import FAMILIES, taken_over
    from pixlex.models.checkpoint import read_config

    family = str(recipe_values(find_recipe(options.recipe)).get("family"))
    row = FAMILIES.get(family)
    if row is None or not row.continues:
        raise ValueError(
            f"{options.recipe} is a recipe of family {family}: expected one of cbvila (retrieval) or reasoning"
        )
    if options.start is None:
        if options.untrained:
            return train_run(options, read_run(options.recipe, overrides_of(options)))
        raise ValueError("expected --from MODEL, the model to go on with, or --untrained for fresh weights")
    model = taken_over(family, options.start, read_config(options.start, options.revision))
    start = "" if options.untrained else options.start
    return train_run(
        options, read_run(options.recipe, overrides_of(options), {"start": start, "model": model})
    )
