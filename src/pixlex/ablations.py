"""The ablations of LQAE and CB-ViLA: one recipe trained once for each row, measured alike, put into one table."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixlex.config.ablation import AblationRow, ablation_of
from pixlex.config.lqae import LQAERun, VQVAEConfig, VQVAERun
from pixlex.config.run import Run, read_run
from pixlex.data.records import Records
from pixlex.data.sources import ImageSource
from pixlex.distributed import pick_device
from pixlex.eval.evaluate import wilson_interval
from pixlex.eval.few_shot.classifiers import embedded_encoder, word_classifiers
from pixlex.eval.few_shot.episodes import EpisodeSet, digest
from pixlex.eval.few_shot.prompted import PromptedClassifier
from pixlex.eval.few_shot.prompts import Scorer, Template
from pixlex.eval.few_shot.readers import model_reader
from pixlex.eval.few_shot.run import Classifier, run_few_shot
from pixlex.eval.llm import LanguageClient
from pixlex.eval.probe_features import probe_features, probe_rows
from pixlex.eval.probe_sets import ProbeSets
from pixlex.eval.published import TABLE_TOP_K, benchmark_of
from pixlex.eval.retrieval import evaluate_retrieval, gallery
from pixlex.files import Damaged, read_json, write_json
from pixlex.models import checkpoint
from pixlex.models.checkpoint import Tokenizer
from pixlex.progress import bar_or_lines
from pixlex.training.loop import LossNotFinite
from pixlex.training.parallel import with_precision

# Codewords of the VQ-VAE of row I, as many as the baseline's.
CODES_ASSIGNED = 1024
# What the table shows of a run's own evaluation.
RECONSTRUCTION = (
    "mse", "masked_mse", "psnr", "image_text_matching", "masked_language", "masked_image_gain", "hidden_mse",
    "distinct_codewords", "perplexity",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number with its 95 % interval and the episodes it is the mean of, where it has them."""

    value: float
    low: float | None = None
    high: float | None = None
    episodes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Something measured on every row's model."""

    name: str  # `linear_probe`, `few_shot` or `retrieval`
    identity: (
        str  # all that decides its numbers besides model and row: of another identity, they are taken again
    )
    of: Callable[[Path, AblationRow], Mapping[str, Measured]]  # model directory and row -> numbers by column


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """What came of a row."""

    row: AblationRow
    reconstruction: Mapping[str, float] = field(default_factory=dict)  # of the run's own evaluation, by name
    measured: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)  # by measure, then by column
    failure: str = ""  # why the row has no numbers

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
            "paper": self.row.paper,
            "failure": self.failure,
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
    config = VQVAEConfig(
        image_size=model.image_size,
        patch_size=model.patch_size,
        resize_mode=model.resize_mode,
        encoder=model.encoder,
        decoder=model.decoder,
        num_codewords=CODES_ASSIGNED,
        codebook_dim=model.encoder.width if model.quantizer.search == "raw" else model.quantizer.search_dim,
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
    *,
    train: Callable[..., Path | None],
) -> tuple[RowResult, ...] | None:
    """Train and measure the rows that are not finished yet, each in `folder/rows/NAME`.

    A second call goes on where the first was cut off: finished rows are read, an unfinished one resumes from
    its newest checkpoint, a measure that is already in a row's `measures.json` is not taken again. A row
    whose loss diverges is reported as failed and does not stop the others.

    Args:
        recipe: file or name of a recipe of LQAE or CB-ViLA.
        overrides: settings shared by all rows, `key=value`.
        rows: `base` first.
        train: `run_training`.

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
        model = (place if row.trains else folder / "rows" / "base") / "model"
        failure = ""
        if row.trains and (changes or row.name == "base") and not _is_finished(runs[row.name], place):
            try:
                if train(runs[row.name], place, resume=True) is None:
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
    return tuple(results)


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


def probe_measure(sets: ProbeSets, cache: Path, *, device: str = "auto") -> Measure:
    """Return the linear probe on all layers of the language model; rows without one have none."""

    def measure(folder: Path, row: AblationRow) -> Mapping[str, Measured]:
        model = _load(folder, device)
        if not row.trains or model.vocabulary is None:
            return {}
        (found,) = probe_rows(probe_features(row.name, model, sets, cache), ["layers"])
        low, high = found.result.top1_interval
        return {"top-1": Measured(value=found.result.top1, low=low, high=high)}

    parts = [one.contents for one in sets.parts.values()]
    return Measure(name="linear_probe", identity=digest(*parts), of=measure)


def few_shot_measure(
    images: ImageSource,
    episode_sets: Sequence[EpisodeSet],
    cache: Path,
    *,
    clients: Sequence[LanguageClient] = (),
    template: Template = "frozen",
    scorer: Scorer = "likelihood",
    device: str = "auto",
) -> Measure:
    """Return few-shot classification by a sentence encoder and by language models (row H: one column each)."""

    def measure(folder: Path, row: AblationRow) -> Mapping[str, Measured]:
        model = _load(folder, device)
        place = next(model.parameters()).device
        words = _words_of_base(folder) if model.vocabulary is None else ()
        reader = model_reader(
            model, row.name, words=words, keep_ratio=row.keep_fraction, cache=cache / "words", device=place
        )
        classifiers: dict[str, Classifier] = {}
        for classifier in word_classifiers(reader, ["sentence"], encoder=embedded_encoder(), device=place):
            classifiers["sentence encoder"] = classifier
        for client in clients:
            classifiers[f"{client.name}, {scorer}"] = PromptedClassifier(
                reader, client, template=template, scorer=scorer
            )
        cells = run_few_shot(list(classifiers.values()), episode_sets, images, cache / "answers" / row.name)
        for cell in cells:
            if cell.does_not_fit:
                warnings.warn(f"row {row.name}: {cell.does_not_fit}", stacklevel=2)
        titles = [name for name in classifiers for _ in episode_sets]
        return {
            f"{title}, {cell.setting.ways}-way {cell.setting.column}": Measured(
                value=cell.accuracy,
                low=cell.low,
                high=cell.high,
                episodes=cell.num_episodes - cell.num_failed,
            )
            for title, cell in zip(titles, cells, strict=True)
            if cell.accuracy is not None
        }

    asked = [f"{one.identity} {template} {scorer}" for one in clients]
    # Numbers of versions that did not count their episodes are measured again; the answers are there.
    parts = ["counted", *(one.identity for one in episode_sets), *asked]
    return Measure(name="few_shot", identity=digest(*parts), of=measure)


def retrieval_measure(pairs: Records, *, max_words: int, limit: int | None, device: str = "auto") -> Measure:
    """Return zero-shot retrieval, both directions re-ranked by matching (CB-ViLA, Table IV).

    Args:
        pairs: images with captions that no row is trained on, as they are to be read.
        max_words: longest caption in words (tokens).
        limit: most images; None for all.
    """
    top_k = TABLE_TOP_K[benchmark_of(pairs.name) or "flickr30k"]

    def measure(folder: Path, row: AblationRow) -> Mapping[str, Measured]:
        model = checkpoint.load_cbvila(str(folder)).to(pick_device(device))
        items = gallery(model, pairs, max_words=max_words, limit=limit)
        # Without contrast similarities mean nothing: all pairs are matched.
        result = evaluate_retrieval(model, items, top_k=top_k if model.compares else len(items.image_of))
        found = {}
        for name, value in result.values.items():
            if "recall_at" in name:
                count = result.num_images if "text_recall" in name else result.num_captions
                low, high = wilson_interval(value, count)
                found[name] = Measured(value=value, low=low, high=high)
        return found

    asked = f"top {top_k}, {max_words} words, limit {limit}"
    return Measure(name="retrieval", identity=digest(pairs.identity, asked), of=measure)


def _load(folder: Path, device: str) -> Tokenizer:
    return checkpoint.load(str(folder)).to(pick_device(device))


def _words_of_base(folder: Path) -> tuple[str, ...]:
    """Return the words of the unchanged recipe, which lies beside the row whose codes they stand for."""
    base = checkpoint.load(str(folder.parents[1] / "base" / "model"))
    assert base.vocabulary is not None
    return base.vocabulary.words
