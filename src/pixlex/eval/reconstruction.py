"""How well images survive as words: one pass over a set, whatever its size, one image's memory at a time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ImageBatch, Skipped
from pixlex.eval.examples import Examples, ExampleSample
from pixlex.eval.metrics import (
    SSIM_WINDOW,
    CodebookUsage,
    MeanImage,
    distinct_per_image,
    mean_color_mse,
    mse,
    psnr,
    ssim,
)
from pixlex.eval.passes import evaluating, first_images, progress_bar
from pixlex.eval.perceptual import PerceptualMeasures
from pixlex.eval.words import (
    WordScores,
    score_words,
    survives_text,
    survives_tokenizer,
    surviving_words,
    word_folds,
)
from pixlex.models.lqae import LQAE
from pixlex.models.pretrained import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ReconstructionResult:
    """What an evaluation found; a number that could not be had is None, and `notes` says why.

    Attributes:
        num_images: images evaluated.
        words_per_image: N, codes of an image.
        mse: mean squared error, pixels in [0, 1], image -> words -> image.
        psnr: mean over images of each image's PSNR over RGB, in dB.
        ssim: mean over images of the structural similarity, data range 1.
        masked_mse: the same error when a share of the words is hidden from the language model.
        mean_image_mse: error of guessing the mean image for every image; by default the mean of the
            evaluated images, the strongest constant there is.
        mean_color_mse: error of painting each image in its own mean color.
        distinct_codewords: codewords used at least once on the whole set.
        codebook_usage: distinct codewords / K, in [0, 1].
        perplexity: codewords in even use with the same entropy, over the whole set.
        most_frequent_share: share of the most frequent codeword.
        distinct_words_per_image: mean over images of the number of different codes.
        masked_word_accuracy: share of words that the frozen language model guesses when they are hidden.
        pseudo_perplexity: of the word sequences under the frozen language model (see `score_words`).
        text_round_trip_rate: share of images whose codes -> text -> codes is exact.
        word_round_trip_rate: mean share of an image's words that come back in order when its text is read.
        tokenizer_round_trip_rate: share of images whose text the language model's tokenizer reads as the
            same words.
        rfid: Frechet distance of features between originals and reconstructions.
        lpips: mean over images of the perceptual distance.
        images_per_second: images over the time of the whole evaluation, reading included.
        skipped: images that could not be read.
        notes: what is missing, or to be known before a number is compared.
        examples: images, words, reconstructions.
    """

    num_images: int
    words_per_image: int
    mse: float
    psnr: float
    ssim: float | None
    masked_mse: float | None
    mean_image_mse: float
    mean_color_mse: float
    distinct_codewords: int
    codebook_usage: float
    perplexity: float
    most_frequent_share: float
    distinct_words_per_image: float
    masked_word_accuracy: float | None
    pseudo_perplexity: float | None
    text_round_trip_rate: float | None
    word_round_trip_rate: float | None
    tokenizer_round_trip_rate: float | None
    rfid: float | None
    lpips: float | None
    images_per_second: float
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    examples: Examples

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers that could be had, by their names in the log: `eval/psnr` and so on."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            f"eval/{name}": float(value) for name, value in values.items() if isinstance(value, int | float)
        }


@torch.no_grad()  # not inference_mode: what a model caches meanwhile must stay usable in training
def evaluate_reconstruction(
    model: Tokenizer,
    batches: Iterable[ImageBatch],
    *,
    mask_ratio: float | None = 0.5,
    num_folds: int = 2,
    seed: int = 0,
    device: torch.device | str | None = None,
    precision: Literal["bf16", "fp32"] = "fp32",
    limit: int | None = None,
    total: int | None = None,
    progress: bool = True,
    save_examples: int = 16,
    mean_image: Float[Tensor, "3 H W"] | None = None,
    fid_features: Path | None = None,
    lpips_network: Path | None = None,
) -> ReconstructionResult:
    """Measure a model's reconstructions, codes and words on a set of images, one batch at a time.

    Masks, folds and examples depend on the seed and the position of an image in its source, not on the batch.
    The model is in evaluation mode meanwhile and as it was afterwards. Several processes share the batches and all
    return the numbers of the whole.

    Args:
        model: what is evaluated; a VQ-VAE has no words, and none of their measures.
        batches: the images, each once; of several processes each brings its own (see `evaluation_batches`).
        mask_ratio: share of the words hidden at random for `masked_mse`, in [0, 1]; None leaves it out.
        num_folds: passes of the language model for the two measures of word sequences, at most one for each
            word; 0 leaves them out.
        seed: of masks, folds and the choice of examples, 0 or more.
        device: where to compute; the model is moved there. None: where the model is.
        precision: bf16 computes networks under autocast, measures always in float32.
        limit: stop after so many images; not with several processes, none of which knows of all.
        total: how many images are expected, for the time left on the progress bar.
        progress: show a bar with rate and time left.
        save_examples: how many images to return with their words and reconstructions.
        mean_image: the constant that `mean_image_mse` guesses; None for the mean of the evaluated images.
        fid_features: TorchScript network for rFID (see `FrechetDistance`).
        lpips_network: TorchScript network for LPIPS (see `PerceptualDistance`).

    Returns:
        The numbers, the examples, and what was skipped.

    Raises:
        ValueError: no readable image, or a network, ratio, limit or number of folds that does not fit.
    """
    if limit is not None and distributed.world_size() > 1:
        raise ValueError(
            f"expected batches of limited images on several processes, got the limit {limit} here"
        )
    if mask_ratio is not None and not 0 <= mask_ratio <= 1:
        raise ValueError(f"mask_ratio must lie in [0, 1], got {mask_ratio}")
    place = torch.device(device) if device is not None else next(model.parameters()).device
    model.to(place)
    distances = PerceptualMeasures(fid_features, lpips_network, place)
    evaluation = _Evaluation(model, distances, mask_ratio, num_folds, seed, save_examples)
    started = time.perf_counter()
    expected = min((count for count in (total, limit) if count is not None), default=None)
    with (
        evaluating(model),
        torch.autocast(place.type, dtype=torch.bfloat16, enabled=precision == "bf16"),
        progress_bar(expected, "images", "evaluate", shown=progress) as bar,
    ):
        for batch in first_images(batches, limit):
            evaluation.update(batch.to(place))
            bar.update(len(batch.images))
    evaluation.gather()
    return evaluation.result(mean_image, time.perf_counter() - started)


@dataclass(frozen=True)
class _Sums:
    """What the images of a batch add to the means."""

    count: int
    sums: Mapping[str, float]
    words: WordScores
    skipped: tuple[Skipped, ...]


class _Evaluation:
    """What the images seen so far add up to."""

    def __init__(
        self,
        model: Tokenizer,
        perceptual: PerceptualMeasures,
        mask_ratio: float | None,
        num_folds: int,
        seed: int,
        save_examples: int,
    ) -> None:
        self.model, self.perceptual = model, perceptual
        self.mask_ratio, self.num_folds, self.seed = mask_ratio, num_folds, seed
        self.batches: list[_Sums] = []
        self.usage = CodebookUsage(model.num_codewords)
        self.mean_image = MeanImage()
        self.examples = ExampleSample(save_examples, seed)

    def update(self, batch: ImageBatch) -> None:
        """Take in a batch."""
        if len(batch.images) == 0:
            self.batches.append(_Sums(0, {}, WordScores(), batch.skipped))
            return
        images, indices = batch.images, batch.indices.tolist()
        codes = self.model.tokenize(images)
        reconstructions = self.model.decode(codes)
        with torch.autocast(images.device.type, enabled=False):
            measures = {
                "mse": mse(images, reconstructions),
                "psnr": psnr(images, reconstructions),
                "mean_color_mse": mean_color_mse(images),
                "distinct_words_per_image": distinct_per_image(codes),
                **self.perceptual.update(images, reconstructions),
            }
            if min(images.shape[-2:]) >= SSIM_WINDOW:
                measures["ssim"] = ssim(images, reconstructions)
            self.mean_image.update(images)
        self.usage.update(codes)
        words = WordScores()
        if self.model.vocabulary is not None:
            measures |= self._of_words(self.model, images, codes, indices)
            words = self._guessed(self.model, codes, indices)
        self.examples.update(batch, reconstructions, codes)
        sums = {name: float(values.double().sum()) for name, values in measures.items()}
        self.batches.append(_Sums(len(images), sums, words, batch.skipped))

    def _of_words(self, model: LQAE, images: Tensor, codes: Tensor, indices: list[int]) -> dict[str, Tensor]:
        """Return what only words have."""
        measures: dict[str, Tensor] = {
            "text_round_trip_rate": survives_text(model.vocabulary, codes),
            "word_round_trip_rate": surviving_words(model.vocabulary, codes),
            "tokenizer_round_trip_rate": survives_tokenizer(model.language, model.vocabulary, codes),
        }
        if self.mask_ratio is not None:
            mask = _masks(indices, codes.shape[1], self.mask_ratio, self.seed).to(codes.device)
            language = model.encode_text(model.quantizer.embedding[codes], mask)
            measures["masked_mse"] = mse(images, model.reconstruct(language).float().clamp(0, 1))
        return measures

    def _guessed(self, model: LQAE, codes: Tensor, indices: list[int]) -> WordScores:
        """Return how well the language model guesses hidden words."""
        if not self.num_folds or not model.language.has_head:
            return WordScores()
        folds = word_folds(indices, codes.shape[1], min(self.num_folds, codes.shape[1]), self.seed)
        return score_words(model.language, model.word_ids(codes), folds.to(codes.device))

    def gather(self) -> None:
        """Take in what the other processes saw."""
        self.batches = distributed.in_turn(self.batches)
        self.usage.counts = distributed.all_sum(self.usage.counts)
        self.mean_image = MeanImage.sum(distributed.gather_objects(self.mean_image))
        self.examples = ExampleSample.merged(distributed.gather_objects(self.examples))
        self.perceptual.gather()

    def result(self, mean_image: Tensor | None, seconds: float) -> ReconstructionResult:
        """Return the means."""
        skipped = tuple(one for batch in self.batches for one in batch.skipped)
        count, words, sums = 0, WordScores(), defaultdict[str, float](float)
        for batch in self.batches:
            count += batch.count
            words += batch.words
            for name, value in batch.sums.items():
                sums[name] += value
        if count == 0:
            raise ValueError(f"no image to evaluate ({len(skipped)} could not be read)")
        means = {name: value / count for name, value in sums.items()}
        examples = self.examples.result(self.model)
        return ReconstructionResult(
            num_images=count,
            words_per_image=self.model.grid**2,
            mse=means["mse"],
            psnr=means["psnr"],
            ssim=means.get("ssim"),
            masked_mse=means.get("masked_mse"),
            mean_image_mse=self.mean_image.mse(mean_image),
            mean_color_mse=means["mean_color_mse"],
            distinct_codewords=self.usage.distinct,
            codebook_usage=self.usage.usage,
            perplexity=self.usage.perplexity,
            most_frequent_share=self.usage.most_frequent_share,
            distinct_words_per_image=means["distinct_words_per_image"],
            masked_word_accuracy=words.accuracy if words.count else None,
            pseudo_perplexity=words.pseudo_perplexity if words.count else None,
            text_round_trip_rate=means.get("text_round_trip_rate"),
            word_round_trip_rate=means.get("word_round_trip_rate"),
            tokenizer_round_trip_rate=means.get("tokenizer_round_trip_rate"),
            rfid=self.perceptual.rfid(count),
            lpips=means.get("lpips"),
            images_per_second=count / seconds,
            skipped=skipped,
            notes=tuple(self._notes(count, "ssim" in means)),
            examples=examples,
        )

    def _notes(self, count: int, has_ssim: bool) -> list[str]:
        notes = self.perceptual.notes(count)
        if not has_ssim:
            notes.append(
                f"SSIM was not computed: it needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels"
            )
        if self.model.vocabulary is not None and self.num_folds and not self.model.language.has_head:
            notes.append(
                f"no measure of word sequences: {self.model.language.name} has no masked-language-model head"
            )
        return notes


def _masks(indices: Sequence[int], num_words: int, ratio: float, seed: int) -> Bool[Tensor, "B N"]:
    """Hide each word with a probability, from a generator of each image's own."""
    rows = [np.random.default_rng((seed, 0, index)).random(num_words) < ratio for index in indices]
    return torch.from_numpy(np.stack(rows))
