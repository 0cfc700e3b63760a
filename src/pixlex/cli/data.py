"""`describe`, `doctor`, `version` and `convert`."""

from __future__ import annotations

import platform
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from pixlex import __version__
from pixlex.cli import options as cli
from pixlex.messages import counted, nearest, quoted

if TYPE_CHECKING:
    from pixlex.data.convert import CaptionReport, DataReport, Spread
    from pixlex.data.records import Records
    from pixlex.data.sources import ImageSource

_LINE = 90
_LONGEST_TEXT = 60
_SHOWN = 10
_PACKAGES = ("torch", "transformers", "numpy", "Pillow")


class DescribeOptions(cli.JSONOption):
    subject: str | None = cli.positional("RECIPE|FAMILY|MODEL", "default: list recipes and families", None)


class DoctorOptions(cli.MachineOptions):
    data: str = cli.positional("DATA", f"{cli.DATA}; or {cli.PAIRS}")


class ConvertOptions(cli.MachineOptions):
    data: str = cli.positional("SOURCE", f"{cli.DATA}; or {cli.PAIRS}")
    out: cli.File = cli.option(text="a .parquet, .tar or .jsonl file", metavar="FILE")
    split: str | None = cli.option(None, "of Karpathy's files or hf:NAME; several joined by +", "S")
    image_size: cli.Positive | None = cli.option(
        None, "store as JPEG with a short side of at most N pixels; default: as they are", "N"
    )
    overwrite: bool = cli.option(False, "replace FILE")


def describe(options: DescribeOptions) -> None:
    """List the recipes, or every setting of one with its meaning; show the card of a model that comes along."""
    from pixlex.config.run import FAMILIES, recipe_names

    if options.subject is None:
        recipes = {name: _first_sentence(name) for name in recipe_names()}
        families = {name: " ".join((kind.__doc__ or "").split()) for name, kind in FAMILIES.items()}
        short = {name: textwrap.shorten(text, _LINE, placeholder=" ...") for name, text in recipes.items()}
        parts = [
            f"{title}\n{textwrap.indent(cli.table(list(rows.items())), '  ')}"
            for title, rows in (("recipes", short), ("families", families))
        ]
        cli.answer(options, {"recipes": recipes, "families": families}, "\n\n".join(parts))
        return
    if options.subject not in {*FAMILIES, *recipe_names()}:
        from pixlex.models.initialization import CARD, released

        if folder := released().get(options.subject):
            card = (folder / CARD).read_text(encoding="utf-8").split("---\n")[-1].strip()
            cli.answer(options, {"card": card}, card)
            return
    fields = _fields(options.subject)
    lines = []
    for field in fields:
        changed = "" if field["value"] == field["default"] else f"   (default {_shown(field['default'])})"
        lines.append(f"{field['field']} = {_shown(field['value'])}{changed}")
        lines.append(textwrap.fill(field["sentence"], 100, initial_indent="    ", subsequent_indent="    "))
    cli.answer(options, fields, "\n".join(lines))


def models(options: cli.JSONOption) -> None:
    """List the models that come with pixlex."""
    from pixlex.models.checkpoint import read_config
    from pixlex.models.initialization import CARD, WEIGHTS, released

    rows = []
    for name, folder in released().items():
        config = read_config(name)
        paragraphs = (folder / CARD).read_text(encoding="utf-8").split("---\n")[-1].split("\n\n")
        about = next(
            (" ".join(one.split()) for one in paragraphs if one.strip() and not one.lstrip().startswith("#")),
            "",
        )
        megabytes = (folder / WEIGHTS).stat().st_size / 1e6
        rows.append({"name": name, "family": config["family"], "megabytes": megabytes, "about": about})
    lines = [
        (str(row["name"]), f"{row['family']}, {row['megabytes']:.1f} MB: {row['about']}") for row in rows
    ]
    cli.answer(options, rows, cli.table(lines))


def doctor(options: DoctorOptions) -> None:
    """Read every image and say what is there."""
    from pixlex.data.convert import inspect_captions, inspect_source
    from pixlex.data.records import Records
    from pixlex.data.sources import distinct_images
    from pixlex.progress import bar_or_lines

    found = _pairs_or_images(options.data, every_split=True)
    captions = inspect_captions(found) if isinstance(found, Records) else None
    source = distinct_images(found.images) if isinstance(found, Records) else found
    with bar_or_lines(total=len(source), unit=" images", desc="read", disable=options.quiet) as bar:
        report = inspect_source(source, lambda done, total: bar.update(done - bar.n))
    values = {
        **asdict(report),
        "num_missing": report.num_missing,
        "broken_fraction": report.broken_fraction,
        "class_names": source.class_names,
        "captions": captions,
    }
    text = report_text(report) if captions is None else f"{report_text(report)}\n\n{caption_text(captions)}"
    cli.answer(options, values, text)


def version(options: cli.JSONOption) -> None:
    """Say which versions are at work."""
    from importlib import metadata

    values = {"pixlex": __version__, "python": platform.python_version()}
    values |= {package: metadata.version(package) for package in _PACKAGES}
    cli.answer(options, values, cli.table(list(values.items())))


