"""Images under the heat of words: what in them speaks for a score; PNG files."""

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
from PIL import Image
from torch import Tensor

from pixlex.eval.gradcam import Explanation
from pixlex.report.figures import GAP, MARGIN, SOFT, Sheet, enlarged, line_width, to_bytes

# Heat, in pixels.
_HEATED, _LABEL, _FOOT, _BAR = 176, 44, 66, (260, 12)
_HEAT = "inferno"
# Weight of the heat's color where a map is highest; the rest is the image, without its own colors.
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
        images: Square, pixels in [0, 1].
        explanations: One of each image, of the same text.
        answer: The answer that is explained; empty where it is none.
    """
    assert len(images) == len(explanations)
    assert images.shape[-1] == images.shape[-2]
    side = math.ceil(_HEATED / images.shape[-1]) * images.shape[-1]
    highest = max(float(one.maps.max()) for one in explanations)
    columns = min(6, 2 + len(explanations[0].words))
    rows = math.ceil((2 + len(explanations[0].words)) / columns)
    step = side + _LABEL + GAP
    width = 2 * MARGIN + columns * (side + GAP) - GAP
    first = explanations[0]
    what = f'log-likelihood of the answer "{answer}"' if answer else _SCORES[first.explained]
    cut = f"; cut, not read: {' '.join(first.left_out)}" if first.left_out else ""
    said = (
        f"{what} {first.score:.3f}; cross-attention of fusion layer {first.layer}; each panel in its own scale, "
        f"its highest value in percent of the highest of all words{cut}"
    )
    foot = textwrap.wrap(said, max(20, int((width - 2 * MARGIN) / 7.2)))
    end = MARGIN + len(images) * rows * step
    sheet = Sheet(width, end + MARGIN + _FOOT + 18 * (len(foot) - 1))
    for block, (image, one) in enumerate(zip(images, explanations, strict=True)):
        name = f"image {block + 1}" if len(images) > 1 else "the image"
        panels = [(name, "", enlarged(image, side // images.shape[-1]))]
        for word, heat in (("whole text", one.whole), *zip(one.words, one.maps, strict=True)):
            note = "" if heat.max() > 0 else "no heat"
            if heat.max() > 0 and heat is not one.whole:
                note = f"up to {100 * float(heat.max()) / highest:.0f} %"
            panels.append((word, note, heated(image, heat, side)))
        for number, (label, note, panel) in enumerate(panels):
            left = MARGIN + number % columns * (side + GAP)
            top = MARGIN + (block * rows + number // columns) * step
            sheet.image.paste(panel, (left, top))
            sheet.text(left, top + side + 4, _start_of(label, side), 15)
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


def _start_of(label: str, side: int) -> str:
    """Cut a label to the width of its panel."""
    while len(label) > 1 and 15 * line_width(label) > side:
        label = label[:-2] + "…"
    return label


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
