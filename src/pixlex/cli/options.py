"""What commands share: options as fields of dataclasses, answers and remarks, loading a model, reading images."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    NoReturn,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from pixlex.messages import nearest, printable, quoted

if TYPE_CHECKING:
    from torch import Tensor

    from pixlex.batch import Skipped
    from pixlex.config.cbvila import CBViLAObjectiveConfig
    from pixlex.data.records import Records
    from pixlex.data.sources import ImageSource
    from pixlex.models.cbvila import CBViLA

_Run = TypeVar("_Run")

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
WORD_FILE = (
    "name images by the words or phrases of this file, one a line: CB-ViLA, or CLIP, SigLIP and alike of the hub; "
    "default the words of a CB-ViLA's captions"
)
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
EXIT_CODES = "exit codes: 0 fine, 1 the run failed, 2 bad input, 130 interrupted"

# What a command makes of the processes that torchrun starts: it needs to be alone; all share its work, and the
# first one prints and writes; it sees to them itself.
Processes = Literal["one", "shared", "own"]


def option(
    default: Any = MISSING,
    text: str = "",
    metavar: str | None = None,
    *,
    name: str | None = None,
    nargs: str | None = None,
    earlier: str | None = None,
) -> Any:
    """Declare the option `--field-name` of a command; required without a default.

    Args:
        name: on the command line, where it is not that of the field.
        nargs: of argparse, where the type does not say it.
        earlier: its name in earlier versions, which is still taken.
    """
    typed = {"help": text, "metavar": metavar, "name": name, "nargs": nargs, "earlier": earlier}
    return field(default=default, metadata={"option": typed})


def positional(metavar: str, text: str, default: Any = MISSING) -> Any:
    """Declare an argument that stands without a name; optional with a default."""
    typed = {"help": text, "metavar": metavar, "positional": True}
    return field(default=default, metadata={"option": typed})


_N = TypeVar("_N", int, float)


def _folder(text: str) -> Path:
    """Return a folder to write in; that it cannot be is found out now, not after hours of work."""
    folder = Path(text)
    there = next((one for one in (folder, *folder.absolute().parents) if os.path.lexists(one)), folder)
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, but {quoted(str(there))} is none")
    if not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"nothing may be written in {quoted(str(there))}")
    return folder


def _place(text: str) -> str:
    """Return a folder to write in, or a URL as it is."""
    return text if "://" in text else str(_folder(text))


def _file(text: str) -> Path:
    """Return a file to write; a folder that is there may become one of parts."""
    _folder(str(Path(text).absolute().parent))
    return Path(text)


def _picture(text: str) -> Path:
    path = _file(text)
    if path.suffix.lower() != ".png" or path.is_dir():
        raise argparse.ArgumentTypeError(f"expected the name of a .png file, got {quoted(text)}")
    return path


def _number(kind: Callable[[str], _N], least: float, most: float, expected: str, text: str) -> _N:
    with suppress(ValueError):
        if least <= (number := kind(text)) <= most:
            return number
    raise argparse.ArgumentTypeError(f"expected {expected}, got {quoted(text)}")


# Types of options, each with what reads it from the command line.
Folder = Annotated[Path, _folder]
Place = Annotated[str, _place]
File = Annotated[Path, _file]
Picture = Annotated[Path, _picture]
Positive = Annotated[int, partial(_number, int, 1.0, math.inf, "an integer of 1 or more")]
Count = Annotated[int, partial(_number, int, 0.0, math.inf, "an integer of 0 or more")]
Port = Annotated[int, partial(_number, int, 1.0, 65535.0, "a port, 1 to 65535")]
Fraction = Annotated[float, partial(_number, float, 0.0, 1.0, "a number in [0, 1]")]


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option, positional))
@dataclass(frozen=True, kw_only=True)
class Options:
    """What every command has; those of each are a subclass, which may have a title for its own in `GROUP`."""

    GROUP: ClassVar[str]
    command_line: str = ""
    debug: bool = option(False, "show the traceback of an error (or PIXLEX_DEBUG=1)")

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)


class JSONOption(Options):
    json: bool = option(False, "the answer as JSON on stdout, and nothing else there")


class MachineOptions(JSONOption):
    quiet: bool = option(False, "no progress bar, no remarks")


class PathArguments(Options):
    paths: tuple[str, ...] = positional("PATH", f"image files, or {DATA}")


class DeviceOptions(Options):
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps; default %(default)s")
    precision: Literal["fp32", "bf16"] = option("fp32", "default %(default)s; bf16 gives other codes")


class VersionOptions(Options):
    revision: str | None = option(None, "branch, tag or commit of a hub repository")
    language_model: str | None = option(
        None, "where its language model lies now; default: where it was trained", "M"
    )

    @property
    def versions(self) -> dict[str, Any]:
        """Which files of a model are loaded."""
        return {"language_model": self.language_model, "revision": self.revision}


class LanguageModelOptions(VersionOptions, DeviceOptions):
    @property
    def loading(self) -> dict[str, Any]:
        """How `pixlex.load` loads a model."""
        return {"device": self.device, "precision": self.precision, **self.versions}


class ModelOptions(LanguageModelOptions):
    model: str = option(
        text="one that comes with pixlex, a directory, run folder or hub repository", metavar="M"
    )


class BatchOptions(Options):
    batch_size: Positive = option(
        64,
        "images at a time, on a GPU in a pass: codes may round differently with another size there; default "
        "%(default)s",
    )


class BrokenOption(Options):
    max_broken_fraction: Fraction = option(
        0.05, "fraction of unreadable images above which the command stops; default %(default)s",
        earlier="--max-broken-share",
    )  # fmt: skip


class SizeOptions(Options):
    image_size: Positive | None = option(
        None, "side of the images in pixels, positions resampled; default the model's own", "N"
    )
    resize_mode: Literal["center", "squash"] | None = option(
        None,
        "center cuts out a square, squash keeps all of the image and not its shape; default the model's own",
    )


class LimitOption(Options):
    limit: Positive | None = option(None, "most images, evenly spaced; default all")


class AnswerOptions(Options):
    generate: bool = option(False, "write answers freely, not out of the list")
    shortlist: Positive = option(
        128, "answers of the list whose whole likelihood is computed; default %(default)s", "K"
    )


@dataclass(frozen=True)
class Command:
    """A command of the table in `pixlex.cli`.

    Attributes:
        run: takes the options and returns the exit code, None for 0; its first line is the command's summary, the
            type of its only parameter says what can be typed.
        example: of what follows its name on the command line.
        processes: what it makes of the processes that torchrun starts.
        aliases: other names.
    """

    run: Callable[[Any], int | None]
    example: str
    processes: Processes = "one"
    aliases: tuple[str, ...] = ()

    @property
    def options(self) -> type[Options]:
        """The class of its options."""
        kind: type[Options] = get_type_hints(self.run, include_extras=True)["options"]
        return kind


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations, names the nearest choice, and raises `ValueError` instead of leaving the program."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **settings})

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = nearest(str(value), map(str, action.choices))
            raise argparse.ArgumentError(action, f"invalid choice: {quoted(value)}: {hint}")

    def error(self, message: str) -> NoReturn:  # noqa: D102
        raise ValueError(f"{message} (see {self.prog} --help)")


def add_command(commands: Any, name: str, command: Command) -> None:
    """Add a command to those of a parser."""
    summary = (command.run.__doc__ or "").splitlines()[0].rstrip(".")
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        aliases=command.aliases,
        help=f"{summary[0].lower()}{summary[1:]}",
        description=f"{summary}.",
    )
    parser.epilog = f"example: {parser.prog} {command.example}".rstrip() + f"; {EXIT_CODES}"
    parser.set_defaults(command=command)
    hints = get_type_hints(command.options, include_extras=True)
    groups: dict[str, Any] = {}
    for one in fields(command.options):
        if "option" in one.metadata:
            title = _group_of(command.options, one.name)
            if title and title not in groups:
                groups[title] = parser.add_argument_group(title)
            _add_option(groups.get(title, parser), one, hints[one.name])


def _group_of(options: type[Options], name: str) -> str:
    """Return the title over an option: that of the class which declares it."""
    (declared, *_) = (kind for kind in options.__mro__ if name in vars(kind).get("__annotations__", ()))
    return str(vars(declared).get("GROUP", ""))


def _add_option(parser: Any, one: Field[Any], kind: Any) -> None:
    told = dict(one.metadata["option"])
    earlier = told.pop("earlier", None)
    settings = _read_as(kind)
    has_default = one.default is not MISSING
    names = [told.pop("name", None) or f"--{one.name.replace('_', '-')}"]
    if told.pop("positional", False):
        names = [one.name]
        if has_default:
            settings["nargs"] = "*" if "nargs" in settings else "?"
    else:
        settings |= {"dest": one.name, "required": not has_default}
    settings |= {key: value for key, value in told.items() if value is not None}
    if has_default:
        settings["default"] = one.default
        if settings.get("nargs") == "+" and one.default is None:
            settings["action"] = "extend"  # `--model A --model B` is `--model A B`
    parser.add_argument(*names, **settings)
    if earlier is not None:
        parser.add_argument(earlier, **settings | {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS})


def _read_as(kind: Any) -> dict[str, Any]:
    """Return what argparse must know of a type."""
    members = get_args(kind)
    origin = get_origin(kind)
    if NoneType in members:
        (kind,) = (one for one in members if one is not NoneType)
        return _read_as(kind)
    if kind is bool:
        return {"action": "store_true"}
    if origin is Annotated:
        return {"type": members[1]}
    if origin is Literal:
        return {"choices": members}
    if origin is tuple:
        return {**_read_as(members[0]), "nargs": "+" if members[1] is Ellipsis else len(members)}
    return {} if kind is str else {"type": kind}


def read_options(command: Command, typed: argparse.Namespace, command_line: str) -> Options:
    """Return the options of a command as they were typed."""
    values = {
        one.name: getattr(typed, one.name) for one in fields(command.options) if "option" in one.metadata
    }
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return command.options(command_line=command_line, **values)


def answer(options: JSONOption, values: Any, text: str) -> None:
    """Print what was asked for, at once: whatever drawing meets must not take the answer along."""
    shown = json.dumps(values, indent=2, default=asdict) if options.json else printable(text, keep="\n")
    print(shown, flush=True)


def remark(options: Options, text: str) -> None:
    """Print a remark to stderr, except where quiet was asked for."""
    if not getattr(options, "quiet", False):
        print(f"pixlex: {printable(text)}", file=sys.stderr)


def table(rows: list[tuple[str, str]]) -> str:
    """Return two columns as text."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


def load_cbvila(options: ModelOptions) -> CBViLA:
    """Load the CB-ViLA that a command names, where it computes; with `--untrained` with fresh weights."""
    import torch

    from pixlex.models import checkpoint
    from pixlex.models.cbvila import CBViLA

    model = checkpoint.load_cbvila(options.model, **options.versions)
    if getattr(options, "untrained", False):
        torch.manual_seed(0)
        model = CBViLA.start(model.config).eval().requires_grad_(False)
    placed: CBViLA = place(model, options)
    return placed


def place(model: Any, options: Any) -> Any:
    """Return a model on its device, for images of the size that the options may name."""
    from pixlex.distributed import pick_device
    from pixlex.models.finetuned import resized

    size, mode = getattr(options, "image_size", None), getattr(options, "resize_mode", None)
    return resized(model, size, mode).to(pick_device(options.device))


def run_of(name: str, kind: type[_Run]) -> _Run | None:
    """Return the run, of a kind, that a model came from, where its run folder is at hand."""
    from pixlex.config.run import read_run

    folder = Path(name)
    path = (folder.parent if folder.name == "model" else folder) / "config.yaml"
    try:
        run = read_run(path) if path.is_file() else None
    except ValueError:  # of another version
        return None
    return run if isinstance(run, kind) else None


def words_in(path: Path) -> list[str]:
    """Return the words or phrases of a file, one a line; blank lines are left out."""
    from pixlex.data.text import decode_text

    return [line for line in decode_text(path.read_bytes(), path).splitlines() if line.strip()]


def words_of(name: str, model: CBViLA) -> int:
    """Return the longest captions in words (tokens): as in training, and at least those of the papers' tables."""
    from pixlex.config.cbvila import CBViLARun
    from pixlex.eval.published import longest_caption

    run = run_of(name, CBViLARun)
    return longest_caption(model.config.text.positions, 0 if run is None else run.data.max_words)


def objective_of(name: str) -> CBViLAObjectiveConfig:
    """Return what a CB-ViLA was trained for, where its run folder is at hand; phases aside."""
    from pixlex.config.cbvila import CBViLAObjectiveConfig, CBViLARun

    run = run_of(name, CBViLARun)
    config = CBViLAObjectiveConfig() if run is None else run.objective
    return replace(config, burn_in_steps=0, alternate_every=0)


def batches_of(rows: Any, config: Any, batch_size: int, limit: int | None) -> Iterator[Any]:
    """Return what a model of this configuration is given of images, pairs or questions, in order."""
    from pixlex.data.loader import Loader, loading

    return iter(Loader(rows, loading(config, batch_size)).evaluation(limit))


def captioned(paths: Sequence[str]) -> Records | None:
    """Return the images of a source with their captions; None where there are no captions."""
    from pixlex.data.captions import open_pairs
    from pixlex.data.decoding import IMAGE_SUFFIXES
    from pixlex.data.records import NoCaptions

    if len(paths) > 1 or Path(paths[0]).suffix.lower() in IMAGE_SUFFIXES:
        return None
    try:
        return open_pairs(paths[0])
    except NoCaptions:
        return None


def first_images(model: Any, source: ImageSource) -> Tensor:
    """Return the images that an untrained model's statistics are measured on, the same in every process."""
    from pixlex.data.loader import Images, Loader, loading

    count = model.num_measured
    settings = loading(model.config, count, rank=0, world_size=1)
    images: Tensor = next(Loader(Images(source), settings).evaluation(count)).images
    return images


def finish(
    options: MachineOptions,
    values: Mapping[str, Any],
    text: str,
    skipped: Sequence[Skipped] = (),
    *,
    notes: Sequence[str] = (),
    out: Path | None = None,
) -> None:
    """Print what was found, remark on the rest, and write results.json into a folder if one is named."""
    answer(options, values, text)
    remark_skipped(options, skipped)
    for note in notes:
        remark(options, note)
    if out is not None:
        from pixlex.files import write_json

        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "results.json", json.loads(json.dumps(values, default=asdict)))


def remark_skipped(options: Options, skipped: Sequence[Skipped]) -> None:
    """Name the first images that could not be read, and say how many there are."""
    for one in skipped[:3]:
        remark(options, f"skipped {one.key}: {one.reason}")
    if len(skipped) > 3:
        remark(options, f"skipped {len(skipped):,} images in all")


def remark_without_contrast(options: ModelOptions, model: CBViLA) -> None:
    """Say where similarities mean nothing; a shortlist is drawn up by them."""
    if not model.compares:
        remark(
            options,
            f"{options.model} was trained without contrast, so its similarities are those of random maps; judge "
            "by matching, of a shortlist that holds all",
        )


def remark_page(options: Options, page: Path | None) -> None:
    """Say where a page is, if there is one."""
    if page is not None:
        remark(options, f"page {page}")
