"""What can be typed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from pixlex import __version__

_DATA = "a folder, a .parquet, .csv or .jsonl file, .tar shards, hf:NAME[:SPLIT] or embedded:SET:SPLIT"
_EXIT_CODES = "exit codes: 0 fine, 1 the run failed, 2 bad input, 130 interrupted"


class _Parser(argparse.ArgumentParser):
    """Takes no abbreviations, and raises `ValueError` instead of leaving the program."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read a command line; options may stand before, behind or between what a command takes several of.

    Raises:
        ValueError: what was typed is no command.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse itself takes `train RECIPE KEY=VALUE --out DIR`, but not `train RECIPE --out DIR KEY=VALUE`.
    several = next((name for name in ("overrides", "paths", "words") if hasattr(options, name)), None)
    if several is None or any(one.startswith("-") for one in rest):
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
    else:
        setattr(options, several, [*getattr(options, several), *rest])
    return options


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets `handler`, "module:function" within `pixlex.cli`."""
    parser = _Parser(
        prog="pixlex",
        description="Images as words of a language model's own vocabulary, and words back into images.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"pixlex {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _training_commands(commands)
    _tokenizing_commands(commands)
    _evaluate_command(commands)
    _information_commands(commands)
    return parser


def _training_commands(commands: Any) -> None:
    train = _command(commands, "train", "training:train", "train a model from a recipe")
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file or a name such as lqae/tiny")
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, such as train.steps=100")
    train.add_argument("--out", type=Path, metavar="DIR", help="the run folder; default runs/RECIPE-NUMBER")
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint (without --out: of the newest run)",
    )
    _machine_options(train)
    quickstart = _command(
        commands, "quickstart", "training:quickstart", "train the tiny recipe for minutes, end with a page"
    )
    quickstart.add_argument("--out", type=Path, default=Path("runs/quickstart"), metavar="DIR")
    _machine_options(quickstart)


def _tokenizing_commands(commands: Any) -> None:
    encode = _command(commands, "encode", "tokens:encode", "write images as words or codes")
    _paths(encode)
    _model_options(encode)
    encode.add_argument(
        "--to",
        choices=("words", "codes", "jsonl", "parquet"),
        help="default: words, or codes where the model has no words",
    )
    encode.add_argument(
        "--out", type=Path, metavar="FILE", help="default: print; a file is written resumably"
    )
    encode.add_argument("--overwrite", action="store_true", help="replace FILE, start anew")
    _batch_options(encode)
    _broken_option(encode)
    _machine_options(encode)
    decode = _command(commands, "decode", "tokens:decode", "turn words or codes into pictures")
    decode.add_argument(
        "words",
        nargs="+",
        metavar="WORDS|FILE",
        help="a file that encode wrote (any kind), - for lines from stdin, or the words of one image",
    )
    _model_options(decode)
    decode.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the PNG files")
    decode.add_argument("--overwrite", action="store_true", help="replace pictures of the same names")
    _batch_options(decode)
    _machine_options(decode)
    reconstruct = _command(
        commands, "reconstruct", "measures:reconstruct", "one picture: originals, words, reconstructions"
    )
    _paths(reconstruct)
    _model_options(reconstruct)
    reconstruct.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    reconstruct.add_argument("--limit", type=_positive, default=8, help="most images; default %(default)s")
    _machine_options(reconstruct)


def _evaluate_command(commands: Any) -> None:
    evaluate = _command(commands, "evaluate", "measures:evaluate", "measure a model")
    evaluate.add_argument("measure", choices=("reconstruction",), help="what to measure")
    _model_options(evaluate)
    evaluate.add_argument("--data", required=True, metavar="DATA", help=_DATA)
    evaluate.add_argument("--limit", type=_positive, help="most images, evenly spaced; default all")
    evaluate.add_argument(
        "--out", type=Path, metavar="DIR", help="write results.json, reconstruction.png and report.html there"
    )
    evaluate.add_argument(
        "--mask-ratio", type=_share, default=0.5, help="words hidden for masked_mse; default %(default)s"
    )
    evaluate.add_argument("--fid-features", type=Path, metavar="FILE", help="TorchScript network for rFID")
    evaluate.add_argument("--lpips-network", type=Path, metavar="FILE", help="TorchScript network for LPIPS")
    _batch_options(evaluate)
    _broken_option(evaluate)
    _machine_options(evaluate)


def _information_commands(commands: Any) -> None:
    describe = _command(
        commands, "describe", "facts:describe", "list the recipes, or every setting of one with its meaning"
    )
    describe.add_argument(
        "subject", nargs="?", metavar="RECIPE|FAMILY", help="default: list recipes and families"
    )
    _json_option(describe)
    doctor = _command(commands, "doctor", "facts:doctor", "read every image and say what is there")
    doctor.add_argument("data", metavar="DATA", help=_DATA)
    _machine_options(doctor)
    version = _command(commands, "version", "facts:version", "say which versions are at work")
    _json_option(version)


def _command(commands: Any, name: str, handler: str, summary: str) -> argparse.ArgumentParser:
    """Add a command with what every command has."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=_EXIT_CODES
    )
    parser.set_defaults(handler=handler)
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error (or PIXLEX_DEBUG=1)"
    )
    return parser


def _paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help=f"image files, or {_DATA}")


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="M", help="a model directory, a run folder or a hub repository"
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


def _batch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", type=_positive, default=64, help="images at a time; codes do not depend on it"
    )


def _broken_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-broken-share",
        type=_share,
        default=0.05,
        help="share of unreadable images above which the command stops; default %(default)s",
    )


def _machine_options(parser: argparse.ArgumentParser) -> None:
    """Add what programs that call pixlex want."""
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no remarks")
    _json_option(parser)


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="the answer as JSON on stdout, and nothing else there"
    )


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of 1 or more, got {text!r}")
    return number


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1], got {text!r}")
    return number
