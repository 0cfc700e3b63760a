"""A run from its recipe to its folder: data, model, objective, loop, measures and pictures put together."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from pixlex import distributed
from pixlex.api import ImageReasoner, ImageTokenizer, load, load_reasoner
from pixlex.batch import BrokenImages
from pixlex.config.run import CONFIG, Run, describe_fields, read_run, value_at, write_run
from pixlex.data.given import Dataset, GivenSource
from pixlex.data.sources import require_readable
from pixlex.eval.evaluate import read_arrays
from pixlex.families import FAMILIES, Validation, build_objective, images_of, training_batches
from pixlex.files import locked, remove_partial, unsealed, write_json
from pixlex.messages import printable, quoted
from pixlex.models import checkpoint
from pixlex.objectives.phase import Objective
from pixlex.report.curves import curves
from pixlex.report.figures import drawn
from pixlex.report.page import Page, model_card, write_page
from pixlex.report.progress import CODES, Evaluated
from pixlex.report.released import COMPARED, compared
from pixlex.training.checkpoint import checkpoints
from pixlex.training.logging import METRICS, OnLog, peak_memory, write_environment
from pixlex.training.loop import fit
from pixlex.training.memory import check_memory
from pixlex.training.parallel import local_batch_size, with_precision

_COMMANDS = "commands.txt"
# What all trainings of the model read, that of the model it starts from included.
_DATA = "trained-on.json"
# What may differ when a run goes on: nothing that its weights depend on, but for rounding.
_FREE = (
    "train.device", "train.checkpoint_activations", "train.compile", "train.shard_parameters", "train.log_every",
    "train.checkpoint_every", "train.keep_checkpoints", "train.evaluate_every", "train.wandb", "data.workers",
    "data.max_broken_fraction", "eval.", "model.caption_words",
)  # fmt: skip


def train(
    recipe: str | os.PathLike[str],
    train: Dataset | str | None = None,
    validation: Dataset | str | None = None,
    *,
    out: str | os.PathLike[str],
    resume: bool = False,
    on_log: OnLog | None = None,
    **settings: Any,
) -> ImageTokenizer | ImageReasoner | None:
    """Train a recipe, as `pixlex train` does, on data sets of Python or on described data; return the model.

    `pixlex.train("lqae/tinyimages", images, others, out="runs/mine", **{"train.steps": 100})`

    Args:
        recipe: its name, or a YAML file.
        train: what to train on: a sized data set of images, or of images with captions where the recipe is one of
            CB-ViLA or Frozen (see `pixlex.data.given.Dataset`), or a description; None for the recipe's.
        validation: what to measure, likewise; None for the recipe's, of which a data set in `train` has none.
        resume: go on from the newest checkpoint in the folder, if there is one; the data have to be the same.
        on_log: called with the finished steps and what is logged, by name.
        settings: of the run, such as `train.steps`; a mapping for several of a part: `train={...}` is the data's
            name, `model={"patch_size": 8}` a part.

    Returns:
        The model, None where it was interrupted or the model neither writes codes nor answers; all are in the
        folder.

    Raises:
        ValueError: settings that are none or do not fit, or as `run_training`.
    """
    given = {"train": train, "validation": validation}
    sets = {name: data for name, data in given.items() if data is not None and not isinstance(data, str)}
    settings |= {f"data.{name}": data for name, data in given.items() if isinstance(data, str)}
    for name, data in sets.items():
        found = GivenSource(data)
        settings[f"data.{name}"] = f"{found.name}, {found.identity[:12]}"
    unnamed = {"data.validation": ""} if "train" in sets else {}
    typed = unnamed | dict(_flat(settings))
    run = read_run(str(recipe), [f"{name}={_yaml(value)}" for name, value in typed.items()])
    target = run_training(run, Path(out), resume=resume, sets=sets, on_log=on_log)
    if target is None or not distributed.is_first():
        return None
    kind = checkpoint.MODELS[run.family]
    if not kind.has_codes and not kind.fuses:
        return None
    return (load if kind.has_codes else load_reasoner)(target, device=run.train.device)


def _yaml(value: Any) -> str:
    """Return a value as it is typed; a path may hold bytes that are no UTF-8, which YAML does not read."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return str(value) if any("\udc80" <= mark <= "\udcff" for mark in text) else text


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def run_training(
    run: Run,
    folder: Path,
    *,
    resume: bool = False,
    sets: Mapping[str, Dataset] = MappingProxyType({}),
    on_log: OnLog | None = None,
) -> Path | None:
    """Train what a run describes and leave weights, numbers and pictures in its folder.

    Args:
        folder: the run folder; made if missing.
        resume: go on from the newest checkpoint in the folder.
        sets: `train` or `validation` -> a data set of Python, in place of the described one.
        on_log: called with the finished steps and what is logged, on the first process.

    Returns:
        The model directory; None when the training was interrupted.

    Raises:
        ValueError: a folder that holds another run, or data and model that do not fit together.
        TooManyBroken: more images are broken than `data.max_broken_fraction` allows.
        LossNotFinite: the loss became infinite or not a number.
    """
    distributed.initialize()
    try:
        return _train(run, folder, resume, sets, on_log)
    finally:
        distributed.shutdown()


