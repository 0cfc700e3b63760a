"""What training has reached on images that it has not seen: of tokenizers, of CB-ViLA, of MAE and Frozen."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ImageBatch, ImageTextBatch
from pixlex.eval import metrics
from pixlex.eval.evaluate import DEFAULT_PASS, Evaluation, Measured, Number, Pass, evaluate
from pixlex.losses import caption_loss, masked_patch_loss, normalized_patches, restored_patches
from pixlex.models.baselines import MAE, Frozen
from pixlex.models.cbvila import CBViLA, SplitPatches, split_patches
from pixlex.models.checkpoint import Tokenizer
from pixlex.nn.bert import Words
from pixlex.nn.transformer import where_exact
from pixlex.objectives.cbvila import JOINT, CBViLAObjective
from pixlex.objectives.phase import Phase, Step

# Values in the order in which they are shown: of reconstructions; of CB-ViLA, behind the terms of its loss.
_VALUES = (
    "num_images", "words_per_image", "mse", "psnr", "ssim", "masked_mse", "mean_image_mse", "mean_color_mse",
    "patch_color_mse", "feature_cosine", "neighbor_accuracy", "distinct_codewords", "codebook_usage", "perplexity",
    "most_frequent_share", "distinct_words_per_image",
    "masked_word_accuracy", "pseudo_perplexity", "text_round_trip_rate", "word_round_trip_rate",
    "tokenizer_round_trip_rate", "rfid", "lpips", "images_per_second",
)  # fmt: skip
_LAST = ("num_images", "distinct_codewords", "perplexity", "masked_image_gain", "churn",
         "hidden_mse", "visible_mse", "mean_color_mse")  # fmt: skip
_SHUFFLES = 5


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
            if model.word_grid:
                each["patch_color_mse"] = metrics.patch_color_mse(images, model.word_grid)
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
        rows: dict[str, Tensor] = {}
        if lqae is not None and not lqae.word_grid:
            features = lqae.features(images)
            told = lqae.predicted_features(lqae.encode_text(lqae.quantizer.embedding[codes]))
            each["feature_cosine"] = F.cosine_similarity(told.float(), features - lqae.quantizer.center)
            rows = {"features": features.cpu(), "labels": batch.labels.cpu(), "indices": batch.indices.cpu()}
            rows["codes"] = codes.cpu()
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
        means = {name: (float(where_exact(one).double().sum()), len(images)) for name, one in each.items()}
        return Measured({**means, **sums}, rows)

    started = time.perf_counter()
    found = evaluate(model, batches, measure, how)
    for one in (usage, mean_image, sample, frechet):
        if one is not None:
            one.gather()
    count = int(found.values["num_images"])
    values = {
        **found.values, **usage.values, "words_per_image": model.num_words, "mean_image_mse": mean_image.mse(),
        "images_per_second": count / (time.perf_counter() - started),
    }  # fmt: skip
    words = None if lqae is None else lqae.vocabulary.words
    notes = metrics.perceptual_notes(count, has_fid=frechet is not None, has_lpips=lpips is not None)
    if "ssim" not in values:
        side = metrics.SSIM_WINDOW
        notes.append(f"SSIM was not computed: it needs images of at least {side} x {side} pixels")
    if frechet is not None and (distance := frechet.compute()) is not None:
        values["rfid"] = distance
    if found.rows and (found.rows["labels"] >= 0).any():
        known = found.rows["labels"] >= 0
        values["neighbor_accuracy"] = metrics.neighbor_accuracy(
            found.rows["features"][known], found.rows["labels"][known]
        )
    if predicts:
        values["pseudo_perplexity"] = metrics.pseudo_perplexity(values["pseudo_perplexity"])
    elif lqae is not None and num_folds:
        notes.append(f"no measure of word sequences: {lqae.language.name} has no masked-language-model head")
    return replace(
        found,
        values={name: values[name] for name in _VALUES if name in values},
        examples={
            **sample.result(words),
            "grid": model.word_grid,
            "vocabulary": words,
        },
        notes=tuple(notes),
    )


def _masks(indices: Sequence[int], num_words: int, ratio: float, seed: int) -> Bool[Tensor, "B N"]:
    """Hide each word with a probability, from a generator of each image's own."""
    rows = [np.random.default_rng((seed, 0, index)).random(num_words) < ratio for index in indices]
    return torch.from_numpy(np.stack(rows))


