"""`reconstruct` and `evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixlex import distributed, report
from pixlex.api import ImageTokenizer
from pixlex.batch import ImageBatch
from pixlex.cli.encode import ReconstructOptions
from pixlex.cli.evaluate import ReconstructionOptions
from pixlex.cli.options import answer, remark, remark_page, table
from pixlex.cli.pair_measures import reconstruct_pairs
from pixlex.cli.tokens import load_tokenizer, open_paths, remark_skipped
from pixlex.data.captions import open_pairs
from pixlex.data.decoding import IMAGE_SUFFIXES
from pixlex.data.images import ImageSource, open_source
from pixlex.data.loader import Loader, LoaderConfig
from pixlex.data.records import NoCaptions, PairSource
from pixlex.data.rows import Images
from pixlex.data.sources import BrokenImages
from pixlex.eval.evaluate import Evaluation, Pass
from pixlex.eval.reconstruction import evaluate_reconstruction
from pixlex.files import write_json
from pixlex.models.checkpoint import MODELS, read_config


def reconstruct(options: ReconstructOptions) -> int:
    """Draw originals, words and reconstructions in one picture; of a CB-ViLA what texts make of masked images."""
    model = MODELS.get(read_config(options.model, options.revision).get("family", ""))
    if model is not None and model.has_codes and model.fuses:
        pairs = _captioned(options.paths)
        if pairs is not None:
            return reconstruct_pairs(options, pairs)
        remark(options, "images without captions are rebuilt from their codes alone")
    source = open_paths(options.paths)
    tokenizer = load_tokenizer(options, options.model)
    size, cut = tokenizer.image_size, tokenizer.model.config.cut
    settings = LoaderConfig(image_size=size, batch_size=8, cut=cut)
    batches = list(Loader(Images(source), settings).evaluation(options.limit))
    originals: Tensor = torch.cat([batch.images for batch in batches])
    codes = tokenizer.tokenize(originals)
    words = None
    if tokenizer.model.vocabulary is not None:
        names = tokenizer.model.vocabulary.words
        words = [[names[code] for code in row] for row in codes.tolist()]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report.reconstruction_grid(originals, tokenizer.decode(codes), words, tokenizer.grid, options.out)
    skipped = [one for batch in batches for one in batch.skipped]
    remark_skipped(options, skipped)
    keys = [key for batch in batches for key in batch.keys]
    values = {"path": str(options.out), "keys": keys, "skipped": [asdict(one) for one in skipped]}
    answer(options, values, f"{options.out}: {len(keys)} images")
    return 0


def _captioned(paths: Sequence[str]) -> PairSource | None:
    """Return the images with their captions; None where there are no captions."""
    if len(paths) > 1 or Path(paths[0]).suffix.lower() in IMAGE_SUFFIXES:
        return None
    try:
        return open_pairs(paths[0])
    except NoCaptions:
        return None


def evaluate(options: ReconstructionOptions) -> int:
    """Measure reconstructions; leave numbers, picture and page in a folder if one is named."""
    source = open_source(options.data)
    tokenizer = load_tokenizer(options, options.model)
    settings = LoaderConfig(
        image_size=tokenizer.image_size, batch_size=options.batch_size, cut=tokenizer.model.config.cut
    )
    batches = Loader(Images(source), settings).evaluation(options.limit)
    result = evaluate_reconstruction(
        tokenizer.model,
        _accounted(batches, source, options.max_broken_share),
        Pass(
            precision=tokenizer.precision,
            total=min(len(source), options.limit or len(source)),
            save_examples=16,
            progress=not options.quiet,
        ),
        mask_ratio=options.mask_ratio,
        fid_features=options.fid_features,
        lpips_network=options.lpips_network,
    )
    # Of all processes: none of them may have met too many.
    BrokenImages(None, source, options.max_broken_share).record(
        result.skipped, int(result.values["num_images"])
    )
    if not distributed.is_first():
        return 0
    values = {
        "model": options.model,
        "data": source.name,
        **result.values,
        "notes": list(result.notes),
        "skipped": [asdict(one) for one in result.skipped],
    }
    answer(options, values, table(result.table))
    remark_skipped(options, result.skipped)
    for note in result.notes:
        remark(options, note)
    if options.out is not None:
        _write_evaluation(options.out, options, tokenizer, values, result)
    return 0


def _write_evaluation(
    folder: Path,
    options: ReconstructionOptions,
    tokenizer: ImageTokenizer,
    values: dict[str, Any],
    result: Evaluation,
) -> None:
    """Write results.json, reconstruction.png and report.html."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", values)
    examples = result.examples
    report.drawn(
        folder / "reconstruction.png",
        lambda path: report.reconstruction_grid(
            examples["originals"], examples["reconstructions"], examples["words"], tokenizer.grid, path
        ),
    )
    page = report.drawn(
        folder / "report.html",
        lambda path: report.write_page(
            path,
            report.Page(
                title=f"Reconstruction of {values['data']}",
                examples=examples,
                numbers=result.numbers,
                notes=result.notes,
                pictures={},
                commands=[options.command_line],
                config={"family": tokenizer.family, "model": asdict(tokenizer.model.config)},
            ),
        ),
    )
    remark_page(options, page)


def _accounted(batches: Iterator[ImageBatch], source: ImageSource, limit: float) -> Iterator[ImageBatch]:
    """Pass batches on; raise `TooManyBroken` when more than a share of the images cannot be read."""
    broken = BrokenImages(None, source, limit)
    for batch in batches:
        broken.add(batch)
        yield batch
