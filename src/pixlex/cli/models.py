"""What commands with a model share: loading it, going through images, saying and writing what was found."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pixlex.cli.options import LanguageModelOptions, MachineOptions, ModelOptions, Options, answer, remark

if TYPE_CHECKING:
    from pixlex.api import ImageReasoner, ImageTokenizer
    from pixlex.batch import Skipped
    from pixlex.config.cbvila import CBViLAObjectiveConfig
    from pixlex.data.images import ImageSource
    from pixlex.eval.evaluate import Pass
    from pixlex.models.cbvila import CBViLA
    from pixlex.models.finetuned import Reasoner
    from pixlex.report.page import Page

_Run = TypeVar("_Run")


def load_tokenizer(options: LanguageModelOptions, name: str) -> ImageTokenizer:
    """Load a model with codes, which the options describe."""
    from pixlex import api

    return api.load(name, device=options.device, precision=options.precision, **_versions(options))


def load_reasoner(options: ModelOptions) -> ImageReasoner:
    """Load the fine-tuned model that a command names."""
    from pixlex import api

    return api.load_reasoner(
        options.model, device=options.device, precision=options.precision, **_versions(options)
    )


def load_fusing(options: ModelOptions) -> CBViLA | Reasoner:
    """Load the CB-ViLA, pretrained or fine-tuned, that a command names, where it computes.

    Raises:
        ValueError: no such model, or one of another family.
    """
    from pixlex.models import checkpoint

    model = checkpoint.load_any(options.model, **_versions(options))
    if not model.fuses:
        raise ValueError(
            f"{options.model} holds a model of family {model.family}, expected one of cbvila or a "
            "fine-tuned one"
        )
    placed: CBViLA | Reasoner = _placed(model, options)
    return placed


def load_cbvila(options: ModelOptions) -> CBViLA:
    """Load the CB-ViLA that a command names, where it computes; with `--untrained` its shape with fresh weights.

    Raises:
        ValueError: no such model, or one of another family.
    """
    import torch

    from pixlex.models import checkpoint
    from pixlex.models.cbvila import CBViLA

    model = checkpoint.load_cbvila(options.model, **_versions(options))
    if getattr(options, "untrained", False):
        torch.manual_seed(0)
        model = CBViLA.start(model.config).eval().requires_grad_(False)
    placed: CBViLA = _placed(model, options)
    return placed


def _versions(options: LanguageModelOptions) -> dict[str, Any]:
    return {"language_model": options.language_model, "revision": options.revision}


def _placed(model: Any, options: ModelOptions) -> Any:
    """Return a model on its device, for images of the size that the options may name."""
    from pixlex.distributed import pick_device
    from pixlex.models.finetuned import resized

    size, mode = getattr(options, "image_size", None), getattr(options, "resize_mode", None)
    return resized(model, size, mode).to(pick_device(options.device))


def run_of(name: str, kind: type[_Run]) -> _Run | None:
    """Return the run, of a kind, that a model came from, where its run folder is at hand."""
    from pixlex.config.run import read_run

    folder = Path(name)
    path = (folder.parent if folder.name == "model" else folder) / "config.yaml"
    try:
        run = read_run(path) if path.is_file() else None
    except ValueError:  # of another version
        return None
    return run if isinstance(run, kind) else None


def words_of(name: str, model: CBViLA) -> int:
    """Return the longest captions in words (tokens): as in training, and at least those of the papers' tables."""
    from pixlex.config.cbvila import CBViLARun
    from pixlex.eval.published import TABLE_WORDS

    run = run_of(name, CBViLARun)
    longest = TABLE_WORDS if run is None else max(TABLE_WORDS, run.data.max_words)
    return min(longest, model.config.text.positions)


def objective_of(name: str) -> CBViLAObjectiveConfig:
    """Return what a CB-ViLA was trained for, where its run folder is at hand; phases aside."""
    from pixlex.config.cbvila import CBViLAObjectiveConfig, CBViLARun

    run = run_of(name, CBViLARun)
    config = CBViLAObjectiveConfig() if run is None else run.objective
    return replace(config, burn_in_steps=0, alternate_every=0)


def open_paths(paths: Sequence[str]) -> ImageSource:
    """Open one source of any kind, or image files."""
    from pixlex.data.folders import is_image_file, is_image_name
    from pixlex.data.images import open_image_files, open_source

    if len(paths) == 1:
        return open_source(paths[0])
    for name in paths:
        path = Path(name)
        if path.is_dir() or (path.is_file() and not (is_image_name(name) or is_image_file(path))):
            raise ValueError(
                f"{name} is no image file: expected image files, or one folder, or one pattern in quotes "
                "such as 'shards/*.tar'"
            )
        if not path.is_file():
            raise ValueError(f"{name} {'is no file' if os.path.lexists(name) else 'does not exist'}")
    return open_image_files([Path(name) for name in paths])


def batches_of(rows: Any, config: Any, batch_size: int, limit: int | None) -> Iterator[Any]:
    """Return what a model of this configuration is given of images, pairs or questions, in order."""
    from pixlex.data.loader import Loader, LoaderConfig

    settings = LoaderConfig(image_size=config.image_size, cut=config.cut, batch_size=batch_size)
    return iter(Loader(rows, settings).evaluation(limit))


def pass_of(options: Any, total: int, save_examples: int = 8) -> Pass:
    """Return how a measure goes through `total` images or items."""
    from pixlex.eval.evaluate import Pass

    return Pass(
        precision=options.precision,
        total=min(total, options.limit or total),
        save_examples=save_examples,
        progress=not options.quiet,
    )


def refuse_broken(options: Any, source: Any, skipped: Sequence[Skipped], num_readable: int) -> None:
    """Raise `TooManyBroken` where the processes together met too many images that cannot be read."""
    from pixlex.batch import BrokenImages

    BrokenImages(None, source, options.max_broken_share).record(skipped, num_readable)


def finish(
    options: MachineOptions,
    values: Mapping[str, Any],
    text: str,
    skipped: Sequence[Skipped] = (),
    *,
    notes: Sequence[str] = (),
    out: Path | None = None,
) -> None:
    """Print what was found, remark on the rest, and write results.json into a folder if one is named."""
    answer(options, values, text)
    remark_skipped(options, skipped)
    for note in notes:
        remark(options, note)
    if out is not None:
        from pixlex.files import write_json

        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "results.json", json.loads(json.dumps(values, default=asdict)))


def remark_skipped(options: Options, skipped: Sequence[Skipped]) -> None:
    """Name the first images that could not be read, and say how many there are."""
    for one in skipped[:3]:
        remark(options, f"skipped {one.key}: {one.reason}")
    if len(skipped) > 3:
        remark(options, f"skipped {len(skipped):,} images in all")


def remark_without_contrast(options: ModelOptions, model: CBViLA) -> None:
    """Say where similarities mean nothing; a shortlist is drawn up by them."""
    if not model.compares:
        remark(
            options,
            f"{options.model} was trained without contrast, so its similarities are those of random maps; judge "
            "by matching, of a shortlist that holds all",
        )


def leave_page(options: Options, folder: Path, page: Page) -> None:
    """Write report.html; one that cannot be made has been remarked upon."""
    from pixlex.report.figures import drawn
    from pixlex.report.page import write_page

    remark_page(options, drawn(folder / "report.html", lambda path: write_page(path, page)))


def remark_page(options: Options, page: Path | None) -> None:
    """Say where a page is, if there is one."""
    if page is not None:
        remark(options, f"page {page}")
