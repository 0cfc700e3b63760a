"""Golden runs: what the program computes and prints, frozen; a number changes only by a written decision.

`PIXLEX_WRITE_GOLDEN=1 pytest tests/golden` writes what is found; `git diff tests/golden` shows what changed.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.commands import run_commands
from tests.golden.objectives import CASES, objective_numbers

FOLDER = Path(__file__).parent
WRITES = bool(os.environ.get("PIXLEX_WRITE_GOLDEN"))
# Hashes follow every bit of the weights, which kinds of processors round differently.
_HASH = re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{8,}\b")


def golden(name: str, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the stored values of a file, after adding what was found where they are written anew."""
    path = FOLDER / f"{name}.json"
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if WRITES:
        stored |= found
        path.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return stored


def differences(found: Mapping[str, float], before: Mapping[str, float], tolerance: float) -> list[str]:
    """Return what differs, a line each."""
    lines = [f"missing: {name}" for name in before.keys() - found.keys()]
    lines += [f"new: {name}" for name in found.keys() - before.keys()]
    for name in before.keys() & found.keys():
        if not math.isclose(found[name], before[name], rel_tol=tolerance, abs_tol=tolerance * 5e-2):
            lines.append(f"{name}: {before[name]!r} was, {found[name]!r} is")
    return sorted(lines)


@pytest.mark.parametrize("name", list(CASES))
def test_objective(name: str, language: Path, causal_language: Path) -> None:
    """Loss, terms, measures, gradients and housekeeping of two steps, on every kind of processor."""
    found = {
        key: float(f"{value:.7g}")
        for key, value in objective_numbers(name, language, causal_language).items()
    }
    assert differences(found, golden("objectives", {name: found})[name], 1e-4) == []


@pytest.fixture(scope="module")
def shown(
    language: Path, causal_language: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, list[str]]:
    """What all commands print and leave."""
    return run_commands(tmp_path_factory.mktemp("golden"), language, causal_language)


def test_commands(shown: Mapping[str, list[str]]) -> None:
    """To the letter on the processor that the values are of; on others what no weights decide."""
    before = golden("commands", {"processor": [processor()], **shown})
    assert shown.keys() == before.keys() - {"processor"}
    alike = before["processor"] == [processor()]
    changed = []
    for name, lines in shown.items():
        then, now = ([_HASH.sub("#", line) for line in one] for one in (before[name], lines))
        if alike or name in _SAME_ANYWHERE:
            changed += [f"{name}: {line}" for line in difflib.unified_diff(then, now, lineterm="", n=0)]
        elif len(then) != len(now):
            changed.append(f"{name}: {len(then)} lines were, {len(now)} are")
    assert not changed, "\n".join(changed)


def processor() -> str:
    """Return what decides how numbers are rounded."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else [platform.processor()]
    return f"{names[0] if names else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


_SAME_ANYWHERE = (
    "describe", "doctor", "convert", "file pairs.parquet",
    "file lqae", "file rebuilt", "file few-shot",
)  # fmt: skip
