"""What can be typed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pixlex import __version__
from pixlex.cli.ablation_options import ablate_command
from pixlex.cli.converting import convert_command
from pixlex.cli.evaluations import evaluate_commands
from pixlex.cli.explain_options import explain_command
from pixlex.cli.options import (
    DATA,
    EXIT_CODES,
    PAIRS,
    Parser,
    add_command,
    batch_options,
    broken_option,
    file_path,
    folder_path,
    json_option,
    machine_options,
    model_options,
    path_arguments,
    picture_path,
    positive,
    training_options,
    zero_or_more,
)
from pixlex.cli.reasoning_options import ask_command, finetune_command
from pixlex.cli.search_options import search_commands
from pixlex.messages import nearest


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
            unknown = next((one for one in rest if one.startswith("-")), rest[0])
            hint = nearest(unknown.partition("=")[0], _option_names(parser, options))
            near = f"; {hint}" if hint.startswith("did") else ""
            parser.error(f"unrecognized arguments: {' '.join(rest)}{near}")
    else:
        setattr(options, several, [*getattr(options, several), *rest])
    return options


def _option_names(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """Return the options of the command that was typed."""
    names = [name for action in parser._actions for name in action.option_strings]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            names += _option_names(action.choices[getattr(options, action.dest)], options)
    return names


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets `handler`, "module:function" within `pixlex.cli`."""
    parser = Parser(
        prog="pixlex",
        description="Images as words of a language model's own vocabulary, and words back into images.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"pixlex {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _training_commands(commands)
    finetune_command(commands)
    ablate_command(commands)
    _tokenizing_commands(commands)
    _gallery(commands)
    explain_command(commands)
    ask_command(commands)
    evaluate_commands(commands)
    search_commands(commands)
    _information_commands(commands)
    convert_command(commands)
    return parser


def _training_commands(commands: Any) -> None:
    train = add_command(commands, "train", "training:train", "train a model from a recipe", processes="own")
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file or a name such as lqae/tiny")
    train.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="settings, such as train.steps=100"
    )
    train.add_argument(
        "--out", type=folder_path, metavar="DIR", help="the run folder; default runs/RECIPE-NUMBER"
    )
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint (without --out: of the newest run)",
    )
    training_options(train)
    machine_options(train)
    quickstart = add_command(
        commands,
        "quickstart",
        "training:quickstart",
        "train the tiny recipe for minutes, end with a page",
        processes="own",
    )
    quickstart.add_argument("--out", type=folder_path, default=Path("runs/quickstart"), metavar="DIR")
    quickstart.set_defaults(overrides=[])
    training_options(quickstart)
    machine_options(quickstart)


def _tokenizing_commands(commands: Any) -> None:
    encode = add_command(
        commands, "encode", "tokens:encode", "write images as words or codes", processes="own"
    )
    path_arguments(encode)
    model_options(encode)
    encode.add_argument(
        "--to",
        choices=("words", "codes", "jsonl", "parquet"),
        help="default: words, or codes where the model has no words",
    )
    encode.add_argument(
        "--out", type=file_path, metavar="FILE", help="default: print; a file is written resumably"
    )
    encode.add_argument(
        "--part-size",
        type=positive,
        metavar="N",
        help="with --to parquet: make --out a folder of parts of N images, which any number of processes, given "
        "the same command, write together",
    )
    encode.add_argument("--overwrite", action="store_true", help="replace FILE, start anew")
    batch_options(encode)
    broken_option(encode)
    machine_options(encode)
    decode = add_command(commands, "decode", "tokens:decode", "turn words or codes into pictures")
    decode.add_argument(
        "words",
        nargs="+",
        metavar="WORDS|FILE",
        help="a file or a folder of parts that encode wrote, - for lines from stdin, or the words of one image",
    )
    model_options(decode)
    decode.add_argument(
        "--out", type=folder_path, required=True, metavar="DIR", help="folder of the PNG files"
    )
    decode.add_argument("--overwrite", action="store_true", help="replace pictures of the same names")
    batch_options(decode)
    machine_options(decode)
    reconstruct = add_command(
        commands,
        "reconstruct",
        "measures:reconstruct",
        "one picture: originals, words, reconstructions; of a CB-ViLA and images with captions: original, masked, "
        "rebuilt with its caption and with another one",
    )
    path_arguments(reconstruct)
    model_options(reconstruct)
    reconstruct.add_argument("--out", type=picture_path, required=True, metavar="FILE.png")
    reconstruct.add_argument("--limit", type=positive, default=8, help="most images; default %(default)s")
    machine_options(reconstruct)


def _gallery(commands: Any) -> None:
    gallery = add_command(
        commands,
        "gallery",
        "pair_measures:draw_gallery",
        "draw codewords with patches that they stand for",
        processes="shared",
    )
    model_options(gallery)
    gallery.add_argument("--data", required=True, metavar="DATA", help=DATA)
    gallery.add_argument("--out", type=picture_path, required=True, metavar="FILE.png")
    gallery.add_argument("--codewords", type=positive, default=12, help="rows; default %(default)s")
    gallery.add_argument("--limit", type=positive, help="most images, evenly spaced; default all")
    gallery.add_argument("--seed", type=zero_or_more, default=0, help="of the draw; default %(default)s")
    batch_options(gallery)
    machine_options(gallery)


def _information_commands(commands: Any) -> None:
    describe = add_command(
        commands, "describe", "facts:describe", "list the recipes, or every setting of one with its meaning"
    )
    describe.add_argument(
        "subject", nargs="?", metavar="RECIPE|FAMILY", help="default: list recipes and families"
    )
    json_option(describe)
    doctor = add_command(commands, "doctor", "facts:doctor", "read every image and say what is there")
    doctor.add_argument("data", metavar="DATA", help=f"{DATA}; or {PAIRS}")
    machine_options(doctor)
    version = add_command(commands, "version", "facts:version", "say which versions are at work")
    json_option(version)
