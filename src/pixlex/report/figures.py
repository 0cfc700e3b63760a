"""Figures of images beside words, texts and each other, or under heat; PNG files, which may fail alone."""

from __future__ import annotations

import contextlib
import math
import struct
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pixlex.files import write_atomically
from pixlex.messages import printable

if TYPE_CHECKING:
    from pixlex.eval.gradcam import Explanation

# What disk, memory, fonts, names, values out of the ordinary and the libraries that draw raise. An AssertionError
# is not among them: that an invariant of ours is broken must not pass for a remark.
_FAULTS = (
    OSError, MemoryError, ImportError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError,
    RuntimeError, struct.error, yaml.YAMLError,
)  # fmt: skip

Color = tuple[int, int, int]

# Sides in pixels.
MARGIN, GAP = 16, 12
_TITLE, _LINE = 30, 20
_SMALLEST_PANEL = 256
_SMALLEST_CELL, _SMALLEST_CELL_OF_MANY = 80, 64
_PADDING = 3
_BESIDE_TEXT, _TEXT = 192, 560
_THUMBNAIL = 220
# Heat, in pixels; weight of its color where a map is highest: the rest is the image, without its own colors.
_HEATED, _LABEL, _FOOT, _BAR = 176, 44, 66, (260, 12)
_HEAT, _STRONGEST = "inferno", 0.85
_SCORES = {
    "matching": "logit of belonging",
    "masked_language": "log-probability of the words, each hidden,",
    "answer": "log-likelihood of the answer",
}
# Below this size a word is broken into lines rather than written smaller.
_READABLE = 11
# What stands where a word is broken.
BREAK = "-\n"

PAPER, INK, SOFT = (255, 255, 255), (32, 32, 36), (110, 110, 116)
_NOTHING = (228, 228, 232)


