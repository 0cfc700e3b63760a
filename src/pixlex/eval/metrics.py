"""Metrics: their names in words, units and directions; and the formulas of those of images, codes and words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from pixlex import distributed
from pixlex.nn.codebook import count_codes, perplexity
from pixlex.nn.language_model import LanguageModel
from pixlex.nn.vocabulary import Vocabulary

Number = int | float

# An exact copy has an infinite PSNR, which no mean survives and JSON cannot hold.
LARGEST_PSNR = 100.0
SSIM_WINDOW = 11
# Logits of so many hidden words are held at once: 60 MB for a vocabulary of 30,000.
_ROWS_OF_LOGITS = 512
# exp of more does not fit a float.
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class Metric:
    """A metric, or a term of a loss, in words.

    Attributes:
        label: What stands in a table or over a curve.
        unit: Of the value; "%" shows a ratio in [0, 1] in percent, "" means that there is none.
        better: Which direction is better, where there is one.
    """

    label: str
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""

    def text(self, value: Number) -> str:
        """Return a value with its unit, four digits of it."""
        if not math.isfinite(value):
            return str(value)
        scaled = 100 * value if self.unit == "%" else value
        digits = f"{scaled:,.0f}" if scaled == round(scaled) or abs(scaled) >= 1000 else f"{scaled:.4g}"
        return f"{digits} {self.unit}".rstrip()


# By the last part of their names in the log.
METRICS = {
    "total": Metric("loss", "", "lower"),
    "reconstruction": Metric("reconstruction error", "MSE", "lower"),
    "commitment": Metric("commitment", "MSE", "lower"),
    "codebook": Metric("codebook loss", "MSE", "lower"),
    "masked_language": Metric("cross-entropy of hidden words", "nats", "lower"),
    "entropy": Metric("entropy regularization", "nats", "lower"),
    "masked_patches": Metric("error of hidden patches", "MSE", "lower"),
    "flat_patches": Metric("for comparison: each hidden patch in its own mean", "MSE"),
    "caption": Metric("cross-entropy of captions, per word", "nats", "lower"),
    "other_image_caption": Metric("for comparison: with another image", "nats"),
    "image_text_contrastive": Metric("contrast of images and texts", "nats", "lower"),
    "image_text_matching": Metric("matching of images and texts", "nats", "lower"),
    "masked_image": Metric("cross-entropy of hidden codes", "nats", "lower"),
    "masked_image_gain": Metric("entropy of the codes less cross-entropy of hidden ones", "nats", "higher"),
    "pixel": Metric("error of normalized pixels", "MSE", "lower"),
    "quantization_error_share": Metric("quantization error over variance", "%", "lower"),
    "temperature": Metric("temperature of the contrast"),
    "churn": Metric("patches whose code has changed", "%"),
    "hidden_mse": Metric("error of hidden patches", "MSE", "lower"),
    "visible_mse": Metric("error of visible patches", "MSE", "lower"),
    "recall": Metric("recall", "%", "higher"),
    "text_recall_at_1": Metric("image to text, recall at 1", "%", "higher"),
    "text_recall_at_5": Metric("image to text, recall at 5", "%", "higher"),
    "text_recall_at_10": Metric("image to text, recall at 10", "%", "higher"),
    "image_recall_at_1": Metric("text to image, recall at 1", "%", "higher"),
    "image_recall_at_5": Metric("text to image, recall at 5", "%", "higher"),
    "image_recall_at_10": Metric("text to image, recall at 10", "%", "higher"),
    "codeword_purity": Metric("patches of the most frequent class of their codeword", "%", "higher"),
    "codeword_shuffled_purity": Metric("for comparison: classes dealt anew", "%"),
    "codeword_information": Metric("what a codeword tells of the class", "nats", "higher"),
    "codeword_shuffled_information": Metric("for comparison: classes dealt anew", "nats"),
    "mean_recall": Metric("mean of the recalls", "%", "higher"),
    "answer": Metric("cross-entropy of answers", "nats", "lower"),
    "num_items": Metric("items"),
    "accuracy": Metric("accuracy", "%", "higher"),
    "consistency": Metric("sentences all of whose items are right", "%", "higher"),
    "majority_accuracy": Metric("for comparison: the most frequent answer", "%"),
    "text_alone_accuracy": Metric("for comparison: a linear classifier on the text alone", "%"),
    "learning_rate": Metric("learning rate"),
    "gradient_norm": Metric("norm of the gradient"),
    "norm_z": Metric("length of patch vectors"),
    "norm_codeword": Metric("length of their codewords"),
    "cosine": Metric("cosine of patch vectors and codewords", "", "higher"),
    "restarted": Metric("codewords restarted"),
    "images": Metric("speed", "images/s", "higher"),
    "images_per_second": Metric("speed", "images/s", "higher"),
    "peak": Metric("peak memory", "MiB", "lower"),
    "wait": Metric("time spent waiting for data", "%", "lower"),
    "num_images": Metric("images"),
    "words_per_image": Metric("words per image"),
    "mse": Metric("reconstruction error", "MSE", "lower"),
    "psnr": Metric("PSNR", "dB", "higher"),
    "ssim": Metric("SSIM", "", "higher"),
    "masked_mse": Metric("reconstruction error, part of the words hidden", "MSE", "lower"),
    "mean_image_mse": Metric("for comparison: the mean image", "MSE"),
    "mean_color_mse": Metric("for comparison: each image's mean color", "MSE"),
    "distinct_codewords": Metric("distinct codewords", "", "higher"),
    "codebook_usage": Metric("codewords used, of all", "%", "higher"),
    "perplexity": Metric("perplexity of the codewords", "", "higher"),
    "most_frequent_share": Metric("share of the most frequent codeword", "%", "lower"),
    "distinct_words_per_image": Metric("distinct words per image"),
    "masked_word_accuracy": Metric("hidden words guessed by the language model", "%"),
    "pseudo_perplexity": Metric("pseudo-perplexity of the words"),
    "text_round_trip_rate": Metric("images whose words survive as text", "%", "higher"),
    "word_round_trip_rate": Metric("words that survive as text", "%", "higher"),
    "tokenizer_round_trip_rate": Metric("the same through the language model's tokenizer", "%", "higher"),
    "rfid": Metric("rFID", "", "lower"),
    "lpips": Metric("LPIPS", "", "lower"),
}


def metric_of(name: str) -> Metric:
    """Return what a name of the log (`phase/term`, `eval/metric`), or its last part, stands for."""
    last = name.rpartition("/")[2]
    return METRICS.get(last, Metric(last.replace("_", " ")))


def mse(images: Float[Tensor, "B 3 H W"], reconstructions: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the mean squared error of each image, over channels and pixels in [0, 1]."""
    return functional.mse_loss(reconstructions, images, reduction="none").mean(dim=(1, 2, 3))


