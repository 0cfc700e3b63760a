"""`explain`, `ask` and `gallery` of one model; `index` and `search`; `demo`, the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pixlex.cli import options as cli
from pixlex.messages import printable, quoted

if TYPE_CHECKING:
    from torch import Tensor

    from pixlex.batch import Skipped
    from pixlex.data.sources import ImageSource
    from pixlex.eval.gradcam import Explanation
    from pixlex.models.checkpoint import Tokenizer
    from pixlex.models.finetuned import Reasoner
    from pixlex.report.figures import Thumbnail
    from pixlex.search import ImageIndex, SearchResult

# Cleaning is not to cut: what is too long is said in words that the model counts.
_ENDLESS = 100_000


class ExplainOptions(cli.MachineOptions, cli.SizeOptions, cli.ModelOptions):
    paths: tuple[Path, ...] = cli.positional("IMAGE", "an image file; two where the model reads two")
    text: str = cli.positional("TEXT", "what is said or asked of it, in quotes")
    answer: str | None = cli.option(
        None, "of a fine-tuned model: the answer to explain; default its own", "TEXT"
    )
    out: cli.Picture = cli.option(text="the picture", metavar="FILE.png")
    score: Literal["matching", "masked_language"] | None = cli.option(
        None,
        "what is explained of a pretrained model: that text and image belong together (the default), or that "
        "each word, hidden, is predicted from the image and the other words; of a fine-tuned one it is the answer",
    )
    layer: cli.Positive | None = cli.option(
        None,
        "of the fusion encoder, counted from 1; default the third, or the last but one of fewer than four",
        "N",
    )
    raw_text: bool = cli.option(False, "the text as it is, not cleaned")


class AskOptions(cli.MachineOptions, cli.AnswerOptions, cli.ModelOptions):
    paths: tuple[str, ...] = cli.positional("IMAGE", "an image file; two where the model reads two")
    text: str = cli.positional("QUESTION", "the question, or the sentence to judge")
    top_k: cli.Positive = cli.option(5, "most answers shown; default %(default)s", "K", earlier="--top")


class GalleryOptions(cli.MachineOptions, cli.BatchOptions, cli.LimitOption, cli.ModelOptions):
    data: str = cli.option(text=f"{cli.DATA}; for a CB-ViLA images with captions, too", metavar="DATA")
    out: cli.Picture = cli.option(text="the picture", metavar="FILE.png")
    codewords: cli.Positive = cli.option(12, "rows; default %(default)s")
    seed: cli.Count = cli.option(0, "of the draw; default %(default)s")
    untrained: bool = cli.option(False, "measure the same for fresh weights, where images have classes")


def explain(options: ExplainOptions) -> None:
    """Draw where each word of a text finds itself in an image, or what speaks for an answer."""
    import torch

    from pixlex.data.decoding import evaluation_transform, load_image
    from pixlex.data.sources import read_file
    from pixlex.data.text import clean_caption, plain_text
    from pixlex.distributed import pick_device
    from pixlex.eval import gradcam
    from pixlex.eval.evaluate import autocast
    from pixlex.models import checkpoint

    pictures = [load_image(read_file(path, path.as_posix()), path.as_posix()) for path in options.paths]
    model = checkpoint.load_any(options.model, **options.versions)
    if not model.fuses:
        raise ValueError(
            f"{options.model} holds a model of family {model.family}, expected one of cbvila or a "
            "fine-tuned one"
        )
    model = cli.place(model, options)
    size, resize_mode = model.config.image_size, model.config.resize_mode
    images = torch.stack([evaluation_transform(picture, size, resize_mode) for picture in pictures])
    if model.task is not None:
        _explain_answer(options, model, images)
        return
    if options.answer is not None:
        raise ValueError(f"{options.model} gives no answers: expected a fine-tuned model with --answer")
    if len(images) != 1:
        raise ValueError(f"{options.model} reads one image with each text, got {len(images)}")
    text = plain_text(options.text) if options.raw_text else clean_caption(options.text, _ENDLESS)
    if not text.strip():
        raise ValueError(f"expected a text of one word or more, got {quoted(options.text)}")
    with autocast(pick_device(options.device), options.precision):
        found = gradcam.explain(model, images, text, score=options.score or "matching", layer=options.layer)
    said = f"{len(found.words)} words, logit of belonging {found.score:.3f}"
    if found.explained != "matching":
        mean = found.score / len(found.words)
        said = f"{len(found.words)} words, each predicted with {mean:.3f} nats of log-probability on average"
    advice = (
        "behind the last layer matching reads the first vector alone, so choose a lower --layer where there is "
        "one, or --score masked_language"
    )
    _finish(options, images, [found], said, advice, model.config.text.positions)


def ask(options: AskOptions) -> None:
    """Answer a question about an image, with probabilities."""
    from pixlex import api

    reasoner = api.load_reasoner(options.model, **options.loading)
    values: dict[str, Any] = {"images": options.paths, "text": options.text, "task": reasoner.task}
    if options.generate:
        written = reasoner.write(options.paths, options.text)[0]
        cli.answer(options, {**values, "answer": written}, written)
        return
    (found,) = reasoner.answer(options.paths, options.text, top_k=options.top_k, shortlist=options.shortlist)
    values["answers"] = [{"answer": one.text, "probability": one.probability} for one in found]
    cli.answer(options, values, cli.table([(f"{one.probability:6.1%}", one.text) for one in found]))


def gallery(options: GalleryOptions) -> None:
    """Draw codewords with patches that they stand for, words without a place with whole images."""
    from pixlex import distributed
    from pixlex.batch import TooManyBroken
    from pixlex.data.images import open_source
    from pixlex.eval.evaluate import labeled
    from pixlex.eval.pretraining import codeword_purity
    from pixlex.models import checkpoint
    from pixlex.report.figures import drawn
    from pixlex.report.progress import codeword_gallery, codeword_names

    device = distributed.pick_device(options.device)
    model = checkpoint.load(options.model, **options.versions).to(device)
    pairs = cli.captioned([options.data]) if model.fuses else None
    source = open_source(options.data) if pairs is None else pairs.images
    codes, indices, classes, skipped = _codes_of(options, model, source)
    fresh = None
    if options.untrained:
        untrained = checkpoint.untrained_copy(model, cli.first_images(model, source), options.seed)
        fresh = _codes_of(options, untrained, source)[0]
    if not distributed.is_first():
        return
    if not len(codes):
        raise TooManyBroken(f"{source.name}: none of {len(skipped)} images can be read")
    values: dict[str, Any] = {"path": str(options.out), "num_images": len(codes)}
    if pairs is not None:
        said = codeword_names(codes, [pairs.texts[row] for row in indices.tolist()])
        values["names"] = {code: {"word": word, "num_images": count} for code, (word, count) in said.items()}
    shown = min(options.codewords, len(set(codes.flatten().tolist())))
    lines = [f"{options.out}: {shown} codewords of {len(codes)} images"]
    if (classes >= 0).any():
        purity = codeword_purity(codes, classes, options.seed)
        values |= purity
        lines.append(cli.table(labeled(purity)))
        if fresh is not None:
            values["untrained"] = codeword_purity(fresh, classes, options.seed)
            lines.append(f"fresh weights:\n{cli.table(labeled(values['untrained']))}")
    else:
        cli.remark(options, "the images have no classes, so no purity is measured")
    cli.finish(options, values, "\n".join(lines), skipped)
    names = None if model.word_grid or model.vocabulary is None else model.vocabulary.words
    drawn(
        options.out,
        lambda path: codeword_gallery(
            pairs or source, indices, codes, config=model.config,
            num_codewords=options.codewords, seed=options.seed, path=path, names=names,
        ),
    )  # fmt: skip


def _codes_of(
    options: GalleryOptions, model: Tokenizer, source: ImageSource
) -> tuple[Tensor, Tensor, Tensor, list[Skipped]]:
    """Return the codes of the images that can be read, their positions and classes, and what cannot be read."""
    import torch

    from pixlex import distributed
    from pixlex.data.loader import Images
    from pixlex.models import compute_rows

    own, device = [], next(model.parameters()).device
    for batch in cli.batches_of(Images(source), model.config, options.batch_size, options.limit):
        codes = torch.empty(0, model.num_words, dtype=torch.long)
        if len(batch.images):
            codes = compute_rows(
                batch.images, model.tokenize, grid=model.grid,
                device=device, precision=options.precision, batch_size=options.batch_size,
            )  # fmt: skip
        own.append((codes, batch.indices, batch.labels, batch.skipped))
    everyone = distributed.in_turn(own)
    found, indices, classes = (torch.cat([part[column] for part in everyone]) for column in range(3))
    return found, indices, classes, [one for part in everyone for one in part[3]]


def _explain_answer(options: ExplainOptions, model: Reasoner, images: Tensor) -> None:
    """Draw what speaks for the model's answer, or for one that is named."""
    from pixlex.api import ImageReasoner
    from pixlex.distributed import pick_device

    for name, given in (("score", options.score), ("raw-text", options.raw_text)):
        if given:
            raise ValueError(f"{options.model} was fine-tuned to answer: --{name} is for a pretrained model")
    reasoner = ImageReasoner(model, device=pick_device(options.device), precision=options.precision)
    found = reasoner.explain(images, options.text, answer=options.answer, layer=options.layer)
    said = f"answer {found.answer!r}, log-likelihood {found.log_likelihood:.3f} nats"
    advice = "choose a lower --layer where there is one"
    positions = model.config.body.text.positions
    _finish(options, images, found.images, said, advice, positions, found.answer)


