"""A run: one dataclass per family, read from a recipe, checked, and written beside the weights."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from pixlex.config.cbvila import CBViLARun, ReasoningRun
from pixlex.config.lqae import FrozenRun, LQAERun, MAERun, VQVAERun
from pixlex.files import write_text
from pixlex.messages import nearest, quoted

Run = LQAERun | VQVAERun | MAERun | FrozenRun | CBViLARun | ReasoningRun
FAMILIES: Mapping[str, type[Run]] = {
    "lqae": LQAERun,
    "vqvae": VQVAERun,
    "mae": MAERun,
    "frozen": FrozenRun,
    "cbvila": CBViLARun,
    "reasoning": ReasoningRun,
}

# In a run folder, the full configuration.
CONFIG = "config.yaml"
# Settings of earlier versions, which their config.yaml still has: those without a successor, and their names now.
_RETIRED = ("data.keep_decoded",)
_RENAMED = {
    "data.max_broken_share": "data.max_broken_fraction",
    "model.cut": "model.resize_mode",
    "model.body.cut": "model.body.resize_mode",
}


def recipes_folder() -> Path:
    """Return the folder of the recipes that come with pixlex: installed with it, or in the checkout."""
    installed = Path(__file__).parents[1] / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "recipes"


def recipe_names() -> list[str]:
    """Return the recipes that come with pixlex, as `family/name`."""
    folder = recipes_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/*.yaml"))


def find_recipe(name: str) -> Path:
    """Return the file of a recipe: a path, or a name such as `lqae/tiny`.

    Raises:
        ValueError: neither a file nor a recipe's name; the message says which is near.
    """
    bare = name.removeprefix("recipes/").removesuffix(".yaml")
    for candidate in (Path(name), recipes_folder() / f"{bare}.yaml"):
        if candidate.is_file():
            return candidate
    hint = nearest(bare, recipe_names())
    raise ValueError(f"no recipe {quoted(name)}, neither a YAML file nor a name: {hint}")


def read_run(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    beneath: Mapping[str, Any] | None = None,
    above: Mapping[str, Any] | None = None,
) -> Run:
    """Read a recipe and apply overrides.

    Args:
        recipe: a YAML file, or the name of a recipe that comes with pixlex.
        overrides: `key=value` with dots in the key, such as `train.steps=100`; later ones win.
        beneath: nested values that hold where the recipe says nothing.
        above: nested values that hold whatever the recipe says.

    Raises:
        ValueError: an unknown key (the message names the nearest right one), a value of the wrong type or out
            of its range, a file that is not YAML.
    """
    path = find_recipe(str(recipe))
    values = _over(recipe_values(path), above or {})
    for override in overrides:
        _apply_override(values, override)
    overridden = [_RENAMED.get(key, key) for key, _, _ in (one.partition("=") for one in overrides)]
    return run_from(_over(beneath or {}, values), str(path), overridden)


def recipe_values(path: Path) -> dict[str, Any]:
    """Return what a recipe says, unchecked.

    Raises:
        ValueError: the file is not YAML, or holds no keys and values.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {error!s:.300}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold keys and values, got {type(values).__name__}")
    return values


def run_from(values: Mapping[str, Any], origin: str, overridden: Collection[str] = ()) -> Run:
    """Build a run from nested values; `origin` names them in errors, but for the keys that are `overridden`.

    Raises:
        ValueError: as `read_run`.
    """

    def fault(key: str, message: str) -> ValueError:
        return ValueError(message if key in overridden else f"{origin}: {message}")

    family = str(values.get("family"))
    kind = FAMILIES.get(family)
    if kind is None:
        raise fault("family", f"family must be one of {', '.join(FAMILIES)}, got {quoted(family)}")
    values = _of_this_version(values)
    for name in _RETIRED:
        part, _, field = name.partition(".")
        if isinstance(values.get(part), dict) and values[part].pop(field, None):
            warnings.warn(str(fault(name, f"{name} is no longer a setting, ignored")), stacklevel=3)
    if (wrong := next(_wrong_keys(kind, values, ""), None)) is not None:
        raise fault(*wrong)
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(kind, "run")
    try:
        built = parser.instantiate(parser.parse_object({"run": values})).run
    except ArgumentError as error:
        message = _readable(str(error))
        raise fault(message.split('"')[1] if message.startswith('"') else "", message) from error
    assert isinstance(built, kind)
    return built


