"""Few-shot results as tables in the shape of the paper's Tables 1 and 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pixlex.eval.few_shot.episodes import PAPER_COLUMNS
from pixlex.eval.few_shot.prompted import SCORERS
from pixlex.eval.few_shot.published import PublishedRow, published_rows
from pixlex.eval.few_shot.run import Cell


def ways_of(cells: Sequence[Cell]) -> list[int]:
    """Return the numbers of ways that were measured."""
    return sorted({cell.setting.ways for cell in cells})


_JUDGED: dict[str, str] = {
    **{str(name): text for name, (_, text) in SCORERS.items()},
    "linear": "the best of the episode's classes, by a linear classifier of vectors of its images",
    "nearest": "the best of the episode's classes, by vectors of its images; names are never seen",
    "exact": "calculated, not measured",
}


_CUT_OFF = (
    "cut off by the limit of tokens, or empty. A model that thinks before it answers needs room "
    "(--llm-answer-tokens 2000), or prompts that it continues (--llm-mode completions); one that goes on behind "
    "the name is judged by --scorer likelihood or constrained"
)


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: who answered.
        scorer: how answers were judged.
        cells: by `Setting.column`.
    """

    name: str
    scorer: str
    cells: Mapping[str, Cell]

    @property
    def average(self) -> float | None:
        """The mean accuracy over the paper's seven columns; None unless all are there."""
        values = [self.cells[column].accuracy for column in PAPER_COLUMNS if column in self.cells]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(PAPER_COLUMNS) else None


def rows_of(cells: Sequence[Cell], ways: int) -> list[Row]:
    """Gather the cells of a number of ways by who answered and how it was judged, in their order."""
    found: dict[tuple[str, str], dict[str, Cell]] = {}
    for cell in cells:
        if cell.setting.ways == ways:
            found.setdefault((cell.answerer, cell.scorer), {})[cell.setting.column] = cell
    return [Row(name, scorer, columns) for (name, scorer), columns in found.items()]


def columns_of(cells: Sequence[Cell]) -> list[str]:
    """Return the columns that were measured, the paper's in its order, others after them."""
    present = dict.fromkeys(cell.setting.column for cell in cells)
    return [column for column in PAPER_COLUMNS if column in present] + [
        column for column in present if column not in PAPER_COLUMNS
    ]


def column_title(column: str) -> str:
    """Say what a column is: "bare:1/0" has no induction, 1 shot, 0 repeats."""
    bare = column.startswith("bare:")
    shots, repeats = column.removeprefix("bare:").split("/")
    return f"{shots} shot{'s' * (shots != '1')}, {repeats} rep.{', no ind.' if bare else ''}"


def table_lines(cells: Sequence[Cell], ways: int) -> list[list[str]]:
    """Return a table as text: a line of titles, measured rows, published rows that share a column."""
    columns = columns_of([cell for cell in cells if cell.setting.ways == ways])
    lines = [["", "scorer", *(column_title(column) for column in columns), "avg."]]
    for row in rows_of(cells, ways):
        average = "" if row.average is None else f"{100 * row.average:.1f}"
        values = (_cell_text(row.cells.get(column)) for column in columns)
        lines.append([row.name, row.scorer, *values, average])
    for published in published_rows(ways):
        if set(columns) & published.accuracy.keys():
            lines.append(_published_line(published, columns))
    return lines


def _cell_text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.does_not_fit:
        return "does not fit"
    failed = f", {cell.num_failed} failed" if cell.num_failed else ""
    if _is_cut_off(cell):
        failed += f", {cell.num_cut_off} CUT OFF OR EMPTY"
    if cell.accuracy is None or cell.low is None or cell.high is None:
        return f"no answer{failed}"
    if cell.low == cell.high:
        return f"{100 * cell.accuracy:.1f}{failed}"
    return f"{100 * cell.accuracy:.1f} [{100 * cell.low:.1f}, {100 * cell.high:.1f}]{failed}"


def _published_line(row: PublishedRow, columns: Sequence[str]) -> list[str]:
    values = (f"{row.accuracy[column]:.1f}" if column in row.accuracy else "" for column in columns)
    # Beside some of its columns the mean over all seven would be compared with another mean.
    complete = row.average is not None and set(PAPER_COLUMNS) <= set(columns)
    average = f"{row.average:.1f}" if complete else ""
    return [f"published: {row.name} ({row.source})", row.scorer, *values, average]


def _is_cut_off(cell: Cell) -> bool:
    """Whether half of the answers or more were cut off or empty: the number tells of the settings then."""
    return cell.num_cut_off > 0 and 2 * cell.num_cut_off >= len(cell.answers)


def warnings_of(cells: Sequence[Cell]) -> list[str]:
    """Return what is wrong with cells and what to set, a line for each row and kind.

    Cells that do not fit their language model, and cells whose answers were cut off or empty.
    """
    found: dict[tuple[str, bool], list[str]] = {}
    for cell in cells:
        if cell.does_not_fit:
            found.setdefault((cell.answerer, True), []).append(cell.does_not_fit)
        elif _is_cut_off(cell):
            said = f"{cell.setting.label}: {cell.num_cut_off} of {len(cell.answers)} answers were {_CUT_OFF}"
            found.setdefault((cell.answerer, False), []).append(said)
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


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as a Markdown table, the first one its head."""
    head, *body = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    rule = ["---", "---", *["---:"] * (len(head) - 2)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))
