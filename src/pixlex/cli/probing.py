"""`evaluate linear-probe`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pixlex import distributed
from pixlex.api import ImageTokenizer
from pixlex.cli.evaluate import ProbeOptions
from pixlex.cli.options import answer, remark, remark_page, table
from pixlex.cli.tokens import load_tokenizer, remark_skipped
from pixlex.data.images import open_source
from pixlex.eval.probe.features import Kind, default_repeats
from pixlex.eval.probe.study import (
    ProbeRow,
    ProbeSets,
    first_images,
    open_sets,
    planned_kinds,
    prepare_features,
    probe_rows,
)
from pixlex.models.pretrained import Tokenizer
from pixlex.models.untrained import untrained_copy
from pixlex.report.linear_probe import (
    PUBLISHED,
    PUBLISHED_NOTE,
    row_text,
    row_values,
    write_linear_probe,
)


def linear_probe(options: ProbeOptions) -> int:
    """Fit linear classifiers on frozen features; leave table, pictures and a page in a folder."""
    names = _names(options.model)
    validation = None if options.validation is None else open_source(options.validation)
    sets = open_sets(
        open_source(options.data),
        open_source(options.test),
        validation,
        limit=options.limit,
        test_limit=options.test_limit,
        allow_overlap=options.allow_overlap,
        max_broken_share=options.max_broken_share,
        progress=not options.quiet,
    )
    tokenizers = [load_tokenizer(options, name) for name in options.model]
    plan = planned_kinds([tokenizer.model for tokenizer in tokenizers], options.features)
    if distributed.world_size() > 1:
        for version, model, _ in _versions(options, names, tokenizers, plan, sets):
            prepare_features(
                version,
                model,
                sets,
                _cache(options),
                precision=options.precision,
                max_broken_share=options.max_broken_share,
                progress=not options.quiet,
            )
    if not distributed.is_first():
        return 0
    with distributed.alone():  # classifiers are fitted by one process; the features are there
        rows = []
        for row in _rows(options, names, tokenizers, plan, sets):
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
    lines += [(name, f"top-1 {100 * top1:.1f} % ({PUBLISHED_NOTE})") for name, top1 in PUBLISHED]
    answer(options, values, table(lines))
    remark_skipped(options, list(dict.fromkeys(one for row in rows for one in row.skipped)))
    for note in [*notes, *(f"{row.name}: {note}" for row in rows for note in row.result.notes)]:
        remark(options, note)
    page = write_linear_probe(options.out, rows, sets, commands=[options.command_line], notes=notes)
    remark_page(options, page)
    return 0


def _names(models: Sequence[str]) -> list[str]:
    """Return what the models are called in the table: the last part of a path where that tells them apart."""
    if len(set(models)) < len(models):
        raise ValueError(f"expected different models, got {' '.join(models)}")
    short = [Path(model).name for model in models]
    return short if len(set(short)) == len(short) else list(models)


def _rows(
    options: ProbeOptions,
    names: Sequence[str],
    tokenizers: Sequence[ImageTokenizer],
    plan: Sequence[Sequence[Kind]],
    sets: ProbeSets,
) -> Iterator[ProbeRow]:
    """Yield the rows of each model, and of the same without training where that is asked for."""
    models = [tokenizer.model for tokenizer in tokenizers]
    compared = next((model for model in models if model.vocabulary is not None), None)
    for version, model, kinds in _versions(options, names, tokenizers, plan, sets):
        yield from probe_rows(
            version,
            model,
            kinds,
            sets,
            _cache(options),
            per_layer=options.per_layer,
            repeats=(
                {"encoder": options.repeats, "codes": options.repeats}
                if options.repeats
                else default_repeats(model, compared)
            ),
            seed=options.seed,
            precision=options.precision,
            max_broken_share=options.max_broken_share,
            progress=not options.quiet,
        )


def _cache(options: ProbeOptions) -> Path:
    folder: Path = options.cache or options.out / "features"
    return folder


def _versions(
    options: ProbeOptions,
    names: Sequence[str],
    tokenizers: Sequence[ImageTokenizer],
    plan: Sequence[Sequence[Kind]],
    sets: ProbeSets,
) -> Iterator[tuple[str, Tokenizer, list[Kind]]]:
    """Yield each model with its name and what is probed of it, and the same without training where asked for."""
    for name, tokenizer, kinds in zip(names, tokenizers, plan, strict=True):
        versions = {name: tokenizer.model}
        if options.untrained:
            images = first_images(sets.train, tokenizer.image_size, tokenizer.model.config.cut)
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
