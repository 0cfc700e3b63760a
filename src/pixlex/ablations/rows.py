"""The ablations of LQAE and CB-ViLA: one recipe trained once for each row, measured alike, put into one table."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixlex.config.ablation import AblationRow, Claim, ablation_of
from pixlex.config.lqae import LQAERun, VQVAEConfig, VQVAERun
from pixlex.config.run import Run, read_run
from pixlex.files import Damaged, read_json, write_json
from pixlex.progress import bar_or_lines
from pixlex.run import run_training, with_precision
from pixlex.train.loop import LossNotFinite

# Codewords of the VQ-VAE of row I, as many as the baseline's.
CODES_ASSIGNED = 1024
# What the table shows of a run's own evaluation.
RECONSTRUCTION = (
    "mse", "masked_mse", "psnr", "image_text_matching", "masked_language", "masked_image_gain", "hidden_mse",
    "distinct_codewords", "perplexity",
)  # fmt: skip
# Of fewer episodes the interval is wider than what rows differ by.
_FEWEST_EPISODES = 100


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number with its 95 % interval and the episodes it is the mean of, where it has them."""

    value: float
    low: float | None = None
    high: float | None = None
    episodes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Something measured on every row's model.

    Attributes:
        name: `linear_probe`, `few_shot` or `retrieval`.
        identity: all that decides its numbers besides model and row; a stored number of another identity is
            measured again.
        of: given a model directory and the row, the numbers by their column.
    """

    name: str
    identity: str
    of: Callable[[Path, AblationRow], Mapping[str, Measured]]


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """What came of a row.

    Attributes:
        row: the row.
        reconstruction: numbers of the run's own evaluation, by name.
        measured: numbers of the other measures, by measure, then by column.
        verdicts: one sentence for each claim of the paper.
        failure: why the row has no numbers; empty where it has.
    """

    row: AblationRow
    reconstruction: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)
    verdicts: tuple[str, ...] = ()
    failure: str = ""

    def values(self) -> dict[str, Any]:
        """Return plain values for tables and files; `numbers` by column, such as `few_shot/2-way`."""
        numbers = {name: Measured(value=value) for name, value in self.reconstruction.items()}
        for measure, columns in self.measured.items():
            numbers |= {f"{measure}/{column}": one for column, one in columns.items()}
        return {
            "name": self.row.name,
            "title": self.row.title,
            "group": self.row.group,
            "changes": list(self.row.changes),
            "failure": self.failure,
            "verdicts": list(self.verdicts),
            "numbers": {column: dataclasses.asdict(one) for column, one in numbers.items()},
        }


def plan(recipe: str, overrides: Sequence[str], rows: Sequence[AblationRow]) -> dict[str, Run]:
    """Return the run of each row that trains, checked before anything is computed.

    Raises:
        ValueError: a recipe of another family, without validation data, or a row that does not fit it.
    """
    runs: dict[str, Run] = {}
    for row in rows:
        if not row.trains:
            continue
        run = read_run(recipe, [*overrides, *row.changes])
        ablation_of(run.family)
        if not run.data.validation:
            raise ValueError("ablations compare what is held out: name it with data.validation=DATA")
        change = _CHANGED.get(row.family)
        runs[row.name] = run if change is None else change(run)
    return runs


def _vqvae_of(run: LQAERun) -> VQVAERun:
    """Return the VQ-VAE with an LQAE's networks, images and training."""
    model = run.model
    codebook_dim = model.encoder.width if model.quantizer.search == "raw" else model.quantizer.search_dim
    config = VQVAEConfig(
        image_size=model.image_size,
        patch_size=model.patch_size,
        cut=model.cut,
        encoder=model.encoder,
        decoder=model.decoder,
        num_codewords=CODES_ASSIGNED,
        codebook_dim=codebook_dim,
    )
    return VQVAERun(model=config, data=run.data, train=run.train, eval=run.eval)


# What else a row changes of a run.
_CHANGED: Mapping[str, Callable[[Any], Run]] = {"vqvae": _vqvae_of}


