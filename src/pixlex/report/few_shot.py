"""What few-shot classification leaves in a folder: results.json, tables, plots, pictures of episodes, a page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pixlex.data.decoding import UnreadableImage, center_box, decode_record
from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.episodes import EpisodeSet
from pixlex.eval.few_shot.prompts import PAPER_COLUMNS, SCORERS, Answer, Episode, images_of
from pixlex.eval.few_shot.readers import TextReader
from pixlex.eval.few_shot.run import Cell
from pixlex.eval.llm.client import DOES_NOT_FIT
from pixlex.eval.published import published_rows
from pixlex.files import write_json, write_text
from pixlex.messages import printable
from pixlex.report.curves import dress, plotted, save
from pixlex.report.figures import GAP, INK, MARGIN, SOFT, Sheet
from pixlex.report.page import Page, Table, markdown_table, write_page

_JUDGED: dict[str, str] = {
    **{str(name): scorer.rule for name, scorer in SCORERS.items()},
    "linear": "the best of the episode's classes, by a linear classifier of vectors of its images",
    "nearest": "the best of the episode's classes, by vectors of its images, names unseen; without an example "
    "by vectors of the names",
    "exact": "calculated, not measured",
}
_CUT_OFF = (
    "cut off by the limit of tokens, or empty. A model that thinks before it answers needs room "
    "(--llm-answer-tokens 2000), or prompts that it continues (--llm-mode completions); one that goes on behind "
    "the name is judged by --scorer likelihood or constrained"
)
# Pictures of episodes, in pixels; lines of words.
_SHOT, _LINE, _ANSWERS = 144, 14, 460
_WORD_LINES = 5
_RIGHT, _WRONG, _PART = (20, 120, 50), (176, 32, 32), (150, 100, 0)


def ways_of(cells: Sequence[Cell]) -> list[int]:
    """Return the numbers of ways that were measured."""
    return sorted({cell.setting.ways for cell in cells})


def _rows_of(cells: Sequence[Cell], ways: int) -> dict[tuple[str, str], dict[str, Cell]]:
    """Gather the cells of a number of ways by who answered and how it was judged, then by `Setting.column`."""
    found: dict[tuple[str, str], dict[str, Cell]] = {}
    for cell in cells:
        if cell.setting.ways == ways:
            found.setdefault((cell.classifier, cell.scorer), {})[cell.setting.column] = cell
    return found


def _columns_of(cells: Sequence[Cell]) -> list[str]:
    """Return the columns that were measured: without an example, the paper's in its order, others."""
    present = {cell.setting.column: cell.setting.shots for cell in cells}
    first = [column for column, shots in present.items() if shots == 0]
    return [column for column in dict.fromkeys([*first, *PAPER_COLUMNS, *present]) if column in present]


def _title(column: str) -> str:
    """Say what a column is: "bare:1/0" has no induction, 1 shot, 0 repeats."""
    bare = column.startswith("bare:")
    shots, repeats = column.removeprefix("bare:").split("/")
    return f"{shots} shot{'s' * (shots != '1')}, {repeats} rep.{', no ind.' if bare else ''}"


