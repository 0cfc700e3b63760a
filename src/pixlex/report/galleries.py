"""Figures of what models make of images: heat of words, patches of codewords, answers to episodes; PNG files."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

from pixlex.config.fields import Cut
from pixlex.data.decoding import UnreadableImage, center_box, decode_record
from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.classifiers import Answer
from pixlex.eval.few_shot.episodes import Episode, EpisodeSet, images_of
from pixlex.eval.few_shot.readers import TextReader, read_pixels
from pixlex.eval.few_shot.run import Cell
from pixlex.eval.gradcam import Explanation
from pixlex.eval.pretraining import ReconstructedExamples
from pixlex.report.figures import (
    GAP,
    INK,
    MARGIN,
    Color,
    Sheet,
    enlarged,
    image_columns,
    line_width,
    to_bytes,
)

_SOFT = (110, 110, 116)

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

# Episodes, in pixels; lines of words.
_SHOT, _LINE, _ANSWERS = 144, 14, 460
_WORD_LINES = 5
_RIGHT, _WRONG, _PART = (20, 120, 50), (176, 32, 32), (150, 100, 0)


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
    side = math.ceil(_HEATED / images.shape[-1]) * images.shape[-1]
    highest = max(float(one.maps.max()) for one in explanations)
    columns = min(6, 2 + len(explanations[0].words))
    rows = math.ceil((2 + len(explanations[0].words)) / columns)
    step = side + _LABEL + GAP
    width = 2 * MARGIN + columns * (side + GAP) - GAP
    foot = textwrap.wrap(_foot(explanations[0], answer), max(20, int((width - 2 * MARGIN) / 7.2)))
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
            sheet.text(left, top + side + 24, note, 12, _SOFT)
    _write_foot(sheet, foot, end)
    return sheet.save(path)


def heated(image: Float[Tensor, "3 H W"], heat: Float[Tensor, "grid grid"], side: int) -> Image.Image:
    """Return an image in gray under a map in matplotlib's "inferno", scaled to its own highest value.

    Args:
        image: square, pixels in [0, 1].
        heat: 0 or more; all zero leaves the gray image.
        side: of the picture in pixels, a multiple of the image's.
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


def _foot(explanation: Explanation, answer: str) -> str:
    """Say what is explained, by which layer, and how panels are scaled."""
    what = f'log-likelihood of the answer "{answer}"' if answer else _SCORES[explanation.explained]
    cut = f"; cut, not read: {' '.join(explanation.left_out)}" if explanation.left_out else ""
    return (
        f"{what} {explanation.score:.3f}; cross-attention of fusion layer {explanation.layer}; each panel in its "
        f"own scale, its highest value in percent of the highest of all words{cut}"
    )


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
        images: the source of the images.
        indices: where the images lie in it.
        codes: of each image, rows of its square grid first.
        path: where to write.
        image_size: side in pixels that they were encoded at.
        cut: how they became square.
        num_codewords: rows.
        seed: of the draw of codewords and patches.

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


def reconstructed_pairs(examples: ReconstructedExamples, path: Path) -> Path:
    """Write a PNG with one row for each image: original, masked, rebuilt, rebuilt with another text; both texts.

    Args:
        examples: one or more images.
        path: where to write.

    Returns:
        The path.
    """
    columns = {
        "original": examples.originals,
        "masked": examples.visible,
        "rebuilt": examples.reconstructions,
        "with another text": examples.other_reconstructions,
    }
    pairs = zip(examples.texts, examples.other_texts, strict=True)
    labels = [f"{text}\nother text: {other or '(none)'}" for text, other in pairs]
    return image_columns(columns, path, labels)


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


@dataclass(frozen=True)
class ShownEpisode:
    """An episode with what was answered.

    Attributes:
        episode: the question.
        answers: by who answered.
    """

    episode: Episode
    answers: Mapping[str, Answer]


