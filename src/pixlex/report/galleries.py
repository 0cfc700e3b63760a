"""Figures of what CB-ViLA makes of images: patches of codewords, rebuilt pairs; PNG files."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

from pixlex.config.fields import Cut
from pixlex.data.decoding import UnreadableImage, decode_record, evaluation_transform
from pixlex.data.sources import ImageSource
from pixlex.progress import bar_or_lines
from pixlex.report.figures import Sheet, enlarged, image_columns

# Codewords, in pixels; patches in a row, and surroundings on each side, by which one sees what a patch is part of.
_PATCH, _PATCH_GAP, _CODEWORD = 72, 6, 118
_PATCHES, _AROUND = 14, 1
_FRAME = (214, 60, 40)


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
