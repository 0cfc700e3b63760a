"""`evaluate vqa|nlvr2|entailment|assignment` and `ask`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pixlex import distributed
from pixlex.api import ImageReasoner, load_reasoner
from pixlex.api.models import MOST_WORDS
from pixlex.cli.evaluate import TaskOptions
from pixlex.cli.explain import AskOptions
from pixlex.cli.models import run_of
from pixlex.cli.options import answer, remark, table
from pixlex.cli.tokens import remark_skipped
from pixlex.config.finetune import ReasoningRun, ReasoningTask
from pixlex.data.loader import Loader, LoaderConfig
from pixlex.data.questions import open_items
from pixlex.data.records import ReasoningSource
from pixlex.data.rows import Questions
from pixlex.data.sources import BrokenImages
from pixlex.eval.evaluate import Pass
from pixlex.eval.published import TABLE_IMAGES, TABLE_WORDS, task_table
from pixlex.eval.vqa import ReasoningResult, evaluate_reasoning, write_vqa_submission
from pixlex.files import write_json, write_text
from pixlex.models.finetuned import resized
from pixlex.report.drawing import drawn
from pixlex.report.figures import captioned_images
from pixlex.report.page import Page, write_page
from pixlex.report.progress import answer_notes, answered_items


def evaluate(options: TaskOptions, task: ReasoningTask) -> int:
    """Measure how often a model answers rightly; leave numbers, answers, a picture and a page in a folder."""
    model = resized(_reasoner(options).model, options.image_size, options.resize_mode)
    if model.config.task != task:
        raise ValueError(f"{options.model} was fine-tuned to {model.config.task}, not to {task}")
    # ALBEF keeps 50 words of a question in testing, else as many as in training.
    items = open_items(options.data, task, max_words=MOST_WORDS if task == "vqa" else TABLE_WORDS)
    if items.num_images != model.config.num_images:
        raise ValueError(
            f"{options.model} reads {model.config.num_images} images with each text, {items.name} has "
            f"{items.num_images}"
        )
    max_words = model.config.body.text.positions
    batches = Loader(
        Questions(items, lambda texts: model.tokenize_texts(texts, max_words)),
        LoaderConfig(image_size=model.config.image_size, cut=model.config.cut, batch_size=options.batch_size),
    ).evaluation(options.limit)
    result = evaluate_reasoning(
        model,
        items,
        batches,
        Pass(
            precision=options.precision,
            total=min(len(items), options.limit or len(items)),
            progress=not options.quiet,
        ),
        mode="generate" if options.generate else "rank",
        shortlist=options.shortlist,
        first_token_twice=options.first_token_twice,
        training=_training_items(options, task),
    )
    BrokenImages(None, items.images, options.max_broken_share).record(result.skipped, len(result.answered))
    if not distributed.is_first():
        return 0
    values = _values(options, items, result)
    rows = result.table
    if result.interval is not None:
        rows.append(
            ("95 % interval of the accuracy", f"{result.interval[0]:.1%} to {result.interval[1]:.1%}")
        )
    rows += [(f"accuracy of {kind}", f"{share:.1%}") for kind, share in result.by_kind.items()]
    lines = [f"{result.protocol} (the paper's tables: {TABLE_IMAGES})", table(rows)]
    if (published := task_table(task, items)) is not None:
        lines.append(published.text(f"{len(result.answered):,} items of {items.name}"))
    answer(options, values, "\n".join(lines))
    remark_skipped(options, result.skipped)
    if options.out is not None:
        _write(options.out, options, items, result, values)
    return 0


def ask(options: AskOptions) -> int:
    """Answer a question, or judge a sentence, about images."""
    reasoner = _reasoner(options)
    values: dict[str, Any] = {"images": options.paths, "text": options.text, "task": reasoner.task}
    if options.generate:
        written = reasoner.write(options.paths, options.text)[0]
        answer(options, {**values, "answer": written}, written)
        return 0
    (found,) = reasoner.answer(options.paths, options.text, top_k=options.top, shortlist=options.shortlist)
    answer(
        options,
        {**values, "answers": [{"answer": one.text, "probability": one.probability} for one in found]},
        table([(f"{one.probability:6.1%}", one.text) for one in found]),
    )
    return 0


def _reasoner(options: AskOptions | TaskOptions) -> ImageReasoner:
    return load_reasoner(
        options.model,
        language_model=options.language_model,
        device=options.device,
        precision=options.precision,
        revision=options.revision,
    )


def _training_items(options: TaskOptions, task: ReasoningTask) -> ReasoningSource | None:
    """Return what the baselines without images learn from: as named, or what the model was fine-tuned on."""
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


def _values(options: TaskOptions, items: ReasoningSource, result: ReasoningResult) -> dict[str, Any]:
    published = task_table(result.task, items)
    return {
        "model": options.model,
        "data": items.name,
        "protocol": result.protocol,
        **result.values,
        "interval": result.interval,
        "by_kind": dict(result.by_kind),
        "majority_answer": result.majority_answer,
        "published": None if published is None else asdict(published),
        "ignored": list(items.ignored[:20]),
        "skipped": [asdict(one) for one in result.skipped],
    }


def _write(
    folder: Path,
    options: TaskOptions,
    items: ReasoningSource,
    result: ReasoningResult,
    values: dict[str, Any],
) -> None:
    """Write numbers, all answers, the official submission for questions, a picture and a page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", values)
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
