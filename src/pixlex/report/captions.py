"""Pictures of images beside what is said of them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from pixlex.report.pictures import enlarged, font

# In pixels, but for the letters of a line.
_SIDE = 192
_MARGIN = 16
_TEXT = 560
_LETTERS = 62


def captioned_images(images: Float[Tensor, "E 3 H W"], texts: Sequence[Sequence[str]], path: Path) -> Path:
    """Write a PNG with one row for each image and its texts to the right of it.

    Args:
        images: pixels in [0, 1], one or more.
        texts: the paragraphs that stand beside each image.
        path: where to write.

    Returns:
        The path.

    Raises:
        ValueError: no image, or another number of texts.
    """
    if len(images) == 0 or len(images) != len(texts):
        raise ValueError(f"expected texts for each of one or more images, got {len(texts)} for {len(images)}")
    scale = math.ceil(_SIDE / images.shape[-2])
    side, width = scale * images.shape[-2], scale * images.shape[-1]
    size = (3 * _MARGIN + width + _TEXT, _MARGIN + len(images) * (side + _MARGIN))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, (image, paragraphs) in enumerate(zip(images, texts, strict=True)):
        top = _MARGIN + row * (side + _MARGIN)
        sheet.paste(enlarged(image, scale), (_MARGIN, top))
        lines = [line for paragraph in paragraphs for line in [*textwrap.wrap(paragraph, _LETTERS), ""]]
        # What would reach into the next row is left out.
        shown = "\n".join(lines[: side // 20])
        draw.multiline_text((2 * _MARGIN + width, top), shown, fill=(32, 32, 36), font=font(15), spacing=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path
