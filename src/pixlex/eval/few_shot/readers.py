"""Images as text: what a language model, or a classifier of words, is given of an image."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pixlex.data.decoding import UnreadableImage, center_box, decode_record
from pixlex.data.sources import ImageSource
from pixlex.eval.evaluate import read_pixels
from pixlex.eval.few_shot.episodes import digest, source_identity
from pixlex.files import sealed, sealed_lines
from pixlex.models import JointModel, Precision, checkpoint, compute_rows
from pixlex.models.baselines import DualEncoder
from pixlex.models.cbvila import CBViLA
from pixlex.models.checkpoint import Model, Tokenizer, fingerprint
from pixlex.nn.vocabulary import as_text

# From little ink to much, each character with more of it than the one before: ten steps, as many as can be
# distinguished in print.
RAMP = " .:-=+*#%@"
# ITU-R BT.601, the weights of Pillow's "L": luma of the stored values, gamma not undone.
_LUMA = (0.299, 0.587, 0.114)


@runtime_checkable
class TextReader(Protocol):
    """Turns images into text."""

    @property
    def name(self) -> str:
        """Its name in tables, such as "LQAE"."""

    @property
    def identity(self) -> str:
        """A fingerprint of all that decides the text of an image besides the image."""

    def read(self, images: ImageSource, indices: Sequence[int]) -> dict[int, str]:
        """Return the text of each image by its position; one that cannot be read is left out."""


@dataclass(frozen=True)
class _Reader:
    name: str
    identity: str
    read: Callable[[ImageSource, Sequence[int]], dict[int, str]]


def model_words(
    model: Tokenizer,
    name: str,
    *,
    words: Sequence[str] = (),
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> TextReader:
    """Return the words of a trained autoencoder as text, rows of the grid first.

    LQAE has words of its own (see `Vocabulary`). A VQ-VAE's code k is rendered as the k-th word of a list (LQAE,
    section 4: codes of a learned codebook mean nothing to a language model, whatever they are called); a list with
    too few words raises `ValueError`. bf16 gives other codes than fp32 for some patches.
    """
    vocabulary, count = model.vocabulary, model.num_codewords
    words = tuple((words if vocabulary is None else vocabulary.words)[:count])
    if len(words) < count:
        raise ValueError(f"a VQ-VAE of {count} codes needs as many words, got {len(words)}")
    model.eval().to(device)

    def text(codes: list[int]) -> str:
        return " ".join(words[code] for code in codes) if vocabulary is None else vocabulary.to_text(codes)

    def read(images: ImageSource, indices: Sequence[int]) -> dict[int, str]:
        rows = compute_images(images, indices, model, model.tokenize, name, precision)
        return {position: text(row.tolist()) for position, row in rows.items()}

    return _Reader(name, digest("words", fingerprint(model, precision=precision), *words), read)


def ranked_words(
    model: CBViLA | DualEncoder,
    name: str,
    *,
    words: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> TextReader:
    """Return the words nearest to images (see `Namer`), by a list or the model's own, as text.

    The model was trained on captions, which others of the table have not seen; its name there says so.

    Raises:
        ValueError: the model was trained without contrast, or there are no words.
    """
    if not (model.compares or model.caption_words):  # an untrained copy has them, and ranks them at random
        raise ValueError(f"{name} was trained without contrast: its similarities are those of random maps")
    model.eval().to(device)
    namer = model.namer(words)

    def read(images: ImageSource, indices: Sequence[int]) -> dict[int, str]:
        rows = compute_images(images, indices, model, model.joint_images, name, precision)
        if not rows:
            return {}
        ranked = namer.rank(torch.stack([*rows.values()]))
        return {position: as_text(row) for position, row in zip(rows, ranked, strict=True)}

    known = fingerprint(model, precision=precision), str(namer.top_k), str(namer.distinct)
    return _Reader(f"{name} (captions seen)", digest("ranked words", *known, *namer.words), read)


def compute_images(
    images: ImageSource,
    indices: Sequence[int],
    model: Model,
    compute: Callable[[Tensor], Tensor],
    title: str,
    precision: Precision,
) -> dict[int, Tensor]:
    """Return the row that a model's `compute` makes of each image that can be read, by position, on the CPU."""
    config, device = model.config, next(model.parameters()).device
    rows: dict[int, Tensor] = {}
    for positions, pixels in read_pixels(images, indices, config.image_size, title, config.resize_mode):
        found = compute_rows(pixels, compute, grid=model.grid, device=device, precision=precision)
        rows.update(zip(positions, found, strict=True))
    return rows


def ascii_art() -> TextReader:
    """Return what writes images as lines of characters, the paper's baseline without learning (LQAE, section 5).

    The largest centered square of an image is drawn at its own resolution (`draw_ascii`). The paper prompts with
    64 x 64 characters and says neither which ramp nor which converter; these are ours.
    """

    def read(images: ImageSource, indices: Sequence[int]) -> dict[int, str]:
        texts = {}
        for index in indices:
            with contextlib.suppress(UnreadableImage):
                image = decode_record(images.read(index))
                left, top, right, bottom = center_box(image.width, image.height)
                square = image.crop((int(left), int(top), int(right), int(bottom)))
                pixels = torch.from_numpy(np.asarray(square, dtype=np.float32) / 255)
                (texts[index],) = draw_ascii(pixels.permute(2, 0, 1).unsqueeze(0))
        return texts

    return _Reader("ASCII 64x64", digest("ascii", "64", "64", RAMP, "False"), read)


