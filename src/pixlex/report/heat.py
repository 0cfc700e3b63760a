"""Pictures of what each word of a text finds in an image."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from pixlex.eval.gradcam import Explanation
from pixlex.report.pictures import enlarged, font, line_width, to_bytes

# In pixels.
_SIDE = 176
_GAP = 12
_MARGIN = 16
_LABEL = 44
_FOOT = 66
_BAR = (260, 12)
_LETTER = 15
_SMALL = 12

_COLUMNS = 6
_INK = (32, 32, 36)
_PALE = (110, 110, 116)
_COLORS = "inferno"
# Share of the heat's color where a map is highest; the rest is the image, without its own colors.
_STRONGEST = 0.85
_SCORES = {
    "matching": "logit of belonging",
    "masked_language": "log-probability of the words, each hidden,",
    "answer": "log-likelihood of the answer",
}


def explained_image(
    images: Float[Tensor, "n 3 H W"], explanations: Sequence[Explanation], path: Path, *, answer: str = ""
) -> Path:
    """Write a PNG: for each image itself, and under the heat of the whole text and of each word.

    Each panel is scaled to its own highest value, because a word that says little would else show nothing. How
    high that is, in percent of the highest among the words, stands under the word; where there is no heat at all,
    that stands there. Between the centers of patches heat is interpolated linearly.

    Args:
        images: square, pixels in [0, 1].
        explanations: one of each image, of the same text.
        path: where to write.
        answer: the answer that is explained; empty where it is none.

    Returns:
        The path.

    Raises:
        ValueError: images that are not square, or another number of explanations.
    """
    if len(images) != len(explanations) or not explanations:
        raise ValueError(
            f"expected one explanation for each image, got {len(explanations)} for {len(images)}"
        )
    if images.shape[-1] != images.shape[-2]:
        raise ValueError(f"expected square images, got {tuple(images.shape)}")
    scale = math.ceil(_SIDE / images.shape[-1])
    side = scale * images.shape[-1]
    top_of_all = max(float(one.maps.max()) for one in explanations)
    blocks = [
        _panels(image, one, scale, top_of_all, f"image {number}" if len(images) > 1 else "the image")
        for number, (image, one) in enumerate(zip(images, explanations, strict=True), start=1)
    ]
    columns = min(_COLUMNS, len(blocks[0]))
    step = side + _LABEL + _GAP
    width = 2 * _MARGIN + columns * (side + _GAP) - _GAP
    lines = _foot(explanations[0], answer, width)
    rows = math.ceil(len(blocks[0]) / columns)
    height = 2 * _MARGIN + len(blocks) * rows * step + _FOOT + 18 * (len(lines) - 1)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for block, panels in enumerate(blocks):
        for number, (label, note, panel) in enumerate(panels):
            left = _MARGIN + number % columns * (side + _GAP)
            top = _MARGIN + (block * rows + number // columns) * step
            sheet.paste(panel, (left, top))
            draw.text((left, top + side + 4), _shortened(label, side), fill=_INK, font=font(_LETTER))
            draw.text((left, top + side + 24), note, fill=_PALE, font=font(_SMALL))
    _write_foot(sheet, draw, lines, _MARGIN + len(blocks) * rows * step)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path


def _panels(
    image: Tensor, explanation: Explanation, scale: int, top_of_all: float, name: str
) -> list[tuple[str, str, Image.Image]]:
    """Return label, note and picture of each panel of an image."""
    side = scale * image.shape[-1]
    panels = [(name, "", enlarged(image, scale))]
    panels.append(("whole text", _no_heat(explanation.whole), heated(image, explanation.whole, side)))
    for word, heat in zip(explanation.words, explanation.maps, strict=True):
        share = f"up to {100 * float(heat.max()) / top_of_all:.0f} %" if top_of_all > 0 else ""
        panels.append((word, _no_heat(heat) or share, heated(image, heat, side)))
    return panels


def heated(image: Float[Tensor, "3 H W"], heat: Float[Tensor, "grid grid"], side: int) -> Image.Image:
    """Return an image in gray under a map in matplotlib's "inferno", scaled to its own highest value.

    Args:
        image: square, pixels in [0, 1].
        heat: 0 or more; all zero leaves the gray image.
        side: of the picture in pixels, a multiple of the image's.
    """
    gray = Image.fromarray(to_bytes(image)).convert("L").resize((side, side), Image.Resampling.NEAREST)
    highest = float(heat.max())
    shares = heat.float() / highest if highest > 0 else torch.zeros_like(heat, dtype=torch.float32)
    smooth = F.interpolate(shares[None, None], (side, side), mode="bilinear", align_corners=False)[0, 0]
    level = smooth.clamp(0, 1).cpu().numpy()
    colors = 255 * matplotlib.colormaps[_COLORS](level)[..., :3]
    cover = _STRONGEST * np.sqrt(level)[..., None]  # the root lets weak heat be seen
    mixed = np.asarray(gray, dtype=np.float64)[..., None] * (1 - cover) + colors * cover
    return Image.fromarray(mixed.round().astype(np.uint8))


def _no_heat(heat: Tensor) -> str:
    return "" if float(heat.max()) > 0 else "no heat"


def _shortened(label: str, side: int) -> str:
    """Cut a label to the width of its panel."""
    while len(label) > 1 and _LETTER * line_width(label) > side:
        label = label[:-2] + "…"
    return label


def _foot(explanation: Explanation, answer: str, width: int) -> list[str]:
    left_out = explanation.left_out
    what = f'log-likelihood of the answer "{answer}"' if answer else _SCORES[explanation.explained]
    cut = f"; cut, not read: {' '.join(left_out)}" if left_out else ""
    text = (
        f"{what} {explanation.score:.3f}; "
        f"cross-attention of fusion layer {explanation.layer}; each panel in its own "
        f"scale, its highest value in percent of the highest of all words{cut}"
    )
    return textwrap.wrap(text, max(20, int((width - 2 * _MARGIN) / (0.6 * _SMALL))))


def _write_foot(sheet: Image.Image, draw: ImageDraw.ImageDraw, lines: list[str], top: int) -> None:
    """Write what the colors mean, then the lines."""
    length, thickness = _BAR
    ramp = 255 * matplotlib.colormaps[_COLORS](np.linspace(0, 1, length))[:, :3]
    bar = np.broadcast_to(ramp.round().astype(np.uint8), (thickness, length, 3))
    middle = top + thickness // 2
    draw.text((_MARGIN, middle), "0", fill=_INK, font=font(_SMALL), anchor="lm")
    sheet.paste(Image.fromarray(np.ascontiguousarray(bar)), (_MARGIN + 14, top))
    draw.text(
        (_MARGIN + 22 + length, middle), "highest of the panel", fill=_INK, font=font(_SMALL), anchor="lm"
    )
    for number, line in enumerate(lines):
        draw.text((_MARGIN, top + 24 + 18 * number), line, fill=_INK, font=font(_SMALL))
