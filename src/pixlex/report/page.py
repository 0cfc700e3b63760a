"""A page of a run: one file that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import yaml
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pixlex.config.run import Run
from pixlex.eval.evaluate import Evaluation
from pixlex.eval.metrics import metric_of
from pixlex.files import write_text
from pixlex.report.drawing import escape
from pixlex.report.figures import BREAK, Captioned, Color, fitted, ink_on, line_width, patch_colors, to_bytes

_FAMILIES = {"lqae": "LQAE", "vqvae": "VQ-VAE"}
# Larger pictures look better interpolated.
_SHOWN_AS_PIXELS = 128
# Width of a map of words on a wide screen, in pixels: the one for which words are broken.
_MAP = 560


def run_page(
    path: Path,
    result: Evaluation,
    run: Run,
    commands: Sequence[str],
    curves: Path | None = None,
) -> Path:
    """Write the page of a finished run.

    Args:
        path: the HTML file to write.
        result: the last evaluation.
        run: the configuration.
        commands: what was typed to get this result, exactly.
        curves: PNG of the curves; None shows none.

    Returns:
        The path of the page.
    """
    grid = run.model.grid
    if result.examples.get("words") is not None:
        introduction = (
            f"Each image was written as {grid} x {grid} words of a language model's vocabulary, and rebuilt "
            "from the words alone. The words are a code: they need not describe what is seen."
        )
    else:
        introduction = f"Each image was written as {grid} x {grid} codes and rebuilt from the codes alone."
    notes = list(result.notes)
    if result.skipped:
        first = result.skipped[0]
        notes.append(
            f"{len(result.skipped)} images could not be read; the first: {first.key}, {first.reason}"
        )
    return write_page(
        path,
        title=f"{_FAMILIES[run.family]}, {run.model.image_size} px, {grid} x {grid}: {run.data.train}",
        introduction=introduction,
        numbers=result.numbers,
        examples=result.examples,
        commands=commands,
        config=dataclasses.asdict(run),
        notes=notes,
        curves=curves,
    )


def write_page(
    path: Path,
    *,
    title: str,
    numbers: Mapping[str, float],
    examples: Mapping[str, Any] | None,
    commands: Sequence[str],
    config: Mapping[str, Any],
    introduction: str = "",
    notes: Sequence[str] = (),
    curves: Path | None = None,
    pictures: Mapping[str, Path] | None = None,
    captioned: Sequence[Captioned] = (),
) -> Path:
    """Write a page: images, words, reconstructions, numbers, curves, commands, settings.

    Pictures are part of the file; it loads nothing from anywhere and holds no script; words are real text.

    Args:
        path: the HTML file to write.
        title: heading of the page.
        numbers: by their names in the log, such as `Evaluation.numbers`.
        examples: `keys`, `originals`, `reconstructions` and perhaps `words` of images to show; None shows none.
        commands: what to type to get this result, exactly.
        config: the resolved configuration, of plain values.
        introduction: a few sentences; an empty line starts a new paragraph.
        notes: sentences that stand below the numbers.
        curves: PNG of the curves; None shows none.
        pictures: further PNGs, each under its heading, before the curves.
        captioned: images with what is said of them, first of all.

    Returns:
        The path.
    """
    shown = {**(pictures or {}), **({} if curves is None else {"Curves": curves})}
    source = resources.files("pixlex.report").joinpath("page.html").read_text("utf-8")
    page = Template(source).substitute(
        title=escape(title),
        introduction=_introduction(introduction, numbers),
        examples=(_examples(examples) if examples is not None else "") + _captioned(captioned),
        numbers="\n".join(_rows(numbers)),
        notes=_notes(notes),
        curves="\n".join(_picture(*one) for one in shown.items()),
        commands=escape("\n".join(commands)),
        config=escape(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def comparison(numbers: Mapping[str, float]) -> str:
    """Return a sentence that sets the reconstruction error against the mean image's; empty without both."""
    error, constant = numbers.get("eval/mse"), numbers.get("eval/mean_image_mse")
    if error is None or not constant:
        return ""
    share = abs(1 - error / constant)
    side = "below" if error < constant else "above"
    return (
        f"The reconstruction error is {error:.4g}, {share:.0%} {side} that of showing the mean image every "
        f"time ({constant:.4g})."
    )


