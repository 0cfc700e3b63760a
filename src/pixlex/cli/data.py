"""`describe`, `doctor`, `version` and `convert`."""

from __future__ import annotations

from dataclasses import dataclass

from pixlex.cli.options import (
    DATA,
    PAIRS,
    File,
    JSONOption,
    MachineOptions,
    Positive,
    option,
    positional,
)


@dataclass(frozen=True, kw_only=True)
class DescribeOptions(JSONOption):
    """Options of `describe`."""

    subject: str | None = positional("RECIPE|FAMILY", "default: list recipes and families", None)


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(MachineOptions):
    """Options of `doctor`."""

    data: str = positional("DATA", f"{DATA}; or {PAIRS}")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(MachineOptions):
    """Options of `convert`."""

    data: str = positional("SOURCE", PAIRS)
    out: File = option(text="a .parquet or .jsonl file", metavar="FILE")
    split: str | None = option(None, "of Karpathy's files or hf:NAME; several joined by +", "S")
    image_size: Positive | None = option(
        None, "store as JPEG with a short side of at most N pixels; default: as they are", "N"
    )
    overwrite: bool = option(False, "replace FILE")


def describe(options: DescribeOptions) -> int:
    """List the recipes, or every setting of one with its meaning."""
    from pixlex.cli import facts

    return facts.describe(options)


def doctor(options: DoctorOptions) -> int:
    """Read every image and say what is there."""
    from pixlex.cli import facts

    return facts.doctor(options)


def version(options: JSONOption) -> int:
    """Say which versions are at work."""
    from pixlex.cli import facts

    return facts.version(options)


def convert(options: ConvertOptions) -> int:
    """Write images with captions to one .parquet or .jsonl file."""
    from pixlex.cli import converting

    return converting.convert(options)
