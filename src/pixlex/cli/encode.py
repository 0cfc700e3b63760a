"""`encode`, `decode` and `reconstruct`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pixlex.cli.options import (
    BatchOptions,
    BrokenOption,
    File,
    Folder,
    MachineOptions,
    ModelOptions,
    PathArguments,
    Picture,
    Positive,
    option,
    positional,
)


@dataclass(frozen=True, kw_only=True)
class EncodeOptions(MachineOptions, BrokenOption, BatchOptions, ModelOptions, PathArguments):
    """Options of `encode`."""

    to: Literal["words", "codes", "jsonl", "parquet"] | None = option(
        None, "default: words, or codes where the model has no words"
    )
    out: File | None = option(None, "default: print; a file is written resumably", "FILE")
    part_size: Positive | None = option(
        None,
        "with --to parquet: make --out a folder of parts of N images; processes of torchrun write a slice each",
        "N",
    )
    overwrite: bool = option(False, "replace FILE, start anew")


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(MachineOptions, BatchOptions, ModelOptions):
    """Options of `decode`."""

    words: tuple[str, ...] = positional(
        "WORDS|FILE",
        "a file or a folder of parts that encode wrote, - for lines from stdin, or the words of one image",
    )
    out: Folder = option(text="folder of the PNG files", metavar="DIR")
    overwrite: bool = option(False, "replace pictures of the same names")


@dataclass(frozen=True, kw_only=True)
class ReconstructOptions(MachineOptions, ModelOptions, PathArguments):
    """Options of `reconstruct`."""

    out: Picture = option(text="the picture", metavar="FILE.png")
    limit: Positive = option(8, "most images; default %(default)s")


def encode(options: EncodeOptions) -> int:
    """Write images as words or codes."""
    from pixlex.cli import tokens

    return tokens.encode(options)


def decode(options: DecodeOptions) -> int:
    """Turn words or codes into pictures."""
    from pixlex.cli import tokens

    return tokens.decode(options)


def reconstruct(options: ReconstructOptions) -> int:
    """One picture: originals, words, reconstructions; of a CB-ViLA original, masked and rebuilt with captions."""
    from pixlex.cli import measures

    return measures.reconstruct(options)
