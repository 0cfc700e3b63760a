"""Words or codes into picture files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pixlex.data.decoding import IMAGE_SUFFIXES
from pixlex.encoding.files import Codes, json_object, read_codes
from pixlex.files import write_atomically, write_text
from pixlex.models.checkpoint import fingerprint
from pixlex.progress import bar_or_lines

if TYPE_CHECKING:
    from pixlex.api import ImageTokenizer

MARK = ".pixlex-decoded.json"

# File systems take 255 bytes; a number and the ending come on top.
_LONGEST_NAME = 200


@dataclass(frozen=True)
class DecodingResult:
    """The folder of pictures, how many of these codes lie there, and how many an interrupted run had written."""

    folder: Path
    num_images: int
    num_resumed: int


def decode_codes(
    tokenizer: ImageTokenizer,
    codes: Path | Sequence[tuple[str, Codes]],
    out: Path,
    *,
    batch_size: int = 64,
    progress: bool = True,
    overwrite: bool = False,
) -> DecodingResult:
    """Write the images that codes stand for, as PNG files named after their keys (see `picture_names`).

    All codes are checked before the first picture is made. A picture appears in one move; a run over the
    same codes with the same model leaves those that are there. The folder remembers whose pictures it holds
    in `.pixlex-decoded.json`.

    Args:
        codes: key and codes of each image, or a file of them, which is read twice (see `read_codes`).
        out: the folder; made if missing.

    Raises:
        ValueError: no image, codes that `read_codes` refuses, or the folder holds pictures of other codes, of
            another model, or not made here.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")

    def read() -> Iterator[tuple[str, Codes]]:
        return read_codes(codes, tokenizer) if isinstance(codes, Path) else iter(codes)

    digest = hashlib.sha256(fingerprint(tokenizer.model, precision=tokenizer.precision).encode())
    keys = []
    for key, row in read():
        keys.append(key)
        digest.update(json.dumps([key, row]).encode())
    if not keys:
        raise ValueError("expected the codes of at least one image, got none")
    paths = [out / f"{name}.png" for name in picture_names(keys)]
    _claim(out, paths, digest.hexdigest(), overwrite)
    missing = {number for number, path in enumerate(paths) if not path.exists()}
    resumed = len(paths) - len(missing)
    wanted = ((paths[number], row) for number, (_, row) in enumerate(read()) if number in missing)
    with bar_or_lines(
        total=len(paths), initial=resumed, unit=" images", desc="decode", disable=not progress
    ) as bar:
        while chunk := list(islice(wanted, batch_size)):
            images = tokenizer.decode([row for _, row in chunk], batch_size=batch_size)
            for (path, _), image in zip(chunk, images, strict=True):
                write_atomically(path, partial(_write_png, image))
                bar.update()
    return DecodingResult(out, len(paths), resumed)


def picture_names(keys: Iterable[str]) -> list[str]:
    """Return a file name without ending for each key, in order; all different, even without regard to case.

    Letters, digits, `-`, `_` and `.` stay; everything else, the border between folders included, becomes
    `_`; the ending of an image file and dots in front are dropped. A name that is taken gets `-2`, `-3`, ...
    """
    names: dict[str, str] = {}  # without regard to case -> as it is
    numbers: dict[str, int] = {}
    for key in keys:
        safe = _safe_name(key)
        name, number = safe, numbers.get(safe.casefold(), 2)
        while name.casefold() in names:
            name, number = f"{safe}-{number}", number + 1
        numbers[safe.casefold()] = number
        names[name.casefold()] = name
    return list(names.values())


def _safe_name(key: str) -> str:
    stem, ending = os.path.splitext(key)
    bare = stem if ending.lower() in IMAGE_SUFFIXES else key
    safe = "".join(mark if mark.isalnum() or mark in "-_." else "_" for mark in bare)
    # The end of a path tells more than its beginning.
    return safe.encode()[-_LONGEST_NAME:].decode("utf-8", "ignore").lstrip(".") or "image"


def _claim(out: Path, paths: Iterable[Path], identity: str, overwrite: bool) -> None:
    """Make the folder one of these pictures, so that every picture found in it is one of them."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; expected a folder for the pictures")
    out.mkdir(parents=True, exist_ok=True)
    mark = out / MARK
    found = json_object(mark.read_text(encoding="utf-8", errors="replace")) if mark.is_file() else None
    if found is not None and found.get("pictures") == identity and not overwrite:
        for leftover in out.glob(".*.png.*.partial"):
            leftover.unlink(missing_ok=True)
        return
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise ValueError(
            f"{existing[0]} exists and shows other words or another model's picture of them; choose another "
            "--out, or replace the pictures with --overwrite"
        )
    # In this order: were the mark there first, a kill would leave old pictures that look finished.
    mark.unlink(missing_ok=True)
    for path in existing:
        path.unlink()
    write_text(mark, json.dumps({"pictures": identity}) + "\n")


def _write_png(image: Float[Tensor, "3 H W"], path: Path) -> None:
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(path, format="PNG")
