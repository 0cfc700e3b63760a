"""`index` and `search`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pixlex.cli.models import finish, load_cbvila, remark_without_contrast
from pixlex.cli.options import (
    DATA,
    BatchOptions,
    BrokenOption,
    Count,
    Fraction,
    MachineOptions,
    ModelOptions,
    Picture,
    Place,
    Positive,
    option,
    positional,
    remark,
    table,
)
from pixlex.messages import printable

if TYPE_CHECKING:
    from pixlex.report.figures import Thumbnail
    from pixlex.search import ImageIndex, SearchResult


class IndexOptions(MachineOptions, BrokenOption, BatchOptions, ModelOptions):
    data: str = positional("SOURCE", f"the images: {DATA}")
    out: Place = option(text="folder or URL of the index; made if missing", metavar="INDEX")
    moved: bool = option(False, "the images of this index lie at SOURCE now, under the same keys")
    max_broken_share: Fraction = option(
        0.5, "fraction of unreadable images above which the command stops; default %(default)s"
    )


class SearchOptions(MachineOptions):
    words: tuple[str, ...] = positional("TEXT", "what the pictures show", ())
    index: str = option(text="what pixlex index wrote", metavar="INDEX")
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


def index(options: IndexOptions) -> None:
    """Make pictures searchable, or bring their index up to date."""
    from pixlex.search import ImageIndex

    model = load_cbvila(options)
    remark_without_contrast(options, model)
    found = ImageIndex.open(
        options.out,
        model,
        name=_lasting(options.model),
        precision=options.precision,
        revision=options.revision,
        language_model=options.language_model and _lasting(options.language_model),
        create=True,
    )
    result = found.update(
        options.data,
        moved=options.moved,
        batch_size=options.batch_size,
        max_broken_share=options.max_broken_share,
        progress=not options.quiet,
    )
    values = {"index": options.out, "source": found.head.source, **asdict(result)}
    rows = [
        ("images", f"{result.num_images:,}"),
        ("embedded", f"{result.num_embedded:,}"),
        ("same bytes as before under another name", f"{result.num_copied:,}"),
        ("unchanged", f"{result.num_unchanged:,}"),
        ("removed", f"{result.num_removed:,}"),
        ("left out, of a name already taken", f"{result.num_repeated:,}"),
        ("unreadable", f"{len(result.skipped):,}"),
    ]
    finish(options, values, f"{options.out}\n{table(rows)}", result.skipped)


def search(options: SearchOptions) -> None:
    """Find indexed pictures by text or by picture."""
    from pixlex.report.figures import contact_sheet, drawn
    from pixlex.search import ImageIndex

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
    values = {
        "index": options.index,
        "query": {"text": text} if options.image is None else {"image": str(options.image)},
        "num_images": len(found),
        "ranked_by": options.score if options.rerank else "contrastive",
        "rerank": options.rerank,
        "hits": result.hits,
        "skipped": result.skipped,
        "sheet": options.sheet and str(options.sheet),
    }
    finish(options, values, _hits_table(result), result.skipped)
    if options.sheet is not None:
        title = text or str(options.image)
        drawn(options.sheet, lambda path: contact_sheet(title, _thumbnails(options, found, result), path))


def _hits_table(result: SearchResult) -> str:
    """Return hits as text, a line for each, under a line of titles."""
    matched = any(hit.matching is not None for hit in result.hits)
    lines = [f"rank  similarity  {'matching  ' if matched else ''}key"]
    for hit in result.hits:
        matching = "" if not matched else f"{'' if hit.matching is None else f'{hit.matching:.4f}':>8}  "
        lines.append(f"{hit.rank:>4}  {hit.similarity:>10.4f}  {matching}{printable(hit.key)}")
    return "\n".join(lines)


def _thumbnails(options: SearchOptions, found: ImageIndex, result: SearchResult) -> list[Thumbnail]:
    """Return the pictures of hits; an empty frame for one that is gone, and a remark."""
    from pixlex.data.decoding import UnreadableImage
    from pixlex.report.figures import Thumbnail

    thumbnails = []
    for hit in result.hits:
        value = hit.similarity if hit.matching is None else hit.matching
        try:
            picture = found.picture(hit.key)
        except UnreadableImage as fault:
            remark(options, f"not drawn: {fault}")
            picture = None
        thumbnails.append(Thumbnail(picture, (f"{hit.rank}.  {value:.4f}", hit.key)))
    return thumbnails


def _lasting(name: str) -> str:
    """Return the name of a model such that it is found from any folder."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name
