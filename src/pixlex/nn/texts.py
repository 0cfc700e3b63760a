"""What tokenizers have in common: texts that come again are not taken apart again; rows of words are padded."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pixlex.batch import Words

# Texts whose words are kept, about 250 bytes each: captions and questions come again in every epoch.
_MOST = 1 << 20
_LONGEST = 500  # in characters; longer ones are no captions


class KeptTexts:
    """The words (tokens) of texts, without those that a tokenizer puts before and behind them.

    Args:
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._kept: dict[str, array[int]] = {}

    def __call__(self, texts: Sequence[str]) -> list[array[int]]:
        """Return the word ids of each text; threads may ask at the same time."""
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        found: dict[str, array[int]] = {}
        if new:
            rows = self.tokenizer(new, add_special_tokens=False, verbose=False).input_ids
            found = {text: array("i", row) for text, row in zip(new, rows, strict=True)}
            if len(self._kept) < _MOST:  # none makes room for another: in epochs that would not keep more
                self._kept.update({text: row for text, row in found.items() if len(text) <= _LONGEST})
        return [found[text] if text in found else self._kept[text] for text in texts]


def padded(rows: Sequence[Sequence[int]], *, start: Sequence[int] = (), end_id: int, pad_id: int) -> Words:
    """Return rows of words with a start and an end, padded on the right to the longest.

    Args:
        rows: word ids of each text.
        start: what stands before each.
        end_id: what stands behind each.
        pad_id: fills up.
    """
    lengths = torch.tensor([len(start) + len(row) + 1 for row in rows])
    word_ids = np.full((len(rows), int(lengths.max())), pad_id, dtype=np.int64)
    word_ids[:, : len(start)] = start
    for number, row in enumerate(rows):
        last = len(start) + len(row)
        word_ids[number, len(start) : last] = row
        word_ids[number, last] = end_id
    return Words(torch.from_numpy(word_ids), torch.arange(word_ids.shape[1]) >= lengths.unsqueeze(1))
