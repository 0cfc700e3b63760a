"""Pictures of images beside the words that stand for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# Sides in pixels.
_MARGIN = 16
_GAP = 12
_TITLE = 30
_LINE = 20
_SMALLEST_CELL = 80
_SMALLEST_CELL_OF_MANY = 64
_SMALLEST_PANEL = 256
_PADDING = 3
# Below this a word is broken into lines rather than written smaller.
_READABLE = 11

_PAPER = (255, 255, 255)
_INK = (32, 32, 36)

Color = tuple[int, int, int]

# What stands where a word is broken.
BREAK = "-\n"


def reconstruction_grid(
    originals: Float[Tensor, "E 3 H W"],
    reconstructions: Float[Tensor, "E 3 H W"],
    words: Sequence[Sequence[str]] | None,
    grid: int,
    path: Path,
) -> Path:
    """Write a PNG with one row for each image: original, its words where they belong, reconstruction.

    Pixels are enlarged by a whole factor, so that they stay pixels. A cell has its patch's mean color.

    Args:
        originals: square images with pixels in [0, 1].
        reconstructions: pixels in [0, 1]; values outside are clipped.
        words: grid x grid words for each image, rows of the grid first; None leaves the column out.
        grid: words along one side of the image.
        path: where to write.

    Returns:
        The path.

    Raises:
        ValueError: no image, images that are not square, or a number of words that is not grid x grid.
    """
    _check(originals, reconstructions, words, grid)
    scale = _scale(originals.shape[-1], grid if words is not None else 1)
    titles = ["original", "reconstruction"]
    if words is not None:
        titles.insert(1, "words, each on its patch's mean color")
    rows = []
    for row, (original, reconstruction) in enumerate(zip(originals, reconstructions, strict=True)):
        panels = [enlarged(original, scale), enlarged(reconstruction, scale)]
        if words is not None:
            panels.insert(1, word_panel(words[row], patch_colors(original, grid), panels[0].width))
        rows.append(panels)
    return _write_sheet(titles, rows, path)


def image_columns(columns: Mapping[str, Float[Tensor, "E 3 H W"]], path: Path) -> Path:
    """Write a PNG with one column of images under each title, enlarged by a whole factor.

    Args:
        columns: as many square images of one size under each title, pixels in [0, 1], values outside clipped.
        path: where to write.

    Returns:
        The path.

    Raises:
        ValueError: no image, or columns of different shapes.
    """
    shapes = {tuple(images.shape) for images in columns.values()}
    if len(shapes) != 1 or 0 in next(iter(shapes)):
        raise ValueError(
            f"expected columns of as many images of one size, one or more, got {shapes or 'none'}"
        )
    scale = _scale(next(iter(shapes))[-1], 1)
    rows = [[enlarged(image, scale) for image in row] for row in zip(*columns.values(), strict=True)]
    return _write_sheet(list(columns), rows, path)


def labeled_rows(columns: Mapping[str, Float[Tensor, "E 3 H W"]], labels: Sequence[str], path: Path) -> Path:
    """Write a PNG with one column of images under each title and lines of text below each row.

    Args:
        columns: as `image_columns`.
        labels: a text for each row, its lines cut to the width.
        path: where to write.

    Returns:
        The path.
    """
    images = next(iter(columns.values()))
    scale = _scale(images.shape[-1], 1)
    side = scale * images.shape[-1]
    width = 2 * _MARGIN + len(columns) * (side + _GAP) - _GAP
    lines = [label.split("\n") for label in labels]
    step = side + _TITLE + _GAP + _LINE * (max(map(len, lines), default=1) - 1)
    sheet = Image.new("RGB", (width, 2 * _MARGIN + _TITLE + len(images) * step), _PAPER)
    draw = ImageDraw.Draw(sheet)
    letters = int((width - 2 * _MARGIN) / 8.2)
    for column, (title, rows) in enumerate(columns.items()):
        left = _MARGIN + column * (side + _GAP)
        _draw_title(draw, title, left, side)
        for row, image in enumerate(rows):
            sheet.paste(enlarged(image, scale), (left, _MARGIN + _TITLE + row * step))
    for row, texts in enumerate(lines):
        shown = "\n".join(text if len(text) <= letters else text[: letters - 3] + "..." for text in texts)
        draw.text((_MARGIN, _MARGIN + _TITLE + row * step + side + 4), shown, fill=_INK, font=font(15))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path


def _write_sheet(titles: Sequence[str], rows: Sequence[Sequence[Image.Image]], path: Path) -> Path:
    """Write rows of square panels of one size under their titles."""
    side = rows[0][0].width
    width = 2 * _MARGIN + len(titles) * side + (len(titles) - 1) * _GAP
    height = 2 * _MARGIN + _TITLE + len(rows) * side + (len(rows) - 1) * _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        _draw_title(draw, title, _MARGIN + column * (side + _GAP), side)
    for row, panels in enumerate(rows):
        top = _MARGIN + _TITLE + row * (side + _GAP)
        for column, panel in enumerate(panels):
            sheet.paste(panel, (_MARGIN + column * (side + _GAP), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path


def _draw_title(draw: ImageDraw.ImageDraw, title: str, left: int, side: int) -> None:
    """Write the title of a column no wider than the column."""
    size = next((size for size in range(18, 8, -1) if font(size).getlength(title) <= side), 8)
    draw.text((left, _MARGIN), title, fill=_INK, font=font(size))


def _check(
    originals: Tensor, reconstructions: Tensor, words: Sequence[Sequence[str]] | None, grid: int
) -> None:
    """Raise `ValueError` for what cannot be drawn."""
    if len(originals) == 0:
        raise ValueError("no image to draw")
    if originals.shape != reconstructions.shape:
        raise ValueError(
            f"expected reconstructions of {tuple(originals.shape)}, got {tuple(reconstructions.shape)}"
        )
    if originals.shape[-1] != originals.shape[-2] or originals.shape[-1] % grid:
        raise ValueError(
            f"expected square images that {grid} x {grid} words tile, got {tuple(originals.shape)}"
        )
    if words is not None and [len(row) for row in words] != [grid * grid] * len(originals):
        raise ValueError(
            f"expected {grid * grid} words for each of {len(originals)} images, "
            f"got {[len(row) for row in words]}"
        )


def _scale(image_size: int, grid: int) -> int:
    """Return the whole factor by which images are enlarged."""
    if grid == 1:
        return math.ceil(_SMALLEST_PANEL / image_size)
    cell = _SMALLEST_CELL if grid <= 8 else _SMALLEST_CELL_OF_MANY
    return math.ceil(cell * grid / image_size)


def to_bytes(image: Float[Tensor, "3 H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Return an image with pixels in [0, 1] as bytes; values outside are clipped."""
    pixels: UInt8[np.ndarray, "H W 3"] = (
        image.detach().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    )
    return pixels


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


