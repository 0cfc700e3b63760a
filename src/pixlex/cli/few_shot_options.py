"""Options of `evaluate few-shot`; free of torch, as all that help needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pixlex.cli.options import (
    DATA,
    Count,
    DeviceOptions,
    Folder,
    Fraction,
    MachineOptions,
    Options,
    Positive,
    option,
)

COLUMNS = ("bare:1/0", "1/0", "3/0", "5/0", "1/1", "1/3", "1/5")
Classifier = Literal["sentence", "layers", "last-layer", "bag", "linear", "pixels", "chance"]
Template = Literal["frozen", "v2l", "pixlex"]
Scorer = Literal["strict", "likelihood", "likelihood-per-token", "constrained", "v2l"]


@dataclass(frozen=True, kw_only=True)
class ReaderOptions(DeviceOptions):
    """How images become words."""

    GROUP = "images as words"
    model: tuple[str, ...] = option(
        (),
        "model directories, run folders or hub repositories, of any family or a ViTMAE; each gives rows",
        "[NAME=]M",
    )
    untrained: bool = option(
        False,
        "every model also with fresh weights; a whitened search takes its statistics from 64 of the images",
    )
    ascii: bool = option(False, "also ASCII art of 64 x 64 characters")
    keep_share: Fraction = option(1.0, "first fraction of an image's words that is kept; default all")
    language_model: str | None = option(None, "where a model's language model lies now", "M")
    code_words: str = option(
        "embedded", "language model whose whole words stand for a VQ-VAE's codes; default %(default)s", "M"
    )


@dataclass(frozen=True, kw_only=True)
class EpisodeOptions(Options):
    """What is classified."""

    GROUP = "episodes"
    data: str | None = option(None, f"labeled images: {DATA}", "DATA")
    out: Folder = option(text="results; a run that was killed there goes on", metavar="DIR")
    ways: tuple[Positive, ...] = option((2, 5), "classes; default 2 5")
    episodes: Positive = option(500, "of each setting; default %(default)s")
    seed: Count = option(0, "default %(default)s")
    names: Literal["real", "nonsense"] = option(
        "real", "the classes' own, or dax, blicket ... assigned anew in every episode; default %(default)s"
    )
    settings: tuple[str, ...] = option(
        COLUMNS, f"shots/repeats, bare: for no induction; default the paper's {' '.join(COLUMNS)}", "S"
    )
    episode_files: Path | None = option(
        None,
        "use these episodes: a file, or the folder `episodes` of an earlier run; they bring ways, settings, "
        "names and seed",
        "PATH",
    )
    open_ended: Path | None = option(None, "published miniImageNet episodes instead of --data", "DIR")
    task: str | None = option(None, "which of several published tasks in DIR")


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions(Options):
    """Who classifies without a large language model."""

    GROUP = "who answers without a large language model"
    answerers: tuple[Classifier, ...] = option(
        get_args(Classifier),
        "nearest class mean of a sentence encoder's vectors, of the language model's layers, its last layer, "
        "word counts, pixels; a linear classifier of an encoder's vectors (for a MAE the only one); chance; "
        "default all",
        nargs="*",
    )
    encoder: str = option("embedded", "the sentence encoder; default %(default)s", "M")


@dataclass(frozen=True, kw_only=True)
class LargeModelOptions(Options):
    """Who classifies with a large language model."""

    GROUP = "who answers with a large language model"
    llm: str | None = option(
        None, "an endpoint's model with --llm-url, else a directory or hub repository", "M"
    )
    llm_url: str | None = option(None, "OpenAI-compatible endpoint, such as http://host:8000/v1", "URL")
    template: tuple[Template, ...] = option(("frozen",), "default frozen")
    scorer: tuple[Scorer, ...] | None = option(
        None, "how answers are judged; default all that M can but per-token and v2l"
    )
    llm_key_variable: str | None = option(
        None, "environment variable of the key; default OPENAI_API_KEY", "NAME"
    )
    llm_mode: Literal["auto", "chat", "completions"] = option("auto", "how an endpoint is asked")
    llm_concurrency: Positive = option(8, "default %(default)s requests at a time")
    llm_timeout: float = option(120.0, "default %(default)s", "SECONDS")
    llm_cache: Folder | None = option(None, "default: a folder in --out", "DIR")
    llm_input_price: float | None = option(None, "of a million tokens of prompts", "P")
    llm_output_price: float | None = option(None, "of a million tokens of answers", "P")
    llm_max_cost: float | None = option(None, "spending stops before it exceeds this", "P")
    llm_max_tokens: Positive | None = option(None, "tokens stop before they exceed this", "N")
    llm_answer_tokens: Positive | None = option(
        None,
        "room of an answer, for models that think first; default the longest name and a little more",
        "N",
    )
    llm_context: Positive | None = option(None, "tokens that prompt and answer may have", "N")
    llm_tokenizer: str | None = option(None, "counts an endpoint's tokens; default an upper bound", "M")
    llm_batch_size: Positive = option(16, "of a local model; default %(default)s")


@dataclass(frozen=True, kw_only=True)
class FewShotOptions(MachineOptions, LargeModelOptions, ClassifierOptions, EpisodeOptions, ReaderOptions):
    """Options of `evaluate few-shot`."""


def few_shot(options: FewShotOptions) -> int:
    """What the words are worth to whoever sees a few labeled images."""
    from pixlex.cli.few_shot import evaluate_few_shot

    return evaluate_few_shot(options)