def table_lines(cells: Sequence[Cell], ways: int) -> list[list[str]]:
    """Return a table as text: a line of titles, measured rows, published rows that share a column.

    The average is that over the paper's seven columns, where all are there.
    """
    columns = _columns_of([cell for cell in cells if cell.setting.ways == ways])
    lines = [["", "scorer", *map(_title, columns), "avg."]]
    for answered, row in _rows_of(cells, ways).items():
        measured = [row[column].accuracy for column in PAPER_COLUMNS if column in row]
        known = [accuracy for accuracy in measured if accuracy is not None]
        average = f"{100 * (sum(known) / len(known)):.1f}" if len(known) == len(PAPER_COLUMNS) else ""
        lines.append([*answered, *(_text(row.get(column)) for column in columns), average])
    for published in published_rows(ways):
        if set(columns) & published.accuracy.keys():
            found = published.accuracy
            values = (f"{found[column]:.1f}" if column in found else "" for column in columns)
            # Beside some of its columns the mean over all seven would be compared with another mean.
            complete = published.average is not None and set(PAPER_COLUMNS) <= set(columns)
            average = f"{published.average:.1f}" if complete else ""
            name = f"published: {published.name} ({published.source})"
            lines.append([name, published.scorer, *values, average])
    return lines


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.does_not_fit:
        return _reason(cell)
    failed = f", {cell.num_failed} failed" if cell.num_failed else ""
    if _is_cut_off(cell):
        failed += f", {cell.num_cut_off} CUT OFF OR EMPTY"
    if cell.accuracy is None or cell.low is None or cell.high is None:
        return f"no answer{failed}"
    interval = "" if cell.low == cell.high else f" [{100 * cell.low:.1f}, {100 * cell.high:.1f}]"
    return f"{100 * cell.accuracy:.1f}{interval}{failed}"


def _reason(cell: Cell) -> str:
    """Return in a few words why a cell was not asked."""
    return cell.does_not_fit.partition(":")[0]


def _is_cut_off(cell: Cell) -> bool:
    """Whether half of the answers or more were cut off or empty: the number tells of the settings then."""
    return cell.num_cut_off > 0 and 2 * cell.num_cut_off >= len(cell.answers)


def warnings_of(cells: Sequence[Cell]) -> list[str]:
    """Return which cells do not fit their language model or were cut off, and what to set; a line a row.

    A cell that needs an example says so itself.
    """
    found: dict[tuple[str, bool], list[str]] = {}
    for cell in cells:
        if cell.does_not_fit.startswith(DOES_NOT_FIT) or _is_cut_off(cell):
            cut = f"{cell.setting.label}: {cell.num_cut_off} of {len(cell.answers)} answers were {_CUT_OFF}"
            said = found.setdefault((cell.classifier, bool(cell.does_not_fit)), [])
            said.append(cell.does_not_fit or cut)
    return [
        f"{name}: {said[0]}{f' (and {len(said) - 1} more cells)' if said[1:] else ''}"
        for (name, _), said in found.items()
    ]


def notes_of(cells: Sequence[Cell]) -> list[str]:
    """Return what has to be known before a number is compared."""
    counts = sorted({cell.num_episodes for cell in cells})
    asked_cells = [cell for cell in cells if not cell.does_not_fit]
    failed = sum(cell.num_failed for cell in asked_cells)
    asked = sum(cell.num_episodes for cell in asked_cells)
    scorers = dict.fromkeys(cell.scorer for cell in cells)
    return [
        f"Percent of {' or '.join(f'{count:,}' for count in counts)} episodes a cell, with the 95 % interval "
        "(Wilson) over episodes; equally good names share the credit.",
        *warnings_of(cells),
        f"Failures: {failed:,} of {asked:,} questions ({failed / max(asked, 1):.2%}) got no answer. They are in "
        "neither accuracy nor interval; results.json also has the accuracy with failures counted as wrong.",
        *(f"Scorer {name}: {_JUDGED.get(name, name)}." for name in scorers),
        "Published rows are on other images (miniImageNet), with other language models; strict is open-ended: "
        "chance is about zero there, and 1 / ways for scorers that choose among the episode's names.",
    ]


def write_few_shot(folder: Path, cells: Sequence[Cell], about: Mapping[str, Any]) -> None:
    """Write results.json, which begins with the plain values `about` models, data and seed, and table.md."""
    folder.mkdir(parents=True, exist_ok=True)
    values = []
    for cell in cells:
        facts = {key: value for key, value in vars(cell).items() if key not in ("answers", "setting")}
        values.append({**facts, "setting": asdict(cell.setting)})
    published = [asdict(row) for ways in ways_of(cells) for row in published_rows(ways)]
    write_json(folder / "results.json", {**about, "results": values, "published": published})
    parts = [f"## {ways}-way\n\n{markdown_table(table_lines(cells, ways), 2)}" for ways in ways_of(cells)]
    notes = "\n".join(f"- {note}" for note in notes_of(cells))
    tables = printable("\n\n".join([*parts, notes]), keep="\n")
    write_text(folder / "table.md", f"{tables}\n")