def evaluate_pretraining(
    objective: CBViLAObjective,
    batches: Iterable[ImageTextBatch],
    how: Pass = DEFAULT_PASS,
    *,
    seed: int = 0,
    previous_codes: Int[Tensor, "I N"] | None = None,
) -> Evaluation:
    """Measure a model on images with captions, by the terms that its objective minimizes in its last phases.

    The values are means of the terms of the loss and of its measures, pairs being compared within batches; where
    the objective quantizes, use of the codebook and `churn`, the fraction of codes that differ from the previous
    ones of the same images, with `codes` of each image and its place, `indices`, as rows; where it has pixels, the
    errors of hidden and visible patches, and for comparison that of hidden ones in the mean color of the visible
    ones, with `reconstructed_examples` as examples. What is hidden depends on the seed and the position of a
    batch's first image.
    """
    model, config = objective.model, objective.config

    def measure(batch: ImageTextBatch, room: int) -> Measured:
        size, indices = len(batch.images), batch.indices.cpu()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + int(indices[0]))
        means: dict[str, float] = {}
        if size > 1:  # a single pair has nothing to be compared with
            # Not training, it compares pairs within its own batch: processes may have fewer batches than others.
            loss = objective(batch, Phase(JOINT, 0), Step(objective.steps, generator))
            means = {name: float(value) for name, value in {**loss.terms, **loss.measures}.items()}
        rows = {"indices": indices}
        if config.has_codebook_terms:
            rows["codes"] = model.tokenize(batch.images).cpu()
        examples = {}
        if config.pixel_weight:
            split = split_patches(size, model.grid**2, objective.num_visible, generator)
            split = split.to(batch.images.device)
            reconstructions = model.reconstruct(batch.images, _words(batch), split)
            means |= _pixel_errors(model, batch.images, reconstructions, split)
            if room > 0:
                examples = reconstructed_examples(model, batch, split, room, reconstructions)
        return Measured({name: (size * one, size) for name, one in means.items()}, rows, examples)

    found = evaluate(objective, batches, measure, how)
    values, codes = dict(found.values), found.rows.get("codes")
    if codes is not None:
        usage = metrics.CodebookUsage(model.num_codewords)
        usage.update(codes)
        measured = usage.values
        values |= {name: measured[name] for name in ("distinct_codewords", "perplexity")}
        if "masked_image" in values:
            # Of the whole set: no collapse of the codes can raise it.
            values["masked_image_gain"] = math.log(values["perplexity"]) - values["masked_image"]
        if previous_codes is not None and previous_codes.shape == codes.shape:
            values["churn"] = float((codes != previous_codes).double().mean())
    terms = [name for name in values if name not in _LAST]
    ordered = [_LAST[0], *terms, *(name for name in _LAST[1:] if name in values)]
    return replace(found, values={name: values[name] for name in ordered})


@torch.no_grad()
def reconstructed_examples(
    model: CBViLA,
    batch: ImageTextBatch,
    split: SplitPatches,
    most: int,
    reconstructions: Float[Tensor, "B 3 H W"] | None = None,
) -> dict[str, Any]:
    """Return the first images of a batch, masked, and reconstructed with their own and another text (figure 2).

    The other text is the caption of the next image, empty where there is none; `visible` is what the image encoder
    received, the rest gray.
    """
    if reconstructions is None:
        reconstructions = model.reconstruct(batch.images, _words(batch), split)
    other_texts = (*batch.texts[1:], batch.texts[0]) if len(batch.texts) > 1 else ("",)
    words, device = model.tokenize_texts(other_texts, batch.word_ids.shape[1]), batch.images.device
    others = model.reconstruct(batch.images, words.to(device), split)
    shown = _visible_pixels(model, split)
    gray = shown * batch.images + 0.5 * (1 - shown)
    pictures = {
        "originals": batch.images, "visible": gray, "reconstructions": reconstructions,
        "other_reconstructions": others,
    }  # fmt: skip
    return {
        "keys": batch.keys[:most], "texts": batch.texts[:most], "other_texts": other_texts[:most],
        **{name: images[:most].cpu() for name, images in pictures.items()},
    }  # fmt: skip


def _words(batch: ImageTextBatch) -> Words:
    return Words(batch.word_ids, batch.key_padding)


def _visible_pixels(model: CBViLA, split: SplitPatches) -> Float[Tensor, "B 1 H W"]:
    """Return 1 where pixels are visible, else 0."""
    visible = torch.zeros(len(split.visible), model.grid**2, device=split.visible.device)
    on_grid = visible.scatter(1, split.visible, 1.0).view(-1, 1, model.grid, model.grid)
    return F.interpolate(on_grid, scale_factor=model.config.patch_size)


def _pixel_errors(
    model: CBViLA, images: Tensor, reconstructions: Tensor, split: SplitPatches
) -> dict[str, float]:
    """Return the mean errors of hidden and visible patches, and of hidden ones in a flat color."""
    shown = _visible_pixels(model, split)
    mean_color = (shown * images).sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True)
    squares, flat = (reconstructions - images).square(), (mean_color - images).square()
    return {
        "hidden_mse": float((squares * (1 - shown)).mean() / (1 - shown).mean()),
        "visible_mse": float((squares * shown).mean() / shown.mean()),
        "mean_color_mse": float((flat * (1 - shown)).mean() / (1 - shown).mean()),
    }


