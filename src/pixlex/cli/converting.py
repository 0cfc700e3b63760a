"""`convert`."""

from __future__ import annotations

from pixlex.cli.data import ConvertOptions
from pixlex.cli.data_reports import listed
from pixlex.cli.options import answer


def convert(options: ConvertOptions) -> int:
    """Write images with captions to one file."""
    from pixlex.data.captions import open_pairs, with_split
    from pixlex.data.convert import convert_pairs

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
