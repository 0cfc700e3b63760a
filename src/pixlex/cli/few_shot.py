"""`evaluate few-shot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pixlex.cli.few_shot_options import FewShotOptions
from pixlex.cli.few_shot_rows import Reading, answerers_of, models_of, readings_of
from pixlex.cli.options import answer, remark, remark_page
from pixlex.data.images import ImageSource, open_source
from pixlex.eval.few_shot.classifiers import Classifier
from pixlex.eval.few_shot.episodes import (
    PAPER_COLUMNS,
    EpisodeSet,
    load_episodes,
    sample_episodes,
    save_episodes,
    setting_of,
)
from pixlex.eval.few_shot.prompted import PromptedClassifier
from pixlex.eval.few_shot.published import read_open_ended
from pixlex.eval.few_shot.run import Cell, run_few_shot
from pixlex.report.drawing import drawn
from pixlex.report.galleries import draw_episode_examples
from pixlex.report.plots import draw_accuracies
from pixlex.report.results import write_few_shot, write_few_shot_page
from pixlex.report.tables import markdown_table, table_lines, warnings_of, ways_of

# Folder inside the one of the results.
_EPISODES = "episodes"


def evaluate_few_shot(options: FewShotOptions) -> int:
    """Ask everybody, leave answers, numbers, tables, pictures and a page in a folder."""
    images, episode_sets = _episodes(options)
    models = models_of(options, images)
    readings = readings_of(options, models)
    answerers = answerers_of(options, models, readings)
    folder: Path = options.out
    for episodes in episode_sets:
        save_episodes(episodes, folder / _EPISODES / episodes.file_name)
    _remark_cost(options, answerers, episode_sets, images)
    cells = run_few_shot(answerers, episode_sets, images, folder, progress=not options.quiet)
    tables = "\n\n".join(f"{ways}-way\n{markdown_table(table_lines(cells, ways))}" for ways in ways_of(cells))
    answer(options, [_plain(cell) for cell in cells], tables)
    for warning in warnings_of(cells):
        remark(options, warning)
    _write(options, images, episode_sets, readings, cells)
    return 0


def _plain(cell: Cell) -> dict[str, Any]:
    values = {key: value for key, value in vars(cell).items() if key != "answers"}
    return {**values, "setting": asdict(cell.setting)}


def _episodes(options: FewShotOptions) -> tuple[ImageSource, list[EpisodeSet]]:
    """Draw, load or read the episodes."""
    if options.open_ended is not None:
        if options.data is not None or options.episode_files is not None:
            raise ValueError("--open-ended brings images and episodes: leave out --data and --episode-files")
        settings = [setting_of(column, ways) for ways in options.ways for column in options.settings]
        return read_open_ended(options.open_ended, settings, task=options.task, limit=options.episodes)
    if options.data is None:
        raise ValueError("expected --data with labeled images, or --open-ended with published episodes")
    images = open_source(options.data)
    if options.episode_files is not None:
        return images, _load_episodes(options.episode_files, images)
    return images, [
        sample_episodes(
            images, setting_of(column, ways, options.names), count=options.episodes, seed=options.seed
        )
        for ways in dict.fromkeys(options.ways)
        for column in dict.fromkeys(options.settings)
    ]


def _load_episodes(place: Path, images: ImageSource) -> list[EpisodeSet]:
    """Load one file of episodes, or all of a folder."""
    paths = sorted(place.glob("*.json")) if place.is_dir() else [place]
    if not paths:
        raise ValueError(f"no .json file of episodes in {place}")
    sets = [load_episodes(path, images) for path in paths]
    order = {column: number for number, column in enumerate(PAPER_COLUMNS)}
    return sorted(sets, key=lambda one: (one.setting.ways, order.get(one.setting.column, len(order))))


def _remark_cost(
    options: FewShotOptions,
    answerers: Sequence[Classifier],
    episode_sets: Sequence[EpisodeSet],
    images: ImageSource,
) -> None:
    """Say what the questions of this run take at most, before the first is sent."""
    estimates = [
        estimate
        for answerer in answerers
        if isinstance(answerer, PromptedClassifier)
        for episodes in episode_sets
        for estimate in answerer.estimate(episodes.setting, episodes.episodes, images)
    ]
    if estimates:
        requests, tokens = sum(one.requests for one in estimates), sum(one.usage.total for one in estimates)
        costs = [one.cost for one in estimates if one.cost is not None]
        cost = f", cost {sum(costs):.2f}" if costs else ""
        kept = sum(one.cached for one in estimates)
        remark(options, f"at most {requests:,} requests, {tokens:,} tokens{cost}; {kept:,} answers are there")


def _write(
    options: FewShotOptions,
    images: ImageSource,
    episode_sets: Sequence[EpisodeSet],
    readings: Sequence[Reading],
    cells: Sequence[Cell],
) -> None:
    """Write results.json, table.md, accuracy.png, pictures of episodes, report.html."""
    folder: Path = options.out
    about: Mapping[str, Any] = {
        "data": images.name,
        "models": list(options.model),
        "keep_share": options.keep_share,
        "language_model": options.llm,
        "episodes": {one.setting.label: one.identity for one in episode_sets},
        "command": options.command_line,
    }
    write_few_shot(folder, cells, about)
    pictures = {"Accuracy": drawn(folder / "accuracy.png", lambda path: draw_accuracies(cells, path))}
    for episodes in _smallest(episode_sets):
        reader = readings[0].reader if readings else None
        pictures[f"Episodes: {episodes.setting.label}"] = drawn(
            folder / f"episodes-{episodes.setting.ways}-way.png",
            partial(draw_episode_examples, episodes, cells, images, reader),
        )
    page = drawn(
        folder / "report.html",
        lambda path: write_few_shot_page(
            path,
            cells,
            title=f"Few-shot classification of {images.name}",
            commands=[options.command_line],
            about=about,
            pictures=pictures,
        ),
    )
    remark_page(options, page)


def _smallest(episode_sets: Sequence[EpisodeSet]) -> list[EpisodeSet]:
    """Return the set with the fewest shots of each number of ways: its episodes fit into a picture."""
    found: dict[int, EpisodeSet] = {}
    for one in episode_sets:
        known = found.setdefault(one.setting.ways, one)
        # With induction: the names that the picture shows are the names that were asked for.
        if (one.setting.shots, not one.setting.induction) < (
            known.setting.shots,
            not known.setting.induction,
        ):
            found[one.setting.ways] = one
    return [found[ways] for ways in sorted(found)]
