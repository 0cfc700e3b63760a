"""Measures of word sequences: do they survive as text, and what does the language model make of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from pixlex.nn.language import LanguageModel
from pixlex.nn.vocabulary import Vocabulary

# Logits of so many hidden words are held at once: 60 MB for a vocabulary of 30,000.
_ROWS_OF_LOGITS = 512
# exp of more does not fit a float.
_LARGEST_EXPONENT = 700.0


def survives_text(vocabulary: Vocabulary, codes: Int[Tensor, "B N"]) -> Bool[Tensor, " B"]:
    """Tell for each image whether codes -> text -> codes through the vocabulary gives the same codes."""
    return torch.tensor([_read_back(vocabulary, row) == row for row in codes.tolist()], dtype=torch.bool)


def _read_back(vocabulary: Vocabulary, codes: list[int]) -> list[int] | None:
    try:
        return vocabulary.from_text(vocabulary.to_text(codes))
    except ValueError:
        return None  # a word that cannot be read back at all


def surviving_words(vocabulary: Vocabulary, codes: Int[Tensor, "B N"]) -> Float[Tensor, " B"]:
    """Return for each image the share of its words that come back, in order, when its text is read."""
    return torch.tensor([vocabulary.survivors(row) / len(row) for row in codes.tolist()])


def survives_tokenizer(
    language: LanguageModel, vocabulary: Vocabulary, codes: Int[Tensor, "B N"]
) -> Bool[Tensor, " B"]:
    """Tell for each image whether the language model's own tokenizer reads its text as the same words.

    This is what any program sees that is given the text and not the codes.
    """
    rows = codes.tolist()
    texts = [f" {vocabulary.to_text(row)}" for row in rows]
    read = language.tokenizer(texts, add_special_tokens=False)["input_ids"]
    word_ids = vocabulary.word_ids.tolist()
    same = [ids == [word_ids[code] for code in row] for row, ids in zip(rows, read, strict=True)]
    return torch.tensor(same, dtype=torch.bool)


@dataclass(frozen=True)
class WordScores:
    """How well a masked language model guesses hidden words among all V words; scores add up.

    Attributes:
        log_probability: sum of ln p(word | words not hidden), in nats.
        correct: hidden words that were the likeliest of all.
        count: hidden words.
    """

    log_probability: float = 0.0
    correct: int = 0
    count: int = 0

    def __add__(self, other: WordScores) -> WordScores:
        return WordScores(
            self.log_probability + other.log_probability,
            self.correct + other.correct,
            self.count + other.count,
        )

    @property
    def accuracy(self) -> float:
        """Share of the hidden words guessed right, in [0, 1]."""
        return self.correct / self.count

    @property
    def pseudo_perplexity(self) -> float:
        """Exponential of minus the mean log-probability: an even choice among so many words."""
        return math.exp(min(-self.log_probability / self.count, _LARGEST_EXPONENT))


def word_folds(indices: Sequence[int], num_words: int, num_folds: int, seed: int) -> Int[Tensor, "B T"]:
    """Deal the words of each image into folds of equal size (within one), at random.

    Args:
        indices: the number of each image, 0 or more; with the seed it decides the image's folds, whatever
            the batch.
        num_words: T.
        num_folds: number of folds, in [1, num_words].
        seed: 0 or more.

    Raises:
        ValueError: a number of folds out of range.
    """
    if not 1 <= num_folds <= num_words:
        raise ValueError(f"expected between 1 and {num_words} folds of {num_words} words, got {num_folds}")
    orders = [np.random.default_rng((seed, 1, index)).permutation(num_words) for index in indices]
    return torch.from_numpy(np.stack(orders) % num_folds)


@torch.no_grad()
def score_words(
    language: LanguageModel, word_ids: Int[Tensor, "B T"], folds: Int[Tensor, "B T"]
) -> WordScores:
    """Hide each word exactly once, a fold at a time, and score the language model's guesses.

    Pseudo-perplexity proper (Salazar et al. 2020) hides one word at a time, T passes; here F folds take F
    passes, and T / F words are hidden together. With F = T the two are the same; with fewer folds the model
    sees fewer words and the number is usually somewhat larger. Low means that the words follow one another
    as in text the model was trained on, or that they repeat: compare with the perplexity of the codewords,
    which ignores order.

    Args:
        language: a frozen masked language model with a head; nothing but the words is given to it, no
            start, no end.
        word_ids: the words of each image.
        folds: the fold of each word.

    Returns:
        The scores of all B x T words.
    """
    embeddings = language.word_embedding[word_ids]
    hidden_word = language.word_embedding[language.mask_id]
    scores = WordScores()
    for fold in range(int(folds.max()) + 1):
        mask = folds == fold
        hidden = language(torch.where(mask.unsqueeze(-1), hidden_word, embeddings)).last[mask]
        scores += score_guesses(language, hidden, word_ids[mask])
    return scores


def score_guesses(
    language: LanguageModel, hidden: Float[Tensor, "M D"], word_ids: Int[Tensor, " M"]
) -> WordScores:
    """Score the guesses that last hidden states stand for, in float32; `word_ids` are the true words."""
    scores = WordScores()
    with torch.autocast(hidden.device.type, enabled=False):
        for states, truth in zip(
            torch.split(hidden, _ROWS_OF_LOGITS), torch.split(word_ids, _ROWS_OF_LOGITS), strict=True
        ):
            logits = language.logits(states.float())
            loss = functional.cross_entropy(logits, truth, reduction="sum")
            correct = int((logits.argmax(-1) == truth).sum())
            scores += WordScores(-float(loss), correct, len(truth))
    return scores
