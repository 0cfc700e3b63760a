"""`describe`, `doctor` and `version`."""

from __future__ import annotations

import platform
import re
import textwrap
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pixlex import __version__
from pixlex.cli.data import DescribeOptions, DoctorOptions
from pixlex.cli.data_reports import caption_text, report_text
from pixlex.cli.options import JSONOption, answer, table
from pixlex.config.run import FAMILIES, describe_fields, find_recipe, read_run, recipe_names, value_at
from pixlex.messages import nearest, quoted

if TYPE_CHECKING:
    from tqdm import tqdm

_LINE = 90
_PACKAGES = ("torch", "transformers", "numpy", "Pillow")


def describe(options: DescribeOptions) -> int:
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


def doctor(options: DoctorOptions) -> int:
    """Read every image of a source and report."""
    from pixlex.data.captions import open_pairs
    from pixlex.data.convert import inspect_captions, inspect_source
    from pixlex.data.images import ImageSource, open_source
    from pixlex.data.records import NoCaptions
    from pixlex.data.sources import distinct_images
    from pixlex.progress import bar_or_lines

    source: ImageSource
    captions = None
    try:
        pairs = open_pairs(options.data, every_split=True)
    except NoCaptions:
        source = open_source(options.data)
    else:
        source, captions = distinct_images(pairs.images), inspect_captions(pairs)
    with bar_or_lines(total=len(source), unit=" images", desc="read", disable=options.quiet) as bar:
        report = inspect_source(source, lambda done, total: _advance(bar, done))
    values = {
        **asdict(report),
        "num_missing": report.num_missing,
        "broken_share": report.broken_share,
        "class_names": list(source.class_names),
        "captions": None if captions is None else asdict(captions),
    }
    text = report_text(report) if captions is None else f"{report_text(report)}\n\n{caption_text(captions)}"
    answer(options, values, text)
    return 0


def version(options: JSONOption) -> int:
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
        hint = nearest(subject, [*FAMILIES, *recipe_names()])
        raise ValueError(f"no recipe or family {quoted(subject)}: {hint}") from fault
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
    return re.split(r"(?<!et al)\. ", " ".join(comment))[0].removesuffix(".")


def _shown(value: Any) -> str:
    return repr(value) if value == "" else str(value)


def _indented(text: str) -> str:
    return textwrap.indent(text, "  ")
