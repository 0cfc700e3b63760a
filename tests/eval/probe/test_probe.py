"""The probe: what it may look at, what it chooses, what it counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import binomtest
from tests.eval.probe.test_classifier import part_of

from pixlex.eval.intervals import wilson_interval
from pixlex.eval.probe import classifier, probe
from pixlex.eval.probe.classifier import Part, fit
from pixlex.eval.probe.probe import credit, linear_probe, validation_rows


def noise(count: int, num_classes: int, width: int = 10, seed: int = 0) -> Part:
    """Features that know nothing of the classes."""
    features = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return Part(features, np.arange(count), np.arange(count) % num_classes)


def test_labels_of_test_images_change_the_measure_alone() -> None:
    train, test = part_of(6, 300), part_of(6, 120, seed=1)
    result = linear_probe(train, test, 6)
    shuffled = dataclasses.replace(test, labels=np.random.default_rng(3).permutation(test.labels))
    blind = linear_probe(train, shuffled, 6)
    assert blind.classifier.weight.tobytes() == result.classifier.weight.tobytes()
    assert blind.classifier.bias.tobytes() == result.classifier.bias.tobytes()
    assert blind.penalty == result.penalty
    assert blind.validation_accuracy == result.validation_accuracy
    assert blind.top1 < result.top1


def test_features_of_test_images_do_not_reach_the_classifier() -> None:
    train, test = part_of(3), part_of(3, 90, seed=1)
    other = dataclasses.replace(test, features=test.features * 3 + 7)
    first, second = linear_probe(train, test, 3), linear_probe(train, other, 3)
    assert first.classifier.weight.tobytes() == second.classifier.weight.tobytes()
    assert first.classifier.scaling.mean.tobytes() == second.classifier.scaling.mean.tobytes()


def test_the_last_fit_is_on_all_training_images_with_the_best_strength() -> None:
    train, test = part_of(4, 200), part_of(4, 100, seed=1)
    result = linear_probe(train, test, 4)
    best = max(result.validation_accuracy)
    assert result.penalty == result.penalties[result.validation_accuracy.index(best)]
    (expected,) = fit(train, 4, [result.penalty], method="lbfgs")
    assert result.classifier.weight.tobytes() == expected.weight.tobytes()
    assert (result.num_train, result.num_validation, result.num_test) == (200, 40, 100)


def test_a_given_validation_set_chooses_and_is_not_fitted_on() -> None:
    train, test, validation = part_of(4, 120), part_of(4, 100, seed=1), part_of(4, 80, seed=2)
    result = linear_probe(train, test, 4, validation=validation)
    (expected,) = fit(train, 4, [result.penalty], method="lbfgs")
    assert result.classifier.weight.tobytes() == expected.weight.tobytes()
    accuracies = [
        credit(one.logits(validation), validation.labels, 1).mean()
        for one in fit(train, 4, result.penalties, method="lbfgs")
    ]
    assert list(result.validation_accuracy) == accuracies
    assert result.num_validation == 80


def test_strong_penalties_are_chosen_where_features_mislead() -> None:
    """Forty images in sixty columns: without a penalty any labels can be learned by heart."""
    train, test = part_of(2, 40, 60), part_of(2, 400, 60, seed=1)
    result = linear_probe(train, test, 2)
    assert result.penalty > min(probe.PENALTIES)
    assert result.top1 > 0.8


@pytest.mark.parametrize("method", ["lbfgs", "minibatch"])
def test_knowledge_and_ignorance(method: classifier.Method) -> None:
    known = linear_probe(part_of(8, 320, 30), part_of(8, 160, 30, seed=1), 8, method=method)
    assert known.top1 > 0.9
    assert known.top5 is not None
    assert known.top5 >= known.top1
    unknown = linear_probe(noise(320, 8), noise(400, 8, seed=1), 8, method=method)
    assert abs(unknown.top1 - 1 / 8) < 0.07
    assert unknown.method == known.method == method


def test_features_without_any_difference_are_right_by_chance() -> None:
    """A classifier that scores all classes alike would be right every time, if the first of them counted."""
    blank = Part(np.ones((60, 4), np.float32), np.arange(60), np.arange(60) % 6)
    one_class = Part(np.ones((12, 4), np.float32), np.arange(12), np.zeros(12, np.int64))
    result = linear_probe(blank, one_class, 6)
    assert result.top1 == pytest.approx(1 / 6)
    assert result.top5 == pytest.approx(5 / 6)
    assert result.majority == 1.0
    assert result.chance == pytest.approx(1 / 6)


def test_counts() -> None:
    test = part_of(7, 70, seed=1)
    without_last = test.chosen(np.flatnonzero(test.labels != 6))
    result = linear_probe(part_of(7, 140), without_last, 7)
    assert result.confusion.sum() == 60
    assert result.confusion.sum(1).tolist() == [10] * 6 + [0]
    np.testing.assert_allclose(result.class_accuracy[:6], np.diag(result.confusion)[:6] / 10)
    assert np.isnan(result.class_accuracy[6])
    assert result.top1 == pytest.approx(np.trace(result.confusion) / 60)
    predictions = result.classifier.logits(without_last)
    five = [label in row.argsort()[-5:] for row, label in zip(predictions, without_last.labels, strict=True)]
    assert result.top5 == pytest.approx(np.mean(five))
    assert result.top1_interval == wilson_interval(result.top1, 60)
    assert (result.width, result.repeats) == (12, 1)
    few = linear_probe(part_of(5), part_of(5, 50, seed=1), 5, repeats=3)
    assert (few.top5, few.top5_interval, few.width) == (None, None, 36)


@pytest.mark.parametrize(("right", "count"), [(0, 7), (3, 11), (50, 50), (397, 1000)])
def test_wilson_interval_is_scipys(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_credit_of_ties_is_shared() -> None:
    logits = np.array([[1, 1, 1, 0], [2, 1, 1, 1], [0, 3, 2, 1]], np.float32)
    labels = np.array([0, 3, 1])
    np.testing.assert_allclose(credit(logits, labels, 1), [1 / 3, 0, 1])
    np.testing.assert_allclose(credit(logits, labels, 2), [2 / 3, 1 / 3, 1])
    np.testing.assert_allclose(credit(logits, labels, 3), [1, 2 / 3, 1])


def test_the_validation_part_is_drawn_from_every_class() -> None:
    labels = np.repeat(np.arange(4), [2, 3, 50, 101])
    rows = validation_rows(labels, seed=0)
    assert np.bincount(labels[rows]).tolist() == [1, 1, 10, 20]
    assert len(np.unique(rows)) == len(rows)
    assert np.array_equal(rows, validation_rows(labels, seed=0))
    assert not np.array_equal(rows, validation_rows(labels, seed=1))


def test_the_search_ends_when_it_only_gets_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PENALTIES", tuple(10.0**power for power in range(2, -9, -1)))
    result = linear_probe(part_of(2, 40, 60), part_of(2, 40, 60, seed=1), 2)
    best = result.penalties.index(result.penalty)
    assert len(result.penalties) in (best + 1 + 3, len(probe.PENALTIES))
    assert len(result.penalties) == len(result.validation_accuracy)


def test_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = part_of(3), part_of(3, 60, seed=1)
    assert "chosen on 48 images only" in " ".join(linear_probe(train, test, 3).notes)
    monkeypatch.setattr(classifier, "_MAX_ITERATIONS", 1)
    assert "before it met its tolerance" in " ".join(linear_probe(train, test, 3).notes)
    monkeypatch.setattr(probe, "PENALTIES", (0.1,))
    assert "at the edge of the search" in " ".join(linear_probe(train, test, 3).notes)
