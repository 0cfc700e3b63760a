"""A run from its recipe to its folder: data, model, objective, loop, measures and pictures put together."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch

from pixlex import distributed, report
from pixlex.batch import ImageBatch, Words
from pixlex.config.cbvila import CBViLAConfig, CBViLARun
from pixlex.config.frozen import FrozenRun
from pixlex.config.mae import MAERun
from pixlex.config.reasoning import ReasoningRun
from pixlex.config.run import LQAERun, Run, VQVAERun, describe_fields, read_run, value_at, write_run
from pixlex.data.answers import build_answers
from pixlex.data.captions import open_pairs
from pixlex.data.images import ImageSource, open_source
from pixlex.data.loader import Loader, LoaderConfig
from pixlex.data.questions import open_items
from pixlex.data.records import CLASSES, PairSource, ReasoningSource
from pixlex.data.rows import Images, Pairs, Questions
from pixlex.data.sources import BrokenImages, require_readable
from pixlex.distributed import pick_device
from pixlex.files import locked, remove_partial, unsealed, write_json
from pixlex.messages import printable, quoted
from pixlex.models import pretrained
from pixlex.models.cbvila import CBViLA
from pixlex.models.frozen import Frozen
from pixlex.models.lqae import LQAE
from pixlex.models.mae import MAE
from pixlex.models.reasoner import Reasoner
from pixlex.models.resized import started
from pixlex.models.vision_starts import start_encoder
from pixlex.models.vqvae import VQVAE
from pixlex.objectives.baselines import FrozenObjective, MAEObjective
from pixlex.objectives.cbvila import CBViLAObjective
from pixlex.objectives.finetune import ReasoningObjective
from pixlex.objectives.lqae import LQAEObjective, VQVAEObjective
from pixlex.objectives.phase import Objective
from pixlex.train.checkpoint import checkpoints
from pixlex.train.loop import Callbacks, fit
from pixlex.train.memory import check_memory
from pixlex.train.parallel import local_batch_size, pick_precision
from pixlex.train.tracking import METRICS, write_environment

Source = ImageSource | ReasoningSource

CONFIG = "config.yaml"
_COMMANDS = "commands.txt"
# What all trainings of the model read, that of the model it starts from included.
_DATA = "trained-on.json"
# What may differ when a run goes on: nothing that its weights depend on, but for rounding.
_FREE = (
    "train.device", "train.checkpoint_activations", "train.compile", "train.shard_parameters", "train.log_every",
    "train.checkpoint_every", "train.keep_checkpoints", "train.evaluate_every", "train.wandb", "data.workers",
    "data.max_broken_share", "eval.",
)  # fmt: skip


def run_training(run: Run, folder: Path, *, resume: bool = False) -> Path | None:
    """Train what a run describes and leave weights, numbers and pictures in its folder.

    Args:
        run: the full configuration.
        folder: the run folder; made if missing.
        resume: go on from the newest checkpoint in the folder.

    Returns:
        The model directory; None when the training was interrupted.

    Raises:
        ValueError: a folder that holds another run, or data and model that do not fit together.
        TooManyBroken: more images are broken than `data.max_broken_share` allows.
        LossNotFinite: the loss became infinite or not a number.
    """
    distributed.initialize()
    try:
        return _train(run, folder, resume)
    finally:
        distributed.shutdown()


def _train(run: Run, folder: Path, resume: bool) -> Path | None:
    """Train within the process group."""
    local_batch_size(run.train)
    run = settled(run, folder)
    check_memory(run)
    is_first = distributed.rank() == 0
    source = _open(run, run.data.train)
    validation = _open(run, run.data.validation) if run.data.validation else None
    _check_images(source, validation)
    if isinstance(run, ReasoningRun):
        assert isinstance(source, ReasoningSource)
        run = completed(run, source)
    with sole_writer(folder) if is_first else nullcontext():
        if is_first:
            _prepare_folder(run, folder, resume)
        distributed.barrier()
        return _fit(run, folder, source, validation)


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


def _fit(run: Run, folder: Path, source: Source, validation: Source | None) -> Path | None:
    """Train in a folder that is prepared."""
    is_first = distributed.rank() == 0
    torch.manual_seed(run.train.seed)
    objective = build_objective(run, begun=bool(checkpoints(folder / "checkpoints")))
    images = source.images if isinstance(source, ReasoningSource) else source
    broken = BrokenImages(folder if is_first else None, images, run.data.max_broken_share)
    progress = None
    if validation is not None:
        progress = report.progress_of(run, objective, source, validation, folder)
    callbacks = Callbacks(observe=broken.add, evaluate=progress)

    settings = dataclasses.asdict(run)
    steps = fit(objective, _batches(run, objective, source), run.train, folder, callbacks, settings)
    if steps < run.train.steps or not is_first:
        return None
    return _finish(run, objective, folder, progress)


def _check_images(source: Source, validation: Source | None) -> None:
    """Require what training and its evaluations will read."""
    for one in (source, validation):
        if one is not None:
            require_readable(one.images if isinstance(one, ReasoningSource) else one)
    if not isinstance(source, ReasoningSource) or not isinstance(validation, ReasoningSource):
        return
    if validation.num_images != source.num_images:
        raise ValueError(
            f"{validation.name} has {validation.num_images} images with each text, {source.name}, which is "
            f"trained on, has {source.num_images}"
        )


def _batches(run: Run, objective: Objective, source: Source) -> Callable[[int], Iterator[ImageBatch]]:
    """Return what yields this process's part of each batch, from a step on."""
    settings = LoaderConfig(
        image_size=run.model.image_size,
        batch_size=run.train.batch_size,
        cut=run.model.cut,
        workers=run.data.workers,
        data=run.data,
        seed=run.train.seed,
    )
    if not isinstance(run, FrozenRun | CBViLARun | ReasoningRun):
        assert not isinstance(source, ReasoningSource)
        return Loader(Images(source), settings).training
    model, max_words = objective.model, run.data.max_words
    assert isinstance(model, Frozen | CBViLA | Reasoner)

    def encode(texts: Sequence[str]) -> Words:
        return model.tokenize_texts(texts, max_words)

    if isinstance(source, ReasoningSource):
        assert isinstance(run, ReasoningRun)
        return Loader(Questions(source, encode, run.data.texts_per_image), settings).training
    assert isinstance(source, PairSource)
    return Loader(Pairs(source, encode), settings).training