def drawn(path: Path, draw: Callable[[Path], object]) -> Path | None:
    """Let `draw(temporary_path)` make a picture or a page in one move; where it fails, say so and return None.

    Pictures and pages come after the numbers, and none of them takes the numbers down with it. What an earlier
    call left there goes with a failure, for it shows other numbers.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, draw)
        return path
    except _FAULTS as fault:
        reason = " ".join(printable(line) for line in f"{type(fault).__name__}: {fault}".split())
        print(f"pixlex: {printable(path)} could not be made: {reason:.300}", file=sys.stderr)
    with contextlib.suppress(OSError):  # it may lie where nothing can be written
        path.unlink(missing_ok=True)
    return None


class Sheet:
    """A white picture on which pictures and texts are placed."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def text(
        self, left: int | float, top: int | float, text: str, size: int, color: Color = INK, **more: object
    ) -> None:
        """Write a text, whose lines stand below each other, at the place of its upper left corner."""
        self.draw.text((left, top), text, fill=color, font=font(size), **more)  # type: ignore[arg-type]

    def save(self, path: Path) -> Path:
        """Write a PNG, its folder made if missing; return the path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.image.save(path, format="PNG")
        return path


def reconstruction_grid(
    originals: Float[Tensor, "E 3 H W"],
    reconstructions: Float[Tensor, "E 3 H W"],
    words: Sequence[Sequence[str]] | None,
    grid: int,
    path: Path,
) -> Path:
    """Write a PNG with one row for each image: original, its words where they belong, reconstruction.

    Pixels are enlarged by a whole factor, so that they stay pixels. A cell has the mean color of its patch in the
    reconstruction: what the words alone can know.

    Args:
        originals, reconstructions: Square images with pixels in [0, 1]; values outside are clipped.
        words: Of each image, grid x grid, rows of the grid first; None leaves the column out.
        grid: Words along one side of the image; 0 where they belong to no place.
    """
    if len(originals) == 0:
        raise ValueError("no image to draw")
    size = originals.shape[-1]
    assert originals.shape == reconstructions.shape
    assert originals.shape[-2] == size
    side = panel_side(len(words[0]), grid) if words is not None else grid
    cell = _SMALLEST_CELL if side <= 8 else _SMALLEST_CELL_OF_MANY
    scale = math.ceil((_SMALLEST_PANEL if words is None or side == 1 else cell * side) / size)
    columns = {"original": [enlarged(image, scale) for image in originals]}
    if words is not None:
        title = "words, each on the color it is rebuilt in" if grid else "words, the nearest first"
        columns[title] = [
            word_panel(said, word_colors(image, len(said), grid), scale * size)
            for said, image in zip(words, reconstructions, strict=True)
        ]
    columns["reconstruction"] = [enlarged(image, scale) for image in reconstructions]
    return _write_columns(columns, scale * size, path)


def image_columns(
    columns: Mapping[str, Float[Tensor, "E 3 H W"]], path: Path, labels: Sequence[str] | None = None
) -> Path:
    """Write a PNG with one column of images under each title, enlarged by a whole factor.

    Args:
        columns: As many square images of one size under each title, pixels in [0, 1], values outside clipped.
        labels: A text below each row, its lines cut to the width; with them a sheet may have no row.
    """
    shapes = {tuple(images.shape) for images in columns.values()}
    if len(shapes) != 1 or (0 in next(iter(shapes)) and labels is None):
        raise ValueError(
            f"expected columns of as many images of one size, one or more, got {shapes or 'none'}"
        )
    size = next(iter(shapes))[-1]
    scale = math.ceil(_SMALLEST_PANEL / size)
    shown = {title: [enlarged(image, scale) for image in images] for title, images in columns.items()}
    return _write_columns(shown, scale * size, path, labels)


def _write_columns(
    columns: Mapping[str, Sequence[Image.Image]], side: int, path: Path, labels: Sequence[str] | None = None
) -> Path:
    """Write columns of square panels under their titles, each row with its label."""
    width = 2 * MARGIN + len(columns) * (side + GAP) - GAP
    lines = [label.split("\n") for label in labels or ()]
    below = 0 if labels is None else _TITLE + _LINE * (max(map(len, lines), default=1) - 1)
    step, rows = side + GAP + below, len(next(iter(columns.values())))
    sheet = Sheet(width, 2 * MARGIN + _TITLE + rows * step - (GAP if labels is None else 0))
    for column, (title, panels) in enumerate(columns.items()):
        left = MARGIN + column * (side + GAP)
        size = next((size for size in range(18, 8, -1) if font(size).getlength(title) <= side), 8)
        sheet.text(left, MARGIN, title, size)
        for row, panel in enumerate(panels):
            sheet.image.paste(panel, (left, MARGIN + _TITLE + row * step))
    letters = int((width - 2 * MARGIN) / 8.2)
    for row, texts in enumerate(lines):
        shown = "\n".join(text if len(text) <= letters else text[: letters - 3] + "..." for text in texts)
        sheet.text(MARGIN, MARGIN + _TITLE + row * step + side + 4, shown, 15)
    return sheet.save(path)


@dataclass(frozen=True)
class Captioned:
    """Images, one or more side by side, with what is said of them, a paragraph each."""

    images: Float[Tensor, "n 3 H W"]
    texts: tuple[str, ...]


def captioned_images(shown: Sequence[Captioned], path: Path) -> Path:
    """Write a PNG with a row for each item, all of images of one size and number: its images, its texts beside."""
    if not shown:
        raise ValueError("expected one image or more with what is said of it, got none")
    rows = torch.stack([torch.cat(list(one.images), dim=-1) for one in shown])
    scale = math.ceil(_BESIDE_TEXT / rows.shape[-2])
    side, width = scale * rows.shape[-2], scale * rows.shape[-1]
    sheet = Sheet(3 * MARGIN + width + _TEXT, MARGIN + len(rows) * (side + MARGIN))
    for row, (image, one) in enumerate(zip(rows, shown, strict=True)):
        top = MARGIN + row * (side + MARGIN)
        sheet.image.paste(enlarged(image, scale), (MARGIN, top))
        lines = [line for paragraph in one.texts for line in [*textwrap.wrap(paragraph, 62), ""]]
        # What would reach into the next row is left out.
        sheet.text(2 * MARGIN + width, top, "\n".join(lines[: side // 20]), 15, spacing=4)
    return sheet.save(path)


def explained_image(
    images: Float[Tensor, "n 3 H W"], explanations: Sequence[Explanation], path: Path, *, answer: str = ""
) -> Path:
    """Write a PNG: for each image itself, and under the heat of the whole text and of each word.

    Each panel is scaled to its own highest value, because a word that says little would else show nothing. How
    high that is, in percent of the highest among the words, stands under the word; where there is no heat at all,
    that stands there. Between the centers of patches heat is interpolated linearly.

    Args:
        images: Square, pixels in [0, 1].
        explanations: One of each image, of the same text.
        answer: The answer that is explained; empty where it is none.
    """
    first, words = explanations[0], explanations[0].words
    assert len(images) == len(explanations)
    assert images.shape[-1] == images.shape[-2]
    scale = math.ceil(_HEATED / images.shape[-1])
    side = scale * images.shape[-1]
    highest = max(float(one.maps.max()) for one in explanations)
    columns = min(6, 2 + len(words))
    rows, step = math.ceil((2 + len(words)) / columns), side + _LABEL + GAP
    width, end = 2 * MARGIN + columns * (side + GAP) - GAP, MARGIN + len(images) * rows * step
    what = f'log-likelihood of the answer "{answer}"' if answer else _SCORES[first.explained]
    cut = f"; cut, not read: {' '.join(first.left_out)}" if first.left_out else ""
    said = (
        f"{what} {first.score:.3f}; cross-attention of fusion layer {first.layer}; each panel in its own scale, "
        f"its highest value in percent of the highest of all words{cut}"
    )
    foot = textwrap.wrap(said, max(20, int((width - 2 * MARGIN) / 7.2)))
    sheet = Sheet(width, end + MARGIN + _FOOT + 18 * (len(foot) - 1))
    for block, (image, one) in enumerate(zip(images, explanations, strict=True)):
        name = f"image {block + 1}" if len(images) > 1 else "the image"
        panels = [(name, "", enlarged(image, scale))]
        for word, heat in (("whole text", one.whole), *zip(one.words, one.maps, strict=True)):
            own = float(heat.max())
            note = (
                "no heat" if own <= 0 else "" if heat is one.whole else f"up to {100 * own / highest:.0f} %"
            )
            panels.append((word, note, heated(image, heat, side)))
        for number, (label, note, panel) in enumerate(panels):
            left = MARGIN + number % columns * (side + GAP)
            top = MARGIN + (block * rows + number // columns) * step
            sheet.image.paste(panel, (left, top))
            while len(label) > 1 and 15 * line_width(label) > side:
                label = label[:-2] + "…"
            sheet.text(left, top + side + 4, label, 15)
            sheet.text(left, top + side + 24, note, 12, SOFT)
    _write_foot(sheet, foot, end)
    return sheet.save(path)


def heated(image: Float[Tensor, "3 H W"], heat: Float[Tensor, "grid grid"], side: int) -> Image.Image:
    """Return an image in gray under a map, 0 or more, in matplotlib's "inferno", scaled to its own highest value.

    A map that is all zero leaves the gray image; the side in pixels is a multiple of the image's.
    """
    gray = Image.fromarray(to_bytes(image)).convert("L").resize((side, side), Image.Resampling.NEAREST)
    highest = float(heat.max())
    scaled = heat.float() / highest if highest > 0 else torch.zeros_like(heat, dtype=torch.float32)
    smooth = F.interpolate(scaled[None, None], (side, side), mode="bilinear", align_corners=False)[0, 0]
    level = smooth.clamp(0, 1).cpu().numpy()
    colors = 255 * matplotlib.colormaps[_HEAT](level)[..., :3]
    cover = _STRONGEST * np.sqrt(level)[..., None]  # the root lets weak heat be seen
    mixed = np.asarray(gray, dtype=np.float64)[..., None] * (1 - cover) + colors * cover
    return Image.fromarray(mixed.round().astype(np.uint8))


def _write_foot(sheet: Sheet, lines: Sequence[str], top: int) -> None:
    """Write what the colors mean, then the lines."""
    length, thickness = _BAR
    ramp = 255 * matplotlib.colormaps[_HEAT](np.linspace(0, 1, length))[:, :3]
    bar = np.broadcast_to(ramp.round().astype(np.uint8), (thickness, length, 3))
    sheet.text(MARGIN, top + thickness // 2, "0", 12, anchor="lm")
    sheet.image.paste(Image.fromarray(np.ascontiguousarray(bar)), (MARGIN + 14, top))
    sheet.text(MARGIN + 22 + length, top + thickness // 2, "highest of the panel", 12, anchor="lm")
    for number, line in enumerate(lines):
        sheet.text(MARGIN, top + 24 + 18 * number, line, 12)


@dataclass(frozen=True)
class Thumbnail:
    """One RGB picture of a contact sheet, of any size, or an empty frame, and the lines below it."""

    picture: Image.Image | None
    lines: tuple[str, ...]


def contact_sheet(title: str, thumbnails: Sequence[Thumbnail], path: Path) -> Path:
    """Write a PNG of pictures under a title, each whole and in a square of its own, in rows of at most five."""
    if not thumbnails:
        raise ValueError("no picture to draw")
    columns = min(5, len(thumbnails))
    step = _THUMBNAIL + _LINE * max(len(one.lines) for one in thumbnails) + GAP
    width = 2 * MARGIN + columns * (_THUMBNAIL + GAP) - GAP
    above = 2 * MARGIN + _LINE
    sheet = Sheet(width, above + math.ceil(len(thumbnails) / columns) * step)
    sheet.text(MARGIN, MARGIN, _end_of(title, width - 2 * MARGIN), 14)
    for number, one in enumerate(thumbnails):
        left, top = MARGIN + number % columns * (_THUMBNAIL + GAP), above + number // columns * step
        if one.picture is None:
            sheet.draw.rectangle((left, top, left + _THUMBNAIL - 1, top + _THUMBNAIL - 1), fill=_NOTHING)
        else:
            scale = _THUMBNAIL / max(one.picture.size)
            size = (max(1, round(one.picture.width * scale)), max(1, round(one.picture.height * scale)))
            small = one.picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
            middle = (left + (_THUMBNAIL - size[0]) // 2, top + (_THUMBNAIL - size[1]) // 2)
            sheet.image.paste(small, middle)
        for line, text in enumerate(one.lines):
            sheet.text(left, top + _THUMBNAIL + line * _LINE + 2, _end_of(text, _THUMBNAIL), 14)
    return sheet.save(path)


def _end_of(text: str, width: int) -> str:
    """Return a text, of which the front is left out where it is too wide; a path's end tells more."""
    shown = full = printable(text.replace("\n", " "))
    while shown and font(14).getlength(shown if shown == full else f"...{shown}") > width:
        shown = shown[1:]
    return shown if shown == full else f"...{shown}"


