"""Formulas: metrics of images, codes and words, and rFID and LPIPS through networks that others trained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from pixlex import distributed
from pixlex.eval.evaluate import Number
from pixlex.messages import not_installed
from pixlex.nn.codebook import count_codes, perplexity
from pixlex.nn.language_model import LanguageModel
from pixlex.nn.transformer import where_exact
from pixlex.nn.vocabulary import Vocabulary

# An exact copy has an infinite PSNR, which no mean survives and JSON cannot hold.
LARGEST_PSNR = 100.0
SSIM_WINDOW = 11
# Logits of so many hidden words are held at once: 60 MB for a vocabulary of 30,000.
_ROWS_OF_LOGITS = 512
# exp of more does not fit a float.
_LARGEST_EXPONENT = 700.0
# Published values are of 50,000 images; fewer give larger ones.
IMAGES_OF_PUBLISHED_FID = 50_000
# Networks that the extra `perceptual` brings: of rFID, of LPIPS.
INCEPTION, LPIPS_NETWORKS = "inception", ("alex", "vgg", "squeeze")
# What torchmetrics keeps of the features.
_SUMS = tuple(
    f"{kind}_features_{name}" for kind in ("real", "fake") for name in ("sum", "cov_sum", "num_samples")
)


def mse(images: Float[Tensor, "B 3 H W"], reconstructions: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the mean squared error of each image, over channels and pixels in [0, 1]."""
    return functional.mse_loss(reconstructions, images, reduction="none").mean(dim=(1, 2, 3))