def ink_on(color: Color) -> Color:
    """Return black or white, whichever has more contrast on a color (WCAG 2 relative luminance)."""
    red, green, blue = (_linear(channel / 255) for channel in color)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # The contrasts with white and black, 1.05 / (L + 0.05) and (L + 0.05) / 0.05, are equal at L = 0.179.
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def _linear(channel: float) -> float:
    """Undo the gamma of sRGB."""
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)


def word_panel(words: Sequence[str], colors: Sequence[Color], side: int) -> Image.Image:
    """Return a square picture with each word in its cell.

    Args:
        words: grid x grid words, rows of the grid first.
        colors: background of each cell.
        side: of the picture, in pixels, a multiple of the grid.
    """
    grid = math.isqrt(len(words))
    cell = side // grid
    panel = Image.new("RGB", (side, side), _PAPER)
    draw = ImageDraw.Draw(panel)
    for place, (word, color) in enumerate(zip(words, colors, strict=True)):
        left, top = place % grid * cell, place // grid * cell
        draw.rectangle((left, top, left + cell - 1, top + cell - 1), fill=color)
        text, size = fitted(word, cell)
        center = (left + cell / 2, top + cell / 2)
        draw.multiline_text(
            center, text, fill=ink_on(color), font=font(size), anchor="mm", align="center", spacing=1
        )
    return panel


@lru_cache(maxsize=65536)
def fitted(word: str, cell: int) -> tuple[str, int]:
    """Return a word, broken into lines where it must be, and the largest font size that fits a cell.

    Args:
        word: the text.
        cell: side of the cell in pixels.
    """
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
