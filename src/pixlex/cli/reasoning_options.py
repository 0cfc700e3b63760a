"""What can be typed after `pixlex finetune`, `ask` and `evaluate vqa|nlvr2|entailment|assignment`."""

from __future__ import annotations

import argparse
from typing import Any

from pixlex.cli.options import (
    add_command,
    batch_options,
    broken_option,
    folder_path,
    machine_options,
    model_options,
    positive,
    size_options,
    training_options,
)

_ITEMS = (
    "images with texts and answers: the official files of the task, ALBEF's .json, .parquet, .csv, .tsv, "
    ".jsonl or embedded:scenes:test[:COUNT]; with options such as QUESTIONS.json?annotations=FILE&images=DIR; "
    "several as 'ONE + OTHER'; for assignment images with captions"
)
_MEASURES = {
    "vqa": "how often questions about images are answered rightly",
    "nlvr2": "how often sentences about images are judged rightly",
    "entailment": "how often it is told rightly what images entail",
    "assignment": "how often a caption is assigned rightly to one of two images, or to neither",
}


def finetune_command(commands: Any) -> None:
    """Add `finetune`."""
    finetune = add_command(
        commands,
        "finetune",
        "finetuning:finetune",
        "train a recipe from the weights of a CB-ViLA",
        processes="own",
    )
    finetune.add_argument("recipe", metavar="RECIPE", help="a YAML file or a name such as finetune/vqa")
    finetune.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="settings, such as train.steps=100"
    )
    finetune.add_argument(
        "--from",
        dest="start",
        metavar="M",
        help="the model to start from: a model directory, a run folder or a hub repository",
    )
    finetune.add_argument("--revision", help="branch, tag or commit of a hub repository")
    finetune.add_argument(
        "--untrained",
        action="store_true",
        help="the shape of that model without its weights, to see what pretraining gives; without --from the "
        "recipe's own shape",
    )
    finetune.add_argument(
        "--out", type=folder_path, metavar="DIR", help="the run folder; default runs/RECIPE-NUMBER"
    )
    finetune.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    training_options(finetune)
    machine_options(finetune)


def ask_command(commands: Any) -> None:
    """Add `ask`."""
    ask = add_command(
        commands, "ask", "reasoning:ask", "answer a question about an image, with probabilities"
    )
    ask.add_argument("paths", nargs="+", metavar="IMAGE", help="an image file; two where the model reads two")
    ask.add_argument("text", metavar="QUESTION", help="the question, or the sentence to judge")
    model_options(ask)
    _answer_options(ask)
    ask.add_argument("--top", type=positive, default=5, help="most answers shown; default %(default)s")
    machine_options(ask)


def reasoning_commands(measures: Any) -> None:
    """Add the three measures."""
    for name, summary in _MEASURES.items():
        measure = add_command(measures, name, "reasoning:evaluate", summary, processes="shared")
        model_options(measure)
        measure.add_argument("--data", required=True, metavar="ITEMS", help=_ITEMS)
        measure.add_argument(
            "--training-data",
            metavar="ITEMS",
            help="what the baselines without images learn from; default: what the model was fine-tuned on",
        )
        size_options(measure)
        _answer_options(measure)
        measure.add_argument(
            "--first-token-twice",
            action="store_true",
            help="count the first word of an answer twice, as ALBEF's code does",
        )
        measure.add_argument("--limit", type=positive, help="most items, evenly spaced; default all")
        measure.add_argument(
            "--out", type=folder_path, metavar="DIR", help="write numbers, answers and a page there"
        )
        batch_options(measure)
        broken_option(measure)
        machine_options(measure)


def _answer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--generate", action="store_true", help="write answers freely, not out of the list")
    parser.add_argument(
        "--shortlist",
        type=positive,
        default=128,
        metavar="K",
        help="answers of the list whose whole likelihood is computed; default %(default)s",
    )
