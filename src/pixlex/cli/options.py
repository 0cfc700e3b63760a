"""What several commands can be told, and the checks of what was typed."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, Literal, NoReturn

from pixlex.messages import nearest, quoted

DATA = (
    "a folder, a .parquet, .csv, .tsv or .jsonl file, .tar shards (these and .parquet also at an "
    "address such as s3://), hf:NAME[:SPLIT] or embedded:SET:SPLIT"
)
PAIRS = (
    "images with captions: an annotation .json (ALBEF, Karpathy, COCO, Visual Genome), .csv, .tsv, .jsonl, "
    ".parquet, .tar shards, a folder or hf:NAME[:SPLIT]; with options such as "
    "FILE.json?split=train+restval&images=DIR "
    "(also index=, captions=, rows=); several as '2 * ONE + OTHER'"
)
EXIT_CODES = "exit codes: 0 fine, 1 the run failed, 2 bad input, 130 interrupted"


# What `train`, `finetune` and `ablate` have options for besides `train.NAME=VALUE`.
_SETTINGS = ("device", "seed", "batch_size")


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations, names the nearest choice, and raises `ValueError` instead of leaving the program."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **settings})

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a command or a choice that is not there."""
        if action.choices is not None and value not in action.choices:
            hint = nearest(str(value), map(str, action.choices))
            raise argparse.ArgumentError(action, f"invalid choice: {quoted(value)}: {hint}")

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise ValueError(f"{message} (see {self.prog} --help)")


# What a command makes of the processes that torchrun starts: it needs to be alone; all share its work, and the
# first one prints and writes; it sees to them itself.
Processes = Literal["one", "shared", "own"]


def add_command(
    commands: Any, name: str, handler: str, summary: str, *, processes: Processes = "one"
) -> argparse.ArgumentParser:
    """Add a command with what every command has."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=EXIT_CODES
    )
    parser.set_defaults(handler=handler, processes=processes)
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error (or PIXLEX_DEBUG=1)"
    )
    return parser


def path_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the images that a command works on."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help=f"image files, or {DATA}")


def model_options(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add the model, or several of them, and where it computes."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="M",
        nargs="+" if several else None,
        help="a model directory, a run folder or a hub repository",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub repository")
    parser.add_argument(
        "--language-model",
        metavar="M",
        help="where its language model lies now; default: where it was trained",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; default %(default)s")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="default %(default)s; bf16 gives other codes",
    )


def batch_options(parser: argparse.ArgumentParser) -> None:
    """Add the size of a batch."""
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=64,
        help="images at a time, on a GPU in a pass: codes may round differently with another size there; default "
        "%(default)s",
    )


def size_options(parser: argparse.ArgumentParser) -> None:
    """Add the size of the images and how they become square, where a CB-ViLA may be told otherwise."""
    parser.add_argument(
        "--image-size",
        type=positive,
        metavar="N",
        help="side of the images in pixels, positions resampled; default the model's own",
    )
    parser.add_argument(
        "--resize-mode",
        choices=("center", "squash"),
        help="center cuts out a square, squash keeps all of the image and not its shape; default the model's own",
    )


def training_options(parser: argparse.ArgumentParser) -> None:
    """Add the settings of a run that are options, too (see `overrides_of`)."""
    parser.add_argument(
        "--device",
        metavar="D",
        help="auto, cpu, cuda or cuda:N; the same as train.device=D, default the recipe's",
    )
    parser.add_argument("--seed", type=zero_or_more, metavar="N", help="the same as train.seed=N")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="the same as train.batch_size=N")


def overrides_of(options: argparse.Namespace) -> list[str]:
    """Return the settings of a run that were typed, KEY=VALUE, those of `training_options` among them.

    Raises:
        ValueError: one of them was typed in both ways.
    """
    typed: list[str] = list(options.overrides)
    for name in _SETTINGS:
        value = getattr(options, name)
        if value is not None:
            if any(one.startswith(f"train.{name}=") for one in options.overrides):
                raise ValueError(
                    f"--{name.replace('_', '-')} and train.{name}= are the same setting: expected one of them"
                )
            typed.append(f"train.{name}={value}")
    return typed


def broken_option(parser: argparse.ArgumentParser) -> None:
    """Add the share of unreadable images that is put up with."""
    parser.add_argument(
        "--max-broken-share",
        type=share,
        default=0.05,
        help="share of unreadable images above which the command stops; default %(default)s",
    )


def machine_options(parser: argparse.ArgumentParser) -> None:
    """Add what programs that call pixlex want."""
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no remarks")
    json_option(parser)


def json_option(parser: argparse.ArgumentParser) -> None:
    """Add the answer for programs."""
    parser.add_argument(
        "--json", action="store_true", help="the answer as JSON on stdout, and nothing else there"
    )


def folder_path(text: str) -> Path:
    """Read the path of a folder to write in; found out now, not after hours of work."""
    return _writable(Path(text))


def file_path(text: str) -> Path:
    """Read the path of a file to write; a folder that is there may become one of parts."""
    _writable(Path(text).absolute().parent)
    return Path(text)


def picture_path(text: str) -> Path:
    """Read the path of a picture to write."""
    path = file_path(text)
    if path.suffix.lower() != ".png" or path.is_dir():
        raise argparse.ArgumentTypeError(f"expected the name of a .png file, got {quoted(text)}")
    return path


def _writable(folder: Path) -> Path:
    there = next((one for one in (folder, *folder.absolute().parents) if os.path.lexists(one)), folder)
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, but {quoted(str(there))} is none")
    if not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"nothing may be written in {quoted(str(there))}")
    return folder


def positive(text: str) -> int:
    """Read an integer of 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of 1 or more, got {quoted(text)}")
    return number


def zero_or_more(text: str) -> int:
    """Read an integer of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer of 0 or more, got {quoted(text)}")
    return int(text)


def share(text: str) -> float:
    """Read a number in [0, 1]."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1], got {quoted(text)}")
    return number
