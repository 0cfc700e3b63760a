"""Evaluations of pretraining: of CB-ViLA against a slow one, of codewords by hand, of Frozen and of MAE."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import batches_of, pair_batch, tiny_cbvila, tiny_frozen, tiny_mae

from pixlex.batch import ImageTextBatch
from pixlex.config.cbvila import CBViLAObjectiveConfig
from pixlex.eval.evaluate import Pass
from pixlex.eval.pretraining import (
    codeword_purity,
    evaluate_captions,
    evaluate_masked_patches,
    evaluate_pretraining,
)
from pixlex.models.cbvila import split_patches
from pixlex.nn.bert import Words
from pixlex.objectives.cbvila import CBViLAObjective

QUIET = Pass(progress=False)
TEXTS = ("about the class", "and all", "class and any other", "also")


IMAGES = torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def _objective(folder: Path, **settings: Any) -> CBViLAObjective:
    return CBViLAObjective(tiny_cbvila(folder), CBViLAObjectiveConfig(**settings), 10, 12)


def _batches(objective: CBViLAObjective, count: int = 2) -> Iterator[ImageTextBatch]:
    for number in range(count):
        yield pair_batch(objective.model, TEXTS, seed=number)


def test_numbers_against_a_slow_evaluation(language: Path) -> None:
    """Codes, their entropy, and the errors of hidden and visible patches, written out."""
    objective = _objective(language)
    model = objective.model
    result = evaluate_pretraining(objective, _batches(objective), QUIET)
    batches = list(_batches(objective))
    codes = torch.cat([model.tokenize(batch.images) for batch in batches])
    assert torch.equal(result.rows["codes"], codes)
    share = np.bincount(codes.flatten().numpy()) / codes.numel()
    entropy = -sum(one * math.log(one) for one in share if one)
    numbers = result.values
    assert numbers["perplexity"] == pytest.approx(math.exp(entropy))
    assert numbers["masked_image_gain"] == pytest.approx(entropy - numbers["masked_image"])
    assert numbers["num_images"] == 8
    assert numbers.keys() > {"image_text_matching", "masked_language", "masked_image", "pixel"}
    examples = SimpleNamespace(**result.examples)
    hidden = (examples.visible == 0.5).all(1)
    assert float(hidden.float().mean()) == pytest.approx(0.75)
    error = (examples.reconstructions - examples.originals).square().mean(1)
    assert numbers["hidden_mse"] == pytest.approx(float(error[hidden].mean()), rel=1e-4)
    assert numbers["visible_mse"] == pytest.approx(float(error[~hidden].mean()), rel=1e-4)
    assert examples.texts == TEXTS * 2
    assert not torch.equal(examples.reconstructions, examples.other_reconstructions)


def test_rebuilding_sees_the_visible_patches_and_the_text_alone(language: Path) -> None:
    """What lies under the mask does not matter; what is visible and what is said does."""
    model = tiny_cbvila(language)
    batch = pair_batch(model, TEXTS)
    words = Words(batch.word_ids, batch.key_padding)
    split = split_patches(4, model.grid**2, 4, torch.Generator().manual_seed(0))
    before = model.reconstruct(batch.images, words, split)
    patches = model.patches(batch.images)
    patches.scatter_(1, split.hidden.unsqueeze(-1).expand(-1, -1, patches.shape[-1]), 0.3)
    torch.testing.assert_close(model.reconstruct(model.images(patches), words, split), before)
    other = Words(batch.word_ids.roll(1, 0), batch.key_padding.roll(1, 0))
    assert not torch.allclose(model.reconstruct(batch.images, other, split), before)


def test_churn_is_the_share_of_codes_that_changed(language: Path) -> None:
    objective = _objective(language)
    first = evaluate_pretraining(objective, _batches(objective), QUIET)
    assert "churn" not in first.values
    moved = first.rows["codes"].clone()
    moved[0] = (moved[0] + 1) % 16
    again = evaluate_pretraining(objective, _batches(objective), QUIET, previous_codes=moved)
    assert again.values["churn"] == pytest.approx(1 / 8)
    other = evaluate_pretraining(objective, _batches(objective), QUIET, previous_codes=moved[:3])
    assert "churn" not in other.values  # of other images


def test_what_was_not_trained_is_not_measured(language: Path) -> None:
    """Matching and masked words alone: no codes, no pictures, no errors of random heads."""
    objective = _objective(language, pixel_weight=0.0, masked_image_weight=0.0)
    result = evaluate_pretraining(objective, _batches(objective), QUIET)
    assert "codes" not in result.rows
    assert not result.examples
    assert not {"hidden_mse", "perplexity", "churn"} & result.values.keys()


def test_purity_of_codewords_that_are_the_class_and_of_ones_that_are_not() -> None:
    """Codeword = class: purity 1, information the entropy of the classes; drawn at random: as if shuffled."""
    labels = torch.arange(300) % 3
    told = codeword_purity(labels.unsqueeze(1).expand(-1, 10), labels)
    assert told["codeword_purity"] == pytest.approx(1.0)
    assert told["codeword_information"] == pytest.approx(math.log(3))
    assert told["codeword_shuffled_purity"] < 0.5
    codes = torch.randint(5, (300, 10), generator=torch.Generator().manual_seed(0))
    blind = codeword_purity(codes, labels)
    assert blind["codeword_purity"] == pytest.approx(blind["codeword_shuffled_purity"], abs=0.02)
    assert blind["codeword_information"] == pytest.approx(blind["codeword_shuffled_information"], abs=0.01)


def test_purity_by_hand_and_without_classes() -> None:
    """Codeword 0: classes 0, 0, 1; codeword 1: class 1: three of four patches are of the most frequent class."""
    codes, labels = torch.tensor([[0, 0], [0, 1], [1, 1]]), torch.tensor([0, 1, -1])
    assert codeword_purity(codes, labels)["codeword_purity"] == pytest.approx(3 / 4)
    with pytest.raises(ValueError, match="no image has a class"):
        codeword_purity(codes, torch.tensor([-1, -1, -1]))


def _captions(model: Any, size: int) -> Iterator[ImageTextBatch]:
    for first in range(0, 4, size):
        texts = TEXTS[first : first + size]
        words = model.language.encode(texts, 16)
        places = torch.arange(len(texts)) + first
        yield ImageTextBatch(
            IMAGES[first : first + size], torch.full((len(texts),), -1), texts, places, texts=texts,
            image_ids=places, word_ids=words.word_ids, key_padding=words.key_padding,
        )  # fmt: skip


def test_captions_against_one_at_a_time(causal_language: Path) -> None:
    """The same in batches of any size; the other image is the one before in the batch."""
    model = tiny_frozen(causal_language)

    def mean(images: torch.Tensor) -> float:
        scores, count = 0.0, 0
        for image, text in zip(images, TEXTS, strict=True):
            words = model.language.encode([text], 16)
            prompt = model.prompt(model.prefix(image.unsqueeze(0)))
            scores += float(model.score(prompt, words.word_ids, words.key_padding))
            count += words.word_ids.numel()
        return -scores / count

    whole = evaluate_captions(model, _captions(model, 4), QUIET, max_words=4).values
    assert whole["num_images"] == 4
    assert whole["caption"] == pytest.approx(mean(IMAGES[:4]), rel=1e-4)
    assert whole["other_image_caption"] == pytest.approx(mean(IMAGES[:4].roll(1, dims=0)), rel=1e-4)
    assert whole["caption"] != pytest.approx(whole["other_image_caption"], rel=1e-4)
    single = evaluate_captions(model, _captions(model, 1), Pass(progress=False, save_examples=3), max_words=4)
    assert single.values == {"num_images": 4, "caption": pytest.approx(whole["caption"], rel=1e-4)}
    assert single.examples["texts"] == TEXTS[:3]
    assert single.examples["written"] == tuple(model.caption(IMAGES[:3], 4))


@pytest.mark.parametrize("normalize", [True, False])
def test_masked_patches_do_not_depend_on_the_batches(normalize: bool) -> None:
    """One by one, in threes, all at once."""
    model = tiny_mae().train()
    one, *others = (
        evaluate_masked_patches(model, batches_of(IMAGES, size), QUIET, normalize=normalize)
        for size in (1, 3, 7)
    )
    for other in others:
        assert other.values == pytest.approx(one.values, rel=1e-5)
        torch.testing.assert_close(other.examples["reconstructions"], one.examples["reconstructions"])
    assert model.training
    seeded = evaluate_masked_patches(model, batches_of(IMAGES, 7), QUIET, normalize=normalize, seed=1)
    assert seeded.values["masked_patches"] != pytest.approx(one.values["masked_patches"], rel=1e-5)


def test_a_perfect_prediction_has_no_error_and_a_flat_one_that_of_the_constant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The patches themselves; their means; and the pictures that come of the first."""
    model = tiny_mae()
    forward = model.forward

    def replaced(images: torch.Tensor, noise: torch.Tensor) -> object:
        output = forward(images, noise)
        patches = model.patches(images)
        output.predicted.copy_(patches if perfect else patches.mean(-1, keepdim=True).expand_as(patches))
        return output

    monkeypatch.setattr(model, "forward", replaced)
    perfect = True
    five = Pass(progress=False, save_examples=5)
    result = evaluate_masked_patches(model, batches_of(IMAGES, 4), five, normalize=False)
    assert result.values["masked_patches"] == 0
    assert result.values["flat_patches"] > 0.1
    torch.testing.assert_close(result.examples["reconstructions"], IMAGES[:5])
    hidden = ((result.examples["visible"] - result.examples["originals"]).abs() > 1e-5).any(1).float().mean()
    assert float(hidden) == pytest.approx(0.75, abs=0.01)
    perfect = False
    values = evaluate_masked_patches(model, batches_of(IMAGES, 4), five, normalize=False).values
    assert values["masked_patches"] == pytest.approx(values["flat_patches"])