def psnr(images: Float[Tensor, "B 3 H W"], reconstructions: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the peak signal-to-noise ratio of each image, 10 log10(1 / MSE), in dB, at most 100.

    Over the three RGB channels at once, pixels in [0, 1]. The mean over images is above the PSNR of the mean MSE.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio  # brings scipy, 3 s

    values: Tensor = peak_signal_noise_ratio(
        reconstructions, images, data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return values.clamp(max=LARGEST_PSNR)


def ssim(images: Float[Tensor, "B 3 H W"], reconstructions: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the structural similarity of each image, mean over channels and pixels (Wang et al. 2004).

    Gaussian window of 11 pixels with sigma 1.5, pixels in [0, 1]. Only windows that lie inside the image count, as
    in the paper, scikit-image and TensorFlow; torchmetrics alone would also count windows over a mirrored border.
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


def patch_color_mse(images: Float[Tensor, "B 3 H W"], grid: int) -> Float[Tensor, " B"]:
    """Return the error of painting each patch of a grid in its own mean color: what as many colors are worth."""
    side = images.shape[-1] // grid
    patches = images.reshape(len(images), -1, grid, side, grid, side)
    return patches.var(dim=(3, 5), unbiased=False).mean(dim=(1, 2, 3))


class MeanImage:
    """The error of guessing the mean image of a whole set for each of its images, in one pass over the set.

    No constant does better, so a model that is not below it has learned nothing about single images.
    """

    def __init__(self) -> None:
        self._sums: list[tuple[Tensor, Tensor, int]] = []

    def update(self, images: Float[Tensor, "B 3 H W"]) -> None:
        """Take in a batch of images."""
        pixels = where_exact(images).double()
        self._add([*self._sums, (pixels.sum(0).cpu(), pixels.square().sum(0).cpu(), len(images))])

    def gather(self) -> None:
        """Take in what other processes have."""
        self._add([one for part in distributed.gather_objects(self._sums) for one in part])

    def _add(self, sums: Sequence[tuple[Tensor, Tensor, int]]) -> None:
        total, squares, count = (sum(column[1:], column[0]) for column in zip(*sums, strict=True))
        self._sums = [(total, squares, count)]

    def mse(self) -> float:
        """Return the mean squared error over images, channels and pixels; an image or more was taken in."""
        ((total, squares, count),) = self._sums
        mean = total / count
        return float((squares / count - 2 * mean * mean + mean.square()).mean())


def neighbor_accuracy(
    features: Float[Tensor, "I D"], labels: Int[Tensor, " I"], neighbors: int = 5, block: int = 1024
) -> float:
    """Return how often the class of most of an image's nearest others, by cosine, is its own.

    Among equally frequent classes that of the nearest image counts.
    """
    rows, right = functional.normalize(features.float(), dim=1), 0
    for first in range(0, len(rows), block):
        cosines = rows[first : first + block] @ rows.T
        own = torch.arange(first, first + len(cosines))
        cosines[own - first, own] = -torch.inf
        near = labels[cosines.topk(min(neighbors, max(1, len(rows) - 1)), dim=1).indices]
        votes = (near.unsqueeze(2) == near.unsqueeze(1)).sum(2)
        chosen = near.gather(1, votes.argmax(1, keepdim=True)).squeeze(1)  # the first of equals
        right += int((chosen == labels[own]).sum())
    return right / len(rows)


class CodebookUsage:
    """How often each of K codewords was used, over everything taken in.

    The released LQAE code counts distinct pairs of column and codeword and reports up to 357 % use; here a
    codeword counts once, whatever its place, and the union is over the whole evaluated set.
    """

    def __init__(self, num_codewords: int) -> None:
        self.counts: Int[Tensor, " K"] = torch.zeros(num_codewords, dtype=torch.long)

    def update(self, codes: Int[Tensor, "..."]) -> None:
        """Take in codes in [0, K)."""
        self.counts += count_codes(codes.cpu(), len(self.counts))

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

    `text_round_trip_rate` is 1 where codes -> text -> codes through the vocabulary gives the same codes, else 0;
    `word_round_trip_rate` the fraction of the words that come back, in order; `tokenizer_round_trip_rate` 1 where
    the language model's own tokenizer reads the same words, as any program does that is given the text.
    """
    rows, word_ids = codes.tolist(), vocabulary.word_ids.tolist()
    texts = [vocabulary.to_text(row) for row in rows]
    tokenized = language.tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"]
    wanted = [[word_ids[code] for code in row] for row in rows]
    found = {
        "text_round_trip_rate": [
            _codes_of(vocabulary, one) == row for one, row in zip(texts, rows, strict=True)
        ],
        "word_round_trip_rate": [vocabulary.survivors(row) / len(row) for row in rows],
        "tokenizer_round_trip_rate": [
            ids == expected for ids, expected in zip(tokenized, wanted, strict=True)
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
    """How well a masked language model predicts hidden words among all V words.

    The sum of ln p(word | words not hidden), in nats, and how many of the hidden words were the likeliest of all.
    """

    log_probability: float
    correct: int
    count: int


def pseudo_perplexity(mean_log_probability: float) -> float:
    """Return the exponential of minus the mean log-probability: an even choice among so many words."""
    return math.exp(min(-mean_log_probability, _LARGEST_EXPONENT))


def word_folds(indices: Sequence[int], num_words: int, num_folds: int, seed: int) -> Int[Tensor, "B T"]:
    """Assign the T words of each image to folds of equal size (within one), at random.

    The number of an image and the seed decide its folds, whatever the batch.
    """
    assert 1 <= num_folds <= num_words
    orders = [np.random.default_rng((seed, 1, index)).permutation(num_words) for index in indices]
    return torch.from_numpy(np.stack(orders) % num_folds)


@torch.no_grad()
def score_words(
    language: LanguageModel, word_ids: Int[Tensor, "B T"], folds: Int[Tensor, "B T"]
) -> WordScores:
    """Hide each word exactly once, a fold at a time, and score what a frozen language model predicts, in float32.

    Pseudo-perplexity proper (Salazar et al. 2020) hides one word at a time, T passes; here F folds take F passes,
    and T / F words are hidden together. With F = T the two are the same; with fewer folds the model sees fewer
    words and the number is usually somewhat larger. Low means that the words follow one another as in text the
    model was trained on, or that they repeat: compare with the perplexity of the codewords, which ignores order.
    The words are given alone, without start and end.
    """
    embeddings = language.word_embedding[word_ids]
    mask_embedding = language.word_embedding[language.mask_id]
    log_probability, correct = 0.0, 0
    for fold in range(int(folds.max()) + 1):
        mask = folds == fold
        hidden = language(torch.where(mask.unsqueeze(-1), mask_embedding, embeddings)).last[mask]
        parts = (torch.split(one, _ROWS_OF_LOGITS) for one in (hidden, word_ids[mask]))
        of_fold = 0.0
        with torch.autocast(hidden.device.type, enabled=False):
            for states, truth in zip(*parts, strict=True):
                logits = language.logits(states.float())
                of_fold -= float(functional.cross_entropy(logits, truth, reduction="sum"))
                correct += int((logits.argmax(-1) == truth).sum())
        log_probability += of_fold
    return WordScores(log_probability, correct, word_ids.numel())


class FrechetDistance:
    """Distance between originals and reconstructions as Gaussians of features, rFID (Heusel et al. 2017).

    Args:
        path: A TorchScript network that takes RGB images (B, 3, H, W) as uint8 of any size, resizes them itself
            and returns features (B, F): the Inception networks that are passed around as
            `inception-2015-12-05.pt` do. Where its forward has the argument `return_features`, that is set. Or
            `inception`: torch-fidelity's, downloaded once (extra `perceptual`).
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        features = 2048 if str(path) == INCEPTION else _Features(path, device)
        # Not synchronized by torchmetrics, which would wait for all processes where one evaluates alone.
        make = partial(FrechetInceptionDistance, feature=features, sync_on_compute=False)
        self._distance = _downloaded("rFID", make).to(device)

    @torch.no_grad()
    def update(self, images: Float[Tensor, "B 3 H W"], reconstructions: Float[Tensor, "B 3 H W"]) -> None:
        """Take in a batch, pixels in [0, 1]."""
        for batch, real in ((images, True), (reconstructions, False)):
            self._distance.update((batch * 255).round().clamp(0, 255).byte(), real=real)

    def gather(self) -> None:
        """Take in what other processes have: sums in float64, and counts."""
        for name in _SUMS:
            own: Tensor = getattr(self._distance, name)
            setattr(self._distance, name, distributed.all_sum(own.cpu()).to(own.device))

    def compute(self) -> float | None:
        """Return the distance, 0 or more (within rounding); None of fewer than two images."""
        several = int(self._distance.real_features_num_samples) > 1
        return float(self._distance.compute()) if several else None


class _Features(nn.Module):
    """Calls a feature network the way it asks to be called."""

    def __init__(self, path: Path, device: torch.device) -> None:
        super().__init__()
        self.network = _load_network(path, device)
        self._settings = {"return_features": True} if "return_features" in _arguments(self.network) else {}
        try:
            found = self(torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=device))
        except RuntimeError as reason:
            raise ValueError(
                f"{path.name} does not turn uint8 images (B, 3, H, W) into features: {reason}"
            ) from reason
        self.num_features = found.shape[1]

    def forward(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        features: Tensor = self.network(images, **self._settings)
        return features.flatten(1)


class PerceptualDistance:
    """Distance between an image and its reconstruction in a network's features, LPIPS (Zhang et al. 2018).

    Args:
        path: A TorchScript network of one of two kinds: it takes two batches of RGB images in [-1, 1] and returns
            one distance for each pair (a traced `lpips.LPIPS`); or its forward has the argument `return_lpips`,
            takes images in [0, 255] and returns features whose squared distance is LPIPS (`vgg16.pt` of
            StyleGAN). Or `alex`, `vgg` or `squeeze`: torchvision's, downloaded once (extra `perceptual`).
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._name, self._gives_features, network = path.name, False, cast(Any, str(path))
        if network in LPIPS_NETWORKS:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity as Similarity

            make = partial(Similarity, net_type=network, reduction="none", sync_on_compute=False)
            self._network = _downloaded("LPIPS", make).to(device)
        else:
            self._network = _load_network(path, device)
            self._gives_features = "return_lpips" in _arguments(self._network)

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "B 3 H W"], reconstructions: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, " B"]:
        """Return the distance of each pair; pixels in [0, 1]."""
        try:
            distances: Tensor
            if self._gives_features:
                first, second = (
                    self._network(batch * 255, resize_images=False, return_lpips=True).flatten(1)
                    for batch in (images, reconstructions)
                )
                distances = (first - second).square().sum(dim=1)
            else:
                distances = self._network(images * 2 - 1, reconstructions * 2 - 1)
        except RuntimeError as reason:
            raise ValueError(f"{self._name} cannot compare images: {reason}") from reason
        if distances.numel() != len(images):
            raise ValueError(
                f"{self._name}: expected {len(images)} distances, got {tuple(distances.shape)} numbers"
            )
        return distances.flatten().float()


def perceptual_notes(num_images: int, *, has_fid: bool, has_lpips: bool) -> list[str]:
    """Return what a reader must know of rFID and LPIPS."""
    notes = []
    if not has_fid:
        notes.append(
            "rFID was not computed: it needs an Inception network, by name or as a TorchScript file (fid_features)"
        )
    elif num_images < IMAGES_OF_PUBLISHED_FID:
        notes.append(
            f"rFID of {num_images} images: published values are of {IMAGES_OF_PUBLISHED_FID}, and fewer "
            "images give larger ones"
        )
    if not has_lpips:
        notes.append(
            "LPIPS was not computed: it needs its network, by name or as a TorchScript file (lpips_network)"
        )
    return notes


def _downloaded(what: str, make: Callable[[], Any]) -> Any:
    """Make one of torchmetrics' own metrics, whose network other packages bring and download."""
    try:
        return make()
    except ModuleNotFoundError as error:
        raise not_installed(f"{what} by name", "torch-fidelity and torchvision", "perceptual") from error
    except (OSError, RuntimeError) as error:  # no network; a torchvision that is another torch's
        raise ValueError(f"the network of {what} cannot be had: {error}") from error


def _load_network(path: Path, device: torch.device) -> Any:
    """Load a TorchScript network, which runs in its own interpreter: no Python of the file is run."""
    if not path.is_file():
        names = ", ".join((INCEPTION, *LPIPS_NETWORKS))
        raise ValueError(f"no network at {path}: expected a TorchScript file, or a name ({names})")
    with warnings.catch_warnings():
        # torch recommends torch.export for new files; those that people have are TorchScript.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
        except RuntimeError as reason:
            raise ValueError(f"{path.name} is not a TorchScript file: {reason}") from reason


def _arguments(network: Any) -> set[str]:
    return {argument.name for argument in network.forward.schema.arguments}
