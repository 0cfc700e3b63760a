"""A sample of the evaluated images, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixlex.batch import ImageBatch
from pixlex.models.pretrained import Tokenizer

# Random number, position in the source, key, image, reconstruction, codes.
_Kept = tuple[float, int, str, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Examples:
    """Images with what became of them: a uniform sample of the evaluated set, in the order of the set.

    Attributes:
        originals: pixels in [0, 1].
        reconstructions: pixels in [0, 1], nothing hidden from the language model.
        codes: integers in [0, K).
        words: the word of each code; None where codes are no words.
        keys: the name of each image.
    """

    originals: Float[Tensor, "E 3 H W"]
    reconstructions: Float[Tensor, "E 3 H W"]
    codes: Int[Tensor, "E N"]
    words: tuple[tuple[str, ...], ...] | None
    keys: tuple[str, ...]


class ExampleSample:
    """A uniform sample of fixed size, whatever the batches: the images with the smallest random numbers.

    Args:
        size: images to keep.
        seed: with the position of an image in its source it gives the image's random number.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._kept: list[_Kept] = []

    def update(self, batch: ImageBatch, reconstructions: Tensor, codes: Tensor) -> None:
        """Take in a batch."""
        for row, index in enumerate(batch.indices.tolist()):
            ticket = float(np.random.default_rng((self.seed, 2, index)).random())
            if len(self._kept) < self.size or (self._kept and ticket < self._kept[-1][0]):
                # Copies: a row of a batch would keep the whole batch in memory.
                parts = (part[row].cpu().clone() for part in (batch.images, reconstructions, codes))
                image, reconstruction, code = parts
                self._keep([(ticket, index, batch.keys[row], image, reconstruction, code)])

    def _keep(self, more: Sequence[_Kept]) -> None:
        self._kept = sorted([*self._kept, *more], key=lambda kept: kept[:2])[: self.size]

    @staticmethod
    def merged(parts: Sequence[ExampleSample]) -> ExampleSample:
        """Return the sample of all that the parts, one or more of one size and seed, were taken of."""
        whole = ExampleSample(parts[0].size, parts[0].seed)
        for part in parts:
            whole._keep(part._kept)
        return whole

    def result(self, model: Tokenizer) -> Examples:
        """Return the sample in the order of the set."""
        kept = sorted(self._kept, key=lambda one: one[1])
        words = None
        if model.vocabulary is not None:
            names = model.vocabulary.words
            words = tuple(tuple(names[code] for code in one[5].tolist()) for one in kept)
        size, num_words = model.config.image_size, model.grid**2
        return Examples(
            originals=_stack([one[3] for one in kept], (3, size, size), torch.float32),
            reconstructions=_stack([one[4] for one in kept], (3, size, size), torch.float32),
            codes=_stack([one[5] for one in kept], (num_words,), torch.long),
            words=words,
            keys=tuple(one[2] for one in kept),
        )


def _stack(rows: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.stack(rows) if rows else torch.empty(0, *shape, dtype=dtype)
