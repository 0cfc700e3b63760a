"""The rows of `evaluate few-shot`: who reads images, and who answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pixlex.cli.few_shot_options import FewShotOptions
from pixlex.cli.options import remark
from pixlex.data.loader import Loader, LoaderConfig
from pixlex.data.rows import Images
from pixlex.data.sources import ImageSource
from pixlex.distributed import pick_device
from pixlex.eval.few_shot.classifiers import (
    Chance,
    Classifier,
    LinearPerEpisode,
    NearestClassMean,
    WordClassifier,
    word_classifiers,
)
from pixlex.eval.few_shot.features import EncoderFeatures, PixelFeatures
from pixlex.eval.few_shot.prompted import SCORERS, FrozenClassifier, PromptedClassifier
from pixlex.eval.few_shot.readers import AsciiArt, Shortened, TextReader, model_reader
from pixlex.eval.llm import LanguageClient, LLMOptions, connect
from pixlex.models import checkpoint
from pixlex.models.checkpoint import Model, Tokenizer, untrained_copy
from pixlex.nn.language_model import load_language_model

# Images that the statistics of an untrained model's search are measured on.
_SOME = 64
# Folders inside the one of the results.
_WORDS, _ANSWERS = "words", "language-model"
_FROZEN_SCORERS: tuple[Literal["strict", "likelihood"], ...] = ("strict", "likelihood")


@dataclass(frozen=True)
class Reading:
    """A reader of images and the model behind it, if there is one."""

    reader: TextReader
    model: Tokenizer | None


def models_of(options: FewShotOptions, images: ImageSource) -> dict[str, Model]:
    """Load the models, of any family, by the names of their rows; untrained ones if asked for."""
    models: dict[str, Model] = {}
    for entry in options.model:
        name, path = _named(entry)
        if name in models:
            raise ValueError(f"two models are called {name!r}: give them names with --model NAME={path}")
        models[name] = checkpoint.load_any(path, language_model=options.language_model)
        if options.untrained:
            config = models[name].config
            # The same ones in every process.
            settings = LoaderConfig(
                image_size=config.image_size, cut=config.cut, batch_size=_SOME, rank=0, world_size=1
            )
            some = Loader(Images(images), settings).evaluation(_SOME)
            models[f"untrained {name}"] = untrained_copy(models[name], next(some).images)
    return models


def readings_of(options: FewShotOptions, models: Mapping[str, Model]) -> list[Reading]:
    """Say how images become text."""
    code_words = None
    if any(model.has_codes and model.vocabulary is None for model in models.values()):
        code_words = load_language_model(options.code_words)
    readings = []
    for name, model in models.items():
        if model.has_codes:
            reader = model_reader(
                model,
                name,
                words=code_words,
                keep_ratio=options.keep_share,
                cache=options.out / _WORDS,
                device=pick_device(options.device),
                precision=options.precision,
            )
            readings.append(Reading(reader, model))
    if options.ascii:
        drawn: TextReader = AsciiArt()
        if options.keep_share < 1:
            drawn = Shortened(drawn, options.keep_share)
        readings.append(Reading(drawn, None))
    return readings


def _named(entry: str) -> tuple[str, str]:
    """Split NAME=PATH; a path alone is called by its folder."""
    name, sign, path = entry.partition("=")
    if sign and name and "/" not in name:
        return name, path
    folder = Path(entry)
    return (folder.parent.name if folder.name == "model" else folder.name) or entry, entry


def answerers_of(
    options: FewShotOptions, models: Mapping[str, Model], readings: Sequence[Reading]
) -> list[Classifier]:
    """Return the rows of the table."""
    asked = list(dict.fromkeys(options.answerers))
    kinds: list[WordClassifier] = sorted(set(get_args(WordClassifier)) & set(asked), key=asked.index)
    if not models and not readings and (kinds or options.llm):
        raise ValueError(
            "nothing to read images with: name a --model, or --ascii, or ask for --answerers pixels chance alone"
        )
    encoder = load_language_model(options.encoder) if "sentence" in kinds and readings else None
    client = _client(options, options.llm) if options.llm is not None else None
    device = pick_device(options.device)
    answerers: list[Classifier] = []
    for one in readings:
        answerers += word_classifiers(one.reader, kinds, model=one.model, encoder=encoder, device=device)
        if client is not None:
            answerers += _prompted(options, one.reader, client)
    for name, model in models.items():
        answerers += _of_model(options, name, model, linear="linear" in asked)
    if "pixels" in asked:
        answerers.append(NearestClassMean(PixelFeatures()))
    if "chance" in asked:
        answerers.append(Chance())
    return answerers


def _of_model(options: FewShotOptions, name: str, model: Model, *, linear: bool) -> list[Classifier]:
    """Return the rows that need a model's networks rather than its words."""
    device = pick_device(options.device)
    if model.speaks:
        return [
            FrozenClassifier(
                model, name=name, scorer=scorer, template=template, device=device, precision=options.precision
            )
            for template in dict.fromkeys(options.template)
            for scorer in _FROZEN_SCORERS
            if options.scorer is None or scorer in options.scorer
        ]
    if linear:
        features = EncoderFeatures(model, name=name, device=device, precision=options.precision)
        return [LinearPerEpisode(features)]
    return []


def _prompted(options: FewShotOptions, reader: TextReader, client: LanguageClient) -> list[Classifier]:
    able = [scorer for scorer, (ability, _) in SCORERS.items() if ability in client.abilities]
    scorers = options.scorer or [scorer for scorer in able if scorer not in ("likelihood-per-token", "v2l")]
    return [
        PromptedClassifier(
            reader, client, template=template, scorer=scorer, answer_tokens=options.llm_answer_tokens
        )
        for template in dict.fromkeys(options.template)
        for scorer in dict.fromkeys(scorers)
    ]


def _client(options: FewShotOptions, name: str) -> LanguageClient:
    client = connect(
        LLMOptions(
            model=name,
            base_url=options.llm_url,
            key_variable=options.llm_key_variable,
            mode=options.llm_mode,
            concurrency=options.llm_concurrency,
            timeout=options.llm_timeout,
            cache=options.llm_cache or options.out / _ANSWERS,
            input_price=options.llm_input_price,
            output_price=options.llm_output_price,
            max_cost=options.llm_max_cost,
            max_tokens=options.llm_max_tokens,
            context_size=options.llm_context,
            tokenizer=options.llm_tokenizer,
            device=options.device,
            batch_size=options.llm_batch_size,
        )
    )
    remark(options, f"{client.name} can {', '.join(sorted(client.abilities))}")
    return client
