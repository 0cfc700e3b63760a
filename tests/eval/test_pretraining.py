"""The evaluation of CB-ViLA's pretraining, and how pure codewords are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import pair_batch, tiny_cbvila

from pixlex.batch import ImageTextBatch, Words
from pixlex.config.cbvila import CBViLAObjectiveConfig
from pixlex.eval.codewords import codeword_purity
from pixlex.eval.pretraining import evaluate_pretraining
from pixlex.nn.masking import split_patches
from pixlex.objectives.cbvila import CBViLAObjective

TEXTS = ("about the class", "and all", "class and any other", "also")


def _objective(folder: Path, **settings: Any) -> CBViLAObjective:
    return CBViLAObjective(tiny_cbvila(folder), CBViLAObjectiveConfig(**settings), 10, 12)


def _batches(objective: CBViLAObjective, count: int = 2) -> Iterator[ImageTextBatch]:
    for number in range(count):
        yield pair_batch(objective.model, TEXTS, seed=number)


def test_numbers_against_a_slow_evaluation(language_folder: Path) -> None:
    """Codes, their entropy, and the errors of hidden and visible patches, written out."""
    objective = _objective(language_folder)
    model = objective.model
    result = evaluate_pretraining(objective, _batches(objective), progress=False)
    batches = list(_batches(objective))
    codes = torch.cat([model.tokenize(batch.images) for batch in batches])
    assert torch.equal(result.codes, codes)
    share = np.bincount(codes.flatten().numpy()) / codes.numel()
    entropy = -sum(one * math.log(one) for one in share if one)
    numbers = result.numbers
    assert numbers["eval/perplexity"] == pytest.approx(math.exp(entropy))
    assert numbers["eval/masked_image_gain"] == pytest.approx(entropy - numbers["eval/masked_image"])
    assert numbers["eval/num_images"] == 8
    assert set(result.means) > {"image_text_matching", "masked_language", "masked_image", "pixel"}
    examples = result.examples
    hidden = (examples.visible == 0.5).all(1)
    assert float(hidden.float().mean()) == pytest.approx(0.75)
    error = (examples.rebuilt - examples.originals).square().mean(1)
    assert numbers["eval/hidden_mse"] == pytest.approx(float(error[hidden].mean()), rel=1e-4)
    assert numbers["eval/visible_mse"] == pytest.approx(float(error[~hidden].mean()), rel=1e-4)
    assert examples.texts == TEXTS * 2
    assert not torch.equal(examples.rebuilt, examples.rebuilt_otherwise)


def test_rebuilding_sees_the_visible_patches_and_the_text_alone(language_folder: Path) -> None:
    """What lies under the mask does not matter; what is visible and what is said does."""
    model = tiny_cbvila(language_folder)
    batch = pair_batch(model, TEXTS)
    words = Words(batch.word_ids, batch.key_padding)
    split = split_patches(4, model.grid**2, 4, torch.Generator().manual_seed(0))
    before = model.reconstruct(batch.images, words, split)
    patches = model.patches(batch.images)
    patches.scatter_(1, split.hidden.unsqueeze(-1).expand(-1, -1, patches.shape[-1]), 0.3)
    torch.testing.assert_close(model.reconstruct(model.images(patches), words, split), before)
    other = Words(batch.word_ids.roll(1, 0), batch.key_padding.roll(1, 0))
    assert not torch.allclose(model.reconstruct(batch.images, other, split), before)


def test_patches_and_images_undo_each_other(language_folder: Path) -> None:
    """And a patch's numbers are its normalized pixels: row, column, channel."""
    model = tiny_cbvila(language_folder)
    images = torch.rand(2, 3, 32, 32)
    patches = model.patches(images)
    torch.testing.assert_close(model.images(patches), images)
    second = images[:, :, 0:8, 8:16].permute(0, 2, 3, 1).flatten(1)  # first row, second column
    torch.testing.assert_close(patches[:, 1], (second - 0.5) / 0.5)


def test_churn_is_the_share_of_codes_that_changed(language_folder: Path) -> None:
    objective = _objective(language_folder)
    first = evaluate_pretraining(objective, _batches(objective), progress=False)
    assert first.churn is None
    moved = first.codes.clone()
    moved[0] = (moved[0] + 1) % 16
    again = evaluate_pretraining(objective, _batches(objective), previous_codes=moved, progress=False)
    assert again.churn == pytest.approx(1 / 8)
    other = evaluate_pretraining(objective, _batches(objective), previous_codes=moved[:3], progress=False)
    assert other.churn is None  # of other images


def test_what_was_not_trained_is_not_measured(language_folder: Path) -> None:
    """Matching and masked words alone: no codes, no pictures, no errors of random heads."""
    objective = _objective(language_folder, pixel_weight=0.0, masked_image_weight=0.0)
    result = evaluate_pretraining(objective, _batches(objective), progress=False)
    assert result.codes is None
    assert result.examples is None
    assert not {"eval/hidden_mse", "eval/perplexity", "eval/churn"} & set(result.numbers)


def test_no_readable_image(language_folder: Path) -> None:
    with pytest.raises(ValueError, match="no image to evaluate"):
        evaluate_pretraining(_objective(language_folder), [], progress=False)


def test_purity_of_codewords_that_are_the_class_and_of_ones_that_are_not() -> None:
    """Codeword = class: purity 1, information the entropy of the classes; drawn at random: as if shuffled."""
    labels = torch.arange(300) % 3
    told = codeword_purity(labels.unsqueeze(1).expand(-1, 10), labels)
    assert told.purity == pytest.approx(1.0)
    assert told.information == pytest.approx(math.log(3))
    assert told.shuffled_purity < 0.5
    codes = torch.randint(5, (300, 10), generator=torch.Generator().manual_seed(0))
    blind = codeword_purity(codes, labels)
    assert blind.purity == pytest.approx(blind.shuffled_purity, abs=0.02)
    assert blind.information == pytest.approx(blind.shuffled_information, abs=0.01)


def test_purity_by_hand_and_without_classes() -> None:
    """Codeword 0: classes 0, 0, 1; codeword 1: class 1: three of four patches are of the most frequent class."""
    codes, labels = torch.tensor([[0, 0], [0, 1], [1, 1]]), torch.tensor([0, 1, -1])
    assert codeword_purity(codes, labels).purity == pytest.approx(3 / 4)
    with pytest.raises(ValueError, match="no image has a class"):
        codeword_purity(codes, torch.tensor([-1, -1, -1]))
