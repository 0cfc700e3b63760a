"""What can be typed after `pixlex evaluate few-shot`; free of torch, as all that help needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pixlex.cli.options import (
    DATA,
    add_command,
    folder_path,
    machine_options,
    positive,
    share,
    zero_or_more,
)

COLUMNS = ("bare:1/0", "1/0", "3/0", "5/0", "1/1", "1/3", "1/5")
ANSWERERS = ("sentence", "layers", "last-layer", "bag", "linear", "pixels", "chance")
TEMPLATES = ("frozen", "v2l", "pixlex")
SCORERS = ("strict", "likelihood", "likelihood-per-token", "constrained", "v2l")


def few_shot_command(measures: Any) -> None:
    """Add `evaluate few-shot`."""
    parser = add_command(
        measures,
        "few-shot",
        "few_shot:evaluate_few_shot",
        "what the words are worth to whoever sees a few labeled images",
    )
    _reading_options(parser)
    _episode_options(parser)
    _answerer_options(parser)
    _language_model_options(parser)
    machine_options(parser)


def _reading_options(parser: argparse.ArgumentParser) -> None:
    models = parser.add_argument_group("images as words")
    models.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="[NAME=]M",
        help="model directories, run folders or hub repositories, of any family or a ViTMAE; each gives rows",
    )
    models.add_argument(
        "--untrained",
        action="store_true",
        help="every model also with fresh weights; a whitened search takes its statistics from 64 of the images",
    )
    models.add_argument("--ascii", action="store_true", help="also ASCII art of 64 x 64 characters")
    models.add_argument(
        "--keep-share",
        type=share,
        default=1.0,
        help="first share of an image's words that is kept; default all",
    )
    models.add_argument("--language-model", metavar="M", help="where a model's language model lies now")
    models.add_argument(
        "--code-words",
        default="embedded",
        metavar="M",
        help="language model whose whole words stand for a VQ-VAE's codes; default %(default)s",
    )
    models.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; default %(default)s")
    models.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="default %(default)s; bf16: other words"
    )


def _episode_options(parser: argparse.ArgumentParser) -> None:
    episodes = parser.add_argument_group("episodes")
    episodes.add_argument("--data", metavar="DATA", help=f"labeled images: {DATA}")
    episodes.add_argument(
        "--out",
        type=folder_path,
        required=True,
        metavar="DIR",
        help="results; a run that was killed there goes on",
    )
    episodes.add_argument("--ways", type=positive, nargs="+", default=[2, 5], help="classes; default 2 5")
    episodes.add_argument(
        "--episodes", type=positive, default=500, help="of each setting; default %(default)s"
    )
    episodes.add_argument("--seed", type=zero_or_more, default=0, help="default %(default)s")
    episodes.add_argument(
        "--names",
        choices=("real", "nonsense"),
        default="real",
        help="the classes' own, or dax, blicket ... dealt anew in every episode; default %(default)s",
    )
    episodes.add_argument(
        "--settings",
        nargs="+",
        default=list(COLUMNS),
        metavar="S",
        help=f"shots/repeats, bare: for no induction; default the paper's {' '.join(COLUMNS)}",
    )
    episodes.add_argument(
        "--episode-files",
        type=Path,
        metavar="PATH",
        help="use these episodes: a file, or the folder `episodes` of an earlier run; they bring ways, settings, "
        "names and seed",
    )
    episodes.add_argument(
        "--open-ended", type=Path, metavar="DIR", help="published miniImageNet episodes instead of --data"
    )
    episodes.add_argument("--task", help="which of several published tasks in DIR")


def _answerer_options(parser: argparse.ArgumentParser) -> None:
    answerers = parser.add_argument_group("who answers without a large language model")
    answerers.add_argument(
        "--answerers",
        nargs="*",
        choices=ANSWERERS,
        default=list(ANSWERERS),
        help="nearest class mean of a sentence encoder's vectors, of the language model's layers, its last layer, "
        "word counts, pixels; a linear classifier of an encoder's vectors (for a MAE the only one); chance; "
        "default all",
    )
    answerers.add_argument(
        "--encoder", default="embedded", metavar="M", help="the sentence encoder; default %(default)s"
    )


def _language_model_options(parser: argparse.ArgumentParser) -> None:
    llm = parser.add_argument_group("who answers with a large language model")
    llm.add_argument(
        "--llm", metavar="M", help="an endpoint's model with --llm-url, else a directory or hub repository"
    )
    llm.add_argument(
        "--llm-url", metavar="URL", help="OpenAI-compatible endpoint, such as http://host:8000/v1"
    )
    llm.add_argument("--template", nargs="+", choices=TEMPLATES, default=["frozen"], help="default frozen")
    llm.add_argument(
        "--scorer",
        nargs="+",
        choices=SCORERS,
        help="how answers are judged; default all that M can but per-token and v2l",
    )
    llm.add_argument(
        "--llm-key-variable", metavar="NAME", help="environment variable of the key; default OPENAI_API_KEY"
    )
    llm.add_argument("--llm-mode", choices=("auto", "chat", "completions"), default="auto")
    llm.add_argument(
        "--llm-concurrency", type=positive, default=8, help="default %(default)s requests at a time"
    )
    llm.add_argument(
        "--llm-timeout", type=float, default=120.0, metavar="SECONDS", help="default %(default)s"
    )
    llm.add_argument("--llm-cache", type=folder_path, metavar="DIR", help="default: a folder in --out")
    llm.add_argument("--llm-input-price", type=float, metavar="P", help="of a million tokens of prompts")
    llm.add_argument("--llm-output-price", type=float, metavar="P", help="of a million tokens of answers")
    llm.add_argument("--llm-max-cost", type=float, metavar="P", help="spending stops before it exceeds this")
    llm.add_argument(
        "--llm-max-tokens", type=positive, metavar="N", help="tokens stop before they exceed this"
    )
    llm.add_argument(
        "--llm-answer-tokens",
        type=positive,
        metavar="N",
        help="room of an answer, for models that think first; default the longest name and a little more",
    )
    llm.add_argument(
        "--llm-context", type=positive, metavar="N", help="tokens that prompt and answer may have"
    )
    llm.add_argument(
        "--llm-tokenizer", metavar="M", help="counts an endpoint's tokens; default an upper bound"
    )
    llm.add_argument(
        "--llm-batch-size", type=positive, default=16, help="of a local model; default %(default)s"
    )
