"""Answers to stdout, remarks to stderr."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from typing import Any


def answer(options: Namespace, values: Any, text: str) -> None:
    """Print what was asked for: JSON if that was asked for, else text."""
    print(json.dumps(values, indent=2) if options.json else text)


def remark(options: Namespace, text: str) -> None:
    """Print a remark to stderr, except where quiet was asked for."""
    if not options.quiet:
        print(f"pixlex: {text}", file=sys.stderr)


def table(rows: list[tuple[str, str]]) -> str:
    """Return two columns as text."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)