def draw_ascii(
    images: Float[Tensor, "B 3 H W"], lines: int = 64, columns: int = 64, ramp: str = RAMP
) -> list[str]:
    """Return each image, RGB pixels in [0, 1], as lines of characters joined by line breaks.

    Luma Y = 0.299 R + 0.587 G + 0.114 B is averaged over the area of each character, to the fraction of a
    pixel, and Y in [i / n, (i + 1) / n) becomes character i of the ramp, Y = 1 the last one.
    """
    luma = torch.einsum("bchw,c->bhw", images.double(), images.new_tensor(_LUMA, dtype=torch.float64))
    averages = area_weights(images.shape[-2], lines) @ luma.cpu() @ area_weights(images.shape[-1], columns).T
    # float32 must not move a value that lies on a border, such as 51 / 255, to the step below.
    steps = ((averages + 1e-6) * len(ramp)).floor().long().clamp(0, len(ramp) - 1)
    return ["\n".join("".join(ramp[step] for step in line) for line in image) for image in steps.tolist()]


def area_weights(size: int, cells: int) -> Float[Tensor, "cells size"]:
    """Return the weight of each of `size` pixels in the mean of each of `cells` equal stretches; rows sum to 1.

    A pixel that a border divides counts in both cells by its parts, so that sizes need not divide.
    """
    borders = torch.arange(cells + 1, dtype=torch.float64) * size / cells
    pixels = torch.arange(size, dtype=torch.float64)
    ends = torch.minimum(borders[1:, None], pixels + 1)
    starts = torch.maximum(borders[:-1, None], pixels)
    return (ends - starts).clamp(min=0) * cells / size


def shortened(reader: TextReader, ratio: float) -> TextReader:
    """Return the first part of another reader's text, a ratio in (0, 1] (LQAE, Table 3, row G).

    Words are counted where the text is one line, lines where it has several (a picture made of characters);
    the number kept is rounded up.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"the fraction of words kept must lie in (0, 1], got {ratio}")

    def shorten(text: str) -> str:
        glue = "\n" if "\n" in text else " "
        units = text.split(glue)
        # Nine digits: 0.07 * 100 is 7.000000000000001 and must stay 7.
        return glue.join(units[: math.ceil(round(ratio * len(units), 9))])

    def read(images: ImageSource, indices: Sequence[int]) -> dict[int, str]:
        return {position: shorten(text) for position, text in reader.read(images, indices).items()}

    name = f"{reader.name}, first {ratio:.0%} of the words"
    return _Reader(name, digest("shortened", reader.identity, str(ratio)), read)


def cached(reader: TextReader, folder: Path) -> TextReader:
    """Return another reader whose texts are kept in a folder, so that each image is read once, over all runs.

    There is a file of JSON lines for each pair of reader and source, by their fingerprints. A line that a kill
    cut off, or that is not what was written, is left out; images that cannot be read are tried again.
    """
    known: dict[str, dict[int, str]] = {}

    def read(images: ImageSource, indices: Sequence[int]) -> dict[int, str]:
        path = folder / f"{digest(reader.identity, source_identity(images))[:16]}.jsonl"
        if path.name not in known:
            known[path.name] = load_texts(path)
        texts = known[path.name]
        missing = sorted(set(indices) - texts.keys())
        if missing:
            new = reader.read(images, missing)
            append_texts(path, new)
            texts.update(new)
        return {index: texts[index] for index in indices if index in texts}

    return _Reader(reader.name, reader.identity, read)


def model_reader(
    model: Tokenizer | DualEncoder,
    name: str,
    *,
    word_list: Sequence[str] | None = None,
    words: Sequence[str] = (),
    keep_ratio: float = 1.0,
    cache: Path | None = None,
    **where: Any,
) -> TextReader:
    """Return the reader of a model's words, cached, shortened to a ratio.

    Of a model that compares images with texts those are its `ranked_words`, of a list or its own; a CB-ViLA
    without either has its codes rendered by `words` (see `model_words`). `where` is device and precision.
    """
    if isinstance(model, JointModel) and (
        word_list is not None or model.caption_words or not model.has_codes
    ):
        reader = ranked_words(model, name, words=word_list, **where)
    else:
        reader = model_words(checkpoint.require_codes(model, name), name, words=words, **where)
    reader = reader if cache is None else cached(reader, cache)
    return reader if keep_ratio == 1 else shortened(reader, keep_ratio)


def load_texts(path: Path) -> dict[int, str]:
    """Return what a file of texts holds; a line that is not what was written is left out."""
    texts = {}
    for entry in sealed_lines(path):
        if type(entry.get("image")) is int and isinstance(entry.get("text"), str):
            texts[entry["image"]] = entry["text"]
    return texts


def append_texts(path: Path, texts: dict[int, str]) -> None:
    """Add texts to a file in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(sealed({"image": index, "text": text})) for index, text in texts.items()]
    with path.open("a", encoding="utf-8") as file:
        # The empty line first: a line that was cut off has no end.
        file.write("\n".join(["", *lines, ""]))