def write_few_shot_page(
    path: Path,
    cells: Sequence[Cell],
    *,
    title: str,
    commands: Sequence[str],
    about: Mapping[str, Any],
    pictures: Mapping[str, Path | None],
) -> Path:
    """Write the page of few-shot classification: tables, the numbers one by one, pictures; see `Page`."""
    tables = []
    for ways in ways_of(cells):
        head, *rows = table_lines(cells, ways)
        tables.append(Table(f"{ways}-way", head, rows))
    columns = (
        "answers",
        "scorer",
        "setting",
        "%",
        "95 % interval",
        "episodes",
        "failed",
        "% if failures are wrong",
    )
    tables.append(Table("Numbers", columns, [_numbers(cell) for cell in cells]))
    page = Page(
        title=title, tables=tables, notes=notes_of(cells), pictures=pictures, commands=commands, config=about,
        introduction="Each image was written as words; whoever answers was given a few labeled images, or none, "
        "and asked for the name of another one.",
    )  # fmt: skip
    return write_page(path, page)


def _numbers(cell: Cell) -> list[str]:
    shown = "" if cell.low is None or cell.high is None else f"{100 * cell.low:.1f} to {100 * cell.high:.1f}"
    as_wrong = cell.accuracy_with_failures
    return [
        cell.classifier, cell.scorer, cell.setting.label,
        "" if cell.accuracy is None else f"{100 * cell.accuracy:.1f}",
        shown, str(cell.num_episodes), str(cell.num_failed),
        _reason(cell) if as_wrong is None else f"{100 * as_wrong:.1f}",
    ]  # fmt: skip


def draw_accuracies(cells: Sequence[Cell], path: Path) -> Path:
    """Draw accuracies with their intervals: a line a row of the table, a panel a setting, chance dashed."""
    ways, columns = ways_of(cells), _columns_of(cells)
    rows = [
        {key: row for key, row in _rows_of(cells, number).items() if key[1] != "exact"} for number in ways
    ]
    heights = [max(len(lines), 1) for lines in rows]
    size = (4.5 + max(3.5, 1.8 * len(columns)), 1.0 * len(ways) + 0.22 * sum(heights))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(
        len(ways), len(columns), squeeze=False, sharex=True, sharey="row", height_ratios=heights
    )
    readers = list(dict.fromkeys(_reader(name) for lines in rows for name, _ in lines))
    for number, lines, height, across in zip(ways, rows, heights, panels, strict=True):
        for column, axes in zip(columns, across, strict=True):
            _draw_panel(axes, [row.get(column) for row in lines.values()], readers)
            axes.axvline(100 / number, color="0.4", ls="--", lw=1)
            dress(axes, f"{number}-way\n{_title(column)}", grid="x")
        names = [plotted(f"{name} ({scorer})") for name, scorer in lines]
        across[0].set_yticks(range(len(lines)), names, fontsize=7)
        across[0].set_ylim(height - 0.5, -0.5)
    panels[-1, 0].set_xlim(0, 100)
    figure.supxlabel("episodes right, %, with 95 % intervals; chance among the names dashed", fontsize=8)
    return save(figure, path, 110)


def _reader(classifier: str) -> str:
    """Return who reads a model's words, of the name of a row."""
    return classifier.partition(", ")[2]


