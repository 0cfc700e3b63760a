"""Print the oldest version of every direct dependency that pyproject.toml allows, as constraints of pip."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any


def oldest(project: dict[str, Any]) -> list[str]:
    """Return NAME==VERSION of each dependency with a lower bound, of extras too; the first of a name counts."""
    bounds: dict[str, str] = {}
    for several in (project["dependencies"], *project["optional-dependencies"].values()):
        for requirement in several:
            if bound := re.match(r"([\w.\-]+)(?:\[[\w,]*\])?[^>]*>=([\w.]+)", requirement):
                bounds.setdefault(bound[1], bound[2])
    return [f"{name}=={version}" for name, version in sorted(bounds.items())]


if __name__ == "__main__":
    described = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    print("\n".join(oldest(described["project"])))