def run_ablations(
    recipe: str,
    overrides: Sequence[str],
    rows: Sequence[AblationRow],
    folder: Path,
    measures: Sequence[Measure] = (),
) -> tuple[RowResult, ...] | None:
    """Train and measure the rows that are not finished yet, each in `folder/rows/NAME`.

    A second call goes on where the first was cut off: finished rows are read, an unfinished one resumes from
    its newest checkpoint, a measure that is already in a row's `measures.json` is not taken again. A row
    whose loss diverges is reported as failed and does not stop the others.

    Args:
        recipe: file or name of a recipe of LQAE or CB-ViLA.
        overrides: settings shared by all rows, `key=value`.
        rows: `base` first.
        folder: where all is kept.
        measures: what is measured on each row's model besides its reconstructions.

    Returns:
        A result for each row; None when interrupted.

    Raises:
        ValueError: a recipe or a row that does not fit, or a folder that holds rows of other settings.
    """
    runs = plan(recipe, overrides, rows)
    results: list[RowResult] = []
    for row in bar_or_lines(rows, desc="ablate", unit=" rows"):
        # A row that changes nothing, because the recipe has that value already, is the base.
        changes = not row.trains or runs[row.name] != runs["base"]
        place = folder / "rows" / (row.name if changes else "base")
        trains = row.trains and (changes or row.name == "base")
        model = (place if row.trains else folder / "rows" / "base") / "model"
        failure = ""
        if trains:
            try:
                if not _is_finished(runs[row.name], place) and run_training(
                    runs[row.name], place, resume=True
                ) is None:  # fmt: skip
                    return None
            except LossNotFinite as reason:
                failure = str(reason)
        if not failure and not model.is_dir():
            failure = "the base model it uses has failed"
        if failure:
            results.append(RowResult(row=row, failure=failure))
            continue
        reconstruction = _reconstruction(model.parent) if row.trains else {}
        measured = {one.name: _measured(one, place, model, row) for one in measures}
        results.append(RowResult(row=row, reconstruction=reconstruction, measured=measured))
    return tuple(dataclasses.replace(one, verdicts=_verdicts(one, results[0])) for one in results)


def _is_finished(run: Run, place: Path) -> bool:
    """Whether a row's folder holds the finished run of just these settings.

    The evaluation is asked for too: a row measured on other images cannot stand in one table.
    """
    if not (place / "model").is_dir() or not (place / "results.json").is_file():
        return False
    before = read_run(place / "config.yaml")
    if before != with_precision(run, place):
        raise ValueError(
            f"{place} holds a finished run of other settings: repeat them, or pass another --out"
        )
    return True


def _reconstruction(place: Path) -> dict[str, float]:
    numbers = read_json(place / "results.json")
    return {name: numbers[f"eval/{name}"] for name in RECONSTRUCTION if f"eval/{name}" in numbers}


def _measured(measure: Measure, place: Path, model: Path, row: AblationRow) -> Mapping[str, Measured]:
    """Return a measure's numbers, from the row's folder where they are there already."""
    path = place / "measures.json"
    try:
        stored = read_json(path) if path.is_file() else {}
    except Damaged as fault:
        warnings.warn(f"{fault}; measured again", stacklevel=2)
        stored = {}
    known = stored.get(measure.name)
    if isinstance(known, dict) and known.get("identity") == measure.identity:
        return {column: Measured(**values) for column, values in known["numbers"].items()}
    numbers = measure.of(model, row)
    stored[measure.name] = {
        "identity": measure.identity,
        "numbers": {column: dataclasses.asdict(values) for column, values in numbers.items()},
    }
    place.mkdir(parents=True, exist_ok=True)
    write_json(path, stored)
    return numbers


def _verdicts(result: RowResult, base: RowResult) -> tuple[str, ...]:
    """Say of each claim of the paper whether it shows here."""
    found = []
    for claim in result.row.claims:
        ours, theirs = result.measured.get(claim.measure, {}), base.measured.get(claim.measure, {})
        for column in ours.keys() & theirs.keys():
            found.append(f"{column}: paper {claim.expected}, {judge(claim, ours[column], theirs[column])}")
    return tuple(sorted(found))


def judge(claim: Claim, row: Measured, base: Measured) -> str:
    """Compare a row with the base and say whether a claim holds.

    The difference counts if it is larger than its own 95 % interval, the root of the sum of the squares of
    both half-widths (independent test sets; for models judged on the same images that is cautious). A mean of
    fewer than 100 episodes is not judged by.
    """
    counts = [one.episodes for one in (row, base) if one.episodes is not None]
    if counts and min(counts) < _FEWEST_EPISODES:
        return f"no verdict from {min(counts)} episodes, {_FEWEST_EPISODES} or more are needed"
    half = [
        (one.high - one.low) / 2 if one.low is not None and one.high is not None else 0.0
        for one in (row, base)
    ]
    difference, limit = row.value - base.value, math.hypot(*half)
    seen = "level" if abs(difference) <= limit else "higher" if difference > 0 else "lower"
    if claim.expected == "not higher":
        return f"here {seen}: {'does not hold' if seen == 'higher' else 'holds'}"
    if seen == "level" and claim.expected != "level":
        return "here level: not seen"
    return f"here {seen}: {'holds' if seen == claim.expected else 'does not hold'}"