def _draw_panel(axes: Axes, line: Sequence[Cell | None], readers: Sequence[str]) -> None:
    """Draw a setting's cells from top to bottom, each of who reads the words in a color of its own."""
    for place, cell in enumerate(line):
        if cell is not None and cell.accuracy is not None:
            low, value, high = (100 * (end or 0.0) for end in (cell.low, cell.accuracy, cell.high))
            color = f"C{readers.index(_reader(cell.classifier)) % 10}"
            spread = [[value - low], [high - value]]
            axes.errorbar(value, place, xerr=spread, fmt="o", ms=4, lw=1.3, capsize=2, color=color)


def draw_episodes(
    shown: Sequence[tuple[Episode, Mapping[str, Answer]]],
    images: ImageSource,
    words: Mapping[int, str],
    path: Path,
) -> Path:
    """Write a PNG with a row for each episode: support images, the one asked about, the answers by who answered.

    Under an image stand its name and the first of its words, by its position. Answers are green where right, red
    where wrong, ocher where the credit was shared, grey where there was none.
    """
    columns = max(len(episode.images) for episode, _ in shown)
    heights = [
        max(_SHOT + (_WORD_LINES + 2) * _LINE, (len(answers) * 2 + 3) * _LINE) + 2 * GAP
        for _, answers in shown
    ]
    width = 2 * MARGIN + columns * (_SHOT + GAP) + GAP + _ANSWERS
    sheet = Sheet(width, 2 * MARGIN + sum(heights))
    top = MARGIN
    for (episode, answers), height in zip(shown, heights, strict=True):
        left = _draw_images(sheet, episode, images, words, top)
        sheet.text(left, top, f"episode {episode.number}: {' or '.join(episode.names)}"[:70], 12)
        for line, (name, answer) in enumerate(answers.items()):
            below = top + (2 * line + 1.6) * _LINE
            sheet.text(left, below, name[:78], 10, SOFT)
            text, color = " ".join(answer.text.split()) or "(nothing)", SOFT
            if answer.credit is None:
                text = f"no answer: {answer.detail}"
            else:
                color = {1.0: _RIGHT, 0.0: _WRONG}.get(answer.credit, _PART)
            sheet.text(left + 8, below + _LINE - 2, text[:66], 12, color)
        top += height
        sheet.draw.line((MARGIN, top - GAP, width - MARGIN, top - GAP), fill=(220, 220, 226))
    return sheet.save(path)


def _draw_images(
    sheet: Sheet, episode: Episode, images: ImageSource, words: Mapping[int, str], top: int
) -> int:
    """Draw the images of one episode with their names and words; return where there is room beside them."""
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
            sheet.text(left, top + _SHOT + (line + 1.5) * _LINE, part, 10, SOFT)
        left += _SHOT + GAP
    return left + GAP


def _thumbnail(images: ImageSource, index: int) -> Image.Image:
    """Return the center of an image, pixels as pixels where it is small."""
    try:
        picture = decode_record(images.read(index))
    except UnreadableImage:
        return Image.new("RGB", (_SHOT, _SHOT), (230, 230, 230))
    method = Image.Resampling.NEAREST if min(picture.size) <= _SHOT else Image.Resampling.BICUBIC
    return picture.resize((_SHOT, _SHOT), method, box=center_box(picture.width, picture.height))


def draw_episode_examples(
    episodes: EpisodeSet,
    cells: Sequence[Cell],
    images: ImageSource,
    reader: TextReader | None,
    path: Path,
    count: int = 4,
) -> Path:
    """Draw the first episodes of a set with what everybody answered in that setting, and a reader's words."""
    chosen = episodes.episodes[:count]
    words = reader.read(images, images_of(chosen)) if reader is not None else {}
    answered = [cell for cell in cells if cell.setting == episodes.setting and cell.scorer != "exact"]
    shown = [
        (one, {f"{cell.classifier} ({cell.scorer})": cell.answers[one.number] for cell in answered})
        for one in chosen
    ]
    return draw_episodes(shown, images, words, path)
