"""`ablate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixlex.cli.options import answer, remark
from pixlex.cli.train import AblateOptions, overrides_of
from pixlex.cli.training import INTERRUPTED, bars
from pixlex.config.ablation import AblationRow, ablation_of, select_rows
from pixlex.config.run import Run, read_run

if TYPE_CHECKING:
    from pixlex.ablations.rows import Measure


def ablate(options: AblateOptions) -> int:
    """Train and measure the rows of the ablation table; a second call goes on with an interrupted one."""
    family = "lqae" if options.recipe is None else read_run(options.recipe, options.overrides).family
    rows = select_rows(options.rows, family)
    if options.list:
        values = [asdict(row) for row in rows]
        answer(options, values, "\n".join(f"{row.name:<10} {row.title}" for row in rows))
        return 0
    if options.recipe is None or options.out is None:
        raise ValueError("ablate needs RECIPE and --out DIR, or --list")
    from pixlex.ablations.rows import plan
    from pixlex.run import sole_writer

    rows = _with_finished(rows, family, options.out)
    overrides = overrides_of(options)
    base = plan(options.recipe, overrides, rows)["base"]
    with sole_writer(options.out):
        return _ablate(options, rows, options.recipe, options.out, base)


def _ablate(options: AblateOptions, rows: Sequence[AblationRow], recipe: str, folder: Path, base: Run) -> int:
    """Train and measure rows in a folder that nobody else writes."""
    from pixlex import report
    from pixlex.ablations.rows import run_ablations
    from pixlex.eval.published import objectives_table

    by_retrieval = "retrieval" in ablation_of(base.family).measures
    pairs = (options.retrieval or base.data.validation) if by_retrieval else ""
    with bars(options):
        if by_retrieval:
            measures = [_retrieval_measure(options, base, pairs)]
        else:
            measures = list(_measures(options, folder, base.train.device))
        results = run_ablations(recipe, overrides_of(options), rows, folder, measures)
    if results is None:
        remark(options, "interrupted; the same command goes on")
        return INTERRUPTED
    table = [one.values() for one in results]
    published = objectives_table(pairs)
    answer(options, {"folder": str(folder), "rows": table}, report.ablation_table(table, published))
    for path in report.write_ablation(folder, table, [options.command_line], published):
        remark(options, f"wrote {path}")
    return 0


def _with_finished(rows: Sequence[AblationRow], family: str, folder: Path) -> tuple[AblationRow, ...]:
    """Return the rows asked for and those that the folder holds finished, so that one table shows them all."""
    left = [*folder.glob("rows/*/results.json"), *folder.glob("rows/*/measures.json")]
    names = {row.name for row in rows} | {path.parent.name for path in left}
    return tuple(row for row in ablation_of(family).rows if row.name in names)


def _retrieval_measure(options: AblateOptions, run: Any, description: str) -> Measure:
    """Return what is measured on every row of CB-ViLA; the pairs are opened before anything is trained."""
    from pixlex.ablations.measures import retrieval_measure
    from pixlex.data.captions import open_pairs
    from pixlex.eval.published import TABLE_WORDS

    if options.probe is not None or options.few_shot is not None or options.llm:
        raise ValueError(
            "rows of CB-ViLA are measured by retrieval: --probe, --few-shot and --llm are for LQAE's"
        )
    pairs = open_pairs(description)
    return retrieval_measure(
        pairs.cleaned() if run.data.clean_captions else pairs,
        max_words=min(run.model.text.positions, max(TABLE_WORDS, run.data.max_words)),
        limit=None if options.retrieval else run.eval.limit or None,
        device=run.train.device,
    )


def _measures(options: AblateOptions, folder: Path, device: str) -> Iterator[Measure]:
    """Yield what is measured on every row; data are read before anything is trained."""
    from pixlex.ablations.measures import few_shot_measure, probe_measure
    from pixlex.data.images import open_source

    if options.retrieval is not None:
        raise ValueError("rows of LQAE find no images by texts: --retrieval is for CB-ViLA's")
    if options.probe is not None:
        from pixlex.eval.probe_sets import open_sets

        train, test = (open_source(one) for one in options.probe)
        sets = open_sets(train, test, limit=options.probe_limit, test_limit=options.probe_test_limit)
        yield probe_measure(sets, folder / "features", device=device)
    if options.llm and options.few_shot is None:
        raise ValueError("--llm answers episodes: name labeled images with --few-shot DATA")
    if options.few_shot is not None:
        from pixlex.eval.few_shot.episodes import sample_episodes, setting_of
        from pixlex.eval.llm import LLMOptions, connect

        images = open_source(options.few_shot)
        settings = [setting_of(column, ways) for ways in options.ways for column in options.settings]
        episodes = [sample_episodes(images, setting, count=options.episodes, seed=0) for setting in settings]
        cache = folder / "few-shot"
        clients = [
            connect(
                LLMOptions(
                    model=name, base_url=options.llm_url, cache=cache / "language-models", device=device
                )
            )
            for name in options.llm
        ]
        yield few_shot_measure(
            images,
            episodes,
            cache,
            clients=clients,
            template=options.template,
            scorer=options.scorer,
            device=device,
        )
