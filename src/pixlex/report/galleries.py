"""Figures of what models make of images: heat of words, patches of codewords, rebuilt pairs; PNG files."""

from __future__ import annotations

import contextlib
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

from pixlex.config.fields import Cut
from pixlex.data.decoding import UnreadableImage, decode_record, evaluation_transform
from pixlex.data.sources import ImageSource
from pixlex.eval.gradcam import Explanation
from pixlex.progress import bar_or_lines
from pixlex.report.figures import GAP, MARGIN, SOFT, Sheet, enlarged, image_columns, line_width, to_bytes

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

# Codewords, in pixels; patches in a row, and surroundings on each side, by which one sees what a patch is part of.
_PATCH, _PATCH_GAP, _CODEWORD = 72, 6, 118
_PATCHES, _AROUND = 14, 1
_FRAME = (214, 60, 40)


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


def codeword_gallery(
    images: ImageSource,
    indices: Int[Tensor, " I"],
    codes: Int[Tensor, "I N"],
    path: Path,
    *,
    image_size: int,
    cut: Cut = "center",
    num_codewords: int = 12,
    seed: int = 0,
) -> Path:
    """Write a PNG with a row for each of some codewords: patches of as many images as possible that have it.

    As figure 3 of CB-ViLA. A patch is shown with its surroundings, framed.

    Args:
        indices: Where the images lie in their source.
        codes: Of each image, rows of its square grid first.
        image_size, cut: How they were encoded.
        seed: Of the draw of codewords and patches.
    """
    chosen = choose_codewords(codes, num_codewords, seed)
    counts = torch.bincount(codes.flatten())
    places = {code: _spread_out((codes == code).nonzero(), seed) for code in chosen}
    wanted = sorted({int(indices[row]) for found in places.values() for row, _ in found})
    pixels: dict[int, Float[Tensor, "3 H W"]] = {}
    # A bar on a terminal alone, after a second.
    quiet: dict[str, Any] = {"delay": 1, "leave": False, "disable": None}
    for index in bar_or_lines(wanted, unit=" images", desc="read: patches", **quiet):
        with contextlib.suppress(UnreadableImage):
            pixels[index] = evaluation_transform(decode_record(images.read(index)), image_size, cut)
    step = _PATCH + _PATCH_GAP
    sheet = Sheet(2 * _PATCH_GAP + _CODEWORD + _PATCHES * step, _PATCH_GAP + max(1, len(chosen)) * step)
    for line, code in enumerate(chosen):
        top = _PATCH_GAP + line * step
        frequency = float(counts[code]) / codes.numel()
        label = f"codeword {code}\n{int(counts[code])} patches\n{frequency:.2%}"
        sheet.text(_PATCH_GAP, top + 8, label, 13, spacing=3)
        for column, (row, patch) in enumerate(places[code]):
            image = pixels.get(int(indices[row]))
            if image is not None:
                framed = _framed(image, patch, math.isqrt(codes.shape[1]))
                sheet.image.paste(framed, (_PATCH_GAP + _CODEWORD + column * step, top))
    return sheet.save(path)


def reconstructed_pairs(examples: Mapping[str, Any], path: Path) -> Path:
    """Write a PNG of `reconstructed_examples`: a row for each image, rebuilt with two texts, and both below it."""
    columns = {
        "original": "originals", "masked": "visible", "rebuilt": "reconstructions",
        "with another text": "other_reconstructions",
    }  # fmt: skip
    pairs = zip(examples["texts"], examples["other_texts"], strict=True)
    labels = [f"{text}\nother text: {other or '(none)'}" for text, other in pairs]
    return image_columns({title: examples[name] for title, name in columns.items()}, path, labels)


def choose_codewords(
    codes: Int[Tensor, "I N"], num_codewords: int, seed: int = 0, least: int = 4
) -> list[int]:
    """Return codewords drawn at random from those used `least` times or more, ascending.

    Where no codeword is used as often, those that are used most; fewer where there are not as many.
    """
    counts = torch.bincount(codes.flatten())
    used = (counts >= min(least, int(counts.max()))).nonzero().flatten().numpy()
    drawn = np.random.default_rng(seed).permutation(used)[:num_codewords]
    return sorted(int(code) for code in drawn)


def _spread_out(found: Int[Tensor, "F 2"], seed: int) -> list[tuple[int, int]]:
    """Return (row, patch) of some patches at random, of other images first."""
    order = np.random.default_rng(seed).permutation(len(found))
    seen: dict[int, int] = {}
    ranked: list[tuple[int, int, int, int]] = []
    for place in order:
        row, patch = (int(one) for one in found[place])
        ranked.append((seen.get(row, 0), len(ranked), row, patch))
        seen[row] = seen.get(row, 0) + 1
    return [(row, patch) for _, _, row, patch in sorted(ranked)[:_PATCHES]]


def _framed(image: Float[Tensor, "3 H W"], patch: int, grid: int) -> Image.Image:
    """Return a patch with its surroundings, a frame around the patch itself."""
    side = image.shape[-1] // grid
    row, column = divmod(patch, grid)
    window = min((2 * _AROUND + 1) * side, image.shape[-1])
    top = min(max(0, (row - _AROUND) * side), image.shape[-1] - window)
    left = min(max(0, (column - _AROUND) * side), image.shape[-1] - window)
    scale = math.ceil(_PATCH / window)
    crop = enlarged(image[:, top : top + window, left : left + window], scale)
    first = ((column * side - left) * scale, (row * side - top) * scale)
    last = (first[0] + side * scale - 1, first[1] + side * scale - 1)
    ImageDraw.Draw(crop).rectangle((first, last), outline=_FRAME, width=max(1, scale // 2))
    return crop.resize((_PATCH, _PATCH), Image.Resampling.LANCZOS)
