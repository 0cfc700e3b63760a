"""`train`, `quickstart`, `finetune` and `ablate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pixlex.cli.few_shot_options import Scorer, Template
from pixlex.cli.options import (
    DATA,
    Count,
    Folder,
    MachineOptions,
    Options,
    Positive,
    option,
    positional,
)

# Settings of a run that are options, too.
_SETTINGS = ("device", "seed", "batch_size")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """Settings of a run, KEY=VALUE, and those that are options, too (see `overrides_of`)."""

    overrides: tuple[str, ...] = positional("KEY=VALUE", "settings, such as train.steps=100", ())
    device: str | None = option(
        None, "auto, cpu, cuda or cuda:N; the same as train.device=D, default the recipe's", "D"
    )
    seed: Count | None = option(None, "the same as train.seed=N", "N")
    batch_size: Positive | None = option(None, "the same as train.batch_size=N", "N")


@dataclass(frozen=True, kw_only=True)
class RecipeArgument(Options):
    """What is trained; declared before the settings, since it stands before them."""

    recipe: str = positional("RECIPE", "a YAML file or a name such as lqae/tiny")


@dataclass(frozen=True, kw_only=True)
class RunOptions(MachineOptions, TrainingOptions, RecipeArgument):
    """The folder of a run."""

    out: Folder | None = option(None, "the run folder; default runs/RECIPE-NUMBER", "DIR")
    resume: bool = option(False, "go on from the newest checkpoint (without --out: of the newest run)")


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions(MachineOptions, TrainingOptions):
    """Options of `quickstart`."""

    overrides: tuple[str, ...] = ()
    out: Folder = option(Path("runs/quickstart"), "the run folder; default %(default)s", "DIR")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(RunOptions):
    """Options of `finetune`."""

    recipe: str = positional("RECIPE", "a YAML file or a name such as finetune/vqa")
    start: str | None = option(
        None,
        "the model to start from: a model directory, a run folder or a hub repository",
        "M",
        name="--from",
    )
    revision: str | None = option(None, "branch, tag or commit of a hub repository")
    untrained: bool = option(
        False,
        "the shape of that model without its weights, to see what pretraining gives; without --from the "
        "recipe's own shape",
    )


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(Options):
    """What `ablate` probes."""

    GROUP = "linear probe of every row"
    probe: tuple[str, str] | None = option(
        None, f"labeled images of the same classes, to train and to test: {DATA}"
    )
    probe_limit: Positive | None = option(None, "most training images; default all", "N")
    probe_test_limit: Positive | None = option(None, "most test images; default all", "N")


@dataclass(frozen=True, kw_only=True)
class RetrievalOption(Options):
    """What `ablate` searches."""

    GROUP = "retrieval by every row of CB-ViLA"
    retrieval: str | None = option(
        None, "held-out images with captions; default the recipe's data.validation", "PAIRS"
    )


@dataclass(frozen=True, kw_only=True)
class EpisodeOptions(Options):
    """What `ablate` classifies."""

    GROUP = "few-shot classification by every row's words"
    few_shot: str | None = option(None, "labeled images of classes not trained on", "DATA")
    ways: tuple[Positive, ...] = option((2, 5), "default 2 5")
    settings: tuple[str, ...] = option(("1/0", "5/0"), "shots/repeats; default 1/0 5/0", "S")
    episodes: Positive = option(500, "default %(default)s a setting")
    llm: tuple[str, ...] = option(
        (),
        "language models to prompt besides the sentence encoder, a column each (row H): directories or hub "
        "repositories, or names of the endpoint's models with --llm-url",
        "M",
    )
    llm_url: str | None = option(None, "OpenAI-compatible endpoint", "URL")
    template: Template = option("frozen", "default %(default)s")
    scorer: Scorer = option("likelihood", "default %(default)s")


@dataclass(frozen=True, kw_only=True)
class BaseArgument(Options):
    """The recipe that the rows change."""

    recipe: str | None = positional("RECIPE", "of LQAE or CB-ViLA: file or name", None)


@dataclass(frozen=True, kw_only=True)
class AblateOptions(
    MachineOptions, EpisodeOptions, RetrievalOption, ProbeOptions, TrainingOptions, BaseArgument
):
    """Options of `ablate`."""

    overrides: tuple[str, ...] = positional("KEY=VALUE", "settings of every row", ())
    out: Folder | None = option(None, "one folder for all; the same one goes on", "DIR")
    rows: tuple[str, ...] = option(
        (),
        "letters of LQAE's Table 3 (A B D E F G I), mask-ratio (Figure 5), IV (of CB-ViLA), or names; "
        "default all. Rows that DIR holds finished stand in the table as well",
        "ROW",
    )
    list: bool = option(False, "list the rows and what they change")


def overrides_of(options: TrainingOptions) -> list[str]:
    """Return the settings of a run that were typed, KEY=VALUE, those that are options among them.

    Raises:
        ValueError: one of them was typed in both ways.
    """
    typed = [*options.overrides]
    for name in _SETTINGS:
        value = getattr(options, name)
        if value is not None:
            if any(one.startswith(f"train.{name}=") for one in options.overrides):
                raise ValueError(
                    f"--{name.replace('_', '-')} and train.{name}= are the same setting: expected one of them"
                )
            typed.append(f"train.{name}={value}")
    return typed


def train(options: RunOptions) -> int:
    """Train a model from a recipe."""
    from pixlex.cli import training

    return training.train(options)


def quickstart(options: QuickstartOptions) -> int:
    """Train the tiny recipe for minutes, end with a page."""
    from pixlex.cli import training

    return training.quickstart(options)


def finetune(options: FinetuneOptions) -> int:
    """Train a recipe from the weights of a CB-ViLA."""
    from pixlex.cli import finetuning

    return finetuning.finetune(options)


def ablate(options: AblateOptions) -> int:
    """Train and measure a recipe with one change at a time."""
    from pixlex.cli import ablating

    return ablating.ablate(options)