def codeword_purity(codes: Int[Tensor, "I N"], labels: Int[Tensor, " I"], seed: int = 0) -> dict[str, float]:
    """Measure how well a patch's codeword predicts the class of its image; -1 leaves an image out.

    `codeword_purity` is the fraction of the patches whose image has the most frequent class of their codeword,
    `codeword_information` the mutual information of codeword and class in nats; and there are the means of both
    after classes were shuffled among the images five times, for codewords that occur rarely look pure by chance.
    """
    known = labels >= 0
    codes, labels = codes[known], labels[known]
    if len(labels) == 0:
        raise ValueError("no image has a class: purity needs labels")
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(labels), generator=generator) for _ in range(_SHUFFLES)]
    own, *shuffled = (_purity(codes, some) for some in (labels, *(labels[order] for order in orders)))
    found = {}
    for column, name in enumerate(("purity", "information")):
        found[f"codeword_{name}"] = own[column]
        found[f"codeword_shuffled_{name}"] = sum(one[column] for one in shuffled) / _SHUFFLES
    return found


def _purity(codes: Tensor, labels: Tensor) -> tuple[float, float]:
    num_classes = int(labels.max()) + 1
    pairs = codes * num_classes + labels.unsqueeze(1)
    table = torch.bincount(pairs.flatten(), minlength=(int(codes.max()) + 1) * num_classes)
    joint = table.view(-1, num_classes).double() / codes.numel()
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    seen = joint > 0
    return float(joint.amax(1).sum()), float((joint[seen] * (joint[seen] / apart[seen]).log()).sum())


def evaluate_captions(
    model: Frozen, batches: Iterable[ImageTextBatch], how: Pass = DEFAULT_PASS, *, max_words: int = 20
) -> Evaluation:
    """Measure how well a language model that is given images predicts their captions.

    The values are `caption`, the mean cross-entropy of caption words with their ends, in nats, and
    `other_image_caption`, the same with the image of another caption of the batch, where any batch has two images;
    the examples `keys`, `originals`, their captions `texts`, and what the model writes greedily, `written`, of at
    most `max_words`.
    """

    def loss(images: Tensor, batch: ImageTextBatch) -> float:
        logits = model(images, batch.word_ids, batch.key_padding)
        return float(caption_loss(logits, batch.word_ids, batch.key_padding, total=1.0))

    def measure(batch: ImageTextBatch, room: int) -> Measured:
        num_words = float((~batch.key_padding).sum())
        sums = {"caption": (loss(batch.images, batch), num_words)}
        if len(batch.images) > 1:
            sums["other_image_caption"] = (loss(batch.images.roll(1, dims=0), batch), num_words)
        if room <= 0:
            return Measured(sums)
        images = batch.images[:room]
        examples = {
            "keys": batch.keys[:room], "originals": images.cpu(), "texts": batch.texts[:room],
            "written": tuple(model.caption(images, max_words)),
        }  # fmt: skip
        return Measured(sums, examples=examples)

    return evaluate(model, batches, measure, how)


def evaluate_masked_patches(
    model: MAE, batches: Iterable[ImageBatch], how: Pass = DEFAULT_PASS, *, normalize: bool, seed: int = 0
) -> Evaluation:
    """Measure a masked autoencoder on images; masks depend on seed and position, not on the batch.

    The values are `masked_patches`, the mean squared error of the hidden patches in the space that was trained
    (normalized patches or not), and `flat_patches`, the same with each hidden patch in its own mean, which takes
    knowing it: a model far below has found structure. The examples are `keys`, `originals`, `visible` (what the
    encoder received, the rest gray) and `reconstructions` (where targets are normalized, each hidden patch with
    its own mean and deviation, as the model's authors draw it).
    """

    def measure(batch: ImageBatch, room: int) -> Measured:
        size = len(batch.images)
        # From a generator of each image's own.
        random = (np.random.default_rng((seed, 0, index)) for index in batch.indices.tolist())
        noise = torch.from_numpy(np.stack([one.random(model.grid**2) for one in random])).float()
        output = model(batch.images, noise.to(batch.images.device))
        with torch.autocast(batch.images.device.type, enabled=False):
            patches = model.patches(batch.images)
            targets = normalized_patches(patches) if normalize else patches
            flat = targets.mean(-1, keepdim=True).expand_as(targets)
            # Every image hides as many patches, so the mean over images is that over patches.
            errors = {"masked_patches": output.predicted, "flat_patches": flat}
            sums = {
                name: (size * float(masked_patch_loss(one, targets, output.mask)), size)
                for name, one in errors.items()
            }
            if room <= 0:
                return Measured(sums)
            some, hidden = patches[:room], output.mask[:room].unsqueeze(-1)
            predicted = output.predicted[:room]
            pixels = restored_patches(predicted, some) if normalize else predicted.float()
            visible = model.images(some.masked_fill(hidden, 0.0)).clamp(0, 1)
            reconstructions = model.images(torch.where(hidden, pixels, some)).clamp(0, 1)
        examples = {
            "keys": batch.keys[:room], "originals": batch.images[:room].cpu(), "visible": visible.cpu(),
            "reconstructions": reconstructions.cpu(),
        }  # fmt: skip
        return Measured(sums, examples=examples)

    return evaluate(model, batches, measure, how)