def _of_this_version(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by the names of this version; of an old and a new name the later one counts."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        nested = name in ("data", "model", "model.body") and isinstance(value, Mapping)
        now = _RENAMED.get(name, name).removeprefix(prefix)
        kept[now] = _of_this_version(value, f"{name}.") if nested else value
    return kept


def write_run(run: Run, path: Path) -> None:
    """Write the full configuration, defaults included, as YAML that `read_run` reads back."""
    text = yaml.safe_dump(dataclasses.asdict(run), sort_keys=False, allow_unicode=True)
    write_text(path, text)


def describe_fields(kind: type[Any], prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield (dotted name, default, sentence) of each field of a configuration, parts included."""
    hints = get_type_hints(kind)
    for one in dataclasses.fields(kind):
        hint = hints[one.name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from describe_fields(hint, f"{prefix}{one.name}.")
        else:
            yield f"{prefix}{one.name}", one.default, one.metadata["sentence"]


def value_at(values: Mapping[str, Any], name: str) -> Any:
    """Return the value under a dotted name, such as those of `describe_fields`, in nested values."""
    place: Any = values
    for key in name.split("."):
        place = place[key]
    return place


def _over(beneath: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values, with others where they say nothing."""
    merged = {**beneath, **values}
    for key in beneath.keys() & values.keys():
        if isinstance(beneath[key], Mapping) and isinstance(values[key], Mapping):
            merged[key] = _over(beneath[key], values[key])
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Set one `key=value` in nested values."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"expected key=value, got {quoted(override)}")
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise ValueError(f"{quoted(override)}: {parent} holds a value, not further keys")
    # Nothing is an empty text, not a null; a path may hold bytes that are no UTF-8, which YAML does not read.
    is_text = not text or any("\udc80" <= mark <= "\udcff" for mark in text)
    try:
        place[last] = text if is_text else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
        raise ValueError(f"{key}: {quoted(text)} is not valid YAML ({reason})") from error
    # YAML 1.1 reads 3e-4 as text; a number is meant, unless it stands in quotes.
    if isinstance(place[last], str) and text[:1] not in "'\"":
        with contextlib.suppress(ValueError):
            place[last] = float(place[last])


def _wrong_keys(kind: type[Any], values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield keys that the configuration does not have, or that hold nothing, and what is wrong with each."""
    hints = get_type_hints(kind)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in hints:
            parts = [
                part
                for part, hint in hints.items()
                if dataclasses.is_dataclass(hint) and key in get_type_hints(hint)
            ]
            meant = f"did you mean {prefix}{parts[0]}.{key}?" if parts else nearest(str(key), hints, prefix)
            yield name, f"unknown key {prefix}{key!s:.80}; {meant}"
        elif value is None:
            yield name, f"{name} must have a value, got null; leave it out for its default"
        elif dataclasses.is_dataclass(part := hints[key]):
            assert isinstance(part, type)
            if not isinstance(value, Mapping):
                yield name, f"{name} must hold keys and values, got {quoted(value)}"
            else:
                yield from _wrong_keys(part, value, f"{name}.")


def _readable(message: str) -> str:
    """Return a parser's error as one sentence that starts with the key."""
    text = " ".join(message.split()).replace("Parser key ", "").replace('"run.', '"')
    text = re.sub(r"a <class '(\w+)'>", r"\1", text)
    text = re.sub(r"a typing\.Literal\[(.*?)\]", lambda found: f"one of {found[1]}".replace("'", ""), text)
    head, got, value = text.partition("Got value: ")
    return head + got + (value if len(value) <= 80 else f"{value[:77]}...")
