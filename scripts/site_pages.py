"""Pages of the site that are written when it is built: commands, settings, recipes, and files of the root.

A hook of mkdocs (`hooks` in mkdocs.yml). The command line and the configurations say all of it themselves.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from pixlex.cli import build_parser
from pixlex.config import run as configuration

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent.parent
# Files of the root that are pages, too.
OF_THE_ROOT = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to those of the folder."""
    from mkdocs.structure.files import File

    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    return files


def pages() -> dict[str, str]:
    """Return each page by its place below `docs`."""
    written = {place: _of_the_root(name) for place, name in OF_THE_ROOT.items()}
    written["reference/commands.md"] = commands_page()
    written["reference/recipes.md"] = recipes_page()
    for family in configuration.FAMILIES:
        written[f"reference/settings/{family}.md"] = settings_page(family)
    return written


def commands_page() -> str:
    """Return every command with its arguments and options, as the parser knows them."""
    parser = build_parser()
    text = [
        "# Command line",
        f"`pixlex COMMAND --help` says the same. {str(parser.epilog).capitalize()}.",
        "Most commands take `--json` (the answer as JSON, and nothing else, on stdout), `--quiet`, `--debug` "
        "(or `PIXLEX_DEBUG=1`) and `--device auto|cpu|cuda|cuda:N|mps`; they are named below where they do.",
    ]
    for name, one in _commands(parser, ""):
        usage = re.sub(r"\s+", " ", one.format_usage().removeprefix("usage: ")).replace(" [-h]", "")
        text += [f"## {name}", str(one.description), f"```text\n{_wrapped(usage)}\n```"]
        for group in one._action_groups:
            rows = [_option(action, one) for action in group._group_actions]
            rows = [row for row in rows if row is not None]
            if rows:
                title = group.title if group.title not in ("options", "positional arguments") else None
                text += [f"**{str(title).capitalize()}**"] if title else []
                text.append(table(("", "meaning"), rows))
    return "\n\n".join(text) + "\n"


def settings_page(family: str) -> str:
    """Return every setting of a family with its default, meaning, choices and range."""
    kind = configuration.FAMILIES[family]
    text = [
        f"# Settings of {family}",
        " ".join((kind.__doc__ or "").split()),
        "On a command line a setting is `KEY=VALUE` (`train.steps=100`), in a recipe a key of its part; "
        f"`pixlex describe {family}` prints this list, `pixlex describe RECIPE` what a recipe makes of it.",
    ]
    parts: dict[str, list[tuple[str, str, str]]] = {}
    for name, default, meaning in settings_of(kind):
        part, _, _ = name.partition(".")
        parts.setdefault(part if "." in name else "", []).append(
            (f"`{name}`", f"`{default}`", _plain(meaning))
        )
    for part, rows in parts.items():
        text += [f"## {part}"] if part else []
        text.append(table(("setting", "default", "meaning"), rows))
    return "\n\n".join(text) + "\n"


def settings_of(kind: type[Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (dotted name, default, meaning with choices and range) of each field, as `describe_fields` does."""
    hints = get_type_hints(kind)
    for one in fields(kind):
        hint, name = hints[one.name], f"{prefix}{one.name}"
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from settings_of(hint, f"{name}.")
            continue
        meaning, values = one.metadata["sentence"], one.metadata.get("range")
        if get_origin(hint) is Literal:
            meaning += f" One of {', '.join(map(str, get_args(hint)))}."
        if values is not None:
            meaning += f" It {values.sentence}."
        yield name, '""' if one.default == "" else str(one.default), meaning


def recipes_page() -> str:
    """Return every recipe: its first sentence, and the file itself."""
    names = configuration.recipe_names()
    text = [
        "# Recipes",
        "`pixlex train RECIPE` (those below `finetune/`: `pixlex finetune`) takes a name of this page or a YAML "
        "file of your own. `--device`, `--seed` and `--batch-size` are options of every training, all else is "
        "`KEY=VALUE`; `model.language.name=FacebookAI/roberta-base` takes any masked language model of the hub, "
        "or a directory.",
        table(
            ("recipe", "what"),
            [(f"[`{name}`](#{_anchor(name)})", _plain(_first_sentence(_recipe(name)))) for name in names],
        ),
    ]
    for name in names:
        family = configuration.recipe_values(configuration.find_recipe(name))["family"]
        text += [
            f"## {name} {{ #{_anchor(name)} }}",
            f"Family [{family}](settings/{family}.md).",
            f"```yaml\n{_recipe(name).rstrip()}\n```",
        ]
    return "\n\n".join(text) + "\n"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table of Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or r"\|", " ".join(text.split()))


def _commands(parser: argparse.ArgumentParser, above: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the commands below a parser by their names, groups left out."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            distinct = {
                id(one): (name, one) for name, one in reversed(action.choices.items())
            }  # without aliases
            for name, one in reversed(distinct.values()):
                inside = list(_commands(one, f"{above}{name} "))
                yield from inside or [(f"{above}{name}", one)]


def _option(action: argparse.Action, parser: argparse.ArgumentParser) -> tuple[str, str] | None:
    """Return how an option is typed, and what it means; None for one that is not shown."""
    if action.help == argparse.SUPPRESS or "--help" in action.option_strings:
        return None
    formatter = parser.formatter_class(prog=parser.prog)
    meaning = (action.help or "") % {**vars(action), "prog": parser.prog}
    if not action.option_strings:
        return f"`{action.metavar}`", _plain(meaning)
    if action.nargs == 0:
        return f"`{action.option_strings[-1]}`", _plain(meaning)
    value = action.metavar or (action.dest.upper() if action.choices is None else "VALUE")
    typed = formatter._format_args(action, str(value))
    if action.choices is not None:
        meaning += f" ({', '.join(map(str, action.choices))})"
    required = "**Required.** " if action.required else ""
    return f"`{action.option_strings[-1]} {typed}`", required + _plain(meaning)


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return re.sub(r"([*_\[\]<>])", r"\\\1", text)


def _wrapped(usage: str, width: int = 96) -> str:
    """Return a usage in lines that begin with an argument."""
    lines, line = [], ""
    for word in re.findall(r"\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]|\S+", usage):
        if len(line) + len(word) >= width:
            lines.append(line)
            line = "   "
        line += f" {word}" if line else word
    return "\n".join([*lines, line])


def _recipe(name: str) -> str:
    return configuration.find_recipe(name).read_text(encoding="utf-8")


def _first_sentence(recipe: str) -> str:
    """Return the comment that a recipe begins with, up to its command."""
    comment = []
    for line in recipe.splitlines():
        if not line.startswith("#") or line.startswith("# Command:"):
            break
        comment.append(line.lstrip("# "))
    return " ".join(comment)


def _anchor(name: str) -> str:
    return name.replace("/", "-")


def _of_the_root(name: str) -> str:
    """Return a file of the root with its links as they are from the folder of documents."""
    links: Mapping[str, str] = {
        "](docs/": "](",
        "](README.md": "](index.md",
        "](CONTRIBUTING.md": "](contributing.md",
    }
    text = (ROOT / name).read_text(encoding="utf-8")
    for link, now in links.items():
        text = text.replace(link, now)
    return text
