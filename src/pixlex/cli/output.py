"""Answers to stdout, remarks to stderr."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from pixlex.messages import printable


def answer(options: Namespace, values: Any, text: str) -> None:
    """Print what was asked for: JSON if that was asked for, else text.

    At once, and before any picture is drawn: whatever that meets must not take the answer along.
    """
    print(json.dumps(values, indent=2) if options.json else printable(text, keep="\n"), flush=True)


def remark(options: Namespace, text: str) -> None:
    """Print a remark to stderr, except where quiet was asked for."""
    if not options.quiet:
        print(f"pixlex: {printable(text)}", file=sys.stderr)


def remark_page(options: Namespace, page: Path | None) -> None:
    """Say where a page is; one that could not be made has been remarked upon."""
    if page is not None:
        remark(options, f"page {page}")


def table(rows: list[tuple[str, str]]) -> str:
    """Return two columns as text."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)
