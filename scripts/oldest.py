"""Print the oldest version of every direct dependency that pyproject.toml allows, as constraints of pip."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path


def oldest(project: dict[str, object]) -> Iterator[str]:
    """Yield NAME==VERSION of each dependency with a lower bound, extras included."""
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    asked = [project["dependencies"], *extras.values()]
    for requirement in sorted({one for several in asked for one in several}):
        bound = re.match(r"([\w.\-]+)(?:\[[\w,]*\])?[^>]*>=([\w.]+)", requirement)
        if bound is not None:
            yield f"{bound[1]}=={bound[2]}"


if __name__ == "__main__":
    described = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    print("\n".join(oldest(described["project"])))
