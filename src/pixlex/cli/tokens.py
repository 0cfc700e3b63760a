"""`encode` and `decode`; what the commands that need a model share."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pixlex import distributed
from pixlex.api import ImageTokenizer, load
from pixlex.batch import Skipped
from pixlex.cli.encode import DecodeOptions, EncodeOptions
from pixlex.cli.options import LanguageModelOptions, Options, answer, remark
from pixlex.data.folders import is_image_file, is_image_name
from pixlex.data.images import ImageSource, open_image_files, open_source
from pixlex.data.sources import BrokenImages
from pixlex.encoding import (
    Kind,
    check_kind,
    decode_codes,
    encode_images,
    encode_parts,
    encode_source,
    format_line,
    read_lines,
)
from pixlex.messages import printable
from pixlex.progress import bar_or_lines


def encode(options: EncodeOptions) -> int:
    """Write images as words or codes, to a file or to stdout."""
    if options.to == "parquet" and options.out is None:
        raise ValueError("parquet cannot be printed: name a file with --out")
    if options.json and options.out is None and options.to not in (None, "jsonl"):
        raise ValueError(f"--json prints jsonl, not {options.to}: leave one of --json and --to out")
    if options.part_size is not None and (
        options.to != "parquet" or options.out is None or options.overwrite
    ):
        raise ValueError(
            "--part-size writes a folder of Parquet files: it goes with --to parquet and --out DIR, "
            "without --overwrite"
        )
    if distributed.num_announced() > 1 and options.part_size is None:
        raise ValueError(
            "several processes cannot write one file: expected --part-size, with which they share the images"
        )
    source = open_paths(options.paths)
    tokenizer = load_tokenizer(options, options.model)
    kind: Kind = options.to or ("words" if tokenizer.has_words else "codes")
    vocabulary = tokenizer.model.vocabulary
    if kind == "words" and vocabulary is not None and not vocabulary.is_exact:
        remark(
            options,
            "vocabulary 'all': words are text as the language model's tokenizer writes it, which is not read back "
            "exactly (evaluate reconstruction counts it); --to codes, jsonl or parquet can be decoded",
        )
    if options.part_size is not None and options.out is not None:
        return _encode_parts(tokenizer, source, options, options.out, options.part_size)
    if options.out is None:
        return _print_codes(tokenizer, source, "jsonl" if options.json else kind, options)
    result = encode_source(
        tokenizer,
        source,
        options.out,
        kind,
        batch_size=options.batch_size,
        progress=not options.quiet,
        overwrite=options.overwrite,
        max_broken_share=options.max_broken_share,
    )
    remark_skipped(options, result.skipped)
    values = {
        "path": str(result.path),
        "kind": kind,
        "num_images": result.num_images,
        "num_resumed": result.num_resumed,
        "skipped": [asdict(one) for one in result.skipped],
    }
    resumed = f", {result.num_resumed:,} of them by the run before" if result.num_resumed else ""
    answer(options, values, f"{result.path}: {result.num_images:,} images as {kind}{resumed}")
    return 0


def _encode_parts(
    tokenizer: ImageTokenizer, source: ImageSource, options: EncodeOptions, folder: Path, part_size: int
) -> int:
    """Write a folder of parts, or this process's slice of them."""
    result = encode_parts(
        tokenizer,
        source,
        folder,
        part_size=part_size,
        batch_size=options.batch_size,
        progress=not options.quiet,
        max_broken_share=options.max_broken_share,
    )
    remark_skipped(options, result.skipped)
    encoded, processes = result.num_images - result.num_resumed, distributed.num_announced()
    values = {
        "path": str(result.path),
        "kind": "parquet",
        "num_parts": result.num_parts,
        "num_images": encoded,
        "num_resumed": result.num_resumed,
        "skipped": [asdict(one) for one in result.skipped],
    }
    resumed = (
        f", {result.num_resumed:,} more were there from a run that was cut off" if result.num_resumed else ""
    )
    finished = "parts are finished" if processes == 1 else f"parts by {processes} processes"
    text = f"{result.path}: {result.num_parts:,} {finished}; this process encoded {encoded:,} images{resumed}"
    answer(options, values, text)
    return 0


def decode(options: DecodeOptions) -> int:
    """Turn a file, lines of stdin or words into pictures."""
    first, several = options.words[0], len(options.words) > 1
    path = Path(first)
    is_file = not several and os.path.exists(first)  # no Path: it refuses a text too long for a name
    if not several and not is_file and (path.suffix or "/" in first) and len(first.split()) == 1:
        raise ValueError(f"{first} does not exist: expected a file, - for stdin, or the words of an image")
    tokenizer = load_tokenizer(options, options.model)
    lines = sys.stdin.buffer if first == "-" and not several else [" ".join(options.words).encode()]
    result = decode_codes(
        tokenizer,
        path if is_file else list(read_lines(lines, "stdin" if first == "-" else "words", tokenizer)),
        options.out,
        batch_size=options.batch_size,
        progress=not options.quiet,
        overwrite=options.overwrite,
    )
    values = {
        "folder": str(result.folder),
        "num_images": result.num_images,
        "num_resumed": result.num_resumed,
    }
    there = f", {result.num_resumed:,} of them were there" if result.num_resumed else ""
    answer(options, values, f"{result.folder}: {result.num_images:,} pictures{there}")
    return 0


def load_tokenizer(options: LanguageModelOptions, name: str) -> ImageTokenizer:
    """Load a model that the options name."""
    return load(
        name,
        language_model=options.language_model,
        device=options.device,
        precision=options.precision,
        revision=options.revision,
    )


def open_paths(paths: Sequence[str]) -> ImageSource:
    """Open one source of any kind, or image files."""
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


def _print_codes(tokenizer: ImageTokenizer, source: ImageSource, kind: Kind, options: EncodeOptions) -> int:
    """Print a line for each image as soon as it is encoded."""
    check_kind(kind, tokenizer)
    skipped: list[Skipped] = []
    broken = BrokenImages(None, source, options.max_broken_share)
    batches = encode_images(tokenizer, source, broken, batch_size=options.batch_size)
    # On a terminal the bar would stand between the lines.
    hidden = options.quiet or sys.stdout.isatty()
    try:
        with bar_or_lines(total=len(source), unit=" images", desc="encode", disable=hidden) as bar:
            for batch in batches:
                for image in batch.images:
                    # File names may be bytes that are no UTF-8; they come out as the same bytes.
                    line = format_line(image, kind, tokenizer)
                    if sys.stdout.isatty():  # which would obey what a file name holds
                        line = printable(line, keep="\t")
                    sys.stdout.buffer.write(line.encode("utf-8", "surrogateescape") + b"\n")
                sys.stdout.buffer.flush()
                skipped += batch.skipped
                bar.update(len(batch.images) + len(batch.skipped))
    finally:
        remark_skipped(options, skipped)
    return 0


def remark_skipped(options: Options, skipped: Sequence[Skipped]) -> None:
    """Name the first images that could not be read, and say how many there are."""
    for one in skipped[:3]:
        remark(options, f"skipped {one.key}: {one.reason}")
    if len(skipped) > 3:
        remark(options, f"skipped {len(skipped):,} images in all")
