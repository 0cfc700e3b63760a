"""`evaluate few-shot`: what the words are worth to whoever sees a few labeled images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pixlex.cli import options as cli
from pixlex.eval.few_shot.prompts import PAPER_COLUMNS, Naming, Scorer, Template, WordClassifier, setting_of
from pixlex.eval.llm.client import Mode

if TYPE_CHECKING:
    from pixlex.data.sources import ImageSource
    from pixlex.eval.few_shot.episodes import EpisodeSet
    from pixlex.eval.few_shot.prompted import PromptedClassifier
    from pixlex.eval.few_shot.readers import TextReader
    from pixlex.eval.few_shot.run import Cell, Classifier
    from pixlex.eval.llm import LanguageClient
    from pixlex.models.checkpoint import Model, Tokenizer

    # What makes text of images, and the model behind it, if there is one.
    Reading = tuple[TextReader, Tokenizer | None]

ClassifierName = Literal[WordClassifier, "similarity", "linear", "pixels", "chance"]


class ReaderOptions(cli.DeviceOptions):
    """How images become words."""

    GROUP = "images as words"
    model: tuple[str, ...] = cli.option(
        (),
        "models that come with pixlex, directories, run folders or hub repositories; any family, or a ViTMAE",
        "[NAME=]M",
    )
    untrained: bool = cli.option(
        False,
        "every model also with fresh weights; a whitened search takes its statistics from 64 of the images",
    )
    ascii: bool = cli.option(False, "also ASCII art of 64 x 64 characters")
    keep_fraction: cli.Fraction = cli.option(
        1.0, "first fraction of an image's words that is kept; default all", earlier="--keep-share"
    )
    language_model: str | None = cli.option(None, "where a model's language model lies now", "M")
    word_file: Path | None = cli.option(None, cli.WORD_FILE, "FILE", name="--words")
    code_words: str = cli.option(
        "embedded", "language model whose whole words stand for a VQ-VAE's codes; default %(default)s", "M"
    )


class EpisodeOptions(cli.Options):
    """What is classified."""

    GROUP = "episodes"
    data: str | None = cli.option(
        None, f"labeled images: {cli.DATA}; ?label=COLUMN behind a table names its column of classes", "DATA"
    )
    support: str | None = cli.option(
        None,
        "examples come from this source, only what is asked about from --data; classes of one name",
        "DATA",
    )
    out: cli.Folder = cli.option(text="results; a run that was killed there goes on", metavar="DIR")
    ways: tuple[cli.Positive, ...] = cli.option((2, 5), "classes; default 2 5")
    episodes: cli.Positive = cli.option(500, "of each setting; default %(default)s")
    seed: cli.Count = cli.option(0, "default %(default)s")
    names: Naming = cli.option(
        "real", "the classes' own, or dax, blicket ... assigned anew in every episode; default %(default)s"
    )
    settings: tuple[str, ...] = cli.option(
        PAPER_COLUMNS,
        "shots/repeats, bare: for no induction, 0/0 no example at all; default the paper's "
        f"{' '.join(PAPER_COLUMNS)}",
        "S",
    )
    episode_files: Path | None = cli.option(
        None,
        "use these episodes: a file, or the folder `episodes` of an earlier run; they bring ways, settings, "
        "names and seed",
        "PATH",
    )
    open_ended: Path | None = cli.option(None, "published miniImageNet episodes instead of --data", "DIR")
    task: str | None = cli.option(None, "which of several published tasks in DIR")


class ClassifierOptions(cli.Options):
    """Who classifies without a large language model."""

    GROUP = "who answers without a large language model"
    classifiers: tuple[ClassifierName, ...] = cli.option(
        get_args(ClassifierName),
        "nearest class mean of a sentence encoder's vectors, of the language model's layers, its last layer, "
        "word counts, the vectors by which a CB-ViLA, CLIP or SigLIP compares (similarity), pixels; a linear "
        "classifier of an encoder's vectors (for a MAE the only one); chance; default all. Without an example the "
        "vectors of sentence and similarity are compared with those of the names",
        nargs="*",
        earlier="--answerers",
    )
    encoder: str = cli.option("embedded", "the sentence encoder; default %(default)s", "M")


class LargeModelOptions(cli.Options):
    """Who classifies with a large language model; `llm_X` is `LLMOptions.X`, but for the room of an answer."""

    GROUP = "who answers with a large language model"
    llm: tuple[str, ...] = cli.option(
        (),
        "an endpoint's models with --llm-url, else directories, hub repositories or GGUFs, one at a time in "
        "memory; each gives rows and has the budget for itself",
        "M",
    )
    llm_episodes: cli.Positive | None = cli.option(
        None, "of each setting, the first so many of --episodes; default all", "N"
    )
    llm_base_url: str | None = cli.option(
        None, "OpenAI-compatible endpoint, such as http://host:8000/v1", "URL", name="--llm-url"
    )
    template: tuple[Template, ...] = cli.option(("frozen",), "default frozen")
    scorer: tuple[Scorer, ...] | None = cli.option(
        None, "how answers are judged; default strict, likelihood and constrained, where M can"
    )
    llm_key_variable: str | None = cli.option(
        None, "environment variable of the key; default OPENAI_API_KEY", "NAME"
    )
    llm_mode: Mode = cli.option("auto", "how an endpoint is asked")
    llm_concurrency: cli.Positive = cli.option(8, "default %(default)s requests at a time")
    llm_timeout: float = cli.option(120.0, "default %(default)s", "SECONDS")
    llm_cache: cli.Folder | None = cli.option(None, "default: a folder in --out", "DIR")
    llm_input_price: float | None = cli.option(None, "of a million tokens of prompts", "P")
    llm_output_price: float | None = cli.option(None, "of a million tokens of answers", "P")
    llm_max_cost: float | None = cli.option(None, "spending stops before it exceeds this", "P")
    llm_max_tokens: cli.Positive | None = cli.option(None, "tokens stop before they exceed this", "N")
    llm_answer_tokens: cli.Positive | None = cli.option(
        None,
        "room of an answer, for models that think first; default the longest name and a little more",
        "N",
    )
    llm_context_size: cli.Positive | None = cli.option(
        None, "tokens that prompt and answer may have", "N", name="--llm-context"
    )
    llm_tokenizer: str | None = cli.option(None, "counts an endpoint's tokens; default an upper bound", "M")
    llm_batch_size: cli.Positive = cli.option(16, "of a local model; default %(default)s")


class FewShotOptions(cli.MachineOptions, LargeModelOptions, ClassifierOptions, EpisodeOptions, ReaderOptions):
    """Options of `evaluate few-shot`."""


def few_shot(options: FewShotOptions) -> int:
    """What the words are worth to whoever sees a few labeled images."""
    from pixlex.eval.few_shot.episodes import save_episodes
    from pixlex.report.few_shot import table_lines, warnings_of, ways_of
    from pixlex.report.page import markdown_table

    images, episode_sets = _episodes(options)
    _remark_left_out(options, images, episode_sets)
    models = _models(options, images)
    readings = _readings(options, models)
    blocks = _classifiers(options, models, readings)
    for episodes in episode_sets:
        save_episodes(episodes, options.out / "episodes" / episodes.file_name)
    cells = _answered(options, blocks, readings, episode_sets, images)
    tables = "\n\n".join(
        f"{ways}-way\n{markdown_table(table_lines(cells, ways), 2)}" for ways in ways_of(cells)
    )
    values = [{key: value for key, value in vars(cell).items() if key != "answers"} for cell in cells]
    cli.answer(options, values, tables)
    for warning in warnings_of(cells):
        cli.remark(options, warning)
    _write(options, images, episode_sets, readings, cells)
    return 0


def _answered(
    options: FewShotOptions,
    blocks: Sequence[Sequence[Classifier]],
    readings: Sequence[Reading],
    episode_sets: Sequence[EpisodeSet],
    images: ImageSource,
) -> list[Cell]:
    """Return the cells of all rows, those of a reader together; large models are asked one after the other."""
    from pixlex.eval.few_shot.prompted import FrozenClassifier
    from pixlex.eval.few_shot.run import run_few_shot

    # Rows are called as in the table: two copies of one large model answer alike under names of their own.
    order = [[(one.name, one.scorer) for one in block] for block in blocks]
    found: dict[tuple[str, str], list[Cell]] = {}
    first_ones = [
        replace(one, episodes=one.episodes[: options.llm_episodes]) if options.llm_episodes else one
        for one in episode_sets
    ]

    def ask(classifiers: Sequence[Classifier], sets: Sequence[EpisodeSet]) -> None:
        if classifiers:
            cells = iter(run_few_shot(classifiers, sets, images, options.out, progress=not options.quiet))
            found.update({(one.name, one.scorer): list(islice(cells, len(sets))) for one in classifiers})

    def ask_large(client: LanguageClient) -> None:
        prompted = [_prompted(options, reader, client) for reader, _ in readings]
        asked = [one for row in prompted for one in row]
        _remark_cost(options, client, asked, first_ones, images)
        ask(asked, first_ones)
        for row, names in zip(prompted, order, strict=False):
            names += [(one.name, one.scorer) for one in row]

    connects = _large_models(options)
    client = connects[0]() if connects else None  # it is there before anybody is asked
    rows = [one for block in blocks for one in block]
    ask([one for one in rows if not isinstance(one, FrozenClassifier)], episode_sets)
    ask([one for one in rows if isinstance(one, FrozenClassifier)], first_ones)
    if client is not None:
        ask_large(client)
        client = None  # what one holds is free before the next
        for connect in connects[1:]:
            ask_large(connect())
    return [cell for names in order for name in names for cell in found[name]]


def _large_models(options: FewShotOptions) -> Sequence[Callable[[], LanguageClient]]:
    """Return what connects to each large language model; that all are there is found out before one is asked."""
    from pixlex.models.initialization import CONFIG, find_model
    from pixlex.nn.gguf import unpacked

    names = list(dict.fromkeys(options.llm))
    if options.llm_base_url is not None:
        clients = [_client(options, name) for name in names]
        return [lambda client=client: client for client in clients]  # type: ignore[misc]
    known: dict[str, str] = {}
    for name in names if len(names) > 1 else ():
        folder = unpacked(name, partial(cli.remark, options))
        find_model(folder, "language model", needs=(CONFIG,), files=(CONFIG,))
        if (other := known.setdefault(Path(name).name, name)) != name:
            raise ValueError(f"the rows of {other} and {name} would have one name: rename one of the two")
    return [partial(_client, options, name) for name in names]


def _episodes(options: FewShotOptions) -> tuple[ImageSource, list[EpisodeSet]]:
    from pixlex.data.images import open_source
    from pixlex.eval.few_shot.episodes import load_episodes, read_open_ended, sample_episodes, with_support

    settings = [
        setting_of(column, ways, options.names)
        for ways in dict.fromkeys(options.ways)
        for column in dict.fromkeys(options.settings)
    ]
    if options.open_ended is not None:
        if any(one is not None for one in (options.data, options.support, options.episode_files)):
            raise ValueError(
                "--open-ended brings images and episodes: leave out --data, --support and --episode-files"
            )
        return read_open_ended(options.open_ended, settings, task=options.task, limit=options.episodes)
    if options.data is None:
        raise ValueError("expected --data with labeled images, or --open-ended with published episodes")
    images, place = open_source(options.data), options.episode_files
    if options.support is not None:
        images = with_support(images, open_source(options.support))
    if place is None:
        most = max(one.shots for one in settings)
        draw = partial(sample_episodes, images, count=options.episodes, seed=options.seed, most_shots=most)
        return images, list(map(draw, settings))
    paths = sorted(place.glob("*.json")) if place.is_dir() else [place]
    if not paths:
        raise ValueError(f"no .json file of episodes in {place}")
    order = {column: number for number, column in enumerate(PAPER_COLUMNS)}
    sets = [load_episodes(path, images) for path in paths]
    last = len(order)
    sets.sort(key=lambda one: (one.setting.ways, one.setting.shots > 0, order.get(one.setting.column, last)))
    return images, sets


def _remark_left_out(
    options: FewShotOptions, images: ImageSource, episode_sets: Sequence[EpisodeSet]
) -> None:
    """Say how many classes cannot be in any episode, where examples come from elsewhere."""
    from pixlex.eval.few_shot.episodes import WithSupport

    if isinstance(images, WithSupport):
        used = {name for one in episode_sets for name in one.class_names}
        lost = [len({*filter(None, part.class_names)} - used) for part in images.parts]
        most = max(one.setting.shots for one in episode_sets)
        if any(lost):
            few = f", or with fewer than {most} images to show" if most else ""
            data, support = (
                f"{count:,} classes of {part.name}" for count, part in zip(lost, images.parts, strict=True)
            )
            cli.remark(
                options, f"{data} and {support} are left out: not in both{few}; {len(used):,} are left"
            )


def _models(options: FewShotOptions, images: ImageSource) -> dict[str, Model]:
    """Load the models, of any family, by the names of their rows; untrained ones if asked for."""
    from pixlex.models.checkpoint import load_any, untrained_copy

    models: dict[str, Model] = {}
    for entry in options.model:
        name, path = _named(entry)
        if name in models:
            raise ValueError(f"two models are called {name!r}: give them names with --model NAME={path}")
        model = models[name] = load_any(path, language_model=options.language_model)
        if options.untrained:
            models[f"untrained {name}"] = untrained_copy(model, cli.first_images(model, images))
    return models


def _named(entry: str) -> tuple[str, str]:
    """Split NAME=PATH; a path alone is called by its folder."""
    name, sign, path = entry.partition("=")
    if sign and name and "/" not in name:
        return name, path
    folder = Path(entry)
    return (folder.parent.name if folder.name == "model" else folder.name) or entry, entry


def _where(options: FewShotOptions) -> dict[str, Any]:
    from pixlex.distributed import pick_device

    return {"device": pick_device(options.device), "precision": options.precision}


def _readings(options: FewShotOptions, models: Mapping[str, Model]) -> list[Reading]:
    """Return what makes text of images, each with the model behind it, if there is one."""
    from pixlex.eval.few_shot.readers import ascii_art, model_reader, shortened
    from pixlex.models.baselines import DualEncoder
    from pixlex.nn.language_model import load_language_words
    from pixlex.nn.vocabulary import build_vocabulary

    words: Sequence[str] = ()
    word_list = None if options.word_file is None else cli.words_in(options.word_file)
    if any(model.has_codes and model.vocabulary is None for model in models.values()):
        words = build_vocabulary(load_language_words(options.code_words)).words
    kept, cache, where = options.keep_fraction, options.out / "words", _where(options)
    readings: list[Reading] = []
    for name, model in models.items():
        if model.has_codes or isinstance(model, DualEncoder):
            how = {"word_list": word_list, "words": words, "keep_ratio": kept, "cache": cache, **where}
            readings.append((model_reader(model, name, **how), model if model.has_codes else None))
    if options.ascii:
        readings.append((shortened(ascii_art(), kept) if kept < 1 else ascii_art(), None))
    return readings


def _classifiers(
    options: FewShotOptions, models: Mapping[str, Model], readings: Sequence[Reading]
) -> list[list[Classifier]]:
    """Return the rows without a large model: those of each reader, then those of networks and of no model."""
    from pixlex.eval.few_shot import classifiers as few
    from pixlex.eval.few_shot.prompted import FrozenClassifier
    from pixlex.models import JointModel
    from pixlex.nn.language_model import load_language_model

    asked, where = list(dict.fromkeys(options.classifiers)), _where(options)
    kinds: list[WordClassifier] = sorted(set(get_args(WordClassifier)) & set(asked), key=asked.index)
    if not models and not readings and (kinds or options.llm):
        raise ValueError(
            "nothing to read images with: name a --model, or --ascii, or ask for --classifiers pixels chance alone"
        )
    if options.llm and not readings:
        raise ValueError(
            "--llm reads images as words, which no --model here writes: name one of LQAE, or --ascii"
        )
    encoder = load_language_model(options.encoder) if "sentence" in kinds and readings else None
    blocks: list[list[Classifier]] = [
        [*few.word_classifiers(reader, kinds, model=model, encoder=encoder, device=where["device"])]
        for reader, model in readings
    ]
    rows: list[Classifier] = []
    for name, one in models.items():
        if "similarity" in asked and isinstance(one, JointModel) and one.compares:
            rows.append(few.nearest_class_mean(few.compared_features(one, name=name, **where)))
        if one.speaks:
            rows += [
                FrozenClassifier(one, name=name, scorer=scorer, template=template, **where)
                for template in dict.fromkeys(options.template)
                for scorer in ("strict", "likelihood")
                if options.scorer is None or scorer in options.scorer
            ]
        elif "linear" in asked:
            rows.append(few.linear_per_episode(few.encoder_features(one, name=name, **where)))
    if "pixels" in asked:
        rows.append(few.nearest_class_mean(few.pixel_features()))
    if "chance" in asked:
        rows.append(few.Chance())
    return [*blocks, rows]


def _prompted(
    options: FewShotOptions, reader: TextReader, client: LanguageClient
) -> list[PromptedClassifier]:
    from pixlex.eval.few_shot.prompted import PromptedClassifier
    from pixlex.eval.few_shot.prompts import SCORERS

    able = [scorer for scorer, row in SCORERS.items() if row.ability in client.abilities]
    scorers = options.scorer or [
        scorer for scorer in able if scorer in ("strict", "likelihood", "constrained")
    ]
    room = options.llm_answer_tokens
    return [
        PromptedClassifier(reader, client, template=template, scorer=scorer, answer_tokens=room)
        for template in dict.fromkeys(options.template)
        for scorer in dict.fromkeys(scorers)
    ]


def _client(options: FewShotOptions, name: str) -> LanguageClient:
    from pixlex.eval import llm

    given = {one.name: f"llm_{one.name}" for one in fields(llm.LLMOptions)}
    settings = {to: getattr(options, name) for to, name in given.items() if hasattr(options, name)}
    settings["cache"] = options.llm_cache or options.out / "language-model"
    wanted = llm.LLMOptions(model=name, device=options.device, **settings)
    client = llm.connect(wanted, partial(cli.remark, options))
    cli.remark(options, f"{client.name} can {', '.join(sorted(client.abilities))}")
    return client


def _remark_cost(
    options: FewShotOptions,
    client: LanguageClient,
    classifiers: Sequence[PromptedClassifier],
    episode_sets: Sequence[EpisodeSet],
    images: ImageSource,
) -> None:
    """Say what the questions to a large model take at most, before the first is sent."""
    estimates = [
        estimate
        for classifier in classifiers
        for episodes in episode_sets
        if (estimate := classifier.estimate(episodes.setting, episodes.episodes, images)) is not None
    ]
    if estimates:
        requests, tokens = sum(one.requests for one in estimates), sum(one.usage.total for one in estimates)
        costs = [one.cost for one in estimates if one.cost is not None]
        cost = f", cost {sum(costs):.2f}" if costs else ""
        kept = sum(one.cached for one in estimates)
        whose = f"{client.name}: " if len(options.llm) > 1 else ""
        cli.remark(
            options,
            f"{whose}at most {requests:,} requests, {tokens:,} tokens{cost}; {kept:,} answers are there",
        )


def _write(
    options: FewShotOptions,
    images: ImageSource,
    episode_sets: Sequence[EpisodeSet],
    readings: Sequence[Reading],
    cells: Sequence[Cell],
) -> None:
    """Write results.json, table.md, accuracy.png, pictures of episodes, report.html."""
    from pixlex.report.few_shot import (
        draw_accuracies,
        draw_episode_examples,
        write_few_shot,
        write_few_shot_page,
    )
    from pixlex.report.figures import drawn

    folder: Path = options.out
    about: Mapping[str, Any] = {
        "data": images.name,
        "models": list(options.model),
        "keep_fraction": options.keep_fraction,
        "language_model": list(options.llm) or None,
        "episodes": {one.setting.label: one.identity for one in episode_sets},
        "command": options.command_line,
    }
    write_few_shot(folder, cells, about)
    pictures = {"Accuracy": drawn(folder / "accuracy.png", partial(draw_accuracies, cells))}
    reader = readings[0][0] if readings else None
    # Of each number of ways the fewest shots, whose episodes fit into a picture; with induction the names that it
    # shows are those that were asked for.
    by_size = sorted(
        episode_sets, key=lambda one: (one.setting.ways, one.setting.shots, not one.setting.induction)
    )
    for ways, sets in groupby(by_size, key=lambda one: one.setting.ways):
        episodes = next(sets)
        draw = partial(draw_episode_examples, episodes, cells, images, reader)
        name = f"episodes-{ways}-way.png"
        pictures[f"Episodes: {episodes.setting.label}"] = drawn(folder / name, draw)
    page = partial(
        write_few_shot_page,
        cells=cells,
        title=f"Few-shot classification of {images.name}",
        commands=[options.command_line],
        about=about,
        pictures=pictures,
    )
    cli.remark_page(options, drawn(folder / "report.html", page))
