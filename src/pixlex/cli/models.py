"""What commands with a model share: loading it, going through images, saying and writing what was found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pixlex.cli.options import MachineOptions, ModelOptions, Options, answer, remark

if TYPE_CHECKING:
    from pixlex.batch import Skipped
    from pixlex.config.cbvila import CBViLAObjectiveConfig
    from pixlex.models.cbvila import CBViLA

_Run = TypeVar("_Run")


def load_cbvila(options: ModelOptions) -> CBViLA:
    """Load the CB-ViLA that a command names, where it computes; with `--untrained` with fresh weights."""
    import torch

    from pixlex.models import checkpoint
    from pixlex.models.cbvila import CBViLA

    model = checkpoint.load_cbvila(options.model, **options.versions)
    if getattr(options, "untrained", False):
        torch.manual_seed(0)
        model = CBViLA.start(model.config).eval().requires_grad_(False)
    placed: CBViLA = place(model, options)
    return placed


def place(model: Any, options: Any) -> Any:
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


def batches_of(rows: Any, config: Any, batch_size: int, limit: int | None) -> Iterator[Any]:
    """Return what a model of this configuration is given of images, pairs or questions, in order."""
    from pixlex.data.loader import Loader, LoaderConfig

    settings = LoaderConfig(image_size=config.image_size, cut=config.cut, batch_size=batch_size)
    return iter(Loader(rows, settings).evaluation(limit))


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


def remark_page(options: Options, page: Path | None) -> None:
    """Say where a page is, if there is one."""
    if page is not None:
        remark(options, f"page {page}")
