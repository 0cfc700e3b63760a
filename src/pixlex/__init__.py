"""Bridging pictures and language through discrete codes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixlex import search as search
    from pixlex.api import ImageReasoner as ImageReasoner
    from pixlex.api import ImageTokenizer as ImageTokenizer
    from pixlex.api import load as load
    from pixlex.api import load_reasoner as load_reasoner
    from pixlex.run import train as train

__version__ = "0.1.0"
__all__ = ["ImageReasoner", "ImageTokenizer", "__version__", "load", "load_reasoner", "train"]


def __getattr__(name: str) -> Any:
    """Import the API on first use, so that `import pixlex` and `pixlex --help` stay fast."""
    if name == "train":
        return import_module("pixlex.run").train
    if name in __all__:
        return getattr(import_module("pixlex.api"), name)
    if name == "search":
        return import_module("pixlex.search")
    raise AttributeError(f"module 'pixlex' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Name what is imported on first use, too."""
    return sorted({*globals(), *__all__})
