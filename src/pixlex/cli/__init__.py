"""The commands. Nothing heavy is imported before a command is known, so that help comes at once.

Exit codes: 0 fine; 1 the run failed (too many broken images, a loss that is not finite, a full disk, a
missing package); 2 bad input; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pixlex import __version__
from pixlex.cli import data, encode, evaluate, few_shot, pictures, train
from pixlex.cli import options as cli
from pixlex.messages import nearest, not_installed, printable


class CompletionOptions(cli.Options):
    shell: Literal["bash", "zsh", "tcsh"] = cli.positional("SHELL", "bash, zsh or tcsh")


def completion(options: CompletionOptions) -> None:
    """Print what completes commands, options and values in a shell."""
    try:
        import shtab
    except ImportError as error:
        raise not_installed("completion", "shtab", "completion") from error
    from pixlex.config.run import recipe_names
    from pixlex.models.initialization import released

    parser = build_parser()
    recipes, models = recipe_names(), list(released())
    _complete_files(parser, {"recipe": recipes, "subject": recipes, "model": models, "start": models})
    print(shtab.complete(parser, shell=options.shell))


def _complete_files(parser: argparse.ArgumentParser, names: Mapping[str, Sequence[str]]) -> None:
    """Let a shell complete files where text is expected, and what else is known by name there."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inside in action.choices.values():
                _complete_files(inside, names)
        elif action.nargs != 0 and action.choices is None and not isinstance(action.type, partial):
            known, called = " ".join(names.get(action.dest, ())), f"_pixlex_files_{action.dest}"
            bash = f'{called}() {{ compgen -f -- "$1"; compgen -W \'{known}\' -- "$1"; }}'
            preamble = {"bash": bash, "zsh": f"{called}() {{ compadd -- {known}; _files; }}"}
            action.complete = {"bash": called, "zsh": called, "tcsh": "f", "preamble": preamble}  # type: ignore[attr-defined]


COMMANDS: Mapping[str, cli.Command] = {
    "train": cli.Command(
        train.train, "lqae/tinyimages data.train=PICTURES data.validation=OTHERS --out runs/mine", "own"
    ),
    "quickstart": cli.Command(train.quickstart, "", "own"),
    "finetune": cli.Command(
        train.finetune, "finetune/vqa --from runs/pairs data.train=QUESTIONS --out runs/vqa", "own"
    ),
    "ablate": cli.Command(
        train.ablate, "lqae/tinyimages data.train=PICTURES --rows mask-0.3 A --out runs/ablation"
    ),
    "encode": cli.Command(
        encode.encode, "PICTURES --model runs/mine --to words --out words.txt", "own", aliases=("tokenize",)
    ),
    "decode": cli.Command(encode.decode, "words.txt --model runs/mine --out rebuilt"),
    "reconstruct": cli.Command(encode.reconstruct, "PICTURES --model runs/mine --out grid.png"),
    "export": cli.Command(encode.export, "runs/mine --out mine.onnx"),
    "gallery": cli.Command(pictures.gallery, "--model runs/mine --data PICTURES --out words.png", "shared"),
    "explain": cli.Command(pictures.explain, 'cat.jpg "a cat on a mat" --model runs/pairs --out why.png'),
    "ask": cli.Command(pictures.ask, 'cat.jpg "what color is the cat?" --model runs/vqa'),
    "evaluate reconstruction": cli.Command(
        evaluate.reconstruction, "--model runs/mine --data PICTURES", "shared"
    ),
    "evaluate linear-probe": cli.Command(
        evaluate.linear_probe, "--model runs/mine --data LABELED --test OTHERS --out runs/probe", "shared"
    ),
    "evaluate retrieval": cli.Command(evaluate.retrieval, "--model runs/pairs --data PAIRS", "shared"),
    "evaluate pretraining": cli.Command(evaluate.pretraining, "--model runs/pairs --data PAIRS", "shared"),
    "evaluate vqa": cli.Command(evaluate.vqa, "--model runs/vqa --data QUESTIONS", "shared"),
    "evaluate nlvr2": cli.Command(evaluate.nlvr2, "--model runs/nlvr2 --data STATEMENTS", "shared"),
    "evaluate entailment": cli.Command(
        evaluate.entailment, "--model runs/entailment --data HYPOTHESES", "shared"
    ),
    "evaluate assignment": cli.Command(evaluate.assignment, "--model runs/assignment --data PAIRS", "shared"),
    "evaluate few-shot": cli.Command(
        few_shot.few_shot, "--model runs/mine --untrained --data NEW_CLASSES --out runs/few-shot"
    ),
    "index": cli.Command(pictures.index, "PICTURES --model runs/pairs --out runs/index"),
    "search": cli.Command(pictures.search, '"two dogs in the snow" --index runs/index --sheet found.png'),
    "demo": cli.Command(pictures.demo, "--model runs/mine runs/pairs --index runs/index"),
    "models": cli.Command(data.models, ""),
    "describe": cli.Command(data.describe, "lqae/default"),
    "doctor": cli.Command(data.doctor, "PICTURES"),
    "version": cli.Command(data.version, ""),
    "convert": cli.Command(data.convert, "PICTURES --image-size 256 --out small.tar"),
    "completion": cli.Command(completion, "bash > ~/.local/share/bash-completion/completions/pixlex"),
}
_ALIASES = {"evaluate": ("eval",)}
# What a command takes several of, so that options may stand before, behind or between them.
_SEVERAL = ("overrides", "paths", "words")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code.

    Args:
        arguments: what follows `pixlex` on the command line; None takes them from there.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or os.environ.get("PIXLEX_DEBUG", "") not in ("", "0")
    try:
        command, options = parse(given)
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show, options, warnings.showwarning)
            code = _run(command, options)
        sys.stdout.flush()
        return code or 0
    except KeyboardInterrupt:
        return _complain("interrupted", cli.INTERRUPTED, debug)
    except BrokenPipeError:
        # Whoever read our output has enough; without this Python would complain once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return cli.FAILED
    except ValueError as fault:
        return _complain(str(fault), cli.FAILED if _data_failed(fault) else cli.BAD_INPUT, debug)
    except MemoryError:
        return _complain("out of memory", cli.FAILED, debug)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as fault:
        return _complain(f"{fault.filename}: {fault.strerror}", cli.BAD_INPUT, debug)
    except OSError as fault:
        named = fault.filename is not None and fault.strerror is not None
        return _complain(f"{fault.filename}: {fault.strerror}" if named else str(fault), cli.FAILED, debug)
    except (ArithmeticError, RuntimeError, ImportError) as fault:
        return _complain(str(fault) or type(fault).__name__, cli.FAILED, debug)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = cli.Parser(
        prog="pixlex",
        description="Images as words of a language model's own vocabulary, and words back into images.",
        epilog=cli.EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"pixlex {__version__}")
    commands: dict[str, Any] = {
        "": parser.add_subparsers(dest="command_name", required=True, metavar="COMMAND")
    }
    for path, command in COMMANDS.items():
        above, _, name = path.rpartition(" ")
        if above not in commands:
            group = commands[""].add_parser(
                above, aliases=_ALIASES[above], help="measure a model", description="Measure a model."
            )
            commands[above] = group.add_subparsers(dest="measure", required=True, metavar="MEASURE")
        cli.add_command(commands[above], name, command)
    return parser


