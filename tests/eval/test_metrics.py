"""Metrics of images, codes and words against NumPy, scikit-image and slow references; and how they are shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import transformers
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from pixlex.eval import metrics
from pixlex.eval.metrics import (
    CodebookUsage,
    FrechetDistance,
    PerceptualDistance,
    WordScores,
    mse,
    pseudo_perplexity,
    psnr,
    score_words,
    ssim,
    text_round_trips,
    word_folds,
)
from pixlex.nn.language_model import LanguageModel
from pixlex.nn.vocabulary import Vocabulary


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images and noisy copies, of unequal sides."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(5, 3, 6, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (24, 40), mode="bilinear")
    noise = torch.randn(images.shape, generator=generator) * torch.linspace(0.02, 0.4, 5).view(5, 1, 1, 1)
    return images, (images + noise).clamp(0, 1)


def test_mse_and_psnr_of_each_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Over channels and pixels; PSNR as scikit-image's, of an exact copy finite."""
    images, copies = (batch.numpy() for batch in pair)
    np.testing.assert_allclose(mse(*pair).numpy(), ((images - copies) ** 2).mean((1, 2, 3)), rtol=1e-6)
    rows = zip(images, copies, strict=True)
    expected = [peak_signal_noise_ratio(image, copy, data_range=1.0) for image, copy in rows]
    np.testing.assert_allclose(psnr(*pair).numpy(), expected, rtol=1e-5)
    assert psnr(pair[0], pair[0].clone()).tolist() == [100.0] * len(images)


def test_ssim_is_scikit_images(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows = zip(*(batch.numpy() for batch in pair), strict=True)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [
        structural_similarity(image, copy, data_range=1.0, channel_axis=0, **settings) for image, copy in rows
    ]
    np.testing.assert_allclose(ssim(*pair).numpy(), expected, rtol=2e-4, atol=2e-5)
    assert ssim(pair[0], pair[0]).numpy() == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match=r"at least 11 x 11 pixels, got \(10, 12\)"):
        ssim(torch.rand(1, 3, 10, 12), torch.rand(1, 3, 10, 12))


def test_usage_does_not_count_a_codeword_once_for_each_column() -> None:
    """The released code would say 400 % here: every codeword stands in each of four columns."""
    usage = CodebookUsage(16)
    usage.update(torch.arange(16).view(1, 16, 1).expand(3, 16, 4))
    assert usage.values["codebook_usage"] == 1.0
    assert usage.values["perplexity"] == pytest.approx(16)


@pytest.fixture
def word_ids(bert: LanguageModel) -> torch.Tensor:
    """Three sequences of ten words."""
    return torch.randint(3, bert.vocab_size, (3, 10), generator=torch.Generator().manual_seed(0))


def reference(bert: LanguageModel, word_ids: torch.Tensor, folds: torch.Tensor) -> WordScores:
    """Each sequence and fold on its own, by ids instead of embeddings."""
    log_probability, correct = 0.0, 0
    for sequence, of_fold in zip(word_ids, folds, strict=True):
        for fold in set(of_fold.tolist()):
            shown = torch.where(of_fold == fold, bert.mask_id, sequence)
            with torch.no_grad():
                hidden = bert(bert.word_embedding[shown][None]).last[0]
                scores = bert.logits(hidden).log_softmax(-1)
            for place in (of_fold == fold).nonzero().flatten().tolist():
                log_probability += scores[place, sequence[place]].item()
                correct += int(scores[place].argmax() == sequence[place])
    return WordScores(log_probability, correct, word_ids.numel())


def test_folds_are_even_and_depend_on_image_and_seed_alone() -> None:
    together = word_folds([5, 0, 7], 10, 4, seed=1)
    assert all(sorted(np.bincount(row).tolist()) == [2, 2, 3, 3] for row in together.numpy())
    assert torch.equal(word_folds([7], 10, 4, seed=1)[0], together[2])
    assert not torch.equal(word_folds([7], 10, 4, seed=2)[0], together[2])
    assert not torch.equal(together[0], together[2])


