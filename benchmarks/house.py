"""How large the house is and how far its ways are: each measure beside its bar; exit 1 when one is missed.

Command: python benchmarks/house.py [--steps]

Without --steps it reads the sources alone (seconds); with it three trainings of four steps say through how many
files of the package one step runs: those whose functions are entered between two forwards of the objective, with
backward pass, optimizer, housekeeping and the next batch (`sys.setprofile`).
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import grimp
import networkx as nx

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGE = CHECKOUT / "src" / "pixlex"
MOST_PARAMETERS = 8
# The one place that knows the families, and what one of their classes is called.
FAMILIES = "families.py"
_FAMILY = re.compile(
    r"(LQAE|VQVAE|CBViLA|MAE|Frozen|Reasoning|Reasoner|FineTun\w*|Finetun\w*)(Run|Config|Objective)?"
)

_TRAIN = (
    "train.steps=4 train.batch_size=8 train.warmup_steps=1 train.checkpoint_every=9 train.log_every=9 "
    "train.evaluate_every=9 train.device=cpu train.precision=fp32 data.validation="
)
_TOWERS = " ".join(
    f"{{0}}.{one}"
    for one in (
        "image_size=32", "patch_size=8", "image.width=32", "image.depth=1", "image.heads=2", "text.width=32",
        "text.depth=1", "text.heads=2", "fusion.depth=2", "codebook.dim=32",
    )
)  # fmt: skip
_SCENES = "data.train=embedded:scenes:train:24"
_LQAE = "train lqae/tiny data.train=embedded:digits:train model.image_size=32 model.patch_size=8"
_CBVILA = f"train cbvila/tiny {_SCENES} objective.burn_in_steps=0 {_TOWERS.format('model')}"
_VQA = f"finetune finetune/scenes-vqa --untrained {_SCENES} {_TOWERS.format('model.body')}"
COMMANDS = {"LQAE": (_LQAE, 12), "CB-ViLA": (_CBVILA, 18), "VQA fine-tuning": (_VQA, 16)}


@dataclass(frozen=True)
class Measure:
    """One line of the table.

    Attributes:
        name: what is counted.
        value: the count.
        bar: the most it may be.
        where: the places behind the count, to go and look.
    """

    name: str
    value: int
    bar: int
    where: tuple[str, ...] = ()

    @property
    def is_met(self) -> bool:
        """Whether the count is within its bar."""
        return self.value <= self.bar


def sizes(package: Path = PACKAGE, tests: Path = CHECKOUT / "tests") -> Iterator[Measure]:
    """Yield lines and files."""
    sources = sorted(package.rglob("*.py"))
    lines = {path: _lines(path) for path in sources}
    yield Measure("lines of src", sum(lines.values()), 24_000)
    yield Measure("files of src", len(sources), 110)
    yield Measure("lines of tests", sum(map(_lines, tests.rglob("*.py"))), 17_000)
    crowded = [folder for folder in package.rglob("*") if len(list(folder.glob("*.py"))) > 20]
    yield Measure("folders of more than 20 files", len(crowded), 0, tuple(map(str, crowded)))


def imports(package: str = "pixlex") -> Iterator[Measure]:
    """Yield levels and circles of the imports, and files that are too small to stand alone."""
    graph = grimp.build_graph(package, exclude_type_checking_imports=True, cache_dir=None)
    rooms = {module for module in graph.modules if not _is_empty(module)}
    arrows = nx.DiGraph()
    arrows.add_nodes_from(rooms)
    arrows.add_edges_from(
        (module, imported)
        for module in rooms
        for imported in graph.find_modules_directly_imported_by(module) & rooms
    )
    circles = [part for part in nx.strongly_connected_components(arrows) if len(part) > 1]
    levels = nx.dag_longest_path_length(nx.condensation(arrows)) + 1
    yield Measure("import levels", levels, 12)
    yield Measure("import circles", len(circles), 0, tuple(" ".join(sorted(one)) for one in circles))
    lonely = [
        f"{module} ({_lines(_path(module))} lines, for {next(iter(arrows.predecessors(module)))})"
        for module in sorted(rooms)
        if arrows.in_degree(module) == 1 and _lines(_path(module)) < 100 and _path(module).stem[0] != "_"
    ]
    yield Measure("files under 100 lines with one importer", len(lonely), 0, tuple(lonely))


def questions(package: Path = PACKAGE) -> Iterator[Measure]:
    """Yield what the syntax shows: questions for the family, and functions of many parameters."""
    asked, long = [], []
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if place != FAMILIES and _asks_for_family(node):
                asked.append(f"{place}:{getattr(node, 'lineno', 0)}")
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if len([one for one in given if one.arg not in ("self", "cls")]) > MOST_PARAMETERS:
                    long.append(f"{place}:{node.lineno} {node.name}")
    yield Measure("questions for the family outside families.py", len(asked), 0, tuple(asked))
    yield Measure(f"functions of more than {MOST_PARAMETERS} parameters", len(long), 0, tuple(long))


def steps() -> Iterator[Measure]:
    """Yield the number of files that a step of each of three trainings runs through."""
    for name, (command, bar) in COMMANDS.items():
        files = sorted(traced(f"{command} {_TRAIN}".split()))
        yield Measure(f"files of one step, {name}", len(files), bar, tuple(files))


def traced(words: Sequence[str]) -> set[str]:
    """Return the files of the package that are entered between the second and the third forward of a training."""
    from pixlex.cli import main

    files: set[str] = set()
    forwards = 0
    root = str(PACKAGE)

    def enter(frame: FrameType, event: str, _: Any) -> None:
        nonlocal forwards
        path = frame.f_code.co_filename
        if event != "call" or not path.startswith(root):
            return
        if frame.f_code.co_name == "forward" and f"{root}/objectives" in path:
            forwards += 1
        if forwards == 2:
            files.add(path.removeprefix(f"{root}/"))

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        threading.setprofile(enter)
        sys.setprofile(enter)
        try:
            code = main([*words, "--out", f"{folder}/run"])
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    assert code == 0
    assert forwards >= 3, f"only {forwards} steps were seen"
    return files


def main() -> None:
    """Print the table; with --where the places behind each count too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", action="store_true", help="trace a step of three trainings, half a minute")
    parser.add_argument("--where", action="store_true", help="print the places behind each count")
    given = parser.parse_args()
    measures = [*sizes(), *imports(), *questions(), *(steps() if given.steps else ())]
    for one in measures:
        print(f"{one.name:48}{one.value:8,}   at most {one.bar:6,}   {'met' if one.is_met else 'MISSED'}")
        for place in one.where if given.where else ():
            print(f"    {place}")
    sys.exit(not all(one.is_met for one in measures))


def _asks_for_family(node: ast.AST) -> bool:
    """Whether a node of the syntax tree asks of which family something is."""
    match node:
        case ast.Call(func=ast.Name(id="isinstance"), args=[_, kinds]):
            return any(isinstance(one, ast.Name) and _FAMILY.fullmatch(one.id) for one in ast.walk(kinds))
        case ast.MatchClass(cls=ast.Name(id=name)):
            return bool(_FAMILY.fullmatch(name))
        case ast.Compare(left=left, comparators=others):
            return any(
                (isinstance(one, ast.Attribute) and one.attr == "family")
                or (isinstance(one, ast.Name) and one.id == "family")
                for one in (left, *others)
            )
    return False


def _path(module: str) -> Path:
    """Return the file of a module."""
    inside = PACKAGE.joinpath(*module.split(".")[1:])
    return inside.with_suffix(".py") if inside.with_suffix(".py").is_file() else inside / "__init__.py"


def _is_empty(module: str) -> bool:
    """Whether a module is the mere folder of others."""
    return _path(module).name == "__init__.py" and _lines(_path(module)) < 5


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    main()