def _open(run: Run, description: str) -> Source:
    """Open images, with captions where the family reads them, or with questions and answers."""
    if isinstance(run, ReasoningRun):
        items = open_items(description, run.model.task, clean=run.data.clean_captions)
        return items.answered()
    if isinstance(run, CBViLARun):
        pairs = open_pairs(description)
        return pairs.cleaned() if run.data.clean_captions else pairs
    return open_pairs(description) if isinstance(run, FrozenRun) else open_source(description)


def build_objective(run: Run, *, begun: bool = False) -> Objective:
    """Build model and objective of a run, untrained, on the CPU.

    Args:
        run: the configuration.
        begun: weights are about to come from a checkpoint: what they started from is not looked at.
    """
    fresh = not begun
    match run:
        case LQAERun():
            return LQAEObjective(
                _started(LQAE.build(run.model, initialize=fresh), begun=begun), run.objective, run.train.steps
            )
        case VQVAERun():
            return VQVAEObjective(
                _started(VQVAE.build(run.model, initialize=fresh), begun=begun),
                run.objective,
                run.train.steps,
            )
        case MAERun():
            return MAEObjective(
                _started(MAE.build(run.model, initialize=fresh), begun=begun), run.objective, run.train.steps
            )
        case FrozenRun():
            return FrozenObjective(
                _started(Frozen.build(run.model, initialize=fresh), begun=begun), run.train.steps
            )
        case CBViLARun():
            return CBViLAObjective(
                _body(run.model, run.start, begun=begun), run.objective, run.train.steps, run.data.max_words
            )
        case ReasoningRun():
            return ReasoningObjective(_reasoner(run, begun=begun), run.objective, run.train.steps)


_ImageModel = TypeVar("_ImageModel", LQAE, VQVAE, MAE, Frozen)


def _started(model: _ImageModel, *, begun: bool) -> _ImageModel:
    """Return a model whose image encoder begins as the configuration says."""
    if not begun:
        encoder = model.network.vit if isinstance(model, MAE) else model.encoder
        start_encoder(encoder, model.config.encoder, model.grid)
    return model


def _body(config: CBViLAConfig, start: str, *, begun: bool) -> CBViLA:
    """Return the network that a run begins with."""
    if begun:
        return CBViLA.build(config, initialize=False)
    return started(config, pretrained.load_cbvila(start)) if start else CBViLA.start(config)


def _reasoner(run: ReasoningRun, *, begun: bool) -> Reasoner:
    """Return the network with its head; heads of a start go on where they fit."""
    before = pretrained.load_any(run.start) if run.start and not begun else None
    if isinstance(before, Reasoner):
        return Reasoner.start(run.model, started(run.model.body, before.body), before)
    return Reasoner.start(run.model, _body(run.model.body, run.start, begun=begun))


