"""`encode`, `decode`, `reconstruct` and `export`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pixlex.cli import options as cli
from pixlex.messages import counted, printable

if TYPE_CHECKING:
    from pixlex.api import ImageTokenizer
    from pixlex.batch import Skipped
    from pixlex.data.records import Records
    from pixlex.data.sources import ImageSource
    from pixlex.encoding.files import Kind


class EncodeOptions(
    cli.MachineOptions, cli.BrokenOption, cli.BatchOptions, cli.ModelOptions, cli.PathArguments
):
    to: Literal["words", "codes", "jsonl", "parquet"] | None = cli.option(
        None, "default: words, or codes where the model has no words of its own and --words names none"
    )
    word_file: Path | None = cli.option(None, cli.WORD_FILE, "FILE", name="--words")
    top_k: cli.Positive | None = cli.option(None, "most such words of an image; default 8", "K")
    out: cli.File | None = cli.option(None, "default: print; a file is written resumably", "FILE")
    part_size: cli.Positive | None = cli.option(
        None,
        "with --to parquet: make --out a folder of parts of N images; processes of torchrun write a slice each",
        "N",
    )
    overwrite: bool = cli.option(False, "replace FILE, start anew")


class DecodeOptions(cli.MachineOptions, cli.BatchOptions, cli.ModelOptions):
    words: tuple[str, ...] = cli.positional(
        "WORDS|FILE",
        "a file or a folder of parts that encode wrote, - for lines from stdin, or the words of one image",
    )
    out: cli.Folder = cli.option(text="folder of the PNG files", metavar="DIR")
    overwrite: bool = cli.option(False, "replace pictures of the same names")


class ReconstructOptions(cli.MachineOptions, cli.ModelOptions, cli.PathArguments):
    out: cli.Picture = cli.option(text="the picture", metavar="FILE.png")
    limit: cli.Positive = cli.option(8, "most images; default %(default)s")


class ExportOptions(cli.MachineOptions, cli.VersionOptions):
    model: str = cli.positional(
        "MODEL", "one that comes with pixlex, a directory, run folder or hub repository"
    )
    out: cli.File = cli.option(
        text="FILE.onnx (pip install 'pixlex[export]'), or FILE.pt2 for torch.export.load", metavar="FILE"
    )


def encode(options: EncodeOptions) -> None:
    """Write images as words or codes."""
    _check_encoding(options)
    from pixlex import api, distributed
    from pixlex.encoding.encode import encode_parts, encode_source

    processes = distributed.num_announced()
    if processes > 1 and options.part_size is None:
        raise ValueError(
            "several processes cannot write one file: expected --part-size, with which they share the images"
        )
    source = _open_paths(options.paths)
    words = None if options.word_file is None else cli.words_in(options.word_file)
    tokenizer = api.load(options.model, words=words, top_k=options.top_k, **options.loading)
    named = words is not None or not tokenizer.model.has_codes
    kind: Kind = options.to or ("words" if tokenizer.has_words or named else "codes")
    vocabulary = tokenizer.model.vocabulary
    if kind == "words" and vocabulary is not None and not vocabulary.is_exact:
        cli.remark(
            options,
            "vocabulary 'all': words are text as the language model's tokenizer writes it, which is not read back "
            "exactly (evaluate reconstruction counts it); --to codes, jsonl or parquet can be decoded",
        )
    if options.out is None:
        _print_codes(tokenizer, source, "jsonl" if options.json else kind, options)
        return
    how: dict[str, Any] = {
        "batch_size": options.batch_size,
        "progress": not options.quiet,
        "max_broken_fraction": options.max_broken_fraction,
    }
    parts = {}
    if options.part_size is None:
        result = encode_source(tokenizer, source, options.out, kind, overwrite=options.overwrite, **how)
        num_images, resumed = result.num_images, f"{result.num_resumed:,} of them by the run before"
        text = f"{counted(num_images, 'image')} as {kind}"
    else:
        result = encode_parts(tokenizer, source, options.out, part_size=options.part_size, **how)
        num_images = result.num_images - result.num_resumed
        resumed = f"{result.num_resumed:,} more were there from a run that was cut off"
        finished = "parts are finished" if processes == 1 else f"parts by {processes} processes"
        text = f"{result.num_parts:,} {finished}; this process encoded {counted(num_images, 'image')}"
        parts = {"num_parts": result.num_parts}
    values = {
        "path": str(result.path),
        "kind": kind,
        **parts,
        "num_images": num_images,
        "num_resumed": result.num_resumed,
        "skipped": result.skipped,
    }
    text = f"{result.path}: {text}{f', {resumed}' if result.num_resumed else ''}"
    cli.finish(options, values, text, result.skipped)


def decode(options: DecodeOptions) -> None:
    """Turn words or codes into pictures."""
    from pixlex import api
    from pixlex.encoding.decode import decode_codes
    from pixlex.encoding.files import read_lines

    first, several = options.words[0], len(options.words) > 1
    path = Path(first)
    is_file = not several and os.path.exists(first)  # no Path: it refuses a text too long for a name
    if not several and not is_file and (path.suffix or "/" in first) and len(first.split()) == 1:
        raise ValueError(f"{first} does not exist: expected a file, - for stdin, or the words of an image")
    tokenizer = api.load(options.model, **options.loading)
    lines = sys.stdin.buffer if first == "-" and not several else [" ".join(options.words).encode()]
    result = decode_codes(
        tokenizer,
        path if is_file else list(read_lines(lines, "stdin" if first == "-" else "words", tokenizer)),
        options.out,
        batch_size=options.batch_size,
        progress=not options.quiet,
        overwrite=options.overwrite,
    )
    values = {**vars(result), "folder": str(result.folder)}
    there = f", {result.num_resumed:,} of them there before" if result.num_resumed else ""
    cli.answer(options, values, f"{result.folder}: {counted(result.num_images, 'picture')}{there}")


def reconstruct(options: ReconstructOptions) -> None:
    """One picture: originals, words, reconstructions; of a CB-ViLA original, masked and rebuilt with captions."""
    import torch

    from pixlex import api
    from pixlex.data.loader import Images
    from pixlex.models.checkpoint import MODELS, read_config
    from pixlex.report.figures import reconstruction_grid

    kind = MODELS.get(read_config(options.model, options.revision).get("family", ""))
    if kind is not None and kind.has_codes and kind.fuses:
        pairs = cli.captioned(options.paths)
        if pairs is not None:
            _reconstruct_pairs(options, pairs)
            return
        cli.remark(options, "images without captions are rebuilt from their codes alone")
    source = _open_paths(options.paths)
    tokenizer = api.load(options.model, **options.loading)
    model = tokenizer.model
    batches = list(cli.batches_of(Images(source), model.config, 8, options.limit))
    originals = torch.cat([batch.images for batch in batches])
    codes = tokenizer.tokenize(originals)
    words = None
    if model.vocabulary is not None:
        words = [[model.vocabulary.words[code] for code in row] for row in codes.tolist()]
    reconstruction_grid(originals, tokenizer.decode(codes), words, tokenizer.grid, options.out)
    skipped = [one for batch in batches for one in batch.skipped]
    keys = [key for batch in batches for key in batch.keys]
    values = {"path": str(options.out), "keys": keys, "skipped": skipped}
    cli.finish(options, values, f"{options.out}: {len(keys)} images", skipped)


def export(options: ExportOptions) -> None:
    """Write encoder and codebook as a graph, images to codes, for programs without pixlex."""
    from pixlex import api

    tokenizer = api.load(options.model, device="cpu", **options.versions)
    path = tokenizer.export(options.out)
    size, megabytes = tokenizer.image_size, path.stat().st_size / 1e6
    values = {"path": str(path), "images": ["batch", 3, size, size], "codes": ["batch", tokenizer.num_words]}
    shapes = f"images (B, 3, {size}, {size}) in [0, 1] -> codes (B, {tokenizer.num_words})"
    cli.answer(options, values, f"{path}: {shapes}, {megabytes:.1f} MB")


def _open_paths(paths: Sequence[str]) -> ImageSource:
    """Open one source of any kind, or image files."""
    from pixlex.data.folders import is_image_file, is_image_name, open_image_files
    from pixlex.data.images import open_source

    if len(paths) == 1:
        return open_source(paths[0])
    for name in paths:
        path = Path(name)
        if path.is_dir() or (path.is_file() and not (is_image_name(name) or is_image_file(path))):
            raise ValueError(
                f"{name} is no image file: expected image files, or one folder, or one pattern in quotes "
                "such as 'shards/*.tar'"
            )
        if not path.is_file():
            raise ValueError(f"{name} {'is no file' if os.path.lexists(name) else 'does not exist'}")
    return open_image_files([Path(name) for name in paths])


def _check_encoding(options: EncodeOptions) -> None:
    if options.to == "parquet" and options.out is None:
        raise ValueError("parquet cannot be printed: name a file with --out")
    if options.to == "codes" and options.word_file is not None:
        raise ValueError("--words names images by words: leave out --to codes, or --words")
    if options.json and options.out is None and options.to not in (None, "jsonl"):
        raise ValueError(f"--json prints jsonl, not {options.to}: leave one of --json and --to out")
    in_parts = options.to == "parquet" and options.out is not None and not options.overwrite
    if options.part_size is not None and not in_parts:
        raise ValueError(
            "--part-size writes a folder of Parquet files: it goes with --to parquet and --out DIR, "
            "without --overwrite"
        )


def _print_codes(tokenizer: ImageTokenizer, source: ImageSource, kind: Kind, options: EncodeOptions) -> None:
    """Print a line for each image as soon as it is encoded."""
    from pixlex.batch import BrokenImages
    from pixlex.encoding.encode import encode_images
    from pixlex.encoding.files import check_kind, format_line
    from pixlex.progress import bar_or_lines

    check_kind(kind, tokenizer)
    skipped: list[Skipped] = []
    broken = BrokenImages(None, source, options.max_broken_fraction)
    batches = encode_images(tokenizer, source, broken, kind=kind, batch_size=options.batch_size)
    on_terminal = sys.stdout.isatty()
    hidden = options.quiet or on_terminal  # where the bar would stand between the lines
    try:
        with bar_or_lines(total=len(source), unit=" images", desc="encode", disable=hidden) as bar:
            for batch in batches:
                for image in batch.images:
                    line = format_line(image, kind, tokenizer)
                    if on_terminal:  # which would obey what a file name holds
                        line = printable(line, keep="\t")
                    # File names may be bytes that are no UTF-8; they come out as the same bytes.
                    sys.stdout.buffer.write(line.encode("utf-8", "surrogateescape") + b"\n")
                sys.stdout.buffer.flush()
                skipped += batch.skipped
                bar.update(len(batch.images) + len(batch.skipped))
    finally:
        cli.remark_skipped(options, skipped)


def _reconstruct_pairs(options: ReconstructOptions, source: Records) -> None:
    """Draw originals, masked, rebuilt with their captions and with other ones (figure 2 of the paper)."""
    import torch

    from pixlex.batch import TooManyBroken
    from pixlex.config.cbvila import CBViLARun
    from pixlex.data.records import Pairs
    from pixlex.distributed import pick_device
    from pixlex.eval.pretraining import reconstructed_examples
    from pixlex.models import computing
    from pixlex.models.cbvila import split_patches
    from pixlex.report.progress import reconstructed_pairs

    source = source.cleaned()
    model, run = cli.load_cbvila(options), cli.run_of(options.model, CBViLARun)
    if run is not None and not run.objective.pixel_weight:
        cli.remark(
            options, f"{options.model} was last trained without pixels, so what it rebuilds is out of date"
        )
    max_words = cli.words_of(options.model, model)
    rows = Pairs(source, lambda texts: model.tokenize_texts(texts, max_words))
    (batch,) = cli.batches_of(rows, model.config, options.limit, options.limit)
    if not len(batch.images):
        cli.remark_skipped(options, batch.skipped)
        raise TooManyBroken(f"{source.name}: none of {len(batch.skipped)} images can be read")
    device, num_patches = pick_device(options.device), model.grid**2
    num_visible = max(1, num_patches - round(num_patches * cli.objective_of(options.model).mask_ratio))
    split = split_patches(len(batch.images), num_patches, num_visible, torch.Generator().manual_seed(0))
    with computing(device, options.precision):
        examples = reconstructed_examples(model, batch.to(device), split.to(device), options.limit)
    reconstructed_pairs(examples, options.out)
    values = {
        "path": str(options.out),
        "keys": list(examples["keys"]),
        "texts": list(examples["texts"]),
        "other_texts": list(examples["other_texts"]),
        "num_visible": num_visible,
        "skipped": batch.skipped,
    }
    seen = f"{num_visible} of {num_patches} patches seen"
    text = f"{options.out}: {len(examples['keys'])} images, {seen}, rebuilt with two texts each"
    cli.finish(options, values, text, batch.skipped)
