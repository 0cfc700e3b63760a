"""`evaluate reconstruction` and `evaluate linear-probe`: what images become, and what is left of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pixlex.cli.models import (
    batches_of,
    finish,
    leave_page,
    load_tokenizer,
    pass_of,
    refuse_broken,
    remark_page,
)
from pixlex.cli.options import (
    DATA,
    BrokenOption,
    Count,
    Folder,
    Fraction,
    LanguageModelOptions,
    LimitOption,
    MachineOptions,
    MeasureOptions,
    Positive,
    option,
    remark,
    table,
)

if TYPE_CHECKING:
    from pixlex.api import ImageTokenizer
    from pixlex.batch import ImageBatch
    from pixlex.data.images import ImageSource
    from pixlex.eval.probe_features import Kind, ProbeRow
    from pixlex.eval.probe_sets import ProbeSets
    from pixlex.models.checkpoint import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions(MeasureOptions):
    """Options of `evaluate reconstruction`."""

    data: str = option(text=DATA, metavar="DATA")
    out: Folder | None = option(None, "write results.json, reconstruction.png and report.html there", "DIR")
    mask_ratio: Fraction = option(0.5, "words hidden for masked_mse; default %(default)s")
    fid_features: Path | None = option(None, "TorchScript network for rFID", "FILE")
    lpips_network: Path | None = option(None, "TorchScript network for LPIPS", "FILE")


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(MachineOptions, BrokenOption, LimitOption, LanguageModelOptions):
    """Options of `evaluate linear-probe`."""

    model: tuple[str, ...] = option(text="model directories, run folders or hub repositories", metavar="M")
    data: str = option(text=f"labeled training images: {DATA}", metavar="TRAIN")
    test: str = option(text="labeled test images of the same classes", metavar="TEST")
    validation: str | None = option(
        None,
        "labeled images that the strength of regularization is chosen on; default a fifth of TRAIN",
        "VAL",
    )
    features: tuple[Literal["layers", "last", "encoder", "codes", "pixels"], ...] | None = option(
        None, "default: layers of the language model; of a model without one, encoder and codes"
    )
    per_layer: bool = option(False, "probe each layer of the language model too")
    untrained: bool = option(False, "probe each model with fresh weights too")
    repeats: Positive | None = option(
        None,
        "how often encoder and codes stand side by side; default of a VQ-VAE: as wide as the first LQAE's layers",
        "R",
    )
    test_limit: Positive | None = option(None, "most test and validation images", "LIMIT")
    allow_overlap: bool = option(False, "go on when the same image is in two of the sets")
    seed: Count = option(0, "of the validation split; default %(default)s")
    out: Folder = option(text="write results.json, pictures and report.html there", metavar="DIR")
    cache: Folder | None = option(None, "where features are kept; default OUT/features", "DIR")


def reconstruction(options: ReconstructionOptions) -> int:
    """How well images survive as words."""
    from pixlex import distributed
    from pixlex.data.images import open_source
    from pixlex.data.rows import Images
    from pixlex.eval.reconstruction import evaluate_reconstruction
    from pixlex.report.figures import drawn, reconstruction_grid
    from pixlex.report.page import Page

    source = open_source(options.data)
    tokenizer = load_tokenizer(options, options.model)
    batches = batches_of(Images(source), tokenizer.model.config, options.batch_size, options.limit)
    result = evaluate_reconstruction(
        tokenizer.model,
        _accounted(batches, source, options.max_broken_share),
        pass_of(options, len(source), save_examples=16),
        mask_ratio=options.mask_ratio,
        fid_features=options.fid_features,
        lpips_network=options.lpips_network,
    )
    refuse_broken(options, source, result.skipped, int(result.values["num_images"]))
    if not distributed.is_first():
        return 0
    values = {
        "model": options.model,
        "data": source.name,
        **result.values,
        "notes": result.notes,
        "skipped": result.skipped,
    }
    finish(options, values, table(result.table), result.skipped, notes=result.notes, out=options.out)
    if options.out is not None:
        examples = result.examples
        shown = examples["originals"], examples["reconstructions"], examples["words"], tokenizer.grid
        drawn(options.out / "reconstruction.png", lambda path: reconstruction_grid(*shown, path))
        page = Page(
            title=f"Reconstruction of {source.name}",
            examples=examples,
            numbers=result.numbers,
            notes=result.notes,
            pictures={},
            commands=[options.command_line],
            config={"family": tokenizer.family, "model": asdict(tokenizer.model.config)},
        )
        leave_page(options, options.out, page)
    return 0


def linear_probe(options: ProbeOptions) -> int:
    """What a linear classifier reads from frozen features."""
    from pixlex import distributed
    from pixlex.data.images import open_source
    from pixlex.eval.linear_probe import Fit
    from pixlex.eval.probe_features import planned_kinds, probe_features, probe_rows
    from pixlex.eval.probe_sets import open_sets
    from pixlex.report.linear_probe import (
        PROBES_NOTE,
        PROBES_PUBLISHED,
        row_text,
        row_values,
        write_linear_probe,
    )

    names = _names(options.model)
    validation = None if options.validation is None else open_source(options.validation)
    sets = open_sets(
        open_source(options.data),
        open_source(options.test),
        validation,
        limit=options.limit,
        test_limit=options.test_limit,
        allow_overlap=options.allow_overlap,
        max_broken_ratio=options.max_broken_share,
        progress=not options.quiet,
    )
    tokenizers = [load_tokenizer(options, name) for name in options.model]
    plan = planned_kinds([tokenizer.model for tokenizer in tokenizers], options.features)
    features = [
        (
            probe_features(
                version, model, sets, options.cache or options.out / "features", precision=options.precision,
                max_broken_ratio=options.max_broken_share, progress=not options.quiet,
            ),
            kinds,
        )
        for version, model, kinds in _versions(options, names, tokenizers, plan, sets)
    ]  # fmt: skip
    if not distributed.is_first():
        return 0
    compared = next((one for one, _ in features if "layers" in one.parts["training"].columns), None)
    how = Fit(seed=options.seed, device=tokenizers[0].device, progress=not options.quiet)
    rows = []
    for one, kinds in features:
        repeats = (
            {"encoder": options.repeats, "codes": options.repeats}
            if options.repeats
            else one.repeats(compared)
        )
        for row in probe_rows(one, kinds, how, per_layer=options.per_layer, repeats=repeats):
            rows.append(row)
            remark(options, f"{row.name}: {row_text(row)}")
    notes = [*sets.notes, *_notes(rows)]
    values = {
        "page": str(options.out / "report.html"),
        "rows": [row_values(row, sets.train.class_names) for row in rows],
        "notes": notes,
    }
    lines = [(row.name, row_text(row)) for row in rows]
    lines.append(("most frequent training class", f"top-1 {100 * rows[0].result.majority:.1f} %"))
    lines.append(("chance", f"top-1 {100 * rows[0].result.chance:.3g} %"))
    lines += [(name, f"top-1 {100 * top1:.1f} % ({PROBES_NOTE})") for name, top1 in PROBES_PUBLISHED]
    skipped = list(dict.fromkeys(one for row in rows for one in row.skipped))
    said = [*notes, *(f"{row.name}: {note}" for row in rows for note in row.result.notes)]
    finish(options, values, table(lines), skipped, notes=said)
    page = write_linear_probe(options.out, rows, sets, commands=[options.command_line], notes=notes)
    remark_page(options, page)
    return 0


def _names(models: Sequence[str]) -> list[str]:
    """Return what the models are called in the table: the last part of a path where that tells them apart."""
    if len(set(models)) < len(models):
        raise ValueError(f"expected different models, got {' '.join(models)}")
    short = [Path(model).name for model in models]
    return short if len(set(short)) == len(short) else list(models)


def _versions(
    options: ProbeOptions,
    names: Sequence[str],
    tokenizers: Sequence[ImageTokenizer],
    plan: Sequence[Sequence[Kind]],
    sets: ProbeSets,
) -> Iterator[tuple[str, Tokenizer, list[Kind]]]:
    """Yield each model with its name and what is probed of it, and the same without training where asked for."""
    from pixlex.models.checkpoint import untrained_copy

    for name, tokenizer, kinds in zip(names, tokenizers, plan, strict=True):
        versions = {name: tokenizer.model}
        if options.untrained:
            images = sets.train.first(tokenizer.image_size, tokenizer.model.config.cut)
            fresh = untrained_copy(tokenizer.model, images, options.seed)
            versions[f"{name}, untrained"] = fresh.to(tokenizer.device)
        for version, model in versions.items():
            # Pixels do not know whether the model is trained.
            fitting = [kind for kind in kinds if kind != "pixels" or version == name]
            if fitting:
                yield version, model, fitting


def _notes(rows: Sequence[ProbeRow]) -> Iterator[str]:
    """Yield what is to be known of the table."""
    if any(row.result.repeats > 1 for row in rows):
        yield (
            "repeated columns add parameters, not information: under an L2 penalty r copies act as one column "
            "scaled by the root of r"
        )
    if any("untrained" in row.model for row in rows):
        yield "untrained: fresh weights; a whitened search has its statistics measured on training images"


def _accounted(batches: Iterator[ImageBatch], source: ImageSource, limit: float) -> Iterator[ImageBatch]:
    """Pass batches on; raise `TooManyBroken` when more than a share of the images cannot be read."""
    from pixlex.batch import BrokenImages

    broken = BrokenImages(None, source, limit)
    for batch in batches:
        broken.add(batch)
        yield batch