def _train(
    run: Run, folder: Path, resume: bool, sets: Mapping[str, Dataset], on_log: OnLog | None
) -> Path | None:
    """Train within the process group."""
    local_batch_size(run.train)
    run = with_precision(run, folder)
    check_memory(run)
    is_first = distributed.is_first()
    run, source, validation = _opened(run, sets)
    with sole_writer(folder) if is_first else nullcontext():
        if is_first:
            _prepare_folder(run, folder, resume)
        distributed.barrier()
        torch.manual_seed(run.train.seed)
        objective = build_objective(run, resumed=bool(checkpoints(folder / "checkpoints")))
        progress = None
        if validation is not None:
            progress = Progress(run, objective, source, validation, folder)
        broken = BrokenImages(folder if is_first else None, images_of(source), run.data.max_broken_fraction)
        steps = fit(
            objective,
            training_batches(run, objective.model, source),
            run.train,
            folder,
            skipped=broken.record,
            evaluate=progress,
            settings=dataclasses.asdict(run),
            on_log=on_log,
        )
        if steps < run.train.steps:
            return None
        if progress is not None and not progress.numbers:  # resumed behind its last step
            progress(steps)
        return _finish(run, objective.model, folder, progress) if is_first else None


def _opened(run: Run, sets: Mapping[str, Dataset] = MappingProxyType({})) -> tuple[Run, Any, Any]:
    """Open what a run reads; return the run with what its data decide, then training and validation data."""
    family = FAMILIES[run.family]
    source = family.open(run, sets.get("train", run.data.train))
    measured = sets.get("validation", run.data.validation)
    validation = None if isinstance(measured, str) and not measured else family.open(run, measured)
    for one in (source, validation):
        if one is not None:
            require_readable(images_of(one))
    return family.resolve(run, source, validation), source, validation


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What a few steps of a run tell: seconds of one, their phase, images, parameters, the most bytes held."""

    seconds: float
    phase: str
    num_images: int
    num_parameters: int
    peak_bytes: int


def rehearse(run: Run, num_steps: int = 3) -> Rehearsal:
    """Open the data of a run, build its model and take its first steps, in a folder that is removed again.

    Raises:
        ValueError, TooManyBroken, LossNotFinite: as `run_training`.
    """
    if distributed.num_announced() > 1:
        raise ValueError(f"expected one process for a rehearsal, got {distributed.num_announced()}")
    run = with_precision(run, Path(os.devnull))
    check_memory(run)
    run, source, _ = _opened(run)
    torch.manual_seed(run.train.seed)
    objective = build_objective(run)
    few = dataclasses.replace(
        run.train, log_every=1, checkpoint_every=run.train.steps, evaluate_every=0, wandb=False
    )
    times = [time.perf_counter()]

    def clock(step: int, numbers: Mapping[str, float]) -> None:
        times.append(time.perf_counter())
        if len(times) > num_steps + 1:
            raise _Enough

    num_parameters = sum(one.numel() for one in objective.model.parameters())
    phase = objective.phase_at(0).name
    broken = BrokenImages(None, images_of(source), run.data.max_broken_fraction)
    batches = training_batches(run, objective.model, source)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Enough):
        if fit(objective, batches, few, Path(folder), skipped=broken.record, on_log=clock) < few.steps:
            raise KeyboardInterrupt
    times = times[1:] if len(times) > 2 else times  # the first step allocates and compiles
    seconds = (times[-1] - times[0]) / (len(times) - 1)
    peak = peak_memory(distributed.pick_device(run.train.device))
    return Rehearsal(seconds, phase, len(source), num_parameters, peak)


class _Enough(Exception):
    """Steps enough to see how long one takes."""


class Progress:
    """Measures the validation data when called, and draws them.

    Attributes:
        numbers: Of the newest evaluation; empty before the first.
    """

    def __init__(self, run: Any, objective: Objective, training: Any, validation: Any, folder: Path) -> None:
        self.run, self.objective, self.folder = run, objective, folder
        self.training, self.validation = training, validation
        self.numbers: Mapping[str, float] = {}
        self._shown: dict[str, Any] = {}

    def __call__(self, step: int) -> Mapping[str, float]:
        """Return the numbers of one evaluation, after leaving its pictures and the curves.

        Several processes that all call it share the images; the first one draws.
        """
        run, family = self.run, FAMILIES[self.run.family]
        # Baselines without images once: they do not change from one evaluation to the next.
        training = self.training if step == run.train.steps else None
        codes = self._previous_codes(step) if distributed.is_first() else None
        one = Validation(run, self.objective, self.validation, training, codes)
        result = family.evaluate(one)
        self.numbers = result.numbers
        if distributed.is_first():
            self._shown = family.show(Evaluated(run, self.validation, self.folder, step), result)
            drawn(self.folder / "curves.png", lambda path: curves(self.folder / METRICS, path))
        return self.numbers

    def write_page(self, path: Path, commands: Sequence[str]) -> Path:
        """Write the page of the newest evaluation; `commands` is what was typed, exactly."""
        plot = self.folder / "curves.png"
        pictures = {**self._shown["pictures"], "Curves": plot if plot.is_file() else None}
        shown = {**self._shown, "pictures": pictures}
        config = dataclasses.asdict(self.run)
        return write_page(path, Page(numbers=self.numbers, commands=commands, config=config, **shown))

    def _previous_codes(self, step: int) -> torch.Tensor | None:
        """Return the codes of an earlier step; none where a run was resumed behind them, or they are damaged."""
        stored = read_arrays(self.folder / CODES)
        if not {"codes", "step"} <= stored.keys() or int(stored["step"]) >= step:
            return None
        return torch.from_numpy(stored["codes"])


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a folder, made if missing, for one command; remove what killed writes left there.

    Raises:
        ValueError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refusal = f"{folder} is being written by another process: let it end, or pass another --out"
    with locked(folder / "lock", refusal):
        remove_partial(folder)
        yield


def _prepare_folder(run: Run, folder: Path, resume: bool) -> None:
    """Make the run folder and write down what runs; refuse to mix two runs in one folder."""
    has_checkpoints = bool(checkpoints(folder / "checkpoints"))
    if has_checkpoints and not resume:
        raise ValueError(
            f"{folder} holds the checkpoints of a run: pass --resume (resume=True) to go on with it, or another "
            "folder"
        )
    if (folder / CONFIG).is_file() and has_checkpoints:
        differing = _differences(read_run(folder / CONFIG), run)
        if differing:
            raise ValueError(f"{folder} cannot be resumed, its run differs in {'; '.join(differing)}")
    folder.mkdir(parents=True, exist_ok=True)
    write_run(run, folder / CONFIG)
    write_json(folder / _DATA, {"trained_on": _trained_on(run, folder, begun=has_checkpoints)})
    write_environment(folder)
    by_hand = Path(sys.argv[0]).name in ("pixlex", "__main__.py")
    command = ["pixlex", *sys.argv[1:]] if by_hand else ["python", *sys.argv]
    with (folder / _COMMANDS).open("a", encoding="utf-8") as file:
        file.write(printable(shlex.join(command)) + "\n")


def _differences(before: Run, now: Run) -> list[str]:
    """Return `key: before -> now` for each setting that the weights depend on."""
    if type(before) is not type(now):
        return [f"family: {before.family} -> {now.family}"]
    old, new = dataclasses.asdict(before), dataclasses.asdict(now)
    names = [name for name, _, _ in describe_fields(type(now)) if not name.startswith(_FREE)]
    pairs = [(name, value_at(old, name), value_at(new, name)) for name in names]
    return [f"{name}: {quoted(then)} -> {quoted(value)}" for name, then, value in pairs if then != value]


def _finish(run: Run, model: Any, folder: Path, progress: Progress | None) -> Path:
    """Write model directory and numbers of a finished run, then its card, curves and page."""
    target = folder / "model"
    checkpoint.save(model, target, trained_on=_trained_on(run, folder, begun=True))
    numbers = {} if progress is None else dict(progress.numbers)
    write_json(folder / "results.json", numbers)
    commands = (folder / _COMMANDS).read_text(encoding="utf-8", errors="replace").splitlines()
    drawn(
        target / "README.md",
        lambda path: path.write_text(
            model_card(dataclasses.asdict(run), numbers, commands, model.text_identity),
            encoding="utf-8",
        ),
    )
    drawn(folder / "curves.png", lambda path: curves(folder / METRICS, path))
    if progress is not None:
        drawn(folder / "report.html", lambda path: progress.write_page(path, commands))
    return target


def _trained_on(run: Run, folder: Path, *, begun: bool) -> list[str]:
    """Return what all trainings read: as written down when the run began, or as the run says."""
    if begun:
        # A bare list was written by older versions, which is no JSON object.
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            values = json.loads((folder / _DATA).read_bytes())
            found = unsealed(json.dumps(values))["trained_on"] if isinstance(values, dict) else values
            return [str(one) for one in found]
    start = getattr(run, "start", "")
    before = checkpoint.read_config(start).get("trained_on", []) if start else []
    return [*before, run.data.train]


def quickstart(folder: Path, *, resume: bool = False, overrides: Sequence[str] = ()) -> Path | None:
    """Train the tiny recipe on photographs that come with a dependency; return a page, None when interrupted.

    Args:
        overrides: settings of the run, `key=value`.
    """
    run = read_run("lqae/tiny", overrides)
    model = run_training(run, folder, resume=resume)
    if model is None:
        return None
    write_json(folder / COMPARED, compared(load(model), run.data.validation))
    return folder / "report.html"
