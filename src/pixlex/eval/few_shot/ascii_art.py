"""ASCII art: the paper's baseline that writes an image without learning anything (LQAE, section 5)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pixlex.data.decoding import UnreadableImage, decode_record
from pixlex.data.sources import ImageSource
from pixlex.data.transforms import center_box
from pixlex.eval.few_shot.fingerprints import digest
from pixlex.messages import quoted

# From little ink to much, each character with more of it than the one before: ten steps, as many as can be
# told apart in print.
RAMP = " .:-=+*#%@"
# ITU-R BT.601, the weights of Pillow's "L": luma of the stored values, gamma not undone.
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class AsciiArt:
    """Writes images as lines of characters: a `TextReader`.

    Luma Y = 0.299 R + 0.587 G + 0.114 B is averaged over the area of each character, to the fraction of a
    pixel, and Y in [i / n, (i + 1) / n) becomes character i of the ramp, Y = 1 the last one. The paper prompts
    with 64 x 64 characters and says neither which ramp nor which converter; these are ours.

    Args:
        lines: lines of an image, 1 or more.
        columns: characters of a line, 1 or more.
        ramp: characters from dark to bright, 2 or more; light on dark as it stands, as on a terminal.
        inverted: turn the ramp around: dark ink on white paper.

    Raises:
        ValueError: a size below 1, a ramp of fewer than two characters, or one with a line break.
    """

    lines: int = 64
    columns: int = 64
    ramp: str = RAMP
    inverted: bool = False

    def __post_init__(self) -> None:
        """Check sizes and ramp."""
        if self.lines < 1 or self.columns < 1:
            raise ValueError(f"expected 1 or more lines and columns, got {self.lines} x {self.columns}")
        if len(self.ramp) < 2 or len(self.ramp.splitlines()) > 1:
            raise ValueError(f"expected a ramp of 2 or more characters in one line, got {quoted(self.ramp)}")

    @property
    def name(self) -> str:
        """What to call it in tables."""
        return f"ASCII {self.lines}x{self.columns}"

    @property
    def identity(self) -> str:
        """A fingerprint of all that decides the text besides the image."""
        return digest("ascii", str(self.lines), str(self.columns), self.ramp, str(self.inverted))

    def read(self, images: ImageSource, indices: Sequence[int]) -> dict[int, str]:
        """Return the text of each image by its position; one that cannot be read is left out.

        The largest centered square of an image is drawn, at the image's own resolution.
        """
        texts = {}
        for index in indices:
            with contextlib.suppress(UnreadableImage):
                texts[index] = self.draw(_square(images, index).unsqueeze(0))[0]
        return texts

    def draw(self, images: Float[Tensor, "B 3 H W"]) -> list[str]:
        """Return each image as text, lines joined by line breaks.

        Args:
            images: RGB pixels in [0, 1].
        """
        luma = torch.einsum("bchw,c->bhw", images.double(), images.new_tensor(_LUMA, dtype=torch.float64))
        rows = area_weights(images.shape[-2], self.lines).to(images.device)
        columns = area_weights(images.shape[-1], self.columns).to(images.device)
        averages = rows @ luma @ columns.T
        ramp = self.ramp[::-1] if self.inverted else self.ramp
        # float32 must not move a value that lies on a border, such as 51 / 255, to the step below.
        steps = ((averages + 1e-6) * len(ramp)).floor().long().clamp(0, len(ramp) - 1)
        return ["\n".join("".join(ramp[step] for step in line) for line in image) for image in steps.tolist()]


def area_weights(size: int, cells: int) -> Float[Tensor, "cells size"]:
    """Return the share of each of `size` pixels in the mean of each of `cells` equal stretches; rows sum to 1.

    A pixel that a border cuts counts in both cells by its parts, so that sizes need not divide.
    """
    borders = torch.arange(cells + 1, dtype=torch.float64) * size / cells
    pixels = torch.arange(size, dtype=torch.float64)
    ends = torch.minimum(borders[1:, None], pixels + 1)
    starts = torch.maximum(borders[:-1, None], pixels)
    return (ends - starts).clamp(min=0) * cells / size


def _square(images: ImageSource, index: int) -> Float[Tensor, "3 H W"]:
    """Return the largest centered square of an image."""
    image = decode_record(images.read(index))
    left, top, right, bottom = center_box(image.width, image.height)
    pixels = np.asarray(image.crop((int(left), int(top), int(right), int(bottom))), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)
