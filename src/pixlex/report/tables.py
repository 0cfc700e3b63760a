"""Tables of few-shot classification, linear probes and ablations, as text and as plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pixlex.config.ablation import NOT_DESCRIBED
from pixlex.eval.few_shot.episodes import PAPER_COLUMNS
from pixlex.eval.few_shot.prompted import SCORERS
from pixlex.eval.few_shot.published import PublishedRow, published_rows
from pixlex.eval.few_shot.run import Cell
from pixlex.eval.linear_probe import ProbeRow
from pixlex.eval.metrics import metric_of
from pixlex.eval.published import PublishedTable

# (row, top-1) as quoted in QLIP (Zhao et al. 2025, arXiv:2502.05178), Table 10.
PROBES_PUBLISHED = (("LQAE", 0.397), ("VQ-VAE", 0.184))
PROBES_NOTE = "published, not comparable: ImageNet, 1,000 classes; as quoted in QLIP, Table 10"

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

AblationValues = Mapping[str, Any]  # name, title, group, paper, failure, numbers: column -> Measured
Measured = Mapping[str, float | None]  # value, low, high


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


def ways_of(cells: Sequence[Cell]) -> list[int]:
    """Return the numbers of ways that were measured."""
    return sorted({cell.setting.ways for cell in cells})


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


def row_values(row: ProbeRow, class_names: Sequence[str]) -> dict[str, Any]:
    """Return a row as plain values for `results.json`."""
    result = row.result
    values = {
        name: value
        for name, value in vars(result).items()
        if name not in ("classifier", "confusion", "class_accuracy")
    }
    accuracy = [None if math.isnan(one) else float(one) for one in result.class_accuracy]
    return {
        "name": row.name,
        "model": row.model,
        "features": row.features,
        **values,
        "class_accuracy": dict(zip(_distinct(class_names), accuracy, strict=True)),
        "confusion": result.confusion.tolist(),
        "skipped": [asdict(one) for one in row.skipped],
    }


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names, those that occur twice with their number."""
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def row_text(row: ProbeRow) -> str:
    """Return the accuracies of a row."""
    result = row.result
    text = f"top-1 {percent(result.top1, result.top1_interval)}"
    if result.top5 is not None:
        text += f", top-5 {percent(result.top5, result.top5_interval)}"
    return text


def percent(value: float, interval: tuple[float, float] | None) -> str:
    """Return an accuracy with its interval, in percent."""
    assert interval is not None
    return f"{100 * value:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def ablation_table(rows: Sequence[AblationValues], published: PublishedTable | None = None) -> str:
    """Return the rows as a Markdown table, failed ones and those that the paper does not describe included.

    Args:
        rows: in the order of the table, `base` first.
        published: the paper's own values of the recalls, in percent; None where it has none for the data.
    """
    columns = ablation_columns(rows)
    head = ["row", "changes", "paper", *(ablation_label(column) for column in columns)]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        if row["failure"]:
            lines.append(_line([row["name"], f"{row['title']}: failed, {row['failure']}", row["paper"]]))
            continue
        cells = (_ablation_cell(column, row["numbers"].get(column)) for column in columns)
        lines.append(_line([row["name"], row["title"], row["paper"], *cells]))
    if {row["group"] for row in rows} - {"base", "mask-ratio", "IV"}:  # LQAE's Table 3
        lines += [_line([name, why]) for name, why in NOT_DESCRIBED.items()]
    if published is not None:
        recalls = [column for column in columns if column.startswith("retrieval/")]
        for name, values in published.rows.items():
            numbers = dict(zip(recalls, values, strict=False))
            cells = (f"{numbers[column]} %" if column in numbers else "" for column in columns)
            lines.append(_line([f"published: {name}", f"{published.source}: {published.of}", "", *cells]))
    return "\n".join(lines) + "\n"


def ablation_columns(rows: Iterable[AblationValues]) -> list[str]:
    """Return the columns that any row has."""
    return list(dict.fromkeys(column for row in rows for column in row["numbers"]))


def ablation_label(column: str) -> str:
    """Name a column: measures of reconstruction have labels of their own, the others name themselves."""
    return column.replace("/", ", ", 1).replace("_", " ") if "/" in column else metric_of(column).label


def _ablation_cell(column: str, measured: Measured | None) -> str:
    if measured is None or measured["value"] is None:
        return ""
    value, low, high = measured["value"], measured["low"], measured["high"]
    if low is None or high is None:
        return metric_of(f"eval/{column}").text(value)
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