def to_bytes(image: Float[Tensor, "3 H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Return an image with pixels in [0, 1] as bytes; values outside are clipped."""
    pixels = image.detach().float().clamp(0, 1).mul(255).round().byte()
    return pixels.permute(1, 2, 0).cpu().numpy()


def enlarged(image: Float[Tensor, "3 H W"], scale: int) -> Image.Image:
    """Return the picture with every pixel `scale` pixels wide."""
    picture = Image.fromarray(to_bytes(image))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def patch_colors(image: Float[Tensor, "3 H W"], grid: int) -> list[Color]:
    """Return the mean color of each patch, rows of the grid first."""
    side = image.shape[-1] // grid
    means = image.detach().float().clamp(0, 1).reshape(3, grid, side, grid, side).mean((2, 4))
    rows: list[list[int]] = means.mul(255).round().int().flatten(1).T.tolist()
    return [(red, green, blue) for red, green, blue in rows]


def word_colors(image: Float[Tensor, "3 H W"], count: int, grid: int) -> list[Color]:
    """Return the background of each word: the mean color of its patch, white where words belong to no place."""
    return patch_colors(image, grid) if grid else [(255, 255, 255)] * count


def panel_side(count: int, grid: int) -> int:
    """Return how many words stand side by side."""
    return grid or math.ceil(count**0.5)


def ink_on(color: Color) -> Color:
    """Return black or white, whichever has more contrast on a color (WCAG 2 relative luminance)."""
    channels = (channel / 255 for channel in color)  # whose gamma is undone
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # The contrasts with white and black, 1.05 / (L + 0.05) and (L + 0.05) / 0.05, are equal at L = 0.179.
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def word_panel(words: Sequence[str], colors: Sequence[Color], side: int) -> Image.Image:
    """Return a square picture, so many pixels wide, of words, each in its cell on its color."""
    grid = panel_side(len(words), 0)
    cell = side // grid
    panel = Sheet(side, side)
    for place, (word, color) in enumerate(zip(words, colors, strict=True)):
        left, top = place % grid * cell, place // grid * cell
        panel.draw.rectangle((left, top, left + cell - 1, top + cell - 1), fill=color)
        text, size = fitted(word, cell)
        middle = {"anchor": "mm", "align": "center", "spacing": 1}
        panel.text(left + cell / 2, top + cell / 2, text, size, ink_on(color), **middle)
    return panel.image


@lru_cache(maxsize=65536)
def fitted(word: str, cell: int) -> tuple[str, int]:
    """Return a word, broken into lines where it must be, and the largest font size that fits a cell in pixels."""
    best = (word, 0)
    for num_lines in (1, 2, 3):
        length = max(1, math.ceil(len(word) / num_lines))
        parts = [word[start : start + length] for start in range(0, len(word), length)] or [""]
        text = BREAK.join(parts)
        room = cell - 2 * _PADDING
        size = int(min(room / max(line_width(text), 1e-6), room / (1.25 * len(parts)), cell / 4))
        if size > best[1]:
            best = (text, size)
        if best[1] >= _READABLE:
            break
    return best[0], max(best[1], 1)


def line_width(text: str) -> float:
    """Return the width of the widest line of a text, in units of the font size."""
    return max(font(100).getlength(line) for line in text.split("\n")) / 100


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which matplotlib carries, at a size in pixels."""
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )
