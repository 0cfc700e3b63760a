"""The commands. Nothing heavy is imported before a command is known, so that help comes at once.

Exit codes: 0 fine; 1 the run failed (too many broken images, a loss that is not finite, a full disk, a
missing package); 2 bad input; 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pixlex.cli.output import remark
from pixlex.cli.parser import parse
from pixlex.messages import printable

FINE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what follows `pixlex` on the command line; None takes them from there.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    warnings.formatwarning = _remark_of
    debug = "--debug" in given or os.environ.get("PIXLEX_DEBUG", "") not in ("", "0")
    try:
        options = parse(given)
        options.command_line = shlex.join(["pixlex", *given])
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show, options, warnings.showwarning)
            code = _run(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED, debug)
    except BrokenPipeError:
        # Whoever read our output has enough; without this Python would complain once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ValueError as fault:
        return _complain(str(fault), FAILED if _data_failed(fault) else BAD_INPUT, debug)
    except MemoryError:
        return _complain("out of memory", FAILED, debug)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as fault:
        return _complain(f"{fault.filename}: {fault.strerror}", BAD_INPUT, debug)
    except OSError as fault:
        named = fault.filename is not None and fault.strerror is not None
        return _complain(f"{fault.filename}: {fault.strerror}" if named else str(fault), FAILED, debug)
    except (ArithmeticError, RuntimeError, ImportError) as fault:
        return _complain(str(fault) or type(fault).__name__, FAILED, debug)


def _run(options: Namespace) -> int:
    """Call the handler of a command, in the process group of those that share its work."""
    together = int(os.environ.get("WORLD_SIZE", "1"))
    if together > 1 and options.processes == "one":
        raise ValueError(
            f"this command does not share its work: expected one process, got {together} of torchrun, each of "
            "which would do the whole and write the same files"
        )
    module, _, name = options.handler.partition(":")
    handler = getattr(importlib.import_module(f"pixlex.cli.{module}"), name)
    if together == 1 or options.processes == "own":
        code: int = handler(options)
        return code
    from pixlex import distributed

    distributed.initialize()
    try:
        options.quiet = options.quiet or not distributed.is_first()
        code = handler(options)
        return code
    finally:
        distributed.shutdown()


def _show(
    options: Namespace,
    show: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    filename: str,
    *where: Any,
    **more: Any,
) -> None:
    """Print a warning of ours as a remark, once for all processes, and others as Python does."""
    of_ours = category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1])
    if not (of_ours or category.__module__.startswith("pixlex.")):
        show(message, category, filename, *where, **more)
    elif os.environ.get("RANK", "0") == "0":
        remark(options, str(message))


def _complain(message: str, code: int, debug: bool) -> int:
    """Write one line to stderr, behind the traceback when debugging; return the exit code."""
    if debug:
        traceback.print_exc()
    process = os.environ.get("RANK", "0")
    who = "pixlex" if process == "0" else f"pixlex (process {process})"
    what = "" if code == INTERRUPTED else "error: "
    print(f"{who}: {what}{printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def _remark_of(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning of ours as a remark, without the place in our code; others as Python writes them."""
    if Path(__file__).parents[1] in Path(filename).parents:
        return f"pixlex: {printable(' '.join(str(message).split()))}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _data_failed(fault: ValueError) -> bool:
    """Whether the data failed, rather than what was typed; without importing what would define it."""
    broken, addresses = (sys.modules.get(f"pixlex.data.{name}") for name in ("broken", "addresses"))
    return (broken is not None and isinstance(fault, broken.TooManyBroken)) or (
        addresses is not None and isinstance(fault, addresses.Unreachable)
    )