def parse(arguments: Sequence[str]) -> tuple[cli.Command, Any]:
    """Return the command of a command line, and its options.

    Raises:
        ValueError: what was typed is no command.
    """
    parser = build_parser()
    typed, rest = parser.parse_known_args(arguments)
    # argparse itself takes `train RECIPE KEY=VALUE --out DIR`, but not `train RECIPE --out DIR KEY=VALUE`.
    several = next((name for name in _SEVERAL if hasattr(typed, name)), None)
    if several is None or any(one.startswith("-") for one in rest):
        if rest:
            unknown = next((one for one in rest if one.startswith("-")), rest[0])
            hint = nearest(unknown.partition("=")[0], _option_names(parser, typed))
            near = f"; {hint}" if hint.startswith("did") else ""
            settings = (
                "; settings of a run are KEY=VALUE: train.steps=100" if hasattr(typed, "overrides") else ""
            )
            parser.error(f"unrecognized arguments: {' '.join(rest)}{near}{settings}")
    else:
        setattr(typed, several, [*getattr(typed, several), *rest])
    return typed.command, cli.read_options(typed.command, typed, shlex.join(["pixlex", *arguments]))


def _option_names(parser: argparse.ArgumentParser, typed: argparse.Namespace) -> list[str]:
    """Return the options of the command that was typed."""
    names = [name for action in parser._actions for name in action.option_strings]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            names += _option_names(action.choices[getattr(typed, action.dest)], typed)
    return names


def _run(command: cli.Command, options: cli.Options) -> int | None:
    """Run a command, in the process group of those that share its work."""
    together = int(os.environ.get("WORLD_SIZE", "1"))
    if together > 1 and command.processes == "one":
        raise ValueError(
            f"this command does not share its work: expected one process, got {together} of torchrun, each of "
            "which would do the whole and write the same files"
        )
    if together == 1 or command.processes == "own":
        return command.run(options)
    from pixlex import distributed

    distributed.initialize()
    try:
        assert isinstance(options, cli.MachineOptions)
        # The others leave talking to the first one.
        return command.run(options if distributed.is_first() else replace(options, quiet=True))
    finally:
        distributed.shutdown()


def _show(
    options: cli.Options,
    show: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    filename: str,
    *where: Any,
    **more: Any,
) -> None:
    """Print a warning of ours as a remark, once for all processes, and others as Python does."""
    of_ours = category is UserWarning and Path(__file__).parents[1] in Path(filename).parents
    if not (of_ours or category.__module__.startswith("pixlex.")):
        show(message, category, filename, *where, **more)
    elif os.environ.get("RANK", "0") == "0":
        cli.remark(options, " ".join(str(message).split()))


def _complain(message: str, code: int, debug: bool) -> int:
    """Write one line to stderr, behind the traceback when debugging; return the exit code."""
    if debug:
        traceback.print_exc()
    process = os.environ.get("RANK", "0")
    who = "pixlex" if process == "0" else f"pixlex (process {process})"
    what = "" if code == cli.INTERRUPTED else "error: "
    print(f"{who}: {what}{printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def _data_failed(fault: ValueError) -> bool:
    """Whether the data failed, rather than what was typed; without importing what would define it."""
    return bool({kind.__name__ for kind in type(fault).__mro__} & {"TooManyBroken", "Unreachable"})
