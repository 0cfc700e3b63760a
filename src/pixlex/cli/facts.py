"""`describe`, `doctor` and `version`."""

from __future__ import annotations

import platform
import textwrap
from argparse import Namespace
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pixlex import __version__
from pixlex.cli.output import answer, table
from pixlex.config.run import FAMILIES, describe_fields, find_recipe, read_run, recipe_names, value_at

if TYPE_CHECKING:
    from tqdm import tqdm

    from pixlex.data.doctor import DataReport, Spread

_SHOWN = 10
_LINE = 90
_PACKAGES = ("torch", "transformers", "numpy", "Pillow")


def describe(options: Namespace) -> int:
    """List recipes and families, or every setting of one of them."""
    if options.subject is None:
        names = recipe_names()
        recipes = [(name, _first_sentence(name)) for name in names]
        families = [(name, " ".join((kind.__doc__ or "").split())) for name, kind in FAMILIES.items()]
        short = [(name, textwrap.shorten(sentence, _LINE, placeholder=" ...")) for name, sentence in recipes]
        text = f"recipes\n{_indented(table(short))}\n\nfamilies\n{_indented(table(families))}"
        answer(options, {"recipes": dict(recipes), "families": dict(families)}, text)
        return 0
    fields = _fields(options.subject)
    lines = []
    for field in fields:
        changed = "" if field["value"] == field["default"] else f"   (default {_shown(field['default'])})"
        lines.append(f"{field['field']} = {_shown(field['value'])}{changed}")
        lines.append(textwrap.fill(field["sentence"], 100, initial_indent="    ", subsequent_indent="    "))
    answer(options, fields, "\n".join(lines))
    return 0


def doctor(options: Namespace) -> int:
    """Read every image of a source and report."""
    from tqdm import tqdm

    from pixlex.data.doctor import inspect_source
    from pixlex.data.images import open_source

    source = open_source(options.data)
    with tqdm(total=len(source), unit=" images", desc="read", disable=options.quiet) as bar:
        report = inspect_source(source, lambda done, total: _advance(bar, done))
    values = {**asdict(report), "broken_share": report.broken_share, "class_names": list(source.class_names)}
    answer(options, values, _report_text(report))
    return 0


def version(options: Namespace) -> int:
    """Print versions."""
    values = {"pixlex": __version__, "python": platform.python_version()}
    values |= {package: metadata.version(package) for package in _PACKAGES}
    answer(options, values, table(list(values.items())))
    return 0


def _advance(bar: tqdm[Any], done: int) -> None:
    bar.update(done - bar.n)


def _fields(subject: str) -> list[dict[str, Any]]:
    """Return name, default, value and sentence of each setting."""
    if subject in FAMILIES:
        kind = FAMILIES[subject]
        return [
            {"field": name, "default": default, "value": default, "sentence": sentence}
            for name, default, sentence in describe_fields(kind)
        ]
    try:
        find_recipe(subject)
    except ValueError as fault:
        raise ValueError(f"{fault}; or one of the families {', '.join(FAMILIES)}") from fault
    run = read_run(subject)
    values = asdict(run)
    return [
        {"field": name, "default": default, "value": value_at(values, name), "sentence": sentence}
        for name, default, sentence in describe_fields(type(run))
    ]


def _first_sentence(recipe: str) -> str:
    """Return the sentence at the top of a recipe."""
    comment = []
    for line in find_recipe(recipe).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    return " ".join(comment).split(". ")[0].removesuffix(".")


def _shown(value: Any) -> str:
    return repr(value) if value == "" else str(value)


def _report_text(report: DataReport) -> str:
    """Return a report for people."""
    rows = [
        ("source", report.name),
        ("images", f"{report.num_images:,}"),
        ("broken", f"{len(report.broken):,} ({report.broken_share:.1%})"),
        ("width", _spread(report.width)),
        ("height", _spread(report.height)),
        ("formats", _counts(report.formats)),
        ("stored as", _counts(report.modes)),
        ("classes", _counts(report.images_per_class) or "none"),
    ]
    if report.images_per_class and report.unlabeled:
        rows.append(("without a class", f"{report.unlabeled:,}"))
    lines = [table(rows)]
    lines += _listed("broken images", [f"{one.key}: {one.reason}" for one in report.broken])
    lines += _listed(
        "keys that occur more than once", [f"{k}: {n} times" for k, n in report.duplicate_keys.items()]
    )
    lines += _listed("ignored files", list(report.ignored))
    lines += _listed("folders without images", list(report.empty_folders))
    return "\n".join(lines)


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "no image can be read"
    return f"{spread.smallest} to {spread.largest} px, middle {spread.middle}"


def _counts(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:_SHOWN])
    return f"{shown}, and {len(counts) - _SHOWN:,} more" if len(counts) > _SHOWN else shown


def _listed(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    more = [f"  and {len(entries) - _SHOWN:,} more (--json lists all)"] if len(entries) > _SHOWN else []
    return ["", f"{title} ({len(entries):,})", *(f"  {entry}" for entry in entries[:_SHOWN]), *more]


def _indented(text: str) -> str:
    return textwrap.indent(text, "  ")
