"""Draw several runs of `pixlex evaluate few-shot` as one picture, such as docs/images/few-shot.png.

    python scripts/chart_few_shot.py docs/images/few-shot.png runs/few-shot runs/local ...

Of settings that several runs share; whether a prompt begins with an induction makes no difference here.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

from pixlex.eval.few_shot.prompts import Setting
from pixlex.eval.few_shot.run import Cell
from pixlex.files import read_json
from pixlex.report.few_shot import draw_accuracies

NAMES = {one.name for one in fields(Cell)} - {"setting"}


def cells_of(run: Path, shots: int) -> list[Cell]:
    """Return what a run found with so many examples, without the answers."""
    found = []
    for values in read_json(run / "results.json")["results"]:
        setting = replace(Setting(**values["setting"]), induction=True)
        if setting.shots == shots and not setting.repeats:
            known = {key: value for key, value in values.items() if key in NAMES}
            found.append(Cell(setting=setting, answers=(), **known))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="the picture to write")
    parser.add_argument("runs", type=Path, nargs="+", help="folders with results.json")
    parser.add_argument("--shots", type=int, default=5, help="labeled images of a class; default %(default)s")
    options = parser.parse_args()
    draw_accuracies([cell for run in options.runs for cell in cells_of(run, options.shots)], options.out)


if __name__ == "__main__":
    main()