def completed(run: ReasoningRun, source: ReasoningSource) -> ReasoningRun:
    """Return a run with what its data decide: the answers, and how many images an item has."""
    config = run.model
    answers = config.answers or CLASSES.get(config.task) or build_answers(source, run.data.min_answer_count)
    model = dataclasses.replace(config, answers=answers, num_images=source.num_images)
    return dataclasses.replace(run, model=model)


def settled(run: Run, folder: Path) -> Run:
    """Return a run whose precision is decided: that of the run which the folder holds, or the device's own."""
    if run.train.precision != "auto":
        return run
    begun = bool(checkpoints(folder / "checkpoints")) or (folder / "model").is_dir()
    began = read_run(folder / CONFIG).train.precision if begun and (folder / CONFIG).is_file() else "auto"
    precision = pick_precision(began, pick_device(run.train.device))
    return dataclasses.replace(run, train=dataclasses.replace(run.train, precision=precision))


def _prepare_folder(run: Run, folder: Path, resume: bool) -> None:
    """Make the run folder and write down what runs; refuse to mix two runs in one folder."""
    has_checkpoints = bool(checkpoints(folder / "checkpoints"))
    if has_checkpoints and not resume:
        raise ValueError(
            f"{folder} holds the checkpoints of a run: pass --resume to go on with it, or another --out"
        )
    if (folder / CONFIG).is_file() and has_checkpoints:
        differing = _differences(read_run(folder / CONFIG), run)
        if differing:
            raise ValueError(f"{folder} cannot be resumed, its run differs in {'; '.join(differing)}")
    folder.mkdir(parents=True, exist_ok=True)
    write_run(run, folder / CONFIG)
    write_json(folder / _DATA, {"trained_on": _trained_on(run, folder, begun=has_checkpoints)})
    write_environment(folder)
    with (folder / _COMMANDS).open("a", encoding="utf-8") as file:
        file.write(printable(shlex.join(["pixlex", *sys.argv[1:]])) + "\n")


def _differences(before: Run, now: Run) -> list[str]:
    """Return `key: before -> now` for each setting that the weights depend on."""
    if type(before) is not type(now):
        return [f"family: {before.family} -> {now.family}"]
    old, new = dataclasses.asdict(before), dataclasses.asdict(now)
    names = [name for name, _, _ in describe_fields(type(now)) if not name.startswith(_FREE)]
    pairs = [(name, value_at(old, name), value_at(new, name)) for name in names]
    return [f"{name}: {quoted(then)} -> {quoted(value)}" for name, then, value in pairs if then != value]


def _finish(run: Run, objective: Objective, folder: Path, progress: report.Progress | None) -> Path:
    """Write model directory and numbers of a finished run, then its card, curves and page."""
    model = objective.model
    assert isinstance(model, pretrained.Model)
    if progress is not None and not progress.numbers:  # resumed behind its last step
        with distributed.alone():
            progress(run.train.steps)
    target = folder / "model"
    pretrained.save(model, target, trained_on=_trained_on(run, folder, begun=True))
    numbers = {} if progress is None else dict(progress.numbers)
    write_json(folder / "results.json", numbers)
    commands = (folder / _COMMANDS).read_text(encoding="utf-8", errors="replace").splitlines()
    language = pretrained.language_of(model)
    report.drawn(
        target / "README.md",
        lambda path: path.write_text(
            report.model_card(dataclasses.asdict(run), numbers, commands, language), encoding="utf-8"
        ),
    )
    report.drawn(folder / "curves.png", lambda path: report.curves(folder / METRICS, path))
    if progress is not None:
        report.drawn(folder / "report.html", lambda path: progress.write_page(path, commands))
    return target


def _trained_on(run: Run, folder: Path, *, begun: bool) -> list[str]:
    """Return what all trainings read: as written down when the run began, or as the run says."""
    if begun:
        # A bare list was written by older versions, which is no JSON object.
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            values = json.loads((folder / _DATA).read_bytes())
            found = unsealed(json.dumps(values))["trained_on"] if isinstance(values, dict) else values
            return [str(one) for one in found]
    start = run.start if isinstance(run, CBViLARun | ReasoningRun) else ""
    before = pretrained.read_config(start).get("trained_on", []) if start else []
    return [*before, run.data.train]


def quickstart(folder: Path, *, resume: bool = False, overrides: Sequence[str] = ()) -> Path | None:
    """Train the tiny recipe on photographs that come with a dependency, and leave a page to look at.

    Args:
        folder: the run folder.
        resume: go on after an interrupt.
        overrides: settings of the run, `key=value`.

    Returns:
        The page; None when interrupted.
    """
    run = read_run("lqae/tiny", overrides)
    return None if run_training(run, folder, resume=resume) is None else folder / "report.html"