def _finish(
    options: ExplainOptions,
    images: Tensor,
    found: Sequence[Explanation],
    said: str,
    advice: str,
    positions: int,
    answered: str | None = None,
) -> None:
    """Print heat by word, for one image or, with an answer, for each; say what was not read; draw."""
    from pixlex.report.figures import drawn, explained_image

    first, path = found[0], options.out
    maps, whole = [one.maps.tolist() for one in found], [one.whole.tolist() for one in found]
    values = {
        "path": str(path),
        "explained": first.explained,
        "score": first.score,
        "layer": first.layer,
        "words": first.words,
        "maps": maps[0] if answered is None else maps,
        "whole": whole[0] if answered is None else whole,
        "left_out": first.left_out,
    }
    cli.answer(options, values if answered is None else {**values, "answer": answered}, f"{path}: {said}")
    if first.left_out:
        cli.remark(
            options,
            f"the text is longer than the model's {positions} positions: cut behind {len(first.words)} words, not "
            f"read: {' '.join(first.left_out)}",
        )
    if not any(one.maps.any() for one in found):
        cli.remark(options, f"no word has any heat in layer {first.layer}: {advice}")
    drawn(path, lambda place: explained_image(images, found, place, answer=answered or ""))


class IndexOptions(cli.MachineOptions, cli.BrokenOption, cli.BatchOptions, cli.ModelOptions):
    data: str = cli.positional("SOURCE", f"the images: {cli.DATA}")
    out: cli.Place = cli.option(text="folder or URL of the index; made if missing", metavar="INDEX")
    moved: bool = cli.option(False, "the images of this index lie at SOURCE now, under the same keys")
    max_broken_fraction: cli.Fraction = cli.option(
        0.5, "fraction of unreadable images above which the command stops; default %(default)s",
        earlier="--max-broken-share",
    )  # fmt: skip


