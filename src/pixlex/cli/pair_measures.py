"""`evaluate retrieval`, `evaluate pretraining`, `reconstruct` of a CB-ViLA, and `gallery`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from pixlex import distributed
from pixlex.cli.encode import ReconstructOptions
from pixlex.cli.evaluate import PretrainingOptions, RetrievalOptions
from pixlex.cli.explain import GalleryOptions
from pixlex.cli.models import cbvila_of, remark_without_contrast, run_of
from pixlex.cli.options import answer, remark, remark_page, table
from pixlex.cli.tokens import remark_skipped
from pixlex.config.cbvila import CBViLAObjectiveConfig, CBViLARun
from pixlex.config.data import SQUARE
from pixlex.data.captions import open_pairs
from pixlex.data.images import open_source
from pixlex.data.loader import Loader, LoaderConfig
from pixlex.data.records import PairSource
from pixlex.data.rows import Images, Pairs
from pixlex.data.sources import BrokenImages, TooManyBroken
from pixlex.distributed import pick_device
from pixlex.eval.evaluate import Pass, labeled
from pixlex.eval.pretraining import codeword_purity, evaluate_pretraining, reconstructed_examples
from pixlex.eval.published import (
    TABLE_SETTINGS,
    TABLE_TOP_K,
    TABLE_WORDS,
    benchmark_of,
    retrieval_table,
    setting_of,
)
from pixlex.eval.retrieval import evaluate_retrieval, gallery
from pixlex.files import write_json
from pixlex.models import checkpoint
from pixlex.models.inference import compute_rows, computing
from pixlex.nn.masking import split_patches
from pixlex.objectives.cbvila import CBViLAObjective
from pixlex.report.drawing import drawn
from pixlex.report.galleries import codeword_gallery, reconstructed_pairs
from pixlex.report.page import Page, write_page
from pixlex.report.progress import draw_pretraining, unreadable


def retrieval(options: RetrievalOptions) -> int:
    """Measure how well images are found by texts and texts by images."""
    source = open_pairs(options.data)
    source = source if options.raw_captions else source.cleaned()
    model = cbvila_of(options)
    if not options.untrained:
        remark_without_contrast(options, model)
    how = Pass(precision=options.precision, progress=not options.quiet)
    items = gallery(
        model,
        source,
        how,
        max_words=min(options.max_words or _trained_words(options.model), model.config.text.positions),
        batch_size=options.batch_size,
        limit=options.limit,
    )
    BrokenImages(None, source, options.max_broken_share).record(items.skipped, len(items.image_vectors))
    top_k = options.top_k or TABLE_TOP_K[benchmark_of(source.name) or "flickr30k"]
    result = evaluate_retrieval(model, items, how, score=options.score, top_k=top_k, cache=options.out)
    if not distributed.is_first():
        return 0
    trained_on = (
        []
        if options.untrained
        else checkpoint.read_config(options.model, options.revision).get("trained_on", [])
    )
    setting = setting_of(trained_on, source.name)
    published = retrieval_table(source.name, trained_on)
    values = {
        "model": options.model,
        "untrained": options.untrained,
        "data": source.name,
        "trained_on": trained_on,
        "setting": setting,
        "protocol": result.protocol,
        **result.values,
        "num_images": result.num_images,
        "num_captions": result.num_captions,
        "num_scored": result.num_scored,
        "skipped": [asdict(one) for one in result.skipped],
        "published": None if published is None else asdict(published),
    }
    lines = [f"{setting}: {result.protocol} ({TABLE_SETTINGS})", table(result.table)]
    if published is not None:
        lines.append(published.text(f"{result.num_images:,} images"))
    answer(options, values, "\n".join(lines))
    remark_skipped(options, result.skipped)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(options.out / "results.json", values)
    return 0


def pretraining(options: PretrainingOptions) -> int:
    """Measure what pretraining minimizes, the codebook and rebuilt pixels on pairs; leave pictures and a page."""
    source = open_pairs(options.data)
    source = source if options.raw_captions else source.cleaned()
    model = cbvila_of(options)
    config = _objective_of(options.model)
    max_words = min(_trained_words(options.model), model.config.text.positions)
    objective = CBViLAObjective(model, config, 1, max_words).to(pick_device(options.device))
    batches = Loader(
        Pairs(source, lambda texts: model.tokenize_texts(texts, max_words)),
        LoaderConfig(image_size=model.config.image_size, cut=model.config.cut, batch_size=options.batch_size),
    ).evaluation(options.limit)
    how = Pass(
        precision=options.precision, total=min(len(source), options.limit or len(source)),
        progress=not options.quiet,
    )  # fmt: skip
    result = evaluate_pretraining(objective, batches, how, seed=options.seed)
    num_images = int(result.values["num_images"])
    BrokenImages(None, source, options.max_broken_share).record(result.skipped, num_images)
    if not distributed.is_first():
        return 0
    compared = f"pairs compared within batches of {options.batch_size}"
    protocol = (
        f"{num_images} images, each with its first caption; {model.config.image_size} px, "
        f"{SQUARE[model.config.cut]}; {config.mask_ratio:.0%} of the patches hidden; {compared}"
    )
    values = {
        "model": options.model,
        "untrained": options.untrained,
        "data": source.name,
        "protocol": protocol,
        **result.values,
        "skipped": [asdict(one) for one in result.skipped],
    }
    answer(options, values, f"{protocol}\n{table(result.table)}")
    remark_skipped(options, result.skipped)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(options.out / "results.json", values)
        folder = options.out
        pictures = draw_pretraining(result, source, model.config, lambda kind: folder / f"{kind}.png")
        size, grid = model.config.image_size, model.grid
        page = Page(
            title=f"CB-ViLA, {size} px, {grid} x {grid}: {source.name}",
            introduction=f"{protocol}.",
            numbers=result.numbers,
            notes=unreadable(result.skipped),
            pictures=pictures,
            commands=[options.command_line],
            config={"model": asdict(model.config), "objective": asdict(config)},
        )
        remark_page(options, drawn(folder / "report.html", lambda path: write_page(path, page)))
    return 0


def reconstruct_pairs(options: ReconstructOptions, source: PairSource) -> int:
    """Draw originals, masked, rebuilt with their captions and with other ones (figure 2 of the paper)."""
    source = source.cleaned()
    model, run = cbvila_of(options), run_of(options.model, CBViLARun)
    if run is not None and not run.objective.pixel_weight:
        remark(
            options, f"{options.model} was last trained without pixels, so what it rebuilds is out of date"
        )
    max_words = min(_trained_words(options.model), model.config.text.positions)
    (batch,) = Loader(
        Pairs(source, lambda texts: model.tokenize_texts(texts, max_words)),
        LoaderConfig(image_size=model.config.image_size, cut=model.config.cut, batch_size=options.limit),
    ).evaluation(options.limit)
    remark_skipped(options, batch.skipped)
    if not len(batch.images):
        raise TooManyBroken(f"{source.name}: none of {len(batch.skipped)} images can be read")
    device, num_patches = pick_device(options.device), model.grid**2
    num_visible = max(1, num_patches - round(num_patches * _objective_of(options.model).mask_ratio))
    split = split_patches(len(batch.images), num_patches, num_visible, torch.Generator().manual_seed(0))
    with computing(device, options.precision):
        examples = reconstructed_examples(model, batch.to(device), split.to(device), options.limit)
    reconstructed_pairs(examples, options.out)
    values = {
        "path": str(options.out),
        "keys": list(examples.keys),
        "texts": list(examples.texts),
        "other_texts": list(examples.other_texts),
        "num_visible": num_visible,
        "skipped": [asdict(one) for one in batch.skipped],
    }
    seen = f"{num_visible} of {num_patches} patches seen"
    answer(
        options, values, f"{options.out}: {len(examples.keys)} images, {seen}, rebuilt with two texts each"
    )
    return 0


def _trained_words(name: str) -> int:
    """Return how long captions were in training, in words (tokens), and at least those of the tables."""
    run = run_of(name, CBViLARun)
    return TABLE_WORDS if run is None else max(TABLE_WORDS, run.data.max_words)


def _objective_of(name: str) -> CBViLAObjectiveConfig:
    """Return what a model was trained for, where its run folder is at hand; phases aside."""
    run = run_of(name, CBViLARun)
    config = CBViLAObjectiveConfig() if run is None else run.objective
    return replace(config, burn_in_steps=0, alternate_every=0)


def draw_gallery(options: GalleryOptions) -> int:
    """Draw codewords with patches that they stand for; say how pure they are where images have classes."""
    source = open_source(options.data)
    model = checkpoint.load(options.model, language_model=options.language_model, revision=options.revision)
    device = pick_device(options.device)
    model.to(device)
    own = []
    for batch in Loader(
        Images(source),
        LoaderConfig(image_size=model.config.image_size, batch_size=options.batch_size, cut=model.config.cut),
    ).evaluation(options.limit):
        codes = torch.empty(0, model.grid**2, dtype=torch.long)
        if len(batch.images):
            codes = compute_rows(
                batch.images,
                model.tokenize,
                grid=model.grid,
                device=device,
                precision=options.precision,
                batch_size=options.batch_size,
            )
        own.append((codes, batch.indices, batch.labels, batch.skipped))
    everyone = distributed.in_turn(own)
    if not distributed.is_first():
        return 0
    found = torch.cat([part[0] for part in everyone])
    indices, classes = torch.cat([part[1] for part in everyone]), torch.cat([part[2] for part in everyone])
    skipped = [one for part in everyone for one in part[3]]
    if not len(found):
        raise TooManyBroken(f"{source.name}: none of {len(skipped)} images can be read")
    values: dict[str, Any] = {"path": str(options.out), "num_images": len(found)}
    lines = [f"{options.out}: {options.codewords} codewords of {len(found)} images"]
    if (classes >= 0).any():
        purity = codeword_purity(found, classes, options.seed)
        values |= purity
        lines.append(table(labeled(purity)))
    else:
        remark(options, "the images have no classes, so no purity is measured")
    answer(options, values, "\n".join(lines))
    remark_skipped(options, skipped)
    drawn(
        options.out,
        lambda path: codeword_gallery(
            source, indices, found, image_size=model.config.image_size, cut=model.config.cut,
            num_codewords=options.codewords, seed=options.seed, path=path,
        ),
    )  # fmt: skip
    return 0
