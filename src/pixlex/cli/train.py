"""`train`, `quickstart`, `finetune` and `ablate`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixlex.cli import options as cli
from pixlex.eval.few_shot.prompts import Scorer, Template
from pixlex.files import read_json

if TYPE_CHECKING:
    from pixlex.ablations import Measure
    from pixlex.config.run import Run

# Settings of a run that are options, too.
_SETTINGS = ("device", "seed", "batch_size")


class TrainingOptions(cli.Options):
    """Settings of a run, KEY=VALUE, and those that are options, too (see `overrides_of`)."""

    overrides: tuple[str, ...] = cli.positional("KEY=VALUE", "settings, such as train.steps=100", ())
    device: str | None = cli.option(
        None, "auto, cpu, cuda, cuda:N or mps; the same as train.device=D, default the recipe's", "D"
    )
    seed: cli.Count | None = cli.option(None, "the same as train.seed=N", "N")
    batch_size: cli.Positive | None = cli.option(None, "the same as train.batch_size=N", "N")


class RecipeArgument(cli.Options):  # before the settings, since it stands before them
    recipe: str | None = cli.positional(
        "RECIPE", "a YAML file or a name such as lqae/tiny; not needed with --resume and --out", None
    )


class RunOptions(cli.MachineOptions, TrainingOptions, RecipeArgument):
    out: cli.Folder | None = cli.option(None, "the run folder; default runs/RECIPE-NUMBER", "DIR")
    resume: bool = cli.option(False, "go on from the newest checkpoint (without --out: of the newest run)")
    start: str | None = cli.option(
        None,
        "go on from a model of the same family in a new run: one that comes with pixlex, a directory, a run "
        "folder or a hub repository",
        "M",
        name="--from",
    )
    revision: str | None = cli.option(None, "branch, tag or commit of a hub repository")
    dry_run: bool = cli.option(
        False, "take three steps, keep nothing, say what would run, with how much memory and for how long"
    )


class QuickstartOptions(cli.MachineOptions, TrainingOptions):
    overrides: tuple[str, ...] = ()
    out: cli.Folder = cli.option(Path("runs/quickstart"), "the run folder; default %(default)s", "DIR")


class FinetuneOptions(RunOptions):
    """Options of `finetune`."""

    recipe: str | None = cli.positional("RECIPE", "a YAML file or a name such as finetune/vqa", None)
    start: str | None = cli.option(
        None,
        "the model to start from: one that comes with pixlex, a directory, run folder or hub repository",
        "M",
        name="--from",
    )
    untrained: bool = cli.option(
        False,
        "the shape of that model without its weights, to see what pretraining gives; without --from the "
        "recipe's own shape",
    )


class ProbeOptions(cli.Options):
    GROUP = "linear probe of every row"
    probe: tuple[str, str] | None = cli.option(
        None, f"labeled images of the same classes, to train and to test: {cli.DATA}"
    )
    probe_limit: cli.Positive | None = cli.option(None, "most training images; default all", "N")
    probe_test_limit: cli.Positive | None = cli.option(None, "most test images; default all", "N")


class RetrievalOption(cli.Options):
    GROUP = "retrieval by every row of CB-ViLA"
    retrieval: str | None = cli.option(
        None, "held-out images with captions; default the recipe's data.validation", "PAIRS"
    )


class EpisodeOptions(cli.Options):
    GROUP = "few-shot classification by every row's words"
    few_shot: str | None = cli.option(None, "labeled images of classes not trained on", "DATA")
    ways: tuple[cli.Positive, ...] = cli.option((2, 5), "default 2 5")
    settings: tuple[str, ...] = cli.option(("1/0", "5/0"), "shots/repeats; default 1/0 5/0", "S")
    episodes: cli.Positive = cli.option(500, "default %(default)s a setting")
    llm: tuple[str, ...] = cli.option(
        (),
        "language models to prompt besides the sentence encoder, a column each (row H): directories or hub "
        "repositories, or names of the endpoint's models with --llm-url",
        "M",
    )
    llm_url: str | None = cli.option(None, "OpenAI-compatible endpoint", "URL")
    template: Template = cli.option("frozen", "default %(default)s")
    scorer: Scorer = cli.option("likelihood", "default %(default)s")


class BaseArgument(cli.Options):
    recipe: str | None = cli.positional("RECIPE", "of LQAE or CB-ViLA: file or name", None)


class AblateOptions(
    cli.MachineOptions, EpisodeOptions, RetrievalOption, ProbeOptions, TrainingOptions, BaseArgument
):
    """Options of `ablate`."""

    overrides: tuple[str, ...] = cli.positional("KEY=VALUE", "settings of every row", ())
    out: cli.Folder | None = cli.option(None, "one folder for all; the same one goes on", "DIR")
    rows: tuple[str, ...] = cli.option(
        (),
        "letters of LQAE's Table 3 (A B D E F G I), mask-ratio (Figure 5), IV (of CB-ViLA), or names; "
        "default all. Rows that DIR holds finished stand in the table as well",
        "ROW",
    )
    list: bool = cli.option(False, "list the rows and what they change")


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


def train(options: RunOptions) -> int | None:
    """Train a model from a recipe."""
    from pixlex.config.run import find_recipe, read_run, recipe_values

    if (begun := _begun(options)) is not None:
        return _train(options, begun)
    assert options.recipe is not None
    above = None
    if options.start is not None:
        from pixlex.families import gone_on
        from pixlex.models.checkpoint import pinned, read_config

        start = pinned(options.start, options.revision)
        family = str(recipe_values(find_recipe(options.recipe)).get("family"))
        above = gone_on(family, start, read_config(start))
    run = read_run(options.recipe, overrides_of(options), above=above)
    from pixlex.families import FAMILIES  # behind what refuses at once

    tunes = FAMILIES[run.family].tunes or find_recipe(options.recipe).parent.name == "finetune"
    if tunes and not getattr(run, "start", ""):
        raise ValueError(
            f"{options.recipe} goes on with a trained model: expected `pixlex finetune` with --from MODEL "
            "(or --untrained for fresh weights)"
        )
    return _train(options, run)


def _begun(options: RunOptions) -> Run | None:
    """Return the run of the folder to resume where no recipe is named; `ValueError` where none can be meant."""
    from pixlex.config.run import CONFIG, read_run

    if options.recipe is not None and ("=" not in options.recipe or Path(options.recipe).is_file()):
        return None
    if not options.resume or options.out is None:
        raise ValueError("expected RECIPE (with --from too), or --resume with --out DIR to go on with a run")
    if options.start is not None:
        raise ValueError("a run that goes on has its weights: expected --resume or --from, got both")
    if not (options.out / CONFIG).is_file():
        raise ValueError(f"{options.out} holds no run to resume: there is no {CONFIG}")
    first = [] if options.recipe is None else [options.recipe]  # a setting in the place of a recipe
    return read_run(options.out / CONFIG, [*first, *overrides_of(options)])


def finetune(options: FinetuneOptions) -> int | None:
    """Train a recipe from the weights of a CB-ViLA."""
    from pixlex.config.run import find_recipe, read_run, recipe_values
    from pixlex.families import FAMILIES, taken_over
    from pixlex.models.checkpoint import pinned, read_config

    if (begun := _begun(options)) is not None:
        return _train(options, begun)
    assert options.recipe is not None
    family = str(recipe_values(find_recipe(options.recipe)).get("family"))
    row = FAMILIES.get(family)
    if row is None or not row.continues:
        raise ValueError(
            f"{options.recipe} is a recipe of family {family}: expected one of cbvila (retrieval) or reasoning"
        )
    values = None
    if options.start is not None:
        start = pinned(options.start, options.revision)
        model = taken_over(family, start, read_config(start))
        values = {"start": "" if options.untrained else start, "model": model}
    elif not options.untrained:
        raise ValueError("expected --from MODEL, the model to go on with, or --untrained for fresh weights")
    return _train(options, read_run(options.recipe, overrides_of(options), values))


def quickstart(options: QuickstartOptions) -> int | None:
    """Show what the released models do, train the tiny recipe for minutes, end with a page."""
    from pixlex import run
    from pixlex.report.released import COMPARED, LOOK, look

    folder, page, model = options.out, options.out / "report.html", options.out / "model"
    seen = folder / LOOK
    if page.is_file():
        _say(options, f"{folder} is finished; remove it, or pass another --out, to run once more")
    else:
        if _is_first() and not seen.is_file() and look(folder) is not None:
            _say(options, f"what the models that come with pixlex do: {seen}; now one of your own is trained")
        _say(options, f"run folder {folder}")
        with _bars(options):
            written = run.quickstart(folder, resume=True, overrides=overrides_of(options))
        if not _is_first():
            return None
        if written is None:
            _say(options, "interrupted; the same command goes on")
            return cli.INTERRUPTED
    values: dict[str, Any] = {"folder": str(folder), "model": str(model), "page": str(page)}
    text = f"page    {_page(folder, True)}\nmodel   {model}\n"
    if seen.is_file():
        values["released"] = str(seen)
        text = f"first   {seen}\n{text}"
    if (folder / COMPARED).is_file():
        values["compared"] = found = read_json(folder / COMPARED)
        text += f"error   {found['own']:.4f}, of small-words {found['small-words']:.4f} on the same images\n"
    text += f"try     pixlex reconstruct PICTURES --model {folder} --out grid.png"
    cli.answer(options, values, text)
    return None


def ablate(options: AblateOptions) -> int | None:
    """Train and measure a recipe with one change at a time."""
    from pixlex.config.ablation import ablation_of, select_rows
    from pixlex.config.run import read_run

    family = "lqae" if options.recipe is None else read_run(options.recipe, options.overrides).family
    rows = select_rows(options.rows, family)
    if options.list:
        listed = "\n".join(f"{row.name:<10} {row.title}" for row in rows)
        cli.answer(options, [asdict(row) for row in rows], listed)
        return None
    if options.recipe is None or options.out is None:
        raise ValueError("ablate needs RECIPE and --out DIR, or --list")
    from pixlex.ablations import plan, run_ablations
    from pixlex.eval.published import objectives_table
    from pixlex.report.tables import ablation_table, write_ablation
    from pixlex.run import run_training, sole_writer

    folder, overrides = options.out, overrides_of(options)
    # One table shows the rows that were asked for and those that the folder holds finished.
    finished = [path for kind in ("results", "measures") for path in folder.glob(f"rows/*/{kind}.json")]
    names = {row.name for row in rows} | {path.parent.name for path in finished}
    rows = tuple(row for row in ablation_of(family).rows if row.name in names)
    base = plan(options.recipe, overrides, rows)["base"]
    by_retrieval = "retrieval" in ablation_of(base.family).measures
    pairs = (options.retrieval or base.data.validation) if by_retrieval else ""
    with sole_writer(folder):
        with _bars(options):
            # Data are opened before anything is trained.
            measures = (
                [_retrieval_measure(options, base, pairs)]
                if by_retrieval
                else _lqae_measures(options, folder, base.train.device)
            )
            results = run_ablations(options.recipe, overrides, rows, folder, measures, train=run_training)
        if results is None:
            cli.remark(options, "interrupted; the same command goes on")
            return cli.INTERRUPTED
        table, published = [one.values() for one in results], objectives_table(pairs)
        cli.answer(options, {"folder": str(folder), "rows": table}, ablation_table(table, published))
        for path in write_ablation(folder, table, [options.command_line], published):
            cli.remark(options, f"wrote {path}")
    return None


def _retrieval_measure(options: AblateOptions, run: Any, description: str) -> Measure:
    from pixlex.ablations import retrieval_measure
    from pixlex.data.captions import open_pairs
    from pixlex.eval.published import longest_caption

    if options.probe is not None or options.few_shot is not None or options.llm:
        raise ValueError(
            "rows of CB-ViLA are measured by retrieval: --probe, --few-shot and --llm are for LQAE's"
        )
    pairs = open_pairs(description)
    return retrieval_measure(
        pairs.cleaned() if run.data.clean_captions else pairs,
        max_words=longest_caption(run.model.text.positions, run.data.max_words),
        limit=None if options.retrieval else run.eval.limit or None,
        device=run.train.device,
    )


def _lqae_measures(options: AblateOptions, folder: Path, device: str) -> list[Measure]:
    """Return what is measured on every row of LQAE: linear probe and few-shot classification, where asked for."""
    from pixlex.ablations import few_shot_measure, probe_measure
    from pixlex.data.images import open_source
    from pixlex.eval.few_shot.episodes import sample_episodes
    from pixlex.eval.few_shot.prompts import setting_of
    from pixlex.eval.llm import LLMOptions, connect
    from pixlex.eval.probe_sets import open_sets

    if options.retrieval is not None:
        raise ValueError("rows of LQAE find no images by texts: --retrieval is for CB-ViLA's")
    if options.llm and options.few_shot is None:
        raise ValueError("--llm answers episodes: name labeled images with --few-shot DATA")
    measures = []
    if options.probe is not None:
        train, test = (open_source(one) for one in options.probe)
        sets = open_sets(train, test, limit=options.probe_limit, test_limit=options.probe_test_limit)
        measures.append(probe_measure(sets, folder / "features", device=device))
    if options.few_shot is not None:
        images, cache = open_source(options.few_shot), folder / "few-shot"
        settings = [setting_of(column, ways) for ways in options.ways for column in options.settings]
        episodes = [sample_episodes(images, setting, count=options.episodes, seed=0) for setting in settings]
        answers = cache / "language-models"
        clients = [
            connect(LLMOptions(model=name, base_url=options.llm_url, cache=answers, device=device))
            for name in options.llm
        ]
        measures.append(
            few_shot_measure(
                images, episodes, cache, clients=clients,
                template=options.template, scorer=options.scorer, device=device,
            )
        )  # fmt: skip
    return measures


def _train(options: RunOptions, run: Run) -> int | None:
    """Train a run in the folder that a command names, or go on with it."""
    if options.dry_run:
        _rehearse(options, run)
        return None
    folder = options.out or _default_folder(str(options.recipe), options.resume)
    if options.resume and not folder.is_dir():
        raise ValueError(
            f"{folder} does not exist: there is no run to resume; leave --resume out to start one"
        )
    if not options.resume and any((folder / "checkpoints").glob("step-*.pt")):
        raise ValueError(
            f"{folder} holds the checkpoints of a run: pass --resume to go on with it, or another --out"
        )
    _say(options, f"run folder {folder}")
    from pixlex.run import run_training
    from pixlex.training.memory import needed

    _say(options, str(needed(run)))
    with _bars(options):
        model = run_training(run, folder, resume=options.resume)
    if not _is_first():
        return None
    if model is None:
        _say(options, f"interrupted; the same command with --out {folder} --resume goes on")
        return cli.INTERRUPTED
    page = _page(folder, bool(run.data.validation))
    cli.answer(options, {"folder": str(folder), "model": str(model)}, f"model   {model}\npage    {page}")
    return None


def _rehearse(options: RunOptions, run: Run) -> None:
    """Say what a run would be, after a few steps of it."""
    import yaml

    from pixlex.run import rehearse
    from pixlex.training.memory import needed

    with _bars(options):
        found = rehearse(run)
    passes = run.train.steps * run.train.batch_size / found.num_images
    train, hours = run.train, found.seconds * run.train.steps / 3600
    lines = [
        yaml.safe_dump(asdict(run), sort_keys=False, allow_unicode=True),
        str(needed(run)),
        f"{found.num_parameters / 1e6:,.1f} million parameters are trained or stored with the model",
        f"{train.steps:,} steps of {train.batch_size} images, {passes:.1f} times each of {found.num_images:,}",
        f"{found.seconds:.3g} s a step of the phase {found.phase}: {hours:.2g} h if all were alike, all in all",
        f"{found.peak_bytes / 2**20:,.0f} MiB at most in these steps, the program and its packages included",
    ]
    values = {"config": asdict(run), **asdict(found), "times_through": passes}
    cli.answer(options, values, "\n".join(lines))


def _default_folder(recipe: str, resume: bool) -> Path:
    """Return runs/NAME-NUMBER: the next number, or the newest one to resume.

    Processes that torchrun started together agree on it: none makes the folder before all have met.
    """
    name = Path(recipe.removeprefix("recipes/")).with_suffix("")
    stem = name.name if name.is_absolute() or Path(recipe).is_file() else "-".join(name.parts)
    endings = [path.name.removeprefix(f"{stem}-") for path in Path("runs").glob(f"{stem}-*")]
    numbers = [int(ending) for ending in endings if ending.isdigit()]
    if resume and not numbers:
        raise ValueError(f"there is no run runs/{stem}-NUMBER to resume; name its folder with --out")
    return Path("runs") / f"{stem}-{max(numbers, default=0) + (not resume)}"


def _page(folder: Path, has_validation: bool) -> str:
    page = folder / "report.html"
    if page.is_file():
        return str(page)
    return f"(none: {'it could not be made' if has_validation else 'the run has no data.validation'})"


def _is_first() -> bool:
    """Whether this is the process that prints, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _say(options: cli.Options, text: str) -> None:
    if _is_first():
        cli.remark(options, text)


@contextmanager
def _bars(options: cli.MachineOptions) -> Iterator[None]:
    """Let nothing but errors through when quiet was asked for."""
    if not options.quiet:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
        yield
    sys.stderr.flush()
