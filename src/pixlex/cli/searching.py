"""`index` and `search`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pixlex.cli.models import cbvila_of, remark_without_contrast
from pixlex.cli.options import answer, remark, table
from pixlex.cli.search import IndexOptions, SearchOptions
from pixlex.cli.tokens import remark_skipped
from pixlex.data.images import UnreadableImage
from pixlex.messages import printable
from pixlex.report.drawing import drawn
from pixlex.report.figures import Thumbnail, contact_sheet
from pixlex.search import Hit, ImageIndex, SearchResult


def index(options: IndexOptions) -> int:
    """Make an index, or bring one up to date."""
    model = cbvila_of(options)
    remark_without_contrast(options, model)
    found = ImageIndex.open(
        options.out,
        model,
        name=_lasting(options.model),
        precision=options.precision,
        revision=options.revision,
        language_model=None if options.language_model is None else _lasting(options.language_model),
        create=True,
    )
    result = found.update(
        options.data,
        moved=options.moved,
        batch_size=options.batch_size,
        max_broken_share=options.max_broken_share,
        progress=not options.quiet,
    )
    remark_skipped(options, result.skipped)
    values = {"index": str(options.out), "source": found.head.source, **asdict(result)}
    rows = [
        ("images", f"{result.num_images:,}"),
        ("embedded", f"{result.num_embedded:,}"),
        ("same bytes as before under another name", f"{result.num_copied:,}"),
        ("unchanged", f"{result.num_unchanged:,}"),
        ("removed", f"{result.num_removed:,}"),
        ("left out, of a name already taken", f"{result.num_repeated:,}"),
        ("unreadable", f"{len(result.skipped):,}"),
    ]
    answer(options, values, f"{options.out}\n{table(rows)}")
    return 0


def search(options: SearchOptions) -> int:
    """Find pictures."""
    if bool(options.words) == (options.image is not None):
        raise ValueError("expected a text to search by, or --image FILE, one of the two")
    text = " ".join(options.words)
    found = ImageIndex.open(
        options.index,
        options.model,
        revision=options.revision,
        language_model=options.language_model,
        device=options.device,
    )
    query: dict[str, Any] = {"texts": [text]} if options.image is None else {"images": [options.image]}
    (result,) = found.search(
        **query,
        top_k=options.top_k,
        rerank=options.rerank,
        score=options.score,
        approximate=options.approximate,
    )
    remark_skipped(options, result.skipped)
    values = {
        "index": str(options.index),
        "query": {"text": text} if options.image is None else {"image": str(options.image)},
        "num_images": len(found),
        "ranked_by": options.score if options.rerank else "contrastive",
        "rerank": options.rerank,
        "hits": [asdict(hit) for hit in result.hits],
        "skipped": [asdict(one) for one in result.skipped],
        "sheet": None if options.sheet is None else str(options.sheet),
    }
    answer(options, values, hits_table(result.hits))
    if options.sheet is not None:
        title = text or str(options.image)
        drawn(options.sheet, lambda path: contact_sheet(title, _thumbnails(options, found, result), path))
    return 0


def hits_table(hits: Sequence[Hit]) -> str:
    """Return hits as text, a line for each, under a line of titles."""
    matched = any(hit.matching is not None for hit in hits)
    lines = [f"rank  similarity  {'matching  ' if matched else ''}key"]
    for hit in hits:
        matching = "" if not matched else f"{'' if hit.matching is None else f'{hit.matching:.4f}':>8}  "
        lines.append(f"{hit.rank:>4}  {hit.similarity:>10.4f}  {matching}{printable(hit.key)}")
    return "\n".join(lines)


def _thumbnails(options: SearchOptions, found: ImageIndex, result: SearchResult) -> list[Thumbnail]:
    """Return the pictures of hits; an empty frame for one that is gone, and a remark."""
    thumbnails = []
    for hit in result.hits:
        value = hit.similarity if hit.matching is None else hit.matching
        lines = (f"{hit.rank}.  {value:.4f}", hit.key)
        try:
            thumbnails.append(Thumbnail(found.picture(hit.key), lines))
        except UnreadableImage as fault:
            remark(options, f"not drawn: {fault}")
            thumbnails.append(Thumbnail(None, lines))
    return thumbnails


def _lasting(name: str) -> str:
    """Return the name of a model such that it is found from any folder."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name
