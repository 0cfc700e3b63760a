"""Images as text: what a language model, or a reader without one, gets to see of an image."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pixlex.config.data import Cut
from pixlex.data.decoding import UnreadableImage, decode_record
from pixlex.data.sources import ImageSource
from pixlex.data.transforms import evaluation_transform
from pixlex.eval.few_shot.fingerprints import digest, source_identity
from pixlex.files import Damaged, sealed, unsealed
from pixlex.messages import printable
from pixlex.models.inference import Precision, compute_rows
from pixlex.models.pretrained import Tokenizer, fingerprint
from pixlex.progress import bar_or_lines

# Images decoded and encoded at a time.
_BATCH_SIZE = 64


@runtime_checkable
class TextReader(Protocol):
    """Turns images into text."""

    @property
    def name(self) -> str:
        """What to call it in tables, such as "LQAE"."""

    @property
    def identity(self) -> str:
        """A fingerprint of all that decides the text of an image besides the image."""

    def read(self, images: ImageSource, indices: Sequence[int]) -> dict[int, str]:
        """Return the text of each image by its position; one that cannot be read is left out."""


class ModelWords:
    """The words of a trained autoencoder as text, rows of the grid first.

    LQAE has words of its own (see `Vocabulary`). A VQ-VAE's code k is rendered as the k-th word of a list (LQAE,
    section 4: codes of a learned codebook mean nothing to a language model, whatever they are called).

    Args:
        model: is put into evaluation mode on `device`.
        name: what to call it.
        words: for a VQ-VAE, one word for each code; the first `num_codewords` of them are used, such as those
            of the whole-words vocabulary of a language model.
        device: where to compute.
        precision: bf16 gives other codes than fp32 for some patches.

    Raises:
        ValueError: a VQ-VAE with too few words, or words for an LQAE.
    """

    def __init__(
        self,
        model: Tokenizer,
        *,
        name: str,
        words: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        vocabulary = model.vocabulary
        if vocabulary is not None:
            if words is not None:
                raise ValueError("an LQAE has words of its own; expected no list of words")
            words = vocabulary.words
        elif words is None or len(words) < model.num_codewords:
            raise ValueError(
                f"a VQ-VAE of {model.num_codewords} codes needs as many words, got {len(words or ())}"
            )
        self.name, self.device, self.precision = name, torch.device(device), precision
        self.model = model.eval().to(self.device)
        self.words = tuple(words[: model.num_codewords])
        self._vocabulary = vocabulary
        self.identity = digest("words", fingerprint(model, precision=precision), *self.words)

    def read(self, images: ImageSource, indices: Sequence[int]) -> dict[int, str]:
        """Return the words of each image."""
        texts = {}
        config = self.model.config
        for positions, pixels in read_pixels(images, indices, config.image_size, self.name, config.cut):
            codes = compute_rows(
                pixels,
                self.model.tokenize,
                grid=self.model.grid,
                device=self.device,
                precision=self.precision,
            )
            for position, row in zip(positions, codes.tolist(), strict=True):
                texts[position] = self._text(row)
        return texts

    def _text(self, codes: list[int]) -> str:
        if self._vocabulary is not None:
            return self._vocabulary.to_text(codes)
        return " ".join(self.words[code] for code in codes)


def read_pixels(
    images: ImageSource, indices: Sequence[int], size: int, title: str, cut: Cut = "center"
) -> Iterator[tuple[list[int], Float[Tensor, "B 3 H W"]]]:
    """Yield images in batches with their positions, made square; one that cannot be read is left out.

    Args:
        images: where they come from.
        indices: their positions, each once.
        size: side of the square in pixels.
        title: what stands before the progress bar, which shows on a terminal when it takes more than a second.
        cut: how images become square (see `evaluation_transform`).
    """
    # Sources read forward faster than back and forth.
    order = sorted(indices)
    with bar_or_lines(
        total=len(order), unit=" images", desc=f"read: {printable(title)}", delay=1, leave=False, disable=None
    ) as bar:
        for first in range(0, len(order), _BATCH_SIZE):
            positions, rows = [], []
            for position in order[first : first + _BATCH_SIZE]:
                try:
                    picture = decode_record(images.read(position))
                except UnreadableImage:
                    continue
                positions.append(position)
                rows.append(evaluation_transform(picture, size, cut))
            if rows:
                yield positions, torch.stack(rows)
            bar.update(len(order[first : first + _BATCH_SIZE]))


@dataclass(frozen=True)
class Shortened:
    """The first share of another reader's text (LQAE, Table 3, row G).

    Words are counted where the text is one line, lines where it has several (a picture made of characters);
    the number kept is rounded up.

    Args:
        reader: whose text it is.
        share: how much is kept, in (0, 1].

    Raises:
        ValueError: a share out of range.
    """

    reader: TextReader
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of words kept must lie in (0, 1], got {self.share}")

    @property
    def name(self) -> str:
        """The reader's name and the share."""
        return f"{self.reader.name}, first {self.share:.0%} of the words"

    @property
    def identity(self) -> str:
        """The reader's identity and the share."""
        return digest("shortened", self.reader.identity, str(self.share))

    def read(self, images: ImageSource, indices: Sequence[int]) -> dict[int, str]:
        """Return the first share of each text."""
        return {position: self._kept(text) for position, text in self.reader.read(images, indices).items()}

    def _kept(self, text: str) -> str:
        glue = "\n" if "\n" in text else " "
        units = text.split(glue)
        # Nine digits: 0.07 * 100 is 7.000000000000001 and must stay 7.
        return glue.join(units[: math.ceil(round(self.share * len(units), 9))])


class CachedReader:
    """Another reader whose texts are kept in a folder, so that each image is read once, over all runs.

    There is a file of JSON lines for each pair of reader and source, told apart by their fingerprints. A line
    that a kill cut off, or that is not what was written, is left out; images that cannot be read are tried again.

    Args:
        reader: who reads what is not there yet.
        folder: where the files lie; made if missing.
    """

    def __init__(self, reader: TextReader, folder: Path) -> None:
        self.reader, self.folder = reader, folder
        self.name, self.identity = reader.name, reader.identity
        self._texts: dict[str, dict[int, str]] = {}

    def read(self, images: ImageSource, indices: Sequence[int]) -> dict[int, str]:
        """Return the text of each image, from the folder where it is there."""
        path = self.folder / f"{digest(self.identity, source_identity(images))[:16]}.jsonl"
        texts = self._texts.setdefault(path.name, _load(path))
        missing = sorted(set(indices) - texts.keys())
        if missing:
            new = self.reader.read(images, missing)
            _append(path, new)
            texts.update(new)
        return {index: texts[index] for index in indices if index in texts}


def _load(path: Path) -> dict[int, str]:
    """Return what a file of texts holds."""
    if not path.is_file():
        return {}
    texts = {}
    for line in path.read_bytes().splitlines():
        try:
            entry = unsealed(line)
        except Damaged:
            continue  # cut off by a kill, or damaged: the image is read again
        if type(entry.get("image")) is int and isinstance(entry.get("text"), str):
            texts[entry["image"]] = entry["text"]
    return texts


def _append(path: Path, texts: dict[int, str]) -> None:
    """Add texts to a file in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(sealed({"image": index, "text": text})) for index, text in texts.items()]
    with path.open("a", encoding="utf-8") as file:
        # The empty line first: a line that was cut off has no end.
        file.write("\n".join(["", *lines, ""]))