def draw_episodes(
    shown: Sequence[ShownEpisode], images: ImageSource, words: Mapping[int, str], path: Path
) -> Path:
    """Write a PNG with a row for each episode: support images, the one asked about, the answers.

    Under an image stand its name and the first of its words. Answers are green where right, red where wrong,
    ocher where the credit was shared, grey where there was none.

    Args:
        shown: the episodes; those of one picture should have as many support images.
        images: what they are about.
        words: the text of images by position; an image without text shows none.
        path: where to write.

    Raises:
        ValueError: no episode.
    """
    if not shown:
        raise ValueError("no episode to draw")
    columns = max(len(one.episode.images) for one in shown)
    heights = [
        max(_SHOT + (_WORD_LINES + 2) * _LINE, (len(one.answers) * 2 + 3) * _LINE) + 2 * GAP for one in shown
    ]
    width = 2 * MARGIN + columns * (_SHOT + GAP) + GAP + _ANSWERS
    sheet = Sheet(width, 2 * MARGIN + sum(heights))
    top = MARGIN
    for one, height in zip(shown, heights, strict=True):
        _draw_episode(sheet, one, images, words, top)
        top += height
        sheet.draw.line((MARGIN, top - GAP, width - MARGIN, top - GAP), fill=(220, 220, 226))
    return sheet.save(path)


def _draw_episode(
    sheet: Sheet, shown: ShownEpisode, images: ImageSource, words: Mapping[int, str], top: int
) -> None:
    """Draw the row of one episode."""
    episode = shown.episode
    captions = [*(episode.names[one.name] for one in episode.support), f"? ({episode.names[episode.answer]})"]
    left = MARGIN
    for place, (image, caption) in enumerate(zip(episode.images, captions, strict=True)):
        if place == len(episode.support):
            left += GAP
            frame = (left - 3, top - 3, left + _SHOT + 2, top + _SHOT + 2)
            sheet.draw.rectangle(frame, outline=INK, width=2)
        sheet.image.paste(_thumbnail(images, image), (left, top))
        sheet.text(left, top + _SHOT + 4, caption[:22], 12)
        text = textwrap.shorten(words.get(image, ""), 27 * _WORD_LINES, placeholder=" ...")
        for line, part in enumerate(textwrap.wrap(text, 27)[:_WORD_LINES]):
            sheet.text(left, top + _SHOT + (line + 1.5) * _LINE, part, 10, _SOFT)
        left += _SHOT + GAP
    left += GAP
    sheet.text(left, top, f"episode {episode.number}: {' or '.join(episode.names)}"[:70], 12)
    for line, (name, answer) in enumerate(shown.answers.items()):
        height = top + (2 * line + 1.6) * _LINE
        sheet.text(left, height, name[:78], 10, _SOFT)
        text, color = _judged(answer)
        sheet.text(left + 8, height + _LINE - 2, text[:66], 12, color)


def _judged(answer: Answer) -> tuple[str, Color]:
    """Return an answer and its color."""
    if answer.credit is None:
        return f"no answer: {answer.detail}", _SOFT
    text = " ".join(answer.text.split()) or "(nothing)"
    if answer.credit == 1:
        return text, _RIGHT
    return text, _WRONG if answer.credit == 0 else _PART


def _thumbnail(images: ImageSource, index: int) -> Image.Image:
    """Return the center of an image, pixels as pixels where it is small."""
    try:
        picture = decode_record(images.read(index))
    except UnreadableImage:
        return Image.new("RGB", (_SHOT, _SHOT), (230, 230, 230))
    box = center_box(picture.width, picture.height)
    small = min(picture.size) <= _SHOT
    method = Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
    return picture.resize((_SHOT, _SHOT), method, box=box)


def draw_episode_examples(
    episodes: EpisodeSet,
    cells: Sequence[Cell],
    images: ImageSource,
    reader: TextReader | None,
    path: Path,
    count: int = 4,
) -> Path:
    """Draw the first episodes of a set with what everybody answered.

    Args:
        episodes: the set.
        cells: the answers; those of other settings are left out, and rows that are calculated.
        images: what the episodes are about.
        reader: whose words stand under the images; None for none.
        path: where to write.
        count: how many episodes, at most.
    """
    chosen = episodes.episodes[:count]
    words = reader.read(images, images_of(chosen)) if reader is not None else {}
    answered = [cell for cell in cells if cell.setting == episodes.setting and cell.scorer != "exact"]
    shown = [
        ShownEpisode(
            episode, {f"{cell.answerer} ({cell.scorer})": cell.answers[episode.number] for cell in answered}
        )
        for episode in chosen
    ]
    return draw_episodes(shown, images, words, path)
