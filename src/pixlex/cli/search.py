"""`index` and `search`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pixlex.cli.options import (
    DATA,
    BatchOptions,
    BrokenOption,
    Count,
    Folder,
    Fraction,
    MachineOptions,
    ModelOptions,
    Picture,
    Positive,
    option,
    positional,
)


@dataclass(frozen=True, kw_only=True)
class IndexOptions(MachineOptions, BrokenOption, BatchOptions, ModelOptions):
    """Options of `index`."""

    data: str = positional("SOURCE", f"the images: {DATA}")
    out: Folder = option(text="folder of the index; made if missing", metavar="INDEX")
    moved: bool = option(False, "the images of this index lie at SOURCE now, under the same keys")
    max_broken_share: Fraction = option(
        0.5, "fraction of unreadable images above which the command stops; default %(default)s"
    )


@dataclass(frozen=True, kw_only=True)
class SearchOptions(MachineOptions):
    """Options of `search`."""

    words: tuple[str, ...] = positional("TEXT", "what the pictures show", ())
    index: Path = option(text="what pixlex index wrote", metavar="INDEX")
    image: Path | None = option(None, "search by a picture instead of a text", "FILE")
    top_k: Positive = option(10, "hits; default %(default)s", "K")
    rerank: Count = option(
        0, "read the N best again and rank them by the matching head; texts only; default %(default)s", "N"
    )
    score: Literal["matching", "matching+contrastive"] = option(
        "matching", "what --rerank ranks by; default %(default)s"
    )
    approximate: bool = option(
        False, "search a graph (HNSW), made at the first such search, instead of all vectors"
    )
    sheet: Picture | None = option(None, "draw the hits", "FILE.png")
    model: str | None = option(None, "where the model lies now; default where it was", "M")
    revision: str | None = option(None, "branch, tag or commit of a hub repository")
    language_model: str | None = option(None, "where its tokenizer lies now", "M")
    device: str = option("auto", "auto, cpu, cuda or cuda:N; default %(default)s")


def index(options: IndexOptions) -> int:
    """Make pictures searchable, or bring their index up to date."""
    from pixlex.cli import searching

    return searching.index(options)


def search(options: SearchOptions) -> int:
    """Find indexed pictures by text or by picture."""
    from pixlex.cli import searching

    return searching.search(options)
