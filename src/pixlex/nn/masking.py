"""Random masks over words and patches, always from an explicit generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixlex.batch import send

# Fractions of the hidden words that become the mask word, and any word; the rest stay (Devlin et al. 2018, 3.1).
_MASKED, _REPLACED = 0.8, 0.1


def random_mask(
    num_images: int, num_patches: int, ratio_min: float, ratio_max: float, generator: torch.Generator
) -> Bool[Tensor, "B N"]:
    """Return a mask, True = hidden, on the CPU: i.i.d. with a probability drawn per image between two ratios.

    LQAE hides with ratio 0.5; the released code draws the ratio for every word, which equals the mean ratio
    throughout, so a range there has no effect.

    Args:
        num_images: B.
        num_patches: N.
        ratio_min: Lowest mask ratio, in [0, 1].
        ratio_max: Highest mask ratio, in [ratio_min, 1].
        generator: On the CPU, so that every device draws the same masks.
    """
    span = torch.rand(num_images, 1, generator=generator)
    ratio = ratio_min + (ratio_max - ratio_min) * span
    return torch.rand(num_images, num_patches, generator=generator) < ratio


@dataclass(frozen=True)
class SplitPatches:
    """Indices of the visible and of the hidden patches of each image, both in the order of the grid."""

    visible: Int[Tensor, "B n"]
    hidden: Int[Tensor, "B m"]

    def to(self, device: torch.device) -> SplitPatches:
        """Return the same on a device."""
        return SplitPatches(send(self.visible, device), send(self.hidden, device))


def split_patches(
    num_images: int, num_patches: int, num_visible: int, generator: torch.Generator
) -> SplitPatches:
    """Draw exactly `num_visible` patches of each image, all sets alike likely (He et al. 2021, section 3).

    Args:
        num_images: B.
        num_patches: N.
        num_visible: n, in [0, N].
        generator: On the CPU, where the indices come.
    """
    order = torch.rand(num_images, num_patches, generator=generator).argsort(dim=1)
    return SplitPatches(order[:, :num_visible].sort(dim=1).values, order[:, num_visible:].sort(dim=1).values)


@dataclass(frozen=True)
class WordDraws:
    """What decides which words are hidden and how: drawn for the longest text, so that padding changes nothing."""

    hide: Float[Tensor, "B L"]  # uniform in [0, 1); a word is hidden below the ratio
    kind: Float[Tensor, "B L"]  # uniform in [0, 1); decides what replaces it
    words: Int[Tensor, "B L"]  # replaces it when any word does

    @classmethod
    def draw(cls, num_texts: int, length: int, vocab_size: int, generator: torch.Generator) -> WordDraws:
        """Draw for texts of up to `length` words, on the CPU."""
        return cls(
            torch.rand(num_texts, length, generator=generator),
            torch.rand(num_texts, length, generator=generator),
            torch.randint(vocab_size, (num_texts, length), generator=generator),
        )

    def part(self, first: int, rows: int, length: int) -> WordDraws:
        """Return the draws of some texts, cut to the length of their batch."""
        parts = (one[first : first + rows, :length] for one in (self.hide, self.kind, self.words))
        return WordDraws(*parts)


@dataclass(frozen=True)
class MaskedWords:
    """Texts with hidden words; `mask` is True where a word was chosen, whatever stands there now."""

    word_ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]


def mask_words(
    word_ids: Int[Tensor, "B T"],
    special: Bool[Tensor, "B T"],
    ratio: float,
    mask_id: int,
    draws: WordDraws,
) -> MaskedWords:
    """Hide words as BERT does: of the chosen ones 80 % become the mask word, 10 % any word, 10 % stay.

    Source: Devlin et al. 2018, section 3.1.

    Args:
        word_ids: The texts.
        special: True where no word is hidden: starts, ends, padding.
        ratio: Fraction of the other words that are chosen, in [0, 1].
        mask_id: The mask word.
        draws: Of the shape of the texts.
    """
    mask = (draws.hide < ratio) & ~special
    shown = torch.where(mask & (draws.kind < _MASKED), mask_id, word_ids)
    anything = mask & (draws.kind >= _MASKED) & (draws.kind < _MASKED + _REPLACED)
    return MaskedWords(torch.where(anything, draws.words, shown), mask)
