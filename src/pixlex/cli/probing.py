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
from pixlex.eval.linear_probe import Fit, ProbeRow, probe_rows
from pixlex.eval.probe_features import Kind, planned_kinds, probe_features
from pixlex.eval.probe_sets import ProbeSets, first_images, open_sets
from pixlex.models.checkpoint import Tokenizer, untrained_copy
from pixlex.report.results import write_linear_probe
from pixlex.report.tables import PROBES_NOTE, PROBES_PUBLISHED, row_text, row_values


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
