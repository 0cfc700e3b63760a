"""`evaluate retrieval`, `pretraining`, `vqa`, `nlvr2`, `entailment` and `assignment`: images with texts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from pixlex.cli.models import (
    batches_of,
    finish,
    leave_page,
    load_cbvila,
    load_reasoner,
    objective_of,
    pass_of,
    refuse_broken,
    remark_without_contrast,
    run_of,
    words_of,
)
from pixlex.cli.options import (
    PAIRS,
    AnswerOptions,
    Folder,
    MeasureOptions,
    Positive,
    SizeOptions,
    UntrainedOption,
    option,
    remark,
    table,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pixlex.config.cbvila import ReasoningTask
    from pixlex.data.records import PairSource, ReasoningSource
    from pixlex.eval.vqa import ReasoningResult

_ITEMS = (
    "images with texts and answers: the official files of the task, ALBEF's .json, .parquet, .csv, .tsv, "
    ".jsonl or embedded:scenes:test[:COUNT]; with options such as QUESTIONS.json?annotations=FILE&images=DIR; "
    "several as 'ONE + OTHER'; for assignment images with captions"
)


@dataclass(frozen=True, kw_only=True)
class PairOptions(MeasureOptions, UntrainedOption, SizeOptions):
    """What measures on images with captions have."""

    data: str = option(text=PAIRS, metavar="PAIRS")
    raw_captions: bool = option(False, "captions as they are, not cleaned")


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(PairOptions):
    """Options of `evaluate retrieval`."""

    score: Literal["contrastive", "matching", "matching+contrastive"] = option(
        "matching", "what pairs are ranked by; default %(default)s, among the best by contrast"
    )
    top_k: Positive | None = option(
        None,
        "captions of each image, and images of each caption, that matching scores; default 128, for COCO 256",
        "K",
    )
    max_words: Positive | None = option(
        None,
        "longest caption in words (tokens); default 30, or as many as the model was trained with if more",
    )
    out: Folder | None = option(
        None, "write results.json there; an interrupted evaluation goes on there", "DIR"
    )


@dataclass(frozen=True, kw_only=True)
class PretrainingOptions(PairOptions):
    """Options of `evaluate pretraining`."""

    seed: int = option(0, "of what is hidden; default %(default)s")
    out: Folder | None = option(None, "write results.json, pictures and report.html there", "DIR")


@dataclass(frozen=True, kw_only=True)
class TaskOptions(MeasureOptions, AnswerOptions, SizeOptions):
    """Options of the tasks that a CB-ViLA is fine-tuned to."""

    data: str = option(text=_ITEMS, metavar="ITEMS")
    training_data: str | None = option(
        None,
        "what the baselines without images learn from; default: what the model was fine-tuned on",
        "ITEMS",
    )
    first_token_twice: bool = option(False, "count the first word of an answer twice, as ALBEF's code does")
    out: Folder | None = option(None, "write numbers, answers and a page there", "DIR")


def retrieval(options: RetrievalOptions) -> int:
    """Images found by texts and texts by images."""
    from pixlex import distributed
    from pixlex.eval import published
    from pixlex.eval.retrieval import evaluate_retrieval, gallery
    from pixlex.models.checkpoint import read_config

    source = _open_pairs(options)
    model = load_cbvila(options)
    if not options.untrained:
        remark_without_contrast(options, model)
    how = pass_of(options, len(source))
    items = gallery(
        model,
        source,
        how,
        max_words=min(options.max_words or words_of(options.model, model), model.config.text.positions),
        batch_size=options.batch_size,
        limit=options.limit,
    )
    refuse_broken(options, source, items.skipped, len(items.image_vectors))
    top_k = options.top_k or published.TABLE_TOP_K[published.benchmark_of(source.name) or "flickr30k"]
    result = evaluate_retrieval(model, items, how, score=options.score, top_k=top_k, cache=options.out)
    if not distributed.is_first():
        return 0
    trained_on: list[str] = []
    if not options.untrained:
        trained_on = read_config(options.model, options.revision).get("trained_on", [])
    setting, known = (
        published.setting_of(trained_on, source.name),
        published.retrieval_table(source.name, trained_on),
    )
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
    lines = [f"{setting}: {result.protocol} ({published.TABLE_SETTINGS})", table(result.table)]
    if known is not None:
        lines.append(known.text(f"{result.num_images:,} images"))
    finish(options, values, "\n".join(lines), result.skipped, out=options.out)
    return 0


def pretraining(options: PretrainingOptions) -> int:
    """Losses, codebook and rebuilt pixels of a CB-ViLA on pairs that it was not trained on."""
    from pixlex import distributed
    from pixlex.config.fields import SQUARE
    from pixlex.data.rows import Pairs
    from pixlex.eval.pretraining import evaluate_pretraining
    from pixlex.objectives.cbvila import CBViLAObjective
    from pixlex.report.page import Page
    from pixlex.report.progress import draw_pretraining, unreadable

    source = _open_pairs(options)
    model = load_cbvila(options)
    config, max_words = objective_of(options.model), words_of(options.model, model)
    objective = CBViLAObjective(model, config, 1, max_words).to(distributed.pick_device(options.device))
    rows = Pairs(source, lambda texts: model.tokenize_texts(texts, max_words))
    batches = batches_of(rows, model.config, options.batch_size, options.limit)
    result = evaluate_pretraining(objective, batches, pass_of(options, len(source)), seed=options.seed)
    num_images = int(result.values["num_images"])
    refuse_broken(options, source, result.skipped, num_images)
    if not distributed.is_first():
        return 0
    size, grid = model.config.image_size, model.grid
    protocol = (
        f"{num_images} images, each with its first caption; {size} px, {SQUARE[model.config.cut]}; "
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
    finish(options, values, f"{protocol}\n{table(result.table)}", result.skipped, out=options.out)
    if options.out is not None:
        folder = options.out
        page = Page(
            title=f"CB-ViLA, {size} px, {grid} x {grid}: {source.name}",
            introduction=f"{protocol}.",
            numbers=result.numbers,
            notes=unreadable(result.skipped),
            pictures=draw_pretraining(result, source, model.config, lambda kind: folder / f"{kind}.png"),
            commands=[options.command_line],
            config={"model": asdict(model.config), "objective": asdict(config)},
        )
        leave_page(options, folder, page)
    return 0


def vqa(options: TaskOptions) -> int:
    """How often questions about images are answered rightly."""
    return _evaluate_task(options, "vqa")


def nlvr2(options: TaskOptions) -> int:
    """How often sentences about images are judged rightly."""
    return _evaluate_task(options, "nlvr2")


def entailment(options: TaskOptions) -> int:
    """How often what images entail is classified rightly."""
    return _evaluate_task(options, "entailment")


def assignment(options: TaskOptions) -> int:
    """How often a caption is assigned rightly to one of two images, or to neither."""
    return _evaluate_task(options, "assignment")


def _open_pairs(options: PairOptions) -> PairSource:
    from pixlex.data.captions import open_pairs

    source = open_pairs(options.data)
    return source if options.raw_captions else source.cleaned()


def _evaluate_task(options: TaskOptions, task: ReasoningTask) -> int:
    """Measure how often a model answers rightly; leave numbers, answers, a picture and a page in a folder."""
    from pixlex import distributed
    from pixlex.api.models import MOST_WORDS
    from pixlex.data.questions import open_items
    from pixlex.data.rows import Questions
    from pixlex.eval.published import TABLE_IMAGES, TABLE_WORDS, task_table
    from pixlex.eval.vqa import evaluate_reasoning
    from pixlex.models.finetuned import resized

    model = resized(load_reasoner(options).model, options.image_size, options.resize_mode)
    if model.config.task != task:
        raise ValueError(f"{options.model} was fine-tuned to {model.config.task}, not to {task}")
    # ALBEF keeps 50 words of a question in testing, else as many as in training.
    items = open_items(options.data, task, max_words=MOST_WORDS if task == "vqa" else TABLE_WORDS)
    if items.num_images != model.config.num_images:
        raise ValueError(
            f"{options.model} reads {model.config.num_images} images with each text, {items.name} has "
            f"{items.num_images}"
        )
    rows = Questions(items, lambda texts: model.tokenize_texts(texts, model.config.body.text.positions))
    result = evaluate_reasoning(
        model,
        items,
        batches_of(rows, model.config, options.batch_size, options.limit),
        pass_of(options, len(items)),
        mode="generate" if options.generate else "rank",
        shortlist=options.shortlist,
        first_token_twice=options.first_token_twice,
        training=_training_items(options, task),
    )
    refuse_broken(options, items.images, result.skipped, len(result.answered))
    if not distributed.is_first():
        return 0
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
    lines = [f"{result.protocol} (the paper's tables: {TABLE_IMAGES})", table(numbers)]
    if published is not None:
        lines.append(published.text(f"{len(result.answered):,} items of {items.name}"))
    finish(options, values, "\n".join(lines), result.skipped, out=options.out)
    if options.out is not None:
        _write_answers(options.out, options, items, result)
    return 0


def _training_items(options: TaskOptions, task: ReasoningTask) -> ReasoningSource | None:
    """Return what the baselines without images learn from: as named, or what the model was fine-tuned on."""
    from pixlex.config.cbvila import ReasoningRun
    from pixlex.data.questions import open_items

    if options.training_data is not None:
        return open_items(options.training_data, task).answered()
    run = run_of(options.model, ReasoningRun)
    if run is None:
        remark(options, "no baseline without images: name the training items with --training-data")
        return None
    try:
        return open_items(run.data.train, task).answered()
    except (ValueError, OSError) as fault:
        remark(options, f"no baseline without images, the training items cannot be opened: {fault}")
        return None


def _write_answers(
    folder: Path, options: TaskOptions, items: ReasoningSource, result: ReasoningResult
) -> None:
    """Write all answers, the official submission for questions, a picture and a page."""
    from pixlex.eval.vqa import write_vqa_submission
    from pixlex.files import write_text
    from pixlex.report.figures import captioned_images, drawn
    from pixlex.report.page import Page, write_page
    from pixlex.report.progress import answer_notes, answered_items

    lines = [
        json.dumps({**asdict(one), "id": items.ids[one.item], "text": items.texts[one.item]})
        for one in result.answered
    ]
    write_text(folder / "answers.jsonl", "\n".join(lines) + "\n")
    if result.task == "vqa":
        found = ((items.ids[one.item], one.answers[0]) for one in result.answered)
        write_vqa_submission(folder / "submission.json", found)
    drawn(folder / "answers.png", lambda path: captioned_images(answered_items(result, items), path))
    drawn(
        folder / "report.html",
        lambda path: write_page(
            path,
            Page(
                title=f"{result.task}: {items.name}",
                introduction=result.protocol,
                captioned=answered_items(result, items),
                numbers=result.numbers,
                notes=answer_notes(result),
                pictures={},
                commands=[options.command_line],
                config={"model": options.model, "data": options.data},
            ),
        ),
    )