def psnr(images: Float[Tensor, "B 3 H W"], reconstructions: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the peak signal-to-noise ratio of each image, 10 log10(1 / MSE), in dB, at most 100.

    Over the three RGB channels at once, not over luminance. The PSNR of a set is the mean over its images, which
    is above the PSNR of the set's mean MSE.

    Args:
        images: Pixels in [0, 1].
        reconstructions: Pixels in [0, 1].
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio  # brings scipy, 3 s

    values: Tensor = peak_signal_noise_ratio(
        reconstructions, images, data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return values.clamp(max=LARGEST_PSNR)


def ssim(images: Float[Tensor, "B 3 H W"], reconstructions: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the structural similarity of each image, mean over channels and pixels (Wang et al. 2004).

    Gaussian window of 11 pixels with sigma 1.5 and data range 1. Only windows that lie inside the image count, as
    in the paper, scikit-image and TensorFlow; torchmetrics alone would also count windows over a mirrored border.

    Args:
        images: Pixels in [0, 1], at least 11 x 11 of them.
        reconstructions: Pixels in [0, 1].

    Raises:
        ValueError: Images smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(images.shape[-2:]) < SSIM_WINDOW:
        size = tuple(images.shape[-2:])
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, got {size}")
    _, everywhere = structural_similarity_index_measure(
        reconstructions, images, data_range=1.0, reduction="none", return_full_image=True
    )
    border = SSIM_WINDOW // 2
    inside: Tensor = everywhere[..., border:-border, border:-border]
    return inside.mean(dim=(1, 2, 3))


def mean_color_mse(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the error of painting each image in its own mean color: its variance, mean over channels."""
    return images.var(dim=(2, 3), unbiased=False).mean(dim=1)


class MeanImage:
    """The error of guessing the mean image of a whole set for each of its images, in one pass over the set.

    No constant does better, so a model that is not below it has learned nothing about single images.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, int]] = []

    def update(self, images: Float[Tensor, "B 3 H W"]) -> None:
        """Take in a batch of images with pixels in [0, 1]."""
        pixels = images.double()
        self._add(pixels.sum(0).cpu(), pixels.square().sum(0).cpu(), len(images))

    def _add(self, total: Tensor, squares: Tensor, count: int) -> None:
        for one, more, number in self._parts:
            total, squares, count = one + total, more + squares, number + count
        self._parts = [(total, squares, count)]

    def gather(self) -> None:
        """Take in what other processes have."""
        parts = distributed.gather_objects(self._parts)
        self._parts = []
        for part in parts:
            for one in part:
                self._add(*one)

    def mse(self) -> float:
        """Return the mean squared error over images, channels and pixels; at least one image was taken in."""
        ((total, squares, count),) = self._parts
        mean = total / count
        return float((squares / count - 2 * mean * mean + mean.square()).mean())


class CodebookUsage:
    """How often each codeword was used, over everything taken in.

    The released LQAE code counts distinct pairs of column and codeword and reports up to 357 % use; here a
    codeword counts once, whatever its place, and the union is over the whole evaluated set.

    Args:
        num_codewords: K.

    Attributes:
        counts: Uses of each codeword.
    """

    def __init__(self, num_codewords: int) -> None:
        self.counts: Int[Tensor, " K"] = torch.zeros(num_codewords, dtype=torch.long)

    def update(self, codes: Int[Tensor, "..."]) -> None:
        """Take in codes.

        Raises:
            ValueError: A code outside [0, K).
        """
        codes = codes.cpu()
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < len(self.counts):
            raise ValueError(
                f"expected codes in [0, {len(self.counts)}), got {int(codes.min())} to {int(codes.max())}"
            )
        self.counts += count_codes(codes, len(self.counts))

    def gather(self) -> None:
        """Take in what other processes have."""
        self.counts = distributed.all_sum(self.counts)

    @property
    def values(self) -> dict[str, Number]:
        """Codewords used, their fraction of K, perplexity exp(H) in [1, K], fraction of the most frequent one."""
        distinct = int((self.counts > 0).sum())
        return {
            "distinct_codewords": distinct,
            "codebook_usage": distinct / len(self.counts),
            "perplexity": float(perplexity(self.counts)),
            "most_frequent_share": float(self.counts.max() / self.counts.sum().clamp_min(1)),
        }


def distinct_per_image(codes: Int[Tensor, "B N"]) -> Int[Tensor, " B"]:
    """Return how many different codewords each image uses."""
    ordered = codes.sort(dim=1).values
    return (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1) + 1


def text_round_trips(
    language: LanguageModel, vocabulary: Vocabulary, codes: Int[Tensor, "B N"]
) -> dict[str, Float[Tensor, " B"]]:
    """Return for each image how much of its words survives as text.

    Returns:
        `text_round_trip_rate`: 1 where codes -> text -> codes through the vocabulary gives the same codes, else 0;
        `word_round_trip_rate`: fraction of the words that come back, in order;
        `tokenizer_round_trip_rate`: 1 where the language model's own tokenizer reads the text as the same words,
            as
        any program does that is given the text and not the codes.
    """
    rows = codes.tolist()
    texts = [vocabulary.to_text(row) for row in rows]
    tokenized = language.tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"]
    word_ids = vocabulary.word_ids.tolist()
    found = {
        "text_round_trip_rate": [
            _codes_of(vocabulary, one) == row for one, row in zip(texts, rows, strict=True)
        ],
        "word_round_trip_rate": [vocabulary.survivors(row) / len(row) for row in rows],
        "tokenizer_round_trip_rate": [
            ids == [word_ids[code] for code in row] for row, ids in zip(rows, tokenized, strict=True)
        ],
    }
    return {name: torch.tensor(values, dtype=torch.float) for name, values in found.items()}


def _codes_of(vocabulary: Vocabulary, text: str) -> list[int] | None:
    try:
        return vocabulary.from_text(text)
    except ValueError:
        return None  # a word that cannot be read back at all


@dataclass(frozen=True)
class WordScores:
    """How well a masked language model predicts hidden words among all V words; scores add up.

    Attributes:
        log_probability: Sum of ln p(word | words not hidden), in nats.
        correct: Hidden words that were the likeliest of all.
        count: Hidden words.
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


def pseudo_perplexity(mean_log_probability: float) -> float:
    """Return the exponential of minus the mean log-probability: an even choice among so many words."""
    return math.exp(min(-mean_log_probability, _LARGEST_EXPONENT))


def word_folds(indices: Sequence[int], num_words: int, num_folds: int, seed: int) -> Int[Tensor, "B T"]:
    """Assign the words of each image to folds of equal size (within one), at random.

    Args:
        indices: The number of each image, 0 or more; with the seed it decides the image's folds, whatever the
            batch.
        num_words: T.
        num_folds: Number of folds, in [1, num_words].
        seed: 0 or more.

    Raises:
        ValueError: A number of folds out of range.
    """
    if not 1 <= num_folds <= num_words:
        raise ValueError(f"expected between 1 and {num_words} folds of {num_words} words, got {num_folds}")
    orders = [np.random.default_rng((seed, 1, index)).permutation(num_words) for index in indices]
    return torch.from_numpy(np.stack(orders) % num_folds)


@torch.no_grad()
def score_words(
    language: LanguageModel, word_ids: Int[Tensor, "B T"], folds: Int[Tensor, "B T"]
) -> WordScores:
    """Hide each word exactly once, a fold at a time, and score the language model's predictions.

    Pseudo-perplexity proper (Salazar et al. 2020) hides one word at a time, T passes; here F folds take F passes,
    and T / F words are hidden together. With F = T the two are the same; with fewer folds the model sees fewer
    words and the number is usually somewhat larger. Low means that the words follow one another as in text the
    model was trained on, or that they repeat: compare with the perplexity of the codewords, which ignores order.

    Args:
        language: A frozen masked language model with a head; it is given the words alone, no start, no end.
        word_ids: The words of each image.
        folds: The fold of each word.

    Returns:
        The scores of all B x T words.
    """
    embeddings = language.word_embedding[word_ids]
    mask_embedding = language.word_embedding[language.mask_id]
    scores = WordScores()
    for fold in range(int(folds.max()) + 1):
        mask = folds == fold
        hidden = language(torch.where(mask.unsqueeze(-1), mask_embedding, embeddings)).last[mask]
        scores += _score_predictions(language, hidden, word_ids[mask])
    return scores


def _score_predictions(language: LanguageModel, hidden: Tensor, word_ids: Tensor) -> WordScores:
    """Score what last hidden states predict, in float32; `word_ids` are the true words."""
    scores = WordScores()
    with torch.autocast(hidden.device.type, enabled=False):
        for states, truth in zip(
            torch.split(hidden, _ROWS_OF_LOGITS), torch.split(word_ids, _ROWS_OF_LOGITS), strict=True
        ):
            logits = language.logits(states.float())
            loss = functional.cross_entropy(logits, truth, reduction="sum")
            scores += WordScores(-float(loss), int((logits.argmax(-1) == truth).sum()), len(truth))
    return scores