def convert(options: ConvertOptions) -> None:
    """Write images, with their captions and classes, to one .parquet, .tar or .jsonl file."""
    from pixlex.data.convert import convert_images
    from pixlex.data.records import Records
    from pixlex.data.sources import with_split

    described = options.data if options.split is None else with_split(options.data, options.split)
    source = _pairs_or_images(described, every_split=False)
    without_captions = source.ignored if isinstance(source, Records) else ()
    result = convert_images(
        source,
        options.out,
        image_size=options.image_size,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    values = {**asdict(result), "path": str(result.path), "without_captions": without_captions}
    lines = [
        f"{result.path}: {counted(result.num_images, 'image')}, {counted(result.num_captions, 'caption')}"
    ]
    skipped = [f"{one.key}: {one.reason}" for one in result.skipped]
    lines += _listed("images that cannot be read, left out", skipped)
    lines += _listed("images without a caption, left out", without_captions)
    cli.answer(options, values, "\n".join(lines))


def _pairs_or_images(description: str, *, every_split: bool) -> ImageSource | Records:
    from pixlex.data.captions import open_pairs
    from pixlex.data.images import open_source
    from pixlex.data.records import NoCaptions

    try:
        return open_pairs(description, every_split=every_split)
    except NoCaptions:
        return open_source(description)


def _fields(subject: str) -> list[dict[str, Any]]:
    """Return name, default, value and sentence of each setting."""
    from pixlex.config.run import FAMILIES, describe_fields, find_recipe, read_run, recipe_names, value_at

    values = None
    if (kind := FAMILIES.get(subject)) is None:
        try:
            find_recipe(subject)
        except ValueError as fault:
            hint = nearest(subject, [*FAMILIES, *recipe_names()])
            raise ValueError(f"no recipe or family {quoted(subject)}: {hint}") from fault
        run = read_run(subject)
        kind, values = type(run), asdict(run)
    rows = ((*one, one[1] if values is None else value_at(values, one[0])) for one in describe_fields(kind))
    return [
        {"field": name, "default": default, "value": value, "sentence": sentence}
        for name, default, sentence, value in rows
    ]


def _first_sentence(recipe: str) -> str:
    from pixlex.config.run import find_recipe

    lines = find_recipe(recipe).read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines)]
    return re.split(r"(?<!et al)\. ", " ".join(comment))[0].removesuffix(".")


def _shown(value: Any) -> str:
    return repr(value) if value == "" else str(value)


def report_text(report: DataReport) -> str:
    """Return a report for people."""
    missing = f", {report.num_missing:,} of them missing files" if report.num_missing else ""
    rows = [
        ("source", report.name),
        ("images", f"{report.num_images:,}"),
        ("broken", f"{len(report.broken):,} ({report.broken_fraction:.1%}{missing})"),
        ("width", _spread(report.width)),
        ("height", _spread(report.height)),
        ("formats", _counts(report.formats)),
        ("stored as", _counts(report.modes)),
        ("classes", _counts(report.images_per_class) or "none"),
    ]
    if report.images_per_class and report.unlabeled:
        rows.append(("without a class", f"{report.unlabeled:,}"))
    lines = [cli.table(rows)]
    lines += _listed("broken images", [f"{one.key}: {one.reason}" for one in report.broken])
    lines += _listed(
        "keys that occur more than once", [f"{k}: {n} times" for k, n in report.duplicate_keys.items()]
    )
    lines += _listed("files passed over", [str(one) for one in report.ignored])
    lines += _listed("folders without images", list(report.empty_folders))
    return "\n".join(lines)


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "no image can be read"
    return f"{spread.smallest} to {spread.largest} px, middle {spread.middle}"


def _counts(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:_SHOWN])
    return f"{shown}, and {len(counts) - _SHOWN:,} more" if len(counts) > _SHOWN else shown


def _listed(title: str, entries: Sequence[str]) -> list[str]:
    """Return a title and the first entries, if there are any."""
    if not entries:
        return []
    more = [f"  and {len(entries) - _SHOWN:,} more (--json lists all)"] if len(entries) > _SHOWN else []
    return ["", f"{title} ({len(entries):,})", *(f"  {entry}" for entry in entries[:_SHOWN]), *more]


def caption_text(report: CaptionReport) -> str:
    """Return a report on captions."""
    per_image, words = report.captions_per_image, report.words_per_caption
    rows = [
        ("captions", f"{report.num_captions:,}"),
        ("per image", f"{per_image.smallest:,} to {per_image.largest:,}, middle {per_image.middle:,}"),
        ("words each", f"{words.smallest:,} to {words.largest:,}, middle {words.middle:,}"),
        ("duplicates", f"{report.num_duplicates:,} ({report.num_duplicates / report.num_captions:.1%})"),
        ("no caption", f"{counted(len(report.without_captions), 'image')}, left out"),
    ]
    rows += [(f"split {name}", _split(report, name)) for name in report.splits]
    lines = [cli.table(rows), *report.remarks]
    repeated = (f"{count:,} times: {text:.{_LONGEST_TEXT}}" for text, count in report.most_repeated.items())
    lines += _listed("captions that occur most often", list(repeated))
    return "\n".join([*lines, *_listed("images without a caption", report.without_captions)])


def _split(report: CaptionReport, name: str) -> str:
    found, expected = report.splits[name], report.expected_splits.get(name)
    if expected is None:
        return counted(found, "image")
    return f"{counted(found, 'image')}, {'as' if found == expected else f'{expected:,}'} expected"
