"""Every command on embedded data with models of the smallest size: what it prints and what it leaves, as text."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from string import Template
from typing import Any

import pyarrow.parquet as pq

from pixlex.cli import main

# Lines of NAME: COMMAND and $NAME = VALUE.
_COMMANDS = Path(__file__).with_suffix(".txt")

# Times, rates and what else depends on the machine.
_VOLATILE = re.compile(r"speed/|memory/|data/wait|_per_second|seconds|per second|/s\b|time|crc32")


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_commands(folder: Path, language: Path, causal: Path) -> dict[str, list[str]]:
    """Run all commands in a folder; return what each printed, line by line, then what files hold."""
    shown: dict[str, list[str]] = {}

    def plain(text: str) -> str:
        for path, name in ((folder, "FOLDER"), (language, "LANGUAGE"), (causal, "CAUSAL")):
            text = text.replace(str(path), name)
        text = text.replace(causal.name, "causal0")  # what a test before it has counted up
        return text

    with _inside(folder):
        for name, command in _commands():
            values = {"LANGUAGE": language, "CAUSAL": causal}
            if "$FIRST" in command:
                values["FIRST"] = sorted(Path("rebuilt").glob("*.png"))[0]
            words = shlex.split(Template(command).substitute(values))
            out, remarks = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(remarks):
                code = main(words)
            assert code == 0, f"{name}: exit {code}\n{remarks.getvalue()}"
            shown[name] = [line for line in plain(out.getvalue()).splitlines() if not _VOLATILE.search(line)]
        for name, read in _FILES.items():
            shown[f"file {name}"] = [plain(line) for line in read(Path(name))]
    return shown


def _commands() -> Iterator[tuple[str, str]]:
    """Yield the names of the golden runs with their commands; the models and the picture are not filled in."""
    values: dict[str, str] = {}
    for line in _COMMANDS.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\$(\w+) = (.*)", line):
            values[match[1]] = Template(match[2]).safe_substitute(values)
        elif match := re.fullmatch(r"([a-z][^:]*): (.*)", line):
            yield match[1], Template(match[2]).safe_substitute(values)


def _json_numbers(path: Path) -> list[str]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return [f"{key} {value}" for key, value in _flat(found) if not _VOLATILE.search(key)]


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _flat(one, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _flat(one, f"{key}[{number}]")
    else:
        yield key, value


def _metrics(path: Path) -> list[str]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [f"{number} {key} {value}" for number, line in enumerate(lines) for key, value in sorted(_flat(line))
            if not _VOLATILE.search(key)]  # fmt: skip


def _text(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()[:40]


def _rows(path: Path) -> list[str]:
    table = pq.read_table(path)
    columns = [name for name in table.column_names if name != "image"]
    return [str(table.schema.names), *(str(row) for row in table.select(columns).slice(0, 20).to_pylist())]


def _names(path: Path) -> list[str]:
    names = (str(one.relative_to(path)) for one in path.rglob("*") if one.is_file())
    return sorted(name for name in names if "tfevents" not in name)


_FILES: Mapping[str, Callable[[Path], list[str]]] = {
    "lqae/metrics.jsonl": _metrics, "vqvae/metrics.jsonl": _metrics, "mae/metrics.jsonl": _metrics,
    "frozen/metrics.jsonl": _metrics, "cbvila/metrics.jsonl": _metrics, "vqa/metrics.jsonl": _metrics,
    "lqae/results.json": _json_numbers, "cbvila/results.json": _json_numbers,
    "words.txt": _text, "codes.jsonl": _text, "codes.parquet": _rows, "parts/part-00001.parquet": _rows,
    "pairs.parquet": _rows, "few-shot/results.json": _json_numbers, "probe/results.json": _json_numbers,
    "lqae": _names, "rebuilt": _names, "few-shot": _names,
}  # fmt: skip
