"""The rules of the house that no single module can hold."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ONE_MEBIBYTE = 2**20
ROOMS_WITHOUT_PROCESSES = ("losses.py", "nn", "models")

# Written in pieces, so that this file does not accuse itself.
FOLDERS = "|".join(("work", "tmp", "opt", "root", "home"))
MACHINE_PATHS = re.compile(rf"(?<![\w.\-}}>*])/(?:{FOLDERS})/\w")
INDEX_HOSTS = ("pypi" + r"\.", "pythonhosted" + r"\.", "download.pytorch" + r"\.", "/whl" + "/")
PACKAGE_INDEXES = re.compile("|".join(INDEX_HOSTS))


def kept_files(checkout: Path) -> list[Path]:
    """Every file that is tracked, or would be by `git add`."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [checkout / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def named_requirement(requirement: str) -> str:
    """The normalized name of the package that a requirement asks for."""
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


# What benchmarks/house.py finds at most until the bar itself is met: nothing grows back.
REACHED = {"lines of src": 34_920, "lines of tests": 26_780, "files of src": 115}


def test_the_house_does_not_grow(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(checkout / "benchmarks"))
    house = importlib.import_module("house")
    measures = [*house.sizes(), *house.imports(), *house.questions()]
    assert {one.name for one in measures} >= REACHED.keys()
    grown = [one for one in measures if one.value > max(one.bar, REACHED.get(one.name, one.bar))]
    assert not grown, "\n".join(f"{one.name}: {one.value} {one.where}" for one in grown)


def test_torchvision_is_absent() -> None:
    assert importlib.util.find_spec("torchvision") is None


def test_command_line_starts_without_torch() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'matplotlib', 'pyarrow'}"
    program = f"import pixlex.cli, sys; print(sorted({heavy} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_no_large_files(checkout: Path) -> None:
    allowed = (checkout / "docs/decisions.md").read_text(encoding="utf-8")
    large = [path.relative_to(checkout).as_posix() for path in kept_files(checkout)]
    large = [name for name in large if (checkout / name).stat().st_size > ONE_MEBIBYTE]
    assert [name for name in large if f"`{name}`" not in allowed] == []


def test_no_machine_paths_and_no_package_indexes(checkout: Path) -> None:
    assert MACHINE_PATHS.search("see /" + "work/main/x")
    assert not MACHINE_PATHS.search("docs/" + "work/plan.md, https://example.org/" + "work/1")
    found = []
    for path in kept_files(checkout):
        data = path.read_bytes()
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode("utf-8").splitlines(), start=1):
            if MACHINE_PATHS.search(line) or PACKAGE_INDEXES.search(line):
                found.append(f"{path.relative_to(checkout)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_rooms_without_processes(checkout: Path) -> None:
    for line in (
        "import torch.distributed as dist",
        "from torch import distributed",
        "torch.distributed.barrier()",
    ):
        assert any(uses_torch_distributed(node) for node in ast.walk(ast.parse(line))), line
    found = []
    for room in ROOMS_WITHOUT_PROCESSES:
        for path in sorted((checkout / "src/pixlex").glob(room if room.endswith(".py") else f"{room}/*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if uses_torch_distributed(node):
                    found.append(f"{path.relative_to(checkout)}:{node.lineno}")
    assert found == []


def uses_torch_distributed(node: ast.AST) -> bool:
    """Whether one node of the syntax tree imports or reads torch.distributed."""
    match node:
        case ast.Import(names=names):
            return any(alias.name.startswith("torch.distributed") for alias in names)
        case ast.ImportFrom(module=str(module), names=names):
            inside = module.startswith("torch.distributed")
            return inside or (module == "torch" and any(alias.name == "distributed" for alias in names))
        case ast.Attribute(value=ast.Name(id="torch"), attr="distributed"):
            return True
    return False


def test_every_direct_dependency_is_pinned(checkout: Path) -> None:
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = set(project["dependencies"])
    # wandb needs an account: it is no part of `all` and of the tested environment.
    asked.update(*(requirements for extra, requirements in extras.items() if extra != "wandb"))
    lines = (checkout / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.\-]+==[\w.]+", pin)] == []
    missing = {named_requirement(item) for item in asked} - {named_requirement(pin) for pin in pins}
    assert missing == {"pixlex"}


def test_license_and_version_agree_everywhere(checkout: Path) -> None:
    import pixlex

    license = (checkout / "LICENSE").read_text(encoding="utf-8")
    assert license.startswith("MIT License")
    assert "Copyright (c) 2026 pixlex contributors" in license
    assert f"\nversion: {pixlex.__version__}\n" in (checkout / "CITATION.cff").read_text(encoding="utf-8")