class SearchOptions(cli.MachineOptions):
    words: tuple[str, ...] = cli.positional("TEXT", "what the pictures show", ())
    index: str = cli.option(text="what pixlex index wrote", metavar="INDEX")
    image: Path | None = cli.option(None, "search by a picture instead of a text", "FILE")
    top_k: cli.Positive = cli.option(10, "hits; default %(default)s", "K")
    rerank: cli.Count = cli.option(
        0, "read the N best again and rank them by the matching head; texts only; default %(default)s", "N"
    )
    score: Literal["matching", "matching+contrastive"] = cli.option(
        "matching", "what --rerank ranks by; default %(default)s"
    )
    approximate: bool = cli.option(
        False, "search a graph (HNSW), made at the first such search, instead of all vectors"
    )
    sheet: cli.Picture | None = cli.option(None, "draw the hits", "FILE.png")
    model: str | None = cli.option(None, "where the model lies now; default where it was", "M")
    revision: str | None = cli.option(None, "branch, tag or commit of a hub repository")
    language_model: str | None = cli.option(None, "where its tokenizer lies now", "M")
    device: str = cli.option("auto", "auto, cpu, cuda, cuda:N or mps; default %(default)s")


def index(options: IndexOptions) -> None:
    """Make pictures searchable, or bring their index up to date."""
    from pixlex.search import ImageIndex

    model = cli.load_cbvila(options)
    cli.remark_without_contrast(options, model)
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
        max_broken_fraction=options.max_broken_fraction,
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
    cli.finish(options, values, f"{options.out}\n{cli.table(rows)}", result.skipped)


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
    cli.finish(options, values, _hits_table(result), result.skipped)
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
            cli.remark(options, f"not drawn: {fault}")
            picture = None
        thumbnails.append(Thumbnail(picture, (f"{hit.rank}.  {value:.4f}", hit.key)))
    return thumbnails


class DemoOptions(cli.LanguageModelOptions):
    model: tuple[str, ...] | None = cli.option(
        None,
        "an LQAE shows words, a CB-ViLA names, a fine-tuned model answers; default what comes with pixlex",
        "M",
    )
    index: str | None = cli.option(None, "what pixlex index wrote, to search in", "INDEX")
    host: str = cli.option("127.0.0.1", "address to listen at; default %(default)s, this machine alone")
    port: cli.Port | None = cli.option(None, "default the first free one from 7860 on", "N")


def demo(options: DemoOptions) -> None:
    """Serve a page to play with: words of pictures and back, names, search, questions."""
    from pixlex.demo import load_tabs, serve

    tabs = load_tabs(options.model or (), options.index, **options.loading)
    serve(
        tabs,
        host=options.host,
        port=options.port,
        say=lambda address: print(f"{address} (Ctrl-C ends it)", flush=True),
    )


def _lasting(name: str) -> str:
    """Return the name of a model such that it is found from any folder."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name
