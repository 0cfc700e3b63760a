"""Pictures of episodes: the images, their words, what was answered."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from pixlex.data.decoding import UnreadableImage, decode_record
from pixlex.data.sources import ImageSource
from pixlex.data.transforms import center_box
from pixlex.eval.few_shot.classifiers import Answer
from pixlex.eval.few_shot.episodes import Episode, EpisodeSet, images_of
from pixlex.eval.few_shot.readers import TextReader
from pixlex.eval.few_shot.run import Cell
from pixlex.report.pictures import font

# Sides in pixels.
_SIDE = 144
_GAP = 12
_MARGIN = 16
_LINE = 14
_WORDS_FONT = 10
_WORD_LINES = 5
_ANSWER_WIDTH = 460

_PAPER, _INK, _SOFT = (255, 255, 255), (32, 32, 36), (110, 110, 120)
_RIGHT, _WRONG, _PART = (20, 120, 50), (176, 32, 32), (150, 100, 0)


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
        max(_SIDE + (_WORD_LINES + 2) * _LINE, (len(one.answers) * 2 + 3) * _LINE) + 2 * _GAP for one in shown
    ]
    width = 2 * _MARGIN + columns * (_SIDE + _GAP) + _GAP + _ANSWER_WIDTH
    sheet = Image.new("RGB", (width, 2 * _MARGIN + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for one, height in zip(shown, heights, strict=True):
        _draw_row(sheet, draw, one, images, words, top)
        top += height
        draw.line((_MARGIN, top - _GAP, width - _MARGIN, top - _GAP), fill=(220, 220, 226))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path


def _draw_row(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    shown: ShownEpisode,
    images: ImageSource,
    words: Mapping[int, str],
    top: int,
) -> None:
    episode = shown.episode
    captions = [*(episode.names[one.name] for one in episode.support), f"? ({episode.names[episode.answer]})"]
    left = _MARGIN
    for place, (image, caption) in enumerate(zip(episode.images, captions, strict=True)):
        if place == len(episode.support):
            left += _GAP
            draw.rectangle((left - 3, top - 3, left + _SIDE + 2, top + _SIDE + 2), outline=_INK, width=2)
        sheet.paste(_thumbnail(images, image), (left, top))
        draw.text((left, top + _SIDE + 4), caption[:22], fill=_INK, font=font(12))
        text = textwrap.shorten(words.get(image, ""), 27 * _WORD_LINES, placeholder=" ...")
        for line, part in enumerate(textwrap.wrap(text, 27)[:_WORD_LINES]):
            place_of_line = (left, top + _SIDE + (line + 1.5) * _LINE)
            draw.text(place_of_line, part, fill=_SOFT, font=font(_WORDS_FONT))
        left += _SIDE + _GAP
    left += _GAP
    draw.text(
        (left, top), f"episode {episode.number}: {' or '.join(episode.names)}"[:70], fill=_INK, font=font(12)
    )
    for line, (name, answer) in enumerate(shown.answers.items()):
        height = top + (2 * line + 1.6) * _LINE
        draw.text((left, height), name[:78], fill=_SOFT, font=font(_WORDS_FONT))
        text, color = _verdict(answer)
        draw.text((left + 8, height + _LINE - 2), text[:66], fill=color, font=font(12))


def _verdict(answer: Answer) -> tuple[str, tuple[int, int, int]]:
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
        return Image.new("RGB", (_SIDE, _SIDE), (230, 230, 230))
    box = center_box(picture.width, picture.height)
    small = min(picture.size) <= _SIDE
    method = Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
    return picture.resize((_SIDE, _SIDE), method, box=box)


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
