"""Captions in files beside the images of a folder, as img2dataset writes them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from pixlex.data.sources import FileSource
from pixlex.data.text import texts_in


def side_captions(images: FileSource) -> tuple[tuple[str, ...], ...]:
    """Return the captions of each image: `captions`, `caption` or `text` of NAME.json, or else NAME.txt.

    Raises:
        ValueError: if such a file is no UTF-8 text, no JSON, or its field is no caption.
    """
    present = set(images.ignored)
    return tuple(_captions(images.root, PurePosixPath(path), present) for path in images.paths)


def without_side_files(images: FileSource) -> FileSource:
    """Return the images with the files of their captions no longer among those that are ignored."""
    beside = {
        str(PurePosixPath(path).with_suffix(suffix)) for path in images.paths for suffix in (".json", ".txt")
    }
    return replace(images, ignored=tuple(path for path in images.ignored if path not in beside))


def _captions(root: Path, image: PurePosixPath, present: set[str]) -> tuple[str, ...]:
    beside = str(image.with_suffix(".json"))
    fields = _fields(root / beside) if beside in present else {}
    for name in ("captions", "caption", "text"):
        if found := texts_in(fields.get(name), beside):
            return found
    text = str(image.with_suffix(".txt"))
    return texts_in(_text(root / text), text) if text in present else ()


def _fields(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(_text(path))
    except ValueError as fault:
        raise ValueError(f"{path}: not JSON: {fault}") from fault
    return fields if isinstance(fields, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as fault:
        raise ValueError(f"{path} is not UTF-8 text: {fault}") from fault
