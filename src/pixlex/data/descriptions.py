"""Descriptions of images with captions: options behind a path, and several sets in one line."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from urllib.parse import unquote

from pixlex.messages import quoted

# What `?` begins options rather than matching one character of a file name.
_OPTIONS = re.compile(r"(?P<path>.*?)\?(?P<options>[A-Za-z_]+=.*)", re.DOTALL)

OPTIONS: Mapping[str, str] = {
    "split": "splits of Karpathy's files, joined by +, or all; split of VQA v2 and NLVR",
    "images": "folder that image paths are relative to, or table of images",
    "index": "Visual Genome's image_data.json",
    "captions": "column of the captions",
    "annotations": "VQA v2's annotations of the questions",
    "answers": "column of the answers",
    "texts": "questions, statements or hypotheses about each drawn scene",
    "rows": "images (a row for each image) or captions (one for each caption)",
}


@dataclass(frozen=True)
class SetDescription:
    """One set.

    Attributes:
        path: what `open_source` would take, or an annotation file.
        options: what follows the question mark.
        weight: how much of the mixture it is, beside the weights of the others.
    """

    path: str
    options: Mapping[str, str]
    weight: float = 1.0

    def only(self, known: tuple[str, ...], kind: str) -> None:
        """Raise `ValueError` for an option that says nothing to this kind of source."""
        if foreign := [name for name in self.options if name not in known]:
            raise ValueError(f"{self.path}: {kind} take the options {', '.join(known)}, got {foreign[0]}")


def read_descriptions(text: str) -> list[SetDescription]:
    """Read `[WEIGHT * ]PATH[?OPTION=VALUE&...]`, several joined by ` + `.

    A value may hold %26 for &. A file whose whole name is the text is one set.

    Raises:
        ValueError: for an unknown option, one given twice, or a weight that is no number above 0.
    """
    text = text.strip()
    if os.path.exists(os.path.expanduser(text)):  # unlike Path.exists, false for names that are too long
        return [SetDescription(text, {})]
    return [_read_set(part.strip()) for part in re.split(r"\s\+\s", text)]


def with_split(text: str, split: str) -> str:
    """Return the description of one set with its split named.

    Raises:
        ValueError: if there are several sets, or the split is named already.
    """
    sets = read_descriptions(text)
    if len(sets) > 1 or "split" in sets[0].options:
        raise ValueError(
            f"the split {quoted(split)} is asked for beside those of {text}; write ?split= once per set"
        )
    if sets[0].path.startswith("hf:"):
        if sets[0].path.count(":") > 1:
            raise ValueError(f"the split {quoted(split)} is asked for beside that of {text}")
        return text.replace(sets[0].path, f"{sets[0].path}:{split}", 1)
    return f"{text}{'&' if sets[0].options else '?'}split={split}"


def _read_set(text: str) -> SetDescription:
    weight, star, rest = text.partition(" * ")
    if star:
        return replace(_read_path(rest.strip()), weight=_read_weight(weight.strip(), text))
    return _read_path(text)


def _read_path(text: str) -> SetDescription:
    match = _OPTIONS.fullmatch(text)
    if match is None:
        return SetDescription(text, {})
    options: dict[str, str] = {}
    for part in match["options"].split("&"):
        name, _, value = part.partition("=")
        if name not in OPTIONS:
            near = get_close_matches(name, OPTIONS, 1)
            hint = f" (meant {near[0]}?)" if near else ""
            raise ValueError(f"{match['path']}: unknown option {quoted(name)}{hint}; known: {_listed()}")
        if name in options or not value:
            raise ValueError(f"{match['path']}: the option {name} must be given once, with a value")
        options[name] = unquote(value)
    return SetDescription(match["path"], options)


def _read_weight(text: str, whole: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ValueError(
            f"the weight of a set must be a number above 0, got {quoted(text)} in {quoted(whole)}"
        )
    return weight


def _listed() -> str:
    return "; ".join(f"{name} ({meaning})" for name, meaning in OPTIONS.items())
