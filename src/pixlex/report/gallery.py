"""Codewords, each with patches that it stands for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

from pixlex.config.data import Cut
from pixlex.data.images import ImageSource
from pixlex.eval.few_shot.readers import read_pixels
from pixlex.report.pictures import enlarged, font

# In pixels.
_SIDE = 72
_GAP = 6
_LABEL = 118
_PATCHES = 14
# Patches of surroundings on each side, by which one sees what a patch is part of.
_AROUND = 1
_FRAME = (214, 60, 40)


def choose_codewords(
    codes: Int[Tensor, "I N"], num_codewords: int, seed: int = 0, least: int = 4
) -> list[int]:
    """Return codewords drawn at random from those used `least` times or more, ascending.

    Args:
        codes: of a set of images.
        num_codewords: how many; fewer where there are not as many.
        seed: of the draw.
        least: uses below which a codeword is not drawn; fewer where no codeword has as many.
    """
    counts = torch.bincount(codes.flatten())
    used = (counts >= min(least, int(counts.max()))).nonzero().flatten().numpy()
    drawn = np.random.default_rng(seed).permutation(used)[:num_codewords]
    return sorted(int(code) for code in drawn)


def codeword_gallery(
    images: ImageSource,
    indices: Int[Tensor, " I"],
    codes: Int[Tensor, "I N"],
    *,
    image_size: int,
    cut: Cut = "center",
    grid: int,
    num_codewords: int = 12,
    seed: int = 0,
    path: Path,
) -> Path:
    """Write a PNG with a row for each of some codewords: patches of as many images as possible that have it.

    As figure 3 of CB-ViLA. A patch is shown with its surroundings, framed.

    Args:
        images: the source of the images.
        indices: where the images lie in it.
        codes: of each image, rows of the grid first.
        image_size: side in pixels that they were encoded at.
        cut: how they became square.
        grid: patches along one side.
        num_codewords: rows.
        seed: of the draw of codewords and patches.
        path: where to write.

    Returns:
        The path.
    """
    chosen = choose_codewords(codes, num_codewords, seed)
    counts = torch.bincount(codes.flatten())
    places = {code: _spread_out((codes == code).nonzero(), seed) for code in chosen}
    wanted = sorted({int(indices[row]) for found in places.values() for row, _ in found})
    pixels: dict[int, Float[Tensor, "3 H W"]] = {}
    for positions, batch in read_pixels(images, wanted, image_size, "patches", cut):
        pixels.update(zip(positions, batch, strict=True))
    width = 2 * _GAP + _LABEL + _PATCHES * (_SIDE + _GAP)
    sheet = Image.new("RGB", (width, _GAP + max(1, len(chosen)) * (_SIDE + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for line, code in enumerate(chosen):
        top = _GAP + line * (_SIDE + _GAP)
        share = float(counts[code]) / codes.numel()
        label = f"codeword {code}\n{int(counts[code])} patches\n{share:.2%}"
        draw.multiline_text((_GAP, top + 8), label, fill=(32, 32, 36), font=font(13), spacing=3)
        for column, (row, patch) in enumerate(places[code]):
            image = pixels.get(int(indices[row]))
            if image is not None:
                left = _GAP + _LABEL + column * (_SIDE + _GAP)
                sheet.paste(_framed(image, patch, grid), (left, top))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path


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
    scale = math.ceil(_SIDE / window)
    crop = enlarged(image[:, top : top + window, left : left + window], scale)
    first = ((column * side - left) * scale, (row * side - top) * scale)
    last = (first[0] + side * scale - 1, first[1] + side * scale - 1)
    ImageDraw.Draw(crop).rectangle((first, last), outline=_FRAME, width=max(1, scale // 2))
    return crop.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
