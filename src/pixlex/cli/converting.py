"""`convert`."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from pixlex.cli.data_reports import listed
from pixlex.cli.options import (
    PAIRS,
    add_command,
    file_path,
    machine_options,
    positive,
)
from pixlex.cli.output import answer


def convert_command(commands: Any) -> None:
    """Add the command."""
    convert = add_command(
        commands, "convert", "converting:convert", "write images with captions to one .parquet or .jsonl file"
    )
    convert.add_argument("data", metavar="SOURCE", help=PAIRS)
    convert.add_argument(
        "--out", type=file_path, required=True, metavar="FILE", help="a .parquet or .jsonl file"
    )
    convert.add_argument("--split", metavar="S", help="of Karpathy's files or hf:NAME; several joined by +")
    convert.add_argument(
        "--image-size",
        type=positive,
        metavar="N",
        help="store as JPEG with a short side of at most N pixels; default: as they are",
    )
    convert.add_argument("--overwrite", action="store_true", help="replace FILE")
    machine_options(convert)


def convert(options: Namespace) -> int:
    """Write images with captions to one file."""
    from pixlex.data.convert import convert_pairs
    from pixlex.data.descriptions import with_split
    from pixlex.data.pairs import open_pairs

    description = options.data if options.split is None else with_split(options.data, options.split)
    source = open_pairs(description)
    result = convert_pairs(
        source,
        options.out,
        image_size=options.image_size,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    values = {
        "path": str(result.path),
        "num_images": result.num_images,
        "num_captions": result.num_captions,
        "skipped": [{"key": one.key, "reason": one.reason} for one in result.skipped],
        "without_captions": list(source.ignored),
    }
    lines = [f"{result.path}: {result.num_images:,} images, {result.num_captions:,} captions"]
    lines += listed(
        "images that cannot be read, left out", [f"{one.key}: {one.reason}" for one in result.skipped]
    )
    lines += listed("images without a caption, left out", source.ignored)
    answer(options, values, "\n".join(lines))
    return 0
