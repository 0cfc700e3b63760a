"""Pictures of images beside what is said of them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from pixlex.report.pictures import enlarged, font

# In pixels, but for the letters of a line.
_SIDE = 192
_MARGIN = 16
_TEXT = 560
_LETTERS = 62


@dataclass(frozen=True)
class Captioned:
    """Images with what is said of them.

    Attributes:
        images: pixels in [0, 1], one or more, shown side by side.
        texts: a paragraph each.
    """

    images: Float[Tensor, "n 3 H W"]
    texts: tuple[str, ...]


def captioned_images(shown: Sequence[Captioned], path: Path) -> Path:
    """Write a PNG with one row for each item: its images, and its texts to the right of them.

    Args:
        shown: one or more, of images of one size and number.
        path: where to write.

    Returns:
        The path.

    Raises:
        ValueError: nothing to show.
    """
    if not shown:
        raise ValueError("expected one image or more with what is said of it, got none")
    rows = torch.stack([torch.cat(list(one.images), dim=-1) for one in shown])
    scale = math.ceil(_SIDE / rows.shape[-2])
    side, width = scale * rows.shape[-2], scale * rows.shape[-1]
    size = (3 * _MARGIN + width + _TEXT, _MARGIN + len(rows) * (side + _MARGIN))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, (image, one) in enumerate(zip(rows, shown, strict=True)):
        top = _MARGIN + row * (side + _MARGIN)
        sheet.paste(enlarged(image, scale), (_MARGIN, top))
        lines = [line for paragraph in one.texts for line in [*textwrap.wrap(paragraph, _LETTERS), ""]]
        # What would reach into the next row is left out.
        beside = "\n".join(lines[: side // 20])
        draw.multiline_text((2 * _MARGIN + width, top), beside, fill=(32, 32, 36), font=font(15), spacing=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path
