"""Pictures side by side, as they are, each with a few words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from pixlex.messages import printable
from pixlex.report.pictures import font

# Sides in pixels.
_SIDE = 220
_MARGIN = 16
_GAP = 12
_LINE = 20
_LETTERS = 14
_MOST_COLUMNS = 5

_PAPER, _INK, _NOTHING = (255, 255, 255), (32, 32, 36), (228, 228, 232)


@dataclass(frozen=True)
class Thumbnail:
    """One picture of a sheet.

    Attributes:
        picture: RGB, of any size; None draws an empty frame.
        lines: what stands below it.
    """

    picture: Image.Image | None
    lines: tuple[str, ...]


def contact_sheet(title: str, thumbnails: Sequence[Thumbnail], path: Path) -> Path:
    """Write a PNG of pictures, each whole and in a square of its own, in rows of at most five.

    Args:
        title: stands above.
        thumbnails: one or more.
        path: where to write; its folder is made if missing.

    Returns:
        The path.

    Raises:
        ValueError: no picture.
    """
    if not thumbnails:
        raise ValueError("no picture to draw")
    columns = min(_MOST_COLUMNS, len(thumbnails))
    step = _SIDE + _LINE * max(len(one.lines) for one in thumbnails) + _GAP
    width = 2 * _MARGIN + columns * (_SIDE + _GAP) - _GAP
    top = 2 * _MARGIN + _LINE
    sheet = Image.new("RGB", (width, top + math.ceil(len(thumbnails) / columns) * step), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), _fitting(title, width - 2 * _MARGIN), fill=_INK, font=font(_LETTERS))
    for number, one in enumerate(thumbnails):
        row, column = divmod(number, columns)
        left, upper = _MARGIN + column * (_SIDE + _GAP), top + row * step
        _place(sheet, draw, one.picture, left, upper)
        for line, text in enumerate(one.lines):
            below = (left, upper + _SIDE + line * _LINE + 2)
            draw.text(below, _fitting(text, _SIDE), fill=_INK, font=font(_LETTERS))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path


def _place(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Image.Image | None, left: int, upper: int
) -> None:
    """Put a picture, or an empty frame, into the middle of its square."""
    if picture is None:
        draw.rectangle((left, upper, left + _SIDE - 1, upper + _SIDE - 1), fill=_NOTHING)
        return
    scale = _SIDE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    small = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    sheet.paste(small, (left + (_SIDE - width) // 2, upper + (_SIDE - height) // 2))


def _fitting(text: str, width: int) -> str:
    """Return a text, of which the front is left out where it is too wide; a path's end tells more."""
    shown = printable(text.replace("\n", " "))
    letters = font(_LETTERS)
    if letters.getlength(shown) <= width:
        return shown
    while shown and letters.getlength(f"...{shown}") > width:
        shown = shown[1:]
    return f"...{shown}"
