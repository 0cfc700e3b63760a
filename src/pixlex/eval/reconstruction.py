"""How well images survive as words: one pass over a set, whatever its size, one batch in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ImageBatch
from pixlex.eval import metrics
from pixlex.eval.evaluate import DEFAULT_PASS, Evaluation, Measured, Number, Pass, evaluate
from pixlex.models.checkpoint import Tokenizer

# In the order in which they are shown.
_VALUES = (
    "num_images", "words_per_image", "mse", "psnr", "ssim", "masked_mse", "mean_image_mse", "mean_color_mse",
    "distinct_codewords", "codebook_usage", "perplexity", "most_frequent_share", "distinct_words_per_image",
    "masked_word_accuracy", "pseudo_perplexity", "text_round_trip_rate", "word_round_trip_rate",
    "tokenizer_round_trip_rate", "rfid", "lpips", "images_per_second",
)  # fmt: skip


class ExampleSample:
    """A uniform sample of so many images, whatever the batches: those with the smallest random numbers.

    An image's number depends on the seed and its position in its source.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._rows: list[tuple[float, int, str, tuple[Tensor, ...]]] = []

    def update(self, batch: ImageBatch, reconstructions: Tensor, codes: Tensor) -> None:
        """Take in a batch."""
        for row, index in enumerate(batch.indices.tolist()):
            number = float(np.random.default_rng((self.seed, 2, index)).random())
            if len(self._rows) < self.size or (self._rows and number < self._rows[-1][0]):
                # Copies: a row of a batch would keep the whole batch in memory.
                tensors = tuple(one[row].cpu().clone() for one in (batch.images, reconstructions, codes))
                self._keep([*self._rows, (number, index, batch.keys[row], tensors)])

    def gather(self) -> None:
        """Take in what other processes have."""
        self._keep([row for part in distributed.gather_objects(self._rows) for row in part])

    def _keep(self, rows: Sequence[tuple[float, int, str, tuple[Tensor, ...]]]) -> None:
        self._rows = sorted(rows, key=lambda one: one[:2])[: self.size]

    def result(self, words: Sequence[str] | None) -> dict[str, object]:
        """Return the sample in the order of the set, with the word of each code where codes are words."""
        rows = sorted(self._rows, key=lambda one: one[1])
        tensors = list(zip(*(one[3] for one in rows), strict=True)) or [(), (), ()]
        originals, reconstructions, codes = (
            torch.stack(some) if some else torch.empty(0) for some in tensors
        )
        names = None if words is None else tuple(tuple(words[code] for code in row) for row in codes.tolist())
        return {
            "keys": tuple(one[2] for one in rows), "originals": originals, "reconstructions": reconstructions,
            "codes": codes, "words": names,
        }  # fmt: skip


def evaluate_reconstruction(
    model: Tokenizer,
    batches: Iterable[ImageBatch],
    how: Pass = DEFAULT_PASS,
    *,
    mask_ratio: float | None = 0.5,
    num_folds: int = 2,
    seed: int = 0,
    fid_features: Path | None = None,
    lpips_network: Path | None = None,
) -> Evaluation:
    """Measure a model's reconstructions, codes and words on a set of images, one batch at a time.

    Masks, folds and examples depend on the seed and the position of an image in its source, not on the batch. The
    examples are a uniform sample of `keys`, `originals`, `reconstructions`, `codes` and `words`. A model without
    words has none of their measures.

    Args:
        mask_ratio: Fraction of the words hidden at random for `masked_mse`, in [0, 1]; None leaves it out.
        num_folds: Passes of the language model for the two measures of word sequences, at most one for each word;
            0 leaves them out.
        fid_features, lpips_network: TorchScript networks (see `FrechetDistance`, `PerceptualDistance`).
    """
    device = next(model.parameters()).device
    frechet = metrics.FrechetDistance(fid_features, device) if fid_features else None
    lpips = metrics.PerceptualDistance(lpips_network, device) if lpips_network else None
    lqae = model if model.vocabulary is not None else None
    predicts = num_folds > 0 and lqae is not None and lqae.language.has_head
    usage, mean_image = metrics.CodebookUsage(model.num_codewords), metrics.MeanImage()
    sample = ExampleSample(how.save_examples, seed)

    def measure(batch: ImageBatch, _: int) -> Measured:
        images, indices = batch.images, batch.indices.tolist()
        codes = model.tokenize(images)
        reconstructions = model.decode(codes)
        with torch.autocast(images.device.type, enabled=False):
            pair = images, reconstructions
            each = {
                "mse": metrics.mse(*pair), "psnr": metrics.psnr(*pair),
                "mean_color_mse": metrics.mean_color_mse(images),
            }  # fmt: skip
            if min(images.shape[-2:]) >= metrics.SSIM_WINDOW:
                each["ssim"] = metrics.ssim(*pair)
            if lpips is not None:
                each["lpips"] = lpips(*pair)
            if frechet is not None:
                frechet.update(*pair)
            mean_image.update(images)
        each["distinct_words_per_image"] = metrics.distinct_per_image(codes)
        usage.update(codes)
        sample.update(batch, reconstructions, codes)
        sums: dict[str, tuple[Number, Number]] = {}
        if lqae is not None:
            each |= metrics.text_round_trips(lqae.language, lqae.vocabulary, codes)
            if mask_ratio is not None:
                mask = _masks(indices, codes.shape[1], mask_ratio, seed).to(codes.device)
                output = lqae.encode_text(lqae.quantizer.embedding[codes], mask)
                each["masked_mse"] = metrics.mse(images, lqae.reconstruct(output).float().clamp(0, 1))
            if predicts:
                folds = metrics.word_folds(indices, codes.shape[1], min(num_folds, codes.shape[1]), seed)
                words = metrics.score_words(lqae.language, lqae.word_ids(codes), folds.to(codes.device))
                sums["pseudo_perplexity"] = (words.log_probability, words.count)
                sums["masked_word_accuracy"] = (words.correct, words.count)
        means = {name: (float(one.double().sum()), len(images)) for name, one in each.items()}
        return Measured({**means, **sums})

    started = time.perf_counter()
    found = evaluate(model, batches, measure, how)
    for one in (usage, mean_image, sample, frechet):
        if one is not None:
            one.gather()
    count = int(found.values["num_images"])
    values = {
        **found.values, **usage.values, "words_per_image": model.grid**2, "mean_image_mse": mean_image.mse(),
        "images_per_second": count / (time.perf_counter() - started),
    }  # fmt: skip
    notes = metrics.perceptual_notes(count, has_fid=frechet is not None, has_lpips=lpips is not None)
    if "ssim" not in values:
        side = metrics.SSIM_WINDOW
        notes.append(f"SSIM was not computed: it needs images of at least {side} x {side} pixels")
    if frechet is not None and (distance := frechet.compute()) is not None:
        values["rfid"] = distance
    if predicts:
        values["pseudo_perplexity"] = metrics.pseudo_perplexity(values["pseudo_perplexity"])
    elif lqae is not None and num_folds:
        notes.append(f"no measure of word sequences: {lqae.language.name} has no masked-language-model head")
    return replace(
        found,
        values={name: values[name] for name in _VALUES if name in values},
        examples=sample.result(None if lqae is None else lqae.vocabulary.words),
        notes=tuple(notes),
    )


def _masks(indices: Sequence[int], num_words: int, ratio: float, seed: int) -> Bool[Tensor, "B N"]:
    """Hide each word with a probability, from a generator of each image's own."""
    rows = [np.random.default_rng((seed, 0, index)).random(num_words) < ratio for index in indices]
    return torch.from_numpy(np.stack(rows))
