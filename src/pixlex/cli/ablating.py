"""`ablate`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pixlex.cli.options import overrides_of
from pixlex.cli.output import answer, remark
from pixlex.cli.training import INTERRUPTED, bars
from pixlex.config.ablation import AblationRow, ablation_rows, select_rows

if TYPE_CHECKING:
    from pixlex.ablations.rows import Measure


def ablate(options: Namespace) -> int:
    """Train and measure the rows of the ablation table; a second call goes on with an interrupted one."""
    rows = select_rows(options.rows)
    if options.list:
        values = [asdict(row) for row in rows]
        answer(options, values, "\n".join(f"{row.name:<10} {row.title}" for row in rows))
        return 0
    if options.recipe is None or options.out is None:
        raise ValueError("ablate needs RECIPE and --out DIR, or --list")
    from pixlex import report
    from pixlex.ablations.rows import plan, run_ablations

    rows = _with_finished(rows, options.out)
    overrides = overrides_of(options)
    device = plan(options.recipe, overrides, rows)["base"].train.device
    with bars(options):
        measures = list(_measures(options, device))
        results = run_ablations(options.recipe, overrides, rows, options.out, measures)
    if results is None:
        remark(options, "interrupted; the same command goes on")
        return INTERRUPTED
    table = [one.values() for one in results]
    files = report.write_ablation(options.out, table, [options.command_line])
    answer(options, {"folder": str(options.out), "rows": table}, report.ablation_table(table))
    for path in files:
        remark(options, f"wrote {path}")
    return 0


def _with_finished(rows: Sequence[AblationRow], folder: Path) -> tuple[AblationRow, ...]:
    """Return the rows asked for and those that the folder holds finished, so that one table shows them all."""
    left = [*folder.glob("rows/*/results.json"), *folder.glob("rows/*/measures.json")]
    names = {row.name for row in rows} | {path.parent.name for path in left}
    return tuple(row for row in ablation_rows() if row.name in names)


def _measures(options: Namespace, device: str) -> Iterator[Measure]:
    """Yield what is measured on every row; data are read before anything is trained."""
    from pixlex.ablations.measures import few_shot_measure, probe_measure
    from pixlex.data.images import open_source

    if options.probe is not None:
        from pixlex.eval.probe.study import open_sets

        train, test = (open_source(one) for one in options.probe)
        sets = open_sets(train, test, limit=options.probe_limit, test_limit=options.probe_test_limit)
        yield probe_measure(sets, options.out / "features", device=device)
    if options.llm and options.few_shot is None:
        raise ValueError("--llm answers episodes: name labeled images with --few-shot DATA")
    if options.few_shot is not None:
        from pixlex.eval.few_shot.episodes import setting_of
        from pixlex.eval.few_shot.sampling import sample_episodes
        from pixlex.eval.llm import connect

        images = open_source(options.few_shot)
        settings = [setting_of(column, ways) for ways in options.ways for column in options.settings]
        episodes = [sample_episodes(images, setting, count=options.episodes, seed=0) for setting in settings]
        cache = options.out / "few-shot"
        clients = [
            connect(name, base_url=options.llm_url, cache=cache / "language-models", device=device)
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
