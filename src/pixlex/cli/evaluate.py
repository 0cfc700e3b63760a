"""`evaluate`: what images become and what is left of them, and how well images and texts find each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pixlex.cli import options as cli
from pixlex.messages import counted

if TYPE_CHECKING:
    from pixlex.batch import ImageBatch, Skipped
    from pixlex.config.cbvila import ReasoningTask
    from pixlex.data.records import Records
    from pixlex.data.sources import ImageSource
    from pixlex.eval.evaluate import Pass
    from pixlex.eval.probe_features import Kind, ProbeRow
    from pixlex.eval.probe_sets import ProbeSets
    from pixlex.eval.vqa import ReasoningResult
    from pixlex.models.checkpoint import Tokenizer

_ITEMS = (
    "images with texts and answers: the official files of the task, ALBEF's .json, .parquet, .csv, .tsv, "
    ".jsonl or embedded:scenes:test[:COUNT]; with options such as QUESTIONS.json?annotations=FILE&images=DIR; "
    "several as 'ONE + OTHER'; for assignment images with captions"
)


class MeasureOptions(
    cli.MachineOptions, cli.BrokenOption, cli.BatchOptions, cli.LimitOption, cli.ModelOptions
):
    """What most measures have."""


class ReconstructionOptions(MeasureOptions):
    data: str = cli.option(text=cli.DATA, metavar="DATA")
    out: cli.Folder | None = cli.option(
        None, "write results.json, reconstruction.png and report.html there", "DIR"
    )
    mask_ratio: cli.Fraction = cli.option(0.5, "words hidden for masked_mse; default %(default)s")
    fid_features: Path | None = cli.option(None, "rFID: TorchScript file, or inception", "N")
    lpips_network: Path | None = cli.option(None, "LPIPS: TorchScript file, or alex, vgg, squeeze", "N")


class ProbeOptions(cli.MachineOptions, cli.BrokenOption, cli.LimitOption, cli.LanguageModelOptions):
    model: tuple[str, ...] = cli.option(
        text="models that come with pixlex, directories, run folders or hub repositories", metavar="M"
    )
    data: str = cli.option(text=f"labeled training images: {cli.DATA}", metavar="TRAIN")
    test: str = cli.option(text="labeled test images of the same classes", metavar="TEST")
    validation: str | None = cli.option(
        None,
        "labeled images that the strength of regularization is chosen on; default a fifth of TRAIN",
        "VAL",
    )
    features: tuple[Literal["layers", "last", "encoder", "codes", "pixels"], ...] | None = cli.option(
        None, "default: layers of the language model; of a model without one, encoder and codes"
    )
    per_layer: bool = cli.option(False, "probe each layer of the language model too")
    untrained: bool = cli.option(False, "probe each model with fresh weights too")
    repeats: cli.Positive | None = cli.option(
        None,
        "how often encoder and codes stand side by side; default of a VQ-VAE: as wide as the first LQAE's layers",
        "R",
    )
    test_limit: cli.Positive | None = cli.option(None, "most test and validation images", "LIMIT")
    allow_overlap: bool = cli.option(False, "go on when the same image is in two of the sets")
    seed: cli.Count = cli.option(0, "of the validation split; default %(default)s")
    out: cli.Folder = cli.option(text="write results.json, pictures and report.html there", metavar="DIR")
    cache: cli.Folder | None = cli.option(None, "where features are kept; default OUT/features", "DIR")


class UntrainedOption(cli.Options):
    untrained: bool = cli.option(
        False, "the same configuration untrained, from the same pretrained parts, seed 0"
    )


class PairOptions(MeasureOptions, UntrainedOption, cli.SizeOptions):
    """What measures on images with captions have."""

    data: str = cli.option(text=cli.PAIRS, metavar="PAIRS")
    raw_captions: bool = cli.option(False, "captions as they are, not cleaned")


class RetrievalOptions(PairOptions):
    score: Literal["contrastive", "matching", "matching+contrastive"] = cli.option(
        "matching", "what pairs are ranked by; default %(default)s, among the best by contrast"
    )
    top_k: cli.Positive | None = cli.option(
        None,
        "captions of each image, and images of each caption, that matching scores; default 128, for COCO 256",
        "K",
    )
    max_words: cli.Positive | None = cli.option(
        None,
        "longest caption in words (tokens); default 30, or as many as the model was trained with if more",
    )
    out: cli.Folder | None = cli.option(
        None, "write results.json there; an interrupted evaluation goes on there", "DIR"
    )


class PretrainingOptions(PairOptions):
    seed: int = cli.option(0, "of what is hidden; default %(default)s")
    out: cli.Folder | None = cli.option(None, "write results.json, pictures and report.html there", "DIR")


class TaskOptions(MeasureOptions, cli.AnswerOptions, cli.SizeOptions):
    """Options of the tasks that a CB-ViLA is fine-tuned to."""

    data: str = cli.option(text=_ITEMS, metavar="ITEMS")
    training_data: str | None = cli.option(
        None,
        "what the baselines without images learn from; default: what the model was fine-tuned on",
        "ITEMS",
    )
    first_token_twice: bool = cli.option(
        False, "count the first word of an answer twice, as ALBEF's code does"
    )
    out: cli.Folder | None = cli.option(None, "write numbers, answers and a page there", "DIR")


def reconstruction(options: ReconstructionOptions) -> None:
    """How well images survive as words."""
    from pixlex import api
    from pixlex.data.images import open_source
    from pixlex.data.loader import Images
    from pixlex.eval.pretraining import evaluate_reconstruction
    from pixlex.report.figures import drawn, reconstruction_grid

    source = open_source(options.data)
    model = api.load(options.model, **options.loading).coder
    batches = cli.batches_of(Images(source), model.config, options.batch_size, options.limit)
    result = evaluate_reconstruction(
        model,
        _accounted(batches, source, options.max_broken_fraction),
        _pass_of(options, len(source), save_examples=16),
        mask_ratio=options.mask_ratio,
        fid_features=options.fid_features,
        lpips_network=options.lpips_network,
    )
    if not _is_settled(options, source, result.skipped, int(result.values["num_images"])):
        return
    values = {
        "model": options.model,
        "data": source.name,
        **result.values,
        "notes": result.notes,
        "skipped": result.skipped,
    }
    cli.finish(options, values, cli.table(result.table), result.skipped, notes=result.notes, out=options.out)
    if options.out is not None:
        examples = result.examples
        shown = examples["originals"], examples["reconstructions"], examples["words"], model.word_grid
        drawn(options.out / "reconstruction.png", lambda path: reconstruction_grid(*shown, path))
        _leave_page(
            options,
            options.out,
            title=f"Reconstruction of {source.name}",
            examples=examples,
            numbers=result.numbers,
            notes=result.notes,
            config={"family": model.family, "model": asdict(model.config)},
        )


def linear_probe(options: ProbeOptions) -> None:
    """What a linear classifier reads from frozen features."""
    from pixlex import api, distributed
    from pixlex.data.images import open_source
    from pixlex.eval.linear_probe import Fit
    from pixlex.eval.probe_features import planned_kinds, probe_features, probe_rows
    from pixlex.eval.probe_sets import open_sets
    from pixlex.report import tables as report

    if len(set(options.model)) < len(options.model):
        raise ValueError(f"expected different models, got {' '.join(options.model)}")
    names = [Path(model).name for model in options.model]
    if len(set(names)) < len(names):  # the last part of a path does not tell them apart
        names = list(options.model)
    sets = open_sets(
        open_source(options.data),
        open_source(options.test),
        None if options.validation is None else open_source(options.validation),
        limit=options.limit,
        test_limit=options.test_limit,
        allow_overlap=options.allow_overlap,
        max_broken_ratio=options.max_broken_fraction,
        progress=not options.quiet,
    )
    loaded = [api.load(model, **options.loading).coder for model in options.model]
    models = dict(zip(names, loaded, strict=True))
    features = [
        (
            probe_features(
                version, model, sets, options.cache or options.out / "features", precision=options.precision,
                max_broken_ratio=options.max_broken_fraction, progress=not options.quiet,
            ),
            kinds,
        )
        for version, model, kinds in _versions(
            options, models, planned_kinds([*models.values()], options.features), sets
        )
    ]  # fmt: skip
    if not distributed.is_first():
        return
    compared = next((one for one, _ in features if "layers" in one.parts["training"].columns), None)
    device = distributed.pick_device(options.device)
    how = Fit(seed=options.seed, device=device, progress=not options.quiet)
    named = options.repeats and {"encoder": options.repeats, "codes": options.repeats}
    rows = []
    for one, kinds in features:
        repeats = named or one.repeats(compared)
        for row in probe_rows(one, kinds, how, per_layer=options.per_layer, repeats=repeats):
            rows.append(row)
            cli.remark(options, f"{row.name}: {report.row_text(row)}")
    notes = [*sets.notes, *_notes(rows)]
    values = {
        "page": str(options.out / "report.html"),
        "rows": [report.row_values(row, sets.train.class_names) for row in rows],
        "notes": notes,
    }
    lines = [(row.name, report.row_text(row)) for row in rows]
    lines.append(("most frequent training class", f"top-1 {100 * rows[0].result.majority:.1f} %"))
    lines.append(("chance", f"top-1 {100 * rows[0].result.chance:.3g} %"))
    lines += [
        (name, f"top-1 {100 * top1:.1f} % ({report.PROBES_NOTE})") for name, top1 in report.PROBES_PUBLISHED
    ]
    skipped = list(dict.fromkeys(one for row in rows for one in row.skipped))
    said = [*notes, *(f"{row.name}: {note}" for row in rows for note in row.result.notes)]
    cli.finish(options, values, cli.table(lines), skipped, notes=said)
    page = report.write_linear_probe(options.out, rows, sets, commands=[options.command_line], notes=notes)
    cli.remark_page(options, page)


def retrieval(options: RetrievalOptions) -> None:
    """Images found by texts and texts by images."""
    from pixlex.eval import published
    from pixlex.eval.retrieval import evaluate_retrieval, gallery
    from pixlex.models.checkpoint import read_config

    source, model = _open_pairs(options), cli.load_cbvila(options)
    trained_on: list[str] = []
    if not options.untrained:
        cli.remark_without_contrast(options, model)
        trained_on = read_config(options.model, options.revision).get("trained_on", [])
    how = _pass_of(options, len(source))
    items = gallery(
        model,
        source,
        how,
        max_words=min(options.max_words or cli.words_of(options.model, model), model.config.text.positions),
        batch_size=options.batch_size,
        limit=options.limit,
    )
    says = _is_settled(options, source.images, items.skipped, len(items.image_vectors))
    top_k = options.top_k or published.TABLE_TOP_K[published.benchmark_of(source.name) or "flickr30k"]
    result = evaluate_retrieval(model, items, how, score=options.score, top_k=top_k, cache=options.out)
    if not says:
        return
    setting = published.setting_of(trained_on, source.name)
    known = published.retrieval_table(source.name, trained_on)
    values = {
        "model": options.model,
        "untrained": options.untrained,
        "data": source.name,
        "trained_on": trained_on,
        "setting": setting,
        "protocol": result.protocol,
        **result.values,
        "num_images": result.num_images,
        "num_captions": result.num_captions,
        "num_scored": result.num_scored,
        "skipped": result.skipped,
        "published": known,
    }
    lines = [f"{setting}: {result.protocol} ({published.TABLE_SETTINGS})", cli.table(result.table)]
    if known is not None:
        lines.append(known.text(counted(result.num_images, "image")))
    cli.finish(options, values, "\n".join(lines), result.skipped, out=options.out)


def pretraining(options: PretrainingOptions) -> None:
    """Losses, codebook and rebuilt pixels of a CB-ViLA on pairs that it was not trained on."""
    from pixlex import distributed
    from pixlex.config.fields import SQUARE
    from pixlex.data.records import Pairs
    from pixlex.eval.pretraining import evaluate_pretraining
    from pixlex.objectives.cbvila import CBViLAObjective
    from pixlex.report.progress import draw_pretraining, unreadable

    source, model = _open_pairs(options), cli.load_cbvila(options)
    config, max_words = cli.objective_of(options.model), cli.words_of(options.model, model)
    objective = CBViLAObjective(model, config, 1, max_words).to(distributed.pick_device(options.device))
    rows = Pairs(source, lambda texts: model.tokenize_texts(texts, max_words))
    batches = cli.batches_of(rows, model.config, options.batch_size, options.limit)
    result = evaluate_pretraining(objective, batches, _pass_of(options, len(source)), seed=options.seed)
    num_images = int(result.values["num_images"])
    if not _is_settled(options, source.images, result.skipped, num_images):
        return
    size, grid, folder = model.config.image_size, model.grid, options.out
    protocol = (
        f"{num_images} images, each with its first caption; {size} px, {SQUARE[model.config.resize_mode]}; "
        f"{config.mask_ratio:.0%} of the patches hidden; pairs compared within batches of {options.batch_size}"
    )
    values = {
        "model": options.model,
        "untrained": options.untrained,
        "data": source.name,
        "protocol": protocol,
        **result.values,
        "skipped": result.skipped,
    }
    cli.finish(options, values, f"{protocol}\n{cli.table(result.table)}", result.skipped, out=folder)
    if folder is not None:
        _leave_page(
            options,
            folder,
            title=f"CB-ViLA, {size} px, {grid} x {grid}: {source.name}",
            introduction=f"{protocol}.",
            numbers=result.numbers,
            notes=unreadable(result.skipped),
            pictures=draw_pretraining(result, source, model.config, lambda kind: folder / f"{kind}.png"),
            config={"model": asdict(model.config), "objective": asdict(config)},
        )


def vqa(options: TaskOptions) -> None:
    """How often questions about images are answered rightly."""
    _evaluate_task(options, "vqa")


def nlvr2(options: TaskOptions) -> None:
    """How often sentences about images are judged rightly."""
    _evaluate_task(options, "nlvr2")


def entailment(options: TaskOptions) -> None:
    """How often what images entail is classified rightly."""
    _evaluate_task(options, "entailment")


def assignment(options: TaskOptions) -> None:
    """How often a caption is assigned rightly to one of two images, or to neither."""
    _evaluate_task(options, "assignment")


def _evaluate_task(options: TaskOptions, task: ReasoningTask) -> None:
    """Measure how often a model answers rightly; leave numbers, answers, a picture and a page in a folder."""
    from pixlex import api
    from pixlex.data.records import Questions
    from pixlex.eval.published import TABLE_IMAGES, TABLE_WORDS, task_table
    from pixlex.eval.vqa import evaluate_reasoning
    from pixlex.families import open_items
    from pixlex.models.finetuned import resized

    reasoner = api.load_reasoner(options.model, **options.loading)
    model = resized(reasoner.model, options.image_size, options.resize_mode)
    if model.config.task != task:
        raise ValueError(f"{options.model} was fine-tuned to {model.config.task}, not to {task}")
    # ALBEF keeps 50 words of a question in testing, else as many as in training.
    items = open_items(options.data, task, max_words=api.MOST_WORDS if task == "vqa" else TABLE_WORDS)
    if items.num_images != model.config.num_images:
        raise ValueError(
            f"{options.model} reads {model.config.num_images} images with each text, {items.name} has "
            f"{items.num_images}"
        )
    rows = Questions(items, lambda texts: model.tokenize_texts(texts, model.config.body.text.positions))
    result = evaluate_reasoning(
        model,
        items,
        cli.batches_of(rows, model.config, options.batch_size, options.limit),
        _pass_of(options, len(items)),
        mode="generate" if options.generate else "rank",
        shortlist=options.shortlist,
        first_token_twice=options.first_token_twice,
        training=_training_items(options, task),
    )
    if not _is_settled(options, items.images, result.skipped, len(result.answered)):
        return
    published = task_table(task, items)
    values = {
        "model": options.model,
        "data": items.name,
        "protocol": result.protocol,
        **result.values,
        "interval": result.interval,
        "by_kind": dict(result.by_kind),
        "majority_answer": result.majority_answer,
        "published": published,
        "ignored": items.ignored[:20],
        "skipped": result.skipped,
    }
    numbers = result.table
    if result.interval is not None:
        low, high = result.interval
        numbers.append(("95 % interval of the accuracy", f"{low:.1%} to {high:.1%}"))
    numbers += [(f"accuracy of {kind}", f"{value:.1%}") for kind, value in result.by_kind.items()]
    lines = [f"{result.protocol} (the paper's tables: {TABLE_IMAGES})", cli.table(numbers)]
    if published is not None:
        lines.append(published.text(f"{len(result.answered):,} items of {items.name}"))
    cli.finish(options, values, "\n".join(lines), result.skipped, out=options.out)
    if options.out is not None:
        _write_answers(options.out, options, items, result)


def _training_items(options: TaskOptions, task: ReasoningTask) -> Records | None:
    """Return what the baselines without images learn from: as named, or what the model was fine-tuned on."""
    from pixlex.config.cbvila import ReasoningRun
    from pixlex.families import open_items

    if options.training_data is not None:
        return open_items(options.training_data, task).answered()
    run = cli.run_of(options.model, ReasoningRun)
    if run is None:
        cli.remark(options, "no baseline without images: name the training items with --training-data")
        return None
    try:
        return open_items(run.data.train, task).answered()
    except (ValueError, OSError) as fault:
        cli.remark(options, f"no baseline without images, the training items cannot be opened: {fault}")
        return None


def _write_answers(folder: Path, options: TaskOptions, items: Records, result: ReasoningResult) -> None:
    """Write all answers, the official submission for questions, a picture and a page."""
    from pixlex.eval.vqa import write_vqa_submission
    from pixlex.files import write_text
    from pixlex.report.figures import captioned_images, drawn
    from pixlex.report.progress import answer_notes, answered_items

    lines = [
        json.dumps({**asdict(one), "id": items.ids[one.item], "text": items.texts[one.item][0]})
        for one in result.answered
    ]
    write_text(folder / "answers.jsonl", "\n".join(lines) + "\n")
    if result.task == "vqa":
        found = ((items.ids[one.item], one.answers[0]) for one in result.answered)
        write_vqa_submission(folder / "submission.json", found)
    drawn(folder / "answers.png", lambda path: captioned_images(answered_items(result, items), path))
    _leave_page(
        options,
        folder,
        title=f"{result.task}: {items.name}",
        introduction=result.protocol,
        captioned=answered_items(result, items),
        numbers=result.numbers,
        notes=answer_notes(result),
        config={"model": options.model, "data": options.data},
    )


def _open_pairs(options: PairOptions) -> Records:
    from pixlex.data.captions import open_pairs

    source = open_pairs(options.data)
    return source if options.raw_captions else source.cleaned()


def _pass_of(options: MeasureOptions, total: int, save_examples: int = 8) -> Pass:
    from pixlex.eval.evaluate import Pass

    return Pass(
        precision=options.precision,
        total=min(total, options.limit or total),
        save_examples=save_examples,
        progress=not options.quiet,
    )


def _is_settled(
    options: MeasureOptions, source: ImageSource, skipped: Sequence[Skipped], num_readable: int
) -> bool:
    """Whether this process says what was found; `TooManyBroken` where together they read too few images."""
    from pixlex import distributed
    from pixlex.batch import BrokenImages

    BrokenImages(None, source, options.max_broken_fraction).record(skipped, num_readable)
    return distributed.is_first()


def _accounted(batches: Iterator[ImageBatch], source: ImageSource, limit: float) -> Iterator[ImageBatch]:
    """Pass batches on; raise `TooManyBroken` when more than a fraction of the images cannot be read."""
    from pixlex.batch import BrokenImages

    broken = BrokenImages(None, source, limit)
    for batch in batches:
        broken.add(batch)
        yield batch


def _leave_page(options: cli.Options, folder: Path, **fields: Any) -> None:
    """Write report.html; one that cannot be made has been remarked upon."""
    from pixlex.report.figures import drawn
    from pixlex.report.page import Page, write_page

    page = Page(commands=[options.command_line], **{"pictures": {}, **fields})
    cli.remark_page(options, drawn(folder / "report.html", lambda path: write_page(path, page)))


def _versions(
    options: ProbeOptions, models: dict[str, Tokenizer], plan: Sequence[Sequence[Kind]], sets: ProbeSets
) -> Iterator[tuple[str, Tokenizer, list[Kind]]]:
    """Yield each model with its name and what is probed of it, and the same without training where asked for."""
    from pixlex.distributed import pick_device
    from pixlex.models.checkpoint import untrained_copy

    for (name, model), kinds in zip(models.items(), plan, strict=True):
        yield name, model, list(kinds)
        # Pixels do not know whether the model is trained.
        fitting: list[Kind] = [kind for kind in kinds if kind != "pixels"]
        if options.untrained and fitting:
            config = model.config
            images = sets.train.first(config.image_size, config.resize_mode, model.num_measured)
            fresh = untrained_copy(model, images, options.seed)
            yield f"{name}, untrained", fresh.to(pick_device(options.device)), fitting


def _notes(rows: Sequence[ProbeRow]) -> Iterator[str]:
    if any(row.result.repeats > 1 for row in rows):
        yield (
            "repeated columns add parameters, not information: under an L2 penalty r copies act as one column "
            "scaled by the root of r"
        )
    if any("untrained" in row.model for row in rows):
        yield "untrained: fresh weights; a whitened search has its statistics measured on training images"