def _introduction(text: str, numbers: Mapping[str, float]) -> str:
    paragraphs = [*text.split("\n\n"), comparison(numbers)]
    return "\n".join(f"<p>{escape(paragraph.strip())}</p>" for paragraph in paragraphs if paragraph.strip())


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"


def _rows(numbers: Mapping[str, float]) -> Iterator[str]:
    """Yield the rows of the table of numbers."""
    yield '<tr><th>measure</th><th class="value">value</th><th>better</th><th></th></tr>'
    for name, value in numbers.items():
        measure = metric_of(name)
        yield (
            f'<tr><td>{escape(measure.label)}</td><td class="value">{escape(measure.text(value))}</td>'
            f'<td class="better">{measure.better}</td><td class="name"><code>{escape(name)}</code></td></tr>'
        )


def _picture(heading: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    title = escape(heading)
    return f'<h2>{title}</h2>\n<img class="curves" alt="{title}" src="data:image/png;base64,{data}">'


def _examples(examples: Mapping[str, Any]) -> str:
    """Return a block for each image."""
    words = examples.get("words")
    heading = "Original, words, reconstruction" if words is not None else "Original, reconstruction"
    blocks = [f"<h2>{heading}</h2>"]
    for row, (original, reconstruction) in enumerate(
        zip(examples["originals"], examples["reconstructions"], strict=True)
    ):
        own = None if words is None else words[row]
        blocks.append(_example(original, reconstruction, own, examples["keys"][row]))
    return "\n".join(blocks)


def _captioned(shown: Sequence[Captioned]) -> str:
    """Return a block for each item."""
    blocks = []
    for one in shown:
        images = "".join(_image(image, "image") for image in one.images)
        texts = "".join(f"<p>{escape(text)}</p>" for text in one.texts)
        blocks.append(f'<section class="said"><div class="seen">{images}</div><div>{texts}</div></section>')
    return "\n".join(["<h2>Images and what is said of them</h2>", *blocks]) if blocks else ""


def _example(
    original: Float[Tensor, "3 H W"],
    reconstruction: Float[Tensor, "3 H W"],
    words: Sequence[str] | None,
    key: str,
) -> str:
    """Return the block of one image."""
    before = f"<figure>{_image(original, 'original')}<figcaption>{escape(key)}</figcaption></figure>"
    after = (
        f"<figure>{_image(reconstruction, 'reconstruction')}<figcaption>reconstruction</figcaption></figure>"
    )
    if words is None:
        return f'<section class="example plain">{before}{after}</section>'
    grid = math.isqrt(len(words))
    cells = (
        _cell(word, color, _MAP // grid)
        for word, color in zip(words, patch_colors(original, grid), strict=True)
    )
    return (
        f'<section class="example">{before}'
        f'<figure class="map"><div class="words" style="--grid:{grid}">{" ".join(cells)}</div>'
        f"<figcaption>{grid} x {grid} words, each on its patch's mean color</figcaption></figure>{after}"
        f"<details><summary>the words as text</summary><p>{escape(' '.join(words))}</p></details></section>"
    )


def _cell(word: str, color: Color, side: int) -> str:
    """Return one word on its background, broken and shrunk to fit; what is copied is the bare word."""
    text = fitted(word, side)[0]
    width = max(line_width(text), 0.5)
    style = f"--width:{width:.2f};background:{_css(color)};color:{_css(ink_on(color))}"
    parts = (escape(part) for part in text.split(BREAK))
    return f'<div style="{style}"><span>{"<i></i><wbr>".join(parts)}</span></div>'


def _css(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _image(image: Float[Tensor, "3 H W"], alternative: str) -> str:
    """Return an image as part of the page."""
    stream = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(stream, format="PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    kind = ' class="pixels"' if image.shape[-1] <= _SHOWN_AS_PIXELS else ""
    return f'<img{kind} alt="{alternative}" src="data:image/png;base64,{data}">'
