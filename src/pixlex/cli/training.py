"""`train` and `quickstart`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from pixlex.cli.options import MachineOptions, Options, answer, remark
from pixlex.cli.train import QuickstartOptions, RunOptions, overrides_of
from pixlex.config.run import Run, find_recipe, read_run

INTERRUPTED = 130


def train(options: RunOptions) -> int:
    """Train a recipe in a run folder, or go on with it."""
    run = read_run(options.recipe, overrides_of(options))
    from pixlex.families import FAMILIES

    tunes = FAMILIES[run.family].tunes or find_recipe(options.recipe).parent.name == "finetune"
    if tunes and not getattr(run, "start", ""):
        raise ValueError(
            f"{options.recipe} goes on with a trained model: expected `pixlex finetune` with --from MODEL "
            "(or --untrained for fresh weights)"
        )
    return train_run(options, run)


def train_run(options: RunOptions, run: Run) -> int:
    """Train a run in the folder that a command names, or go on with it."""
    folder = options.out if options.out is not None else _default_folder(options.recipe, options.resume)
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
    from pixlex.train.memory import needed

    _say(options, str(needed(run)))
    with bars(options):
        model = run_training(run, folder, resume=options.resume)
    if not _is_first():
        return 0
    if model is None:
        _say(options, f"interrupted; the same command with --out {folder} --resume goes on")
        return INTERRUPTED
    page = _page(folder, bool(run.data.validation))
    answer(options, {"folder": str(folder), "model": str(model)}, f"model   {model}\npage    {page}")
    return 0


def quickstart(options: QuickstartOptions) -> int:
    """Train the tiny recipe; a second call goes on with an interrupted one."""
    folder: Path = options.out
    page = folder / "report.html"
    if page.is_file():
        _say(options, f"{folder} is finished; remove it, or pass another --out, to run once more")
    else:
        _say(options, f"run folder {folder}")
        from pixlex.run import quickstart as run_quickstart

        with bars(options):
            written = run_quickstart(folder, resume=True, overrides=overrides_of(options))
        if not _is_first():
            return 0
        if written is None:
            _say(options, "interrupted; the same command goes on")
            return INTERRUPTED
    model = folder / "model"
    answer(
        options,
        {"folder": str(folder), "model": str(model), "page": str(page)},
        f"page    {_page(folder, True)}\nmodel   {model}\n"
        f"try     pixlex reconstruct PICTURES --model {folder} --out grid.png",
    )
    return 0


def _default_folder(recipe: str, resume: bool) -> Path:
    """Return runs/NAME-NUMBER: the next number, or the newest one to resume.

    Processes that torchrun started together agree on it: none makes the folder before all have met.
    """
    name = Path(recipe.removeprefix("recipes/")).with_suffix("")
    stem = name.name if name.is_absolute() or Path(recipe).is_file() else "-".join(name.parts)
    numbers = [
        int(path.name.removeprefix(f"{stem}-"))
        for path in Path("runs").glob(f"{stem}-*")
        if path.name.removeprefix(f"{stem}-").isdigit()
    ]
    if resume and not numbers:
        raise ValueError(f"there is no run runs/{stem}-NUMBER to resume; name its folder with --out")
    return Path("runs") / f"{stem}-{max(numbers, default=0) + (0 if resume else 1)}"


def _page(folder: Path, has_validation: bool) -> str:
    page = folder / "report.html"
    if page.is_file():
        return str(page)
    return f"(none: {'it could not be made' if has_validation else 'the run has no data.validation'})"


def _is_first() -> bool:
    """Whether this is the process that prints, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _say(options: Options, text: str) -> None:
    if _is_first():
        remark(options, text)


@contextmanager
def bars(options: MachineOptions) -> Iterator[None]:
    """Let nothing but errors through when quiet was asked for."""
    if not options.quiet:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
        yield
    sys.stderr.flush()