@pytest.mark.parametrize("num_folds", [1, 3, 10])
def test_scores_equal_a_slow_reference(
    bert: LanguageModel, word_ids: torch.Tensor, num_folds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many folds as words this is pseudo-perplexity proper; whatever the logits held at once."""
    folds = word_folds([0, 1, 2], 10, num_folds, seed=0)
    expected = reference(bert, word_ids, folds)
    for rows in (512, 4):
        monkeypatch.setattr(metrics, "_ROWS_OF_LOGITS", rows)
        scores = score_words(bert, word_ids, folds)
        assert scores.log_probability == pytest.approx(expected.log_probability, rel=1e-5)
        assert (scores.correct, scores.count) == (expected.correct, 30)


def test_a_model_that_knows_nothing_and_one_that_says_one_word(
    bert: LanguageModel, word_ids: torch.Tensor
) -> None:
    """As perplexed as the vocabulary is large; right as often as the word occurs; never infinite."""
    folds = word_folds([0, 1, 2], 10, 5, seed=0)
    with torch.no_grad():
        bert.output.weight.zero_()
        bert.output.bias.zero_()
        scores = score_words(bert, word_ids, folds)
        assert pseudo_perplexity(scores.log_probability / 30) == pytest.approx(bert.vocab_size, rel=1e-5)
        bert.output.bias[word_ids[0, 0]] = 50.0
    scores = score_words(bert, word_ids, folds)
    assert scores.correct == (word_ids == word_ids[0, 0]).sum().item()
    assert pseudo_perplexity(scores.log_probability / 30) > 1e6
    assert np.isfinite(pseudo_perplexity(-1e6))


def rates(bert: LanguageModel, vocabulary: Vocabulary, codes: list[list[int]]) -> list[list[float]]:
    """Round trips of text and of the tokenizer."""
    found = text_round_trips(bert, vocabulary, torch.tensor(codes))
    return [found["text_round_trip_rate"].tolist(), found["tokenizer_round_trip_rate"].tolist()]


def test_a_word_with_a_space_does_not_survive(bert: LanguageModel) -> None:
    """Read as two words, or as none at all."""
    vocabulary = Vocabulary("all", torch.arange(5), ("ant", "bat", "ant bat", "cat", "sea cow"))
    codes = torch.tensor([[0, 1, 3], [3, 2, 0], [1, 4, 1]])
    found = text_round_trips(bert, vocabulary, codes)
    assert found["text_round_trip_rate"].tolist() == [1, 0, 0]
    assert found["word_round_trip_rate"][0] == 1
    assert (found["word_round_trip_rate"][1:] < 1).all()


def test_words_that_the_tokenizer_splits_or_does_not_know_do_not_survive_it(bert: LanguageModel) -> None:
    known = bert.tokenizer.convert_ids_to_tokens([7, 8])
    vocabulary = Vocabulary("all", torch.tensor([7, 8, 9, 10]), (*known, "qzqzq", f"{known[0]}-{known[1]}"))
    assert rates(bert, vocabulary, [[0, 1], [0, 2], [3, 1]]) == [[1, 1, 1], [1, 0, 0]]


def test_the_first_word_is_read_like_the_others_where_words_carry_their_space(bert: LanguageModel) -> None:
    """As in RoBERTa: a word at the start of a text is another word than one after a space."""
    pieces = Tokenizer(models.WordLevel({"[UNK]": 0, "ant": 1, "Ġant": 2, "Ġbat": 3}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bert.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]")
    vocabulary = Vocabulary("whole-words", torch.tensor([2, 3]), ("ant", "bat"))
    assert rates(bert, vocabulary, [[0, 1], [0, 0], [1, 0]])[1] == [1, 1, 1]


CPU = torch.device("cpu")


class PooledColors(nn.Module):
    """Features: mean and maximum of each channel, of bytes; probabilities unless features are asked for."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        pixels = images.float() / 255.0
        features = torch.cat([pixels.mean((2, 3)), pixels.amax((2, 3))], dim=1)
        return features if return_features else features.softmax(1)


class PlainFeatures(nn.Module):
    """The same without a choice."""

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float() / 255.0
        return torch.cat([pixels.mean((2, 3)), pixels.amax((2, 3))], dim=1)


class PairDistance(nn.Module):
    """Compares images in [-1, 1], shaped as the lpips package shapes its answer."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second).abs().mean((1, 2, 3), keepdim=True)


class LPIPSFeatures(nn.Module):
    """Features of images in [0, 255] whose squared distance is the distance."""

    def forward(self, images: Tensor, resize_images: bool = True, return_lpips: bool = False) -> Tensor:
        if not return_lpips or resize_images:
            return images.flatten(1) * 0.0
        return images.mean((2, 3)) / 255.0


class OneNumber(nn.Module):
    """One distance for the whole batch."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second).abs().mean()


@pytest.fixture
def byte_pair() -> tuple[Tensor, Tensor]:
    """Images on the 256 levels of a byte, and other ones."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(0, 256, (40, 3, 9, 9), generator=generator) / 255 for _ in range(2))
    return first, second * 0.8


def scripted(module: nn.Module, folder: Path) -> Path:
    """The module as a TorchScript file."""
    path = folder / f"{type(module).__name__}.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(module).save(str(path))
    return path


@pytest.mark.parametrize("network", [PooledColors(), PlainFeatures()])
def test_frechet_distance_equals_its_formula(
    network: nn.Module, byte_pair: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    """In several batches; of copies it is zero, of a single image there is none."""
    distance = FrechetDistance(scripted(network, tmp_path), CPU)
    for images, copies in zip(*(batch.split(15) for batch in byte_pair), strict=True):
        distance.update(images, copies)
    plain = PlainFeatures()
    first, second = (plain((batch * 255).round().byte()).double().numpy() for batch in byte_pair)
    covariances = [np.cov(features, rowvar=False) for features in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root)
    assert distance.compute() == pytest.approx(expected, rel=1e-4)
    copies = FrechetDistance(scripted(network, tmp_path), CPU)
    copies.update(byte_pair[0][:1], byte_pair[0][:1])
    assert copies.compute() is None
    copies.update(byte_pair[0][1:], byte_pair[0][1:])
    assert copies.compute() == pytest.approx(0, abs=1e-6)


def test_perceptual_distance_of_both_kinds_of_networks(
    byte_pair: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    """One compares images around zero, the other gives features whose squared distance counts."""
    expected = 2 * (byte_pair[0] - byte_pair[1]).abs().mean((1, 2, 3))
    assert torch.allclose(
        PerceptualDistance(scripted(PairDistance(), tmp_path), CPU)(*byte_pair), expected, rtol=1e-4
    )
    expected = (byte_pair[0].mean((2, 3)) - byte_pair[1].mean((2, 3))).square().sum(1)
    assert torch.allclose(
        PerceptualDistance(scripted(LPIPSFeatures(), tmp_path), CPU)(*byte_pair), expected, rtol=1e-4
    )


def test_networks_that_do_not_fit_are_named(byte_pair: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Linear\.pt does not turn uint8 images"):
        FrechetDistance(scripted(nn.Linear(7, 5), tmp_path), CPU)
    with pytest.raises(ValueError, match="expected 40 distances"):
        PerceptualDistance(scripted(OneNumber(), tmp_path), CPU)(*byte_pair)
    with pytest.raises(ValueError, match=r"Bilinear\.pt cannot compare images"):
        PerceptualDistance(scripted(nn.Bilinear(2, 3, 1), tmp_path), CPU)(*byte_pair)
    with pytest.raises(ValueError, match=r"no network at .*absent\.pt: .* a name \(inception, alex, "):
        FrechetDistance(tmp_path / "absent.pt", CPU)
    weights = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match=r"weights\.pt is not a TorchScript file"):
        PerceptualDistance(weights, CPU)


def test_networks_by_name_need_their_extra() -> None:
    for what, make, name in (("rFID", FrechetDistance, "inception"), ("LPIPS", PerceptualDistance, "vgg")):
        with pytest.raises(ModuleNotFoundError, match=rf"{what} by name needs .*'pixlex\[perceptual\]'"):
            make(Path(name), CPU)
